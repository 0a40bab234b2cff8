//! Mirror structs: what the records hold, apart from the public types, so that those can change and files stay.

use serde::{Deserialize, Serialize};

use crate::id::RunId;
use crate::time::Timestamp;

/// What never changes about a run; its payload is the input. Written once, by the commit that creates the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    pub(crate) job: u32,
    pub(crate) created_at: Timestamp,
    pub(crate) idempotency_key: Option<String>,
    /// The key is in force at least this long from the trigger; `None`: as long as the run.
    pub(crate) idempotency_ttl_ms: Option<u64>,
    /// Concurrency keys in the order given, each with how many runs of it at a time this run allows.
    pub(crate) keys: Vec<(String, u32)>,
    pub(crate) priority: i8,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) fingerprint: [u8; 16],
    pub(crate) retriggered_from: Option<RunId>,
    /// It fails if it has not ended by now, unless it was resumed.
    pub(crate) deadline: Option<Timestamp>,
    /// The run whose checkpoints it began with.
    pub(crate) forked_from: Option<RunId>,
    /// The run that it goes on for.
    pub(crate) continued_from: Option<RunId>,
    /// The version of the job's code that it was triggered with.
    pub(crate) version: u32,
    /// The run whose step triggered it.
    pub(crate) parent: Option<RunId>,
    /// It does not start before this.
    pub(crate) not_before: Option<Timestamp>,
    /// The place in line that this run took over from the run it replaced.
    pub(crate) ticket: Option<RunId>,
    /// The schedule that triggered it, and its due time.
    pub(crate) schedule: Option<(String, Option<Timestamp>)>,
}

impl RunRecord {
    pub(crate) fn has_key(&self, key: &str) -> bool {
        self.keys.iter().any(|(own, _)| own == key)
    }
}

/// What changes about a run. Absent while a run waits for its first start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StateRecord {
    pub(crate) status: u8,
    pub(crate) generation: u64,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) completed_at: Option<Timestamp>,
    pub(crate) updated_at: Option<Timestamp>,
    /// Consecutive crashes while executing without a new checkpoint, the execution under way counted as one.
    pub(crate) crashes: u32,
    /// Times the run was taken up again after a crash.
    pub(crate) recoveries: u32,
    /// Waits in front of the runs that never started.
    pub(crate) front: bool,
    /// The place in line, where it is not the run's own id.
    pub(crate) ticket: Option<RunId>,
    /// Steps that completed, and one more than the highest index among them.
    pub(crate) steps_completed: u32,
    pub(crate) step_index: u32,
    /// Bytes of all checkpoints.
    pub(crate) steps_bytes: u64,
    pub(crate) progress: Option<ProgressRecord>,
    pub(crate) error: Option<ErrorRecord>,
    pub(crate) replaced_by: Option<RunId>,
    /// The run that goes on for it.
    pub(crate) continued_as: Option<RunId>,
    /// Indexes of the steps that the execution which completed it did not ask for; the first of them, if they are many.
    pub(crate) unused: Vec<u32>,
    pub(crate) logs: LogTally,
    /// It was sent a signal, so there may be some that nobody has taken.
    pub(crate) signalled: bool,
    /// It has triggered runs.
    pub(crate) has_children: bool,
    /// It was resumed: its deadline does not count any more.
    pub(crate) resumed: bool,
    /// Why a pending run is not started: its stored input can't be decoded by the registered code.
    pub(crate) blocked: Option<String>,
}

/// Which log lines of a run are kept: numbers `first..next`, and how many went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogTally {
    pub(crate) first: u32,
    pub(crate) next: u32,
    pub(crate) bytes: u64,
    pub(crate) dropped: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProgressRecord {
    pub(crate) current: u64,
    pub(crate) total: Option<u64>,
    pub(crate) message: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ErrorRecord {
    pub(crate) kind: u8,
    pub(crate) message: String,
    pub(crate) chain: Vec<String>,
    pub(crate) step: Option<String>,
    pub(crate) terminal: bool,
}

impl ErrorRecord {
    pub(crate) fn bytes(&self) -> usize {
        self.message.len() + self.chain.iter().map(|link| 8 + link.len()).sum::<usize>()
    }
}

/// A checkpoint; its payload is the output where the step completed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepRecord {
    pub(crate) key: String,
    /// A [`StepKind`](crate::run::StepKind).
    pub(crate) kind: u8,
    /// The version of the job's code that recorded it.
    pub(crate) version: u32,
    /// The lease that recorded it: a checkpoint of the lease that crashed is what clears the count of crashes. Zero for one
    /// that was taken over from another run.
    pub(crate) generation: u64,
    pub(crate) started_at: Timestamp,
    pub(crate) completed_at: Timestamp,
    /// Attempts that have ended.
    pub(crate) attempts: u32,
    pub(crate) error: Option<ErrorRecord>,
    /// What it waits for; it has no outcome as long as this is there.
    pub(crate) open: Option<WaitRecord>,
    /// The newest attempts that failed, if it was tried again.
    pub(crate) tries: Vec<TryRecord>,
}

/// An attempt of a step that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TryRecord {
    pub(crate) number: u32,
    pub(crate) error: ErrorRecord,
    pub(crate) started_at: Timestamp,
    pub(crate) failed_at: Timestamp,
}

impl StepRecord {
    /// Whether it has an output.
    pub(crate) fn is_completed(&self) -> bool {
        self.error.is_none() && self.open.is_none()
    }

    /// About how large it is.
    pub(crate) fn bytes(&self) -> usize {
        self.key.len() + 64 + self.tries.iter().map(|tried| 64 + tried.error.bytes()).sum::<usize>()
    }
}

/// What an undecided step waits for: the first of these that comes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WaitRecord {
    pub(crate) due: Option<Timestamp>,
    pub(crate) signal: Option<String>,
    pub(crate) run: Option<RunId>,
}

/// A [`StepRecord`] to be written.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct StepRecordRef<'a> {
    pub(crate) key: &'a str,
    pub(crate) kind: u8,
    pub(crate) version: u32,
    pub(crate) generation: u64,
    pub(crate) started_at: Timestamp,
    pub(crate) completed_at: Timestamp,
    pub(crate) attempts: u32,
    pub(crate) error: Option<&'a ErrorRecord>,
    pub(crate) open: Option<&'a WaitRecord>,
    pub(crate) tries: &'a [TryRecord],
}

/// A log line; its payload is the fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogRecord {
    pub(crate) level: u8,
    pub(crate) at: Timestamp,
    pub(crate) step: Option<String>,
    pub(crate) message: String,
}

/// A job's name has a number on disk, so that index keys stay short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobRecord {
    pub(crate) number: u32,
}

/// What a pending run's index row says, so that lines can be rebuilt from one scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LineRecord {
    pub(crate) job: u32,
    pub(crate) keys: Vec<(String, u32)>,
    pub(crate) priority: i8,
    pub(crate) generation: u64,
    pub(crate) crashes: u32,
    pub(crate) front: bool,
    pub(crate) ticket: Option<RunId>,
    /// Put aside until other code is registered.
    pub(crate) blocked: bool,
    /// It was never started and has a state all the same.
    pub(crate) touched: bool,
    /// It was woken, and holds its keys already.
    pub(crate) holds: bool,
    pub(crate) not_before: Option<Timestamp>,
    pub(crate) deadline: Option<Timestamp>,
}

/// What a suspended run's index row says, so that what wakes it can be rebuilt from one scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SleepRecord {
    pub(crate) job: u32,
    pub(crate) keys: Vec<(String, u32)>,
    pub(crate) generation: u64,
    pub(crate) due: Option<Timestamp>,
    /// Names of the signals that wake it.
    pub(crate) signals: Vec<String>,
    pub(crate) deadline: Option<Timestamp>,
}

/// What holds a job or a key back. Only there where something does, or a window of a job's rate is under way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ThrottleRecord {
    pub(crate) paused_at: Option<Timestamp>,
    /// Starts in a time, milliseconds. A job's stands in its code.
    pub(crate) rate: Option<(u32, u64)>,
    /// When the window began, and its starts.
    pub(crate) window: Option<(Timestamp, u32)>,
}

/// Terminal runs of a job: completed, failed, cancelled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TallyRecord {
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
}

/// A schedule as it was registered; its payload is the input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ScheduleRecord {
    pub(crate) job: u32,
    pub(crate) expression: String,
    pub(crate) time_zone: String,
    /// What is done about due times that were missed, and how many of them.
    pub(crate) missed: u8,
    pub(crate) missed_max: u32,
    /// Concurrency keys with their limits.
    pub(crate) keys: Vec<(String, u32)>,
    pub(crate) on_conflict: u8,
    pub(crate) max_queued: Option<u32>,
    pub(crate) priority: i8,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) delay_ms: Option<u64>,
    pub(crate) deadline_ms: Option<u64>,
    /// The version of the job's code that took the input.
    pub(crate) version: u32,
    pub(crate) fingerprint: [u8; 16],
    pub(crate) created_at: Timestamp,
}

/// How a schedule stands: what every firing changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StandingRecord {
    pub(crate) paused: bool,
    /// When it is due next.
    pub(crate) next: Option<Timestamp>,
    pub(crate) last_due: Option<Timestamp>,
    pub(crate) last_run: Option<RunId>,
    /// First and last of due times that have fired one after the other, in order of time.
    pub(crate) fired: Vec<(Timestamp, Timestamp)>,
}
