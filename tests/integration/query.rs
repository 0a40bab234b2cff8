//! Reading runs.
