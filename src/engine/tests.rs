//! The engine as tables of cases.
