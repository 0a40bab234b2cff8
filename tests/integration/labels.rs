//! Labels of runs, and filtering by them.
