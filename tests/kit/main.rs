//! The test kit, used as its users use it.

mod support;
mod time;
