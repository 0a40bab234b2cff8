//! Runs: their record, states and filters, and the handle that a trigger gives.

mod explanation;
mod filter;
mod handle;
mod record;
mod status;

pub use explanation::{Explanation, Holder, Obstacle, OpenStep};
pub use filter::RunFilter;
pub use handle::RunHandle;
pub use record::{
    ItemCounts, LogLevel, LogLine, Progress, Run, RunError, StepInfo, StepKind, StepStatus, Try, WaitingFor,
};
pub use status::{ParseStatusError, RunStatus};
