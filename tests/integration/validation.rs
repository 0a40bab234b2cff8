//! What is checked before anything is written, and before a run completes.
