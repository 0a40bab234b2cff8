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
//! - [`assert_crash_safe`], [`CrashSafety`]: a job is cut off at every point at which a process can die, and must end as if it
//!   had not been; [`Effects`] counts what its steps do to the world meanwhile.
//!
//! [`suites`] is for this library's own tests.

mod clock;
mod crash;
mod effects;
mod memory;
mod mocks;
mod rig;
mod runtime;
pub mod suites;

pub use clock::TestClock;
pub use crash::{CrashReport, CrashSafety, NotCrashSafe, Violation, assert_crash_safe};
pub use effects::Effects;
pub use mocks::{StepCallInfo, Times, always, times};
pub(crate) use rig::{Motion, Rig, staged, watched};
pub use runtime::{Crashed, Stuck, TestRuntime, TestRuntimeBuilder};
