//! Durable jobs inside your process: typed jobs made of named steps, each step's result on disk before the run goes on.
//!
//! Kill the process anywhere and start it again: every unfinished run goes on after its last finished step. There is no
//! server; everything is in one redb file. This crate starts from the behaviour of the TypeScript library Durably and is an
//! independent implementation.
//!
//! ```
//! use durably::{Durably, Job, Step};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), durably::Error> {
//! let double = Job::new("double", |step: Step, n: u32| async move {
//!     let doubled = step.run("double", || async { Ok(n * 2) }).await?;
//!     Ok(doubled)
//! });
//! let durably = Durably::in_memory().await?;
//! let double = durably.register(double)?;
//! let run = double.trigger(21).idempotency_key("answer").label("tenant", "acme").await?;
//! assert_eq!(run.output().await?, 42);
//! durably.shutdown().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Where to start
//!
//! - [`Job::new`] defines a job, [`Durably::open`] a runtime, [`Durably::register`] gives a [`JobHandle`].
//! - [`JobHandle::trigger`] asks for a run; its options are on the returned builder, which is awaited.
//! - [`Durably::schedule`] has the clock ask for runs.
//! - [`Step::run`] is a step. What it promises stands there: outcomes are stored, keys match, dropping one is safe.
//! - [`Retry`] says how a step that fails is tried again, [`Job::deadline`] when a run must have ended.
//! - [`Durably::events`] and [`Durably::subscribe`] tell what happens.
//! - [`Durably::actor_ref`] takes [`SupervisorMsg`]s from other ractor actors.
//! - [`limits`] has every limit. [`Error::advice`] says what a caller can do about an error.
//!
//! # Features
//!
//! - `validate` (default): constraints of JSON Schemas are checked when triggering and completing. Without it only types are.
//! - `testing`: the module `testing`, a test kit, for dev-dependencies. Never turn it on in what is shipped.

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
mod hash;
mod hooks;
mod id;
mod job;
pub mod limits;
mod quietly;
mod run;
mod schedule;
mod step;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod time;
mod trigger;

pub use actor::message::{Reply, ScheduleRequest, SupervisorMsg, TriggerReply, TriggerRequest};
pub use config::{LogRetention, StepRetention};
pub use durably::{
    Builder, Durably, ForkRequest, ForkRun, Health, JobInfo, JobStats, Paused, PendingCheck, ResumeRun, Stats,
    Unreadable,
};
pub use error::{Advice, Error};
pub use event::{Event, EventKind, Events, Payload as EventPayload, Received, RunEvents};
pub use id::{ParseRunIdError, RunId};
pub use job::{ErrorKind, Job, JobError, JobHandle, JobResult, Payload, RateLimit, Register, Retry};
pub use run::{
    Explanation, Holder, ItemCounts, LogLevel, LogLine, Obstacle, OpenStep, ParseStatusError, Progress, Run, RunError,
    RunFilter, RunHandle, RunStatus, StepInfo, StepKind, StepStatus, Try, WaitingFor,
};
pub use schedule::{Missed, ScheduleBuilder, ScheduleCall, ScheduleInfo, Scheduled};
pub use step::{
    Collect, ItemCx, Logger, MapRun, Mapped, ProgressReport, Step, StepCx, StepKey, StepMap, StepRace, StepRun,
    StepWait, Stop, Won,
};
pub use store::compact::Compaction;
pub use store::verify::{Problem, Verification, verify};
pub use time::{Clock, SystemClock, Timer, Timestamp};
pub use tokio_util::sync::CancellationToken;
pub use trigger::{
    Disposition, Finished, JsonTrigger, OnConflict, StepCall, Trigger, TriggerAndWait, TriggerCall, WaitForRun,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
