//! Jobs and their registration.
