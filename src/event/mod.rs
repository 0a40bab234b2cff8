//! What happened: every committed transition in commit order, and the liveliness in between.

mod bell;
pub(crate) mod ring;
mod stream;
mod told;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub(crate) use bell::{Bell, Ended};
pub(crate) use ring::{Reader, Ring, Wakers};
pub use stream::{Events, Received, RunEvents};
pub(crate) use told::{StepTold, Subject, Told, What};

use crate::error::Error;
use crate::id::RunId;
use crate::limits::EVENT_PAYLOAD_BYTES_MAX;
use crate::run::{LogLevel, Progress, RunError};
use crate::time::Timestamp;

/// Something that happened to a run.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// For a committed event its own number: it grows by one with each, in commit order, over restarts too. An uncommitted
    /// event carries the number of the last committed one before it. 0 in the snapshot that begins a run's own stream.
    pub sequence: u64,
    /// Whether this is on disk. Step starts, progress and log lines are told as they happen, before they are.
    pub committed: bool,
    /// When it happened, by the wall clock.
    pub timestamp: Timestamp,
    /// The run it happened to.
    pub run_id: RunId,
    /// The run's job.
    pub job_name: Arc<str>,
    /// The run's labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to a run.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum EventKind {
    /// It was created, by a trigger, a batch or a retrigger.
    RunTriggered {
        /// The stored input.
        input: Payload,
    },
    /// A trigger was answered with this waiting run instead of a new one. Nothing is written for that, so alone in its commit
    /// it counts as uncommitted.
    RunCoalesced {
        /// The input that was not used.
        skipped_input: Payload,
        /// The labels that were not used.
        skipped_labels: BTreeMap<String, String>,
    },
    /// Its lease was given to a run actor: its body starts.
    RunLeased {
        /// The stored input.
        input: Payload,
        /// The runtime that holds the lease.
        lease_owner: Arc<str>,
        /// The lease's generation.
        generation: u64,
    },
    /// It is pending again: handed back by a shutdown, or found leased after a crash.
    RunReleased {
        /// Whether a crash was the reason.
        crashed: bool,
    },
    /// It stays pending: the registered code can't decode its stored input.
    RunBlocked {
        /// What the decoder said.
        reason: String,
    },
    /// A failed or cancelled run was put back in line.
    RunResumed,
    /// All that its body waits for is stored: a moment, a signal, a child. It keeps its concurrency key and takes no slot.
    RunSuspended {
        /// When it goes on at the latest; `None` if only a signal or a child wakes it.
        until: Option<Timestamp>,
    },
    /// Something that a suspended run waits for has come: it is pending again, first in line.
    RunWoken,
    /// It was sent a signal.
    RunSignalled {
        /// The signal's name.
        name: Arc<str>,
    },
    /// Its body reported progress. Uncommitted.
    RunProgress {
        /// How far it is.
        progress: Progress,
    },
    /// It completed.
    RunCompleted {
        /// The stored output.
        output: Payload,
        /// How long this execution took.
        duration: Duration,
    },
    /// It completed, and another run goes on for it.
    RunContinued {
        /// The run that does.
        next: RunId,
    },
    /// A run that has completed has steps that the execution which completed it did not ask for: the code has changed. They
    /// are kept.
    StepsUnused {
        /// Their keys; the first of them, if they are many.
        keys: Vec<String>,
        /// How many there are.
        count: usize,
    },
    /// It failed.
    RunFailed {
        /// With what; its `step` names the step whose error ended the run.
        error: RunError,
    },
    /// It was cancelled, or replaced.
    RunCancelled {
        /// The run that took its place.
        replaced_by: Option<RunId>,
    },
    /// It was deleted, or purged.
    RunDeleted,
    /// A step's body starts; replayed steps say nothing. Uncommitted.
    StepStarted {
        /// The step's key.
        step: Arc<str>,
        /// Its index.
        index: u32,
    },
    /// A step's output was recorded.
    StepCompleted {
        /// The step's key.
        step: Arc<str>,
        /// Its index.
        index: u32,
        /// What it returned.
        output: Payload,
        /// How long its body took.
        duration: Duration,
    },
    /// A step's final failure was recorded.
    StepFailed {
        /// The step's key.
        step: Arc<str>,
        /// Its index.
        index: u32,
        /// With what it failed.
        error: RunError,
    },
    /// What a step waits for was recorded.
    StepWaiting {
        /// The step's key.
        step: Arc<str>,
        /// Its index.
        index: u32,
    },
    /// An attempt of a step failed, and it is to be tried again.
    StepRetrying {
        /// The step's key.
        step: Arc<str>,
        /// Its index.
        index: u32,
        /// The attempt that failed, from 1.
        attempt: u32,
        /// With what.
        error: RunError,
        /// When the next one is due.
        until: Timestamp,
    },
    /// A step returned after its run was cancelled: nothing of it was recorded. Uncommitted.
    StepCancelled {
        /// The step's key.
        step: Arc<str>,
        /// Its index.
        index: u32,
    },
    /// The body wrote a log line. Uncommitted.
    LogWritten {
        /// The step in whose body it was written.
        step: Option<Arc<str>>,
        /// How much it matters.
        level: LogLevel,
        /// The text.
        message: String,
        /// The fields, or null.
        data: Value,
    },
    /// What a step has stored could not be read back from memory, for the event that would have told of it. What is on disk is
    /// not affected.
    RuntimeError {
        /// What, in words.
        message: String,
    },
}

impl EventKind {
    /// The kind's name on the wire: `run:trigger`, `step:complete`, …
    pub fn name(&self) -> &'static str {
        match self {
            EventKind::RunTriggered { .. } => "run:trigger",
            EventKind::RunCoalesced { .. } => "run:coalesced",
            EventKind::RunLeased { .. } => "run:leased",
            EventKind::RunReleased { .. } => "run:released",
            EventKind::RunBlocked { .. } => "run:blocked",
            EventKind::RunResumed => "run:resume",
            EventKind::RunSuspended { .. } => "run:suspend",
            EventKind::RunWoken => "run:wake",
            EventKind::RunSignalled { .. } => "run:signal",
            EventKind::RunProgress { .. } => "run:progress",
            EventKind::RunCompleted { .. } => "run:complete",
            EventKind::RunContinued { .. } => "run:continue",
            EventKind::StepsUnused { .. } => "step:unused",
            EventKind::RunFailed { .. } => "run:fail",
            EventKind::RunCancelled { .. } => "run:cancel",
            EventKind::RunDeleted => "run:delete",
            EventKind::StepStarted { .. } => "step:start",
            EventKind::StepCompleted { .. } => "step:complete",
            EventKind::StepFailed { .. } => "step:fail",
            EventKind::StepWaiting { .. } => "step:wait",
            EventKind::StepRetrying { .. } => "step:retry",
            EventKind::StepCancelled { .. } => "step:cancel",
            EventKind::LogWritten { .. } => "log:write",
            EventKind::RuntimeError { .. } => "worker:error",
        }
    }

    /// Whether the run's own stream ends with this.
    pub fn ends_run(&self) -> bool {
        matches!(
            self,
            EventKind::RunCompleted { .. }
                | EventKind::RunContinued { .. }
                | EventKind::RunFailed { .. }
                | EventKind::RunCancelled { .. }
                | EventKind::RunDeleted
        )
    }

    /// Heap memory it holds, about. What events of a run share, its labels and its steps' keys, is counted with each.
    fn bytes(&self) -> usize {
        match self {
            EventKind::RunTriggered { input } | EventKind::RunLeased { input, .. } => input.len(),
            EventKind::RunCoalesced { skipped_input, skipped_labels } => {
                skipped_input.len() + labels_bytes(skipped_labels)
            }
            EventKind::RunBlocked { reason: text } | EventKind::RuntimeError { message: text } => text.len(),
            EventKind::RunProgress { progress } => progress.message.as_ref().map_or(0, String::len),
            EventKind::RunCompleted { output, .. } => output.len(),
            EventKind::RunFailed { error } => error_bytes(error),
            EventKind::StepStarted { step, .. }
            | EventKind::StepWaiting { step, .. }
            | EventKind::StepCancelled { step, .. }
            | EventKind::RunSignalled { name: step } => step.len(),
            EventKind::StepCompleted { step, output, .. } => step.len() + output.len(),
            EventKind::StepFailed { step, error, .. } | EventKind::StepRetrying { step, error, .. } => {
                step.len() + error_bytes(error)
            }
            EventKind::LogWritten { step, message, data, .. } => {
                step.as_ref().map_or(0, |step| step.len()) + message.len() + json_bytes(data)
            }
            EventKind::StepsUnused { keys, .. } => keys.iter().map(|key| size_of::<String>() + key.len()).sum(),
            EventKind::RunReleased { .. }
            | EventKind::RunContinued { .. }
            | EventKind::RunResumed
            | EventKind::RunSuspended { .. }
            | EventKind::RunWoken
            | EventKind::RunCancelled { .. }
            | EventKind::RunDeleted => 0,
        }
    }
}

fn labels_bytes(labels: &BTreeMap<String, String>) -> usize {
    let entry = 2 * size_of::<String>();
    labels.iter().map(|(key, value)| entry + key.len() + value.len()).sum()
}

fn error_bytes(error: &RunError) -> usize {
    let chain: usize = error.chain.iter().map(|link| size_of::<String>() + link.len()).sum();
    error.message.len() + chain + error.step.as_ref().map_or(0, String::len)
}

fn json_bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(|item| size_of::<Value>() + json_bytes(item)).sum(),
        Value::Object(fields) => {
            let entry = size_of::<String>() + size_of::<Value>();
            fields.iter().map(|(key, value)| entry + key.len() + json_bytes(value)).sum()
        }
    }
}

/// JSON inside an event, as it is stored; left out where it is over 64 KiB.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Payload(Option<Bytes>);

impl Payload {
    pub(crate) fn new(json: &Bytes) -> Self {
        Payload(Some(json.clone()).filter(|json| json.len() <= EVENT_PAYLOAD_BYTES_MAX))
    }

    /// The JSON text; `None` if it was too large for an event.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        self.0.as_deref()
    }

    /// The JSON value; `None` if it was too large for an event.
    pub fn value(&self) -> Option<Value> {
        serde_json::from_slice(self.0.as_deref()?).ok()
    }

    /// The value as a type.
    ///
    /// # Errors
    /// [`Error::Decode`] if it was left out of the event or does not fit.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let what = "event payload";
        let json = self.0.as_deref().ok_or_else(|| Error::absent(what, "it was left out of the event"))?;
        crate::job::schema::decode(json).map_err(|error| Error::decode(what, error))
    }

    fn len(&self) -> usize {
        self.0.as_ref().map_or(0, Bytes::len)
    }
}
