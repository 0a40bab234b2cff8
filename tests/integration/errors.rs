//! What a caller learns from an error.
