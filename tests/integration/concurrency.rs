//! Concurrency keys, and how many runs execute at a time.
