//! The test kit, used as its users use it.

mod crash;
mod support;
mod time;
