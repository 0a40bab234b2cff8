//! Asking for runs, and the record that a run becomes.
