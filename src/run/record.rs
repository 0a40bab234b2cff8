//! A run as it is stored, and the rows that belong to it.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::RunStatus;
use crate::error::Error;
use crate::id::RunId;
use crate::job::ErrorKind;
use crate::schedule::Scheduled;
use crate::time::Timestamp;

/// One durable execution of a job, as the file has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Run {
    /// Its id: 26 characters, growing in trigger order.
    pub id: RunId,
    /// The job it is a run of.
    pub job_name: String,
    /// The input as stored: validated, with defaults applied. `None` when read without payloads.
    pub input: Option<Value>,
    /// Where it stands.
    pub status: RunStatus,
    /// The idempotency key given at the trigger.
    pub idempotency_key: Option<String>,
    /// The first concurrency key given at the trigger.
    pub concurrency_key: Option<String>,
    /// All concurrency keys given at the trigger, in that order.
    #[serde(default)]
    pub concurrency_keys: Vec<String>,
    /// The priority given at the trigger; 0 without one.
    #[serde(default)]
    pub priority: i8,
    /// One more than the highest index among its completed steps; 0 before the first.
    pub current_step_index: u32,
    /// Steps that completed.
    pub completed_step_count: u32,
    /// The last progress reported; stays after the end.
    pub progress: Option<Progress>,
    /// The output of a completed run. `None` before that, and when read without payloads.
    pub output: Option<Value>,
    /// What ended a failed run.
    pub error: Option<RunError>,
    /// Labels given at the trigger.
    pub labels: BTreeMap<String, String>,
    /// While leased: the runtime that holds the lease.
    pub lease_owner: Option<String>,
    /// Always `None` in an embedded runtime: the file's lock keeps others out, so no lease expires.
    pub lease_expires_at: Option<Timestamp>,
    /// The fencing token: how often the run has been leased. Never decreases.
    pub lease_generation: u64,
    /// When it was leased first; later leases leave it.
    pub started_at: Option<Timestamp>,
    /// When it ended. A resume clears it.
    pub completed_at: Option<Timestamp>,
    /// When it was triggered.
    pub created_at: Timestamp,
    /// When a completed step, progress or a change of status was last recorded.
    pub updated_at: Timestamp,
    /// Times it was taken up again after a crash.
    pub recoveries: u32,
    /// The run whose step triggered it.
    pub parent: Option<RunId>,
    /// It does not start before this. `None` once it was resumed, which asks for it at once.
    pub not_before: Option<Timestamp>,
    /// It fails if it has not ended by now. `None` if there is no such moment, and once it was resumed.
    pub deadline: Option<Timestamp>,
    /// The schedule that triggered it.
    pub schedule: Option<Scheduled>,
    /// The run it was retriggered from.
    pub retriggered_from: Option<RunId>,
    /// The run it was [forked](crate::Durably::fork) from: it began with checkpoints of that one.
    pub forked_from: Option<RunId>,
    /// The run it goes on for, by [`Step::continue_as_new`](crate::Step::continue_as_new).
    pub continued_from: Option<RunId>,
    /// The run that goes on for it. Such a run has completed, and its output is null.
    pub continued_as: Option<RunId>,
    /// The [version](crate::Job::version) of the code that it was triggered with.
    pub version: u32,
    /// The run that took its place in line.
    pub replaced_by: Option<RunId>,
    /// Why a pending run is not started though there is room: the registered code can't decode its stored input.
    pub blocked: Option<String>,
}

impl Run {
    /// Whether it has ended.
    pub fn is_terminal(&self) -> bool {
        self.status.is_terminal()
    }

    /// The output as a type.
    ///
    /// # Errors
    /// [`Error::Decode`] if there is no output (the run has not completed, was read without payloads, or gave `null` and has been JSON
    /// itself since, which does not tell that from none) or it does not fit.
    pub fn output_as<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let output = self.output.as_ref().ok_or_else(|| Error::absent("output", "there is none"))?;
        crate::job::schema::decode_value(output).map_err(|error| Error::decode("output", error))
    }
}

/// How far a run has come, as its body reported it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Progress {
    /// What is done, in the body's own unit.
    pub current: u64,
    /// What there is to do, in the same unit, if known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub total: Option<u64>,
    /// A few words for people.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message: Option<String>,
}

/// What ended a run, or a step, in failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunError {
    /// What sort of failure it was.
    pub kind: ErrorKind,
    /// The message of the outermost error.
    pub message: String,
    /// The messages of its sources, outermost first.
    pub chain: Vec<String>,
    /// The step it came from, if it was a step's.
    pub step: Option<String>,
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for RunError {}

/// A checkpoint: the stored outcome of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct StepInfo {
    /// The run it belongs to.
    pub run_id: RunId,
    /// Its key, `sync[42]` for a key of two parts.
    pub name: String,
    /// Its index: given when the step was first called, growing, never renumbered.
    pub index: u32,
    /// What sort of step it is.
    pub kind: StepKind,
    /// The [version](crate::Job::version) of the code that recorded it.
    pub version: u32,
    /// The execution that completed the run did not ask for it: the code has changed. Among the first 1,000 such steps of a
    /// run.
    pub unused: bool,
    /// How it came out.
    pub status: StepStatus,
    /// What it waits for, while it is [`Waiting`](StepStatus::Waiting).
    pub waiting_for: Option<WaitingFor>,
    /// How far its items are, of a map.
    pub items: Option<ItemCounts>,
    /// What it returned; of a map, a summary.
    pub output: Option<Value>,
    /// What it failed with.
    pub error: Option<RunError>,
    /// Attempts that have ended: all that it took, if it has an outcome.
    pub attempts: u32,
    /// The attempts that failed, oldest first: of more than 32, the newest.
    pub tries: Vec<Try>,
    /// When its body was started first.
    pub started_at: Timestamp,
    /// When its body had returned; of one that waits, when that began.
    pub completed_at: Timestamp,
}

/// An attempt of a step that failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Try {
    /// Which attempt, from 1.
    pub number: u32,
    /// With what it failed. Of an attempt that was followed by another, message and chain are cut at 4 KiB in all.
    pub error: RunError,
    /// When its body was started.
    pub started_at: Timestamp,
    /// When its body had returned.
    pub failed_at: Timestamp,
}

/// What sort of step it is. A key belongs to one sort: code that asks for another under it ends the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum StepKind {
    /// A piece of work: [`Step::run`](crate::Step::run) and its kin.
    Run,
    /// A pause: [`Step::sleep`](crate::Step::sleep).
    Sleep,
    /// A signal: [`Step::wait_signal`](crate::Step::wait_signal).
    Signal,
    /// A child that goes its own way: [`Step::trigger`](crate::Step::trigger).
    Trigger,
    /// A child whose end is waited for: [`Step::call`](crate::Step::call).
    Call,
    /// A choice among steps: [`Step::race`](crate::Step::race).
    Race,
    /// Many items: [`Step::map`](crate::Step::map).
    Map,
}

impl StepKind {
    /// On disk, in place of a kind: some of a map's items. Such a record is no step.
    pub(crate) const SEGMENT: u8 = u8::MAX;

    const NUMBERED: [StepKind; 7] = [
        StepKind::Run,
        StepKind::Sleep,
        StepKind::Signal,
        StepKind::Trigger,
        StepKind::Call,
        StepKind::Race,
        StepKind::Map,
    ];

    /// The number on disk, part of the file format.
    pub(crate) const fn to_byte(self) -> u8 {
        match self {
            StepKind::Run => 0,
            StepKind::Sleep => 1,
            StepKind::Signal => 2,
            StepKind::Trigger => 3,
            StepKind::Call => 4,
            StepKind::Race => 5,
            StepKind::Map => 6,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<StepKind> {
        Self::NUMBERED.get(usize::from(byte)).copied()
    }
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            StepKind::Run => "run",
            StepKind::Sleep => "sleep",
            StepKind::Signal => "signal",
            StepKind::Trigger => "trigger",
            StepKind::Call => "call",
            StepKind::Race => "race",
            StepKind::Map => "map",
        })
    }
}

/// How far the items of a map are, as far as it is on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ItemCounts {
    /// All of them.
    pub total: u64,
    /// Those that gave a value.
    pub completed: u64,
    /// Those that failed and were let be.
    pub failed: u64,
}

/// What a step waits for: the first of these that comes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct WaitingFor {
    /// A moment.
    pub until: Option<Timestamp>,
    /// A signal of this name.
    pub signal: Option<String>,
    /// The end of this run.
    pub run: Option<RunId>,
}

/// How a step came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum StepStatus {
    /// It returned a value.
    Completed,
    /// It failed for good.
    Failed,
    /// It has no outcome yet: what it waits for has not come, or it is to be tried again.
    Waiting,
    /// Some of its items are done.
    Running,
}

/// How much a log line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LogLevel {
    /// What happens.
    Info,
    /// What should be looked at.
    Warn,
    /// What went wrong.
    Error,
}

impl LogLevel {
    pub(crate) const fn to_byte(self) -> u8 {
        match self {
            LogLevel::Info => 0,
            LogLevel::Warn => 1,
            LogLevel::Error => 2,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> LogLevel {
        match byte {
            0 => LogLevel::Info,
            1 => LogLevel::Warn,
            _ => LogLevel::Error,
        }
    }
}

/// A stored log line of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct LogLine {
    /// The run that wrote it.
    pub run_id: RunId,
    /// Its number within the run, from 0; gaps at the front are lines that were dropped.
    pub number: u32,
    /// How much it matters.
    pub level: LogLevel,
    /// The step in whose body it was written.
    pub step_name: Option<String>,
    /// The text.
    pub message: String,
    /// The fields, or null.
    pub data: Value,
    /// When it was written.
    pub created_at: Timestamp,
}
