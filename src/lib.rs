//! Durable jobs inside your process: typed jobs made of named steps, each step's result on disk before the run goes on.

#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod actor;
mod codec;
mod config;
mod durably;
mod engine;
mod error;
mod event;
mod id;
mod job;
pub mod limits;
mod run;
mod step;
mod store;
mod time;
mod trigger;

pub use actor::message::{Reply, SupervisorMsg, TriggerReply, TriggerRequest};
pub use config::{LogRetention, StepRetention};
pub use durably::{Builder, Durably, Health, JobInfo, JobStats, ResumeRun, Stats};
pub use error::{Advice, Error};
pub use event::{Event, EventKind, Events, Payload as EventPayload, Received, RunEvents};
pub use id::{ParseRunIdError, RunId};
pub use job::{ErrorKind, Job, JobError, JobHandle, JobResult, Payload, Register};
pub use run::{
    LogLevel, LogLine, ParseStatusError, Progress, Run, RunError, RunFilter, RunHandle, RunStatus, StepInfo, StepStatus,
};
pub use step::{Logger, ProgressReport, Step, StepCx, StepKey, StepRun};
pub use time::{Clock, SystemClock, Timestamp};
pub use tokio_util::sync::CancellationToken;
pub use trigger::{Disposition, Finished, JsonTrigger, OnConflict, Trigger, TriggerAndWait, TriggerCall, WaitForRun};
