//! A test kit for jobs: time moved by hand, steps and signals mocked, crashes at every point.
//!
//! The feature `testing` is for `[dev-dependencies]`, and never for what is shipped:
//!
//! ```toml
//! [dev-dependencies]
//! durably = { version = "0.1", features = ["testing"] }
//! ```
//!
//! - [`TestRuntime`]: a runtime in memory whose clock the test moves. A run that sleeps three days takes no time.
//! - [`TestRuntime::fail_step`], [`TestRuntime::mock_step`] and their like: what happens in the place of a step.
//! - [`TestRuntime::crash`]: the process dies, and starts again over what it has left on disk.
//!
//! [`suites`] is for this library's own tests.

mod clock;
mod memory;
mod mocks;
mod rig;
mod runtime;
pub mod suites;

pub use clock::TestClock;
pub use mocks::{StepCallInfo, Times, always, times};
pub(crate) use rig::{Motion, Rig, staged, watched};
pub use runtime::{Crashed, Stuck, TestRuntime, TestRuntimeBuilder};
