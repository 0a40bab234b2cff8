//! Runs: their record, states and filters, and the handle that a trigger gives.

mod filter;
mod handle;
mod record;
mod status;

pub use filter::RunFilter;
pub use handle::RunHandle;
pub use record::{LogLevel, LogLine, Progress, Run, RunError, StepInfo, StepKind, StepStatus, Try, WaitingFor};
pub use status::{ParseStatusError, RunStatus};
