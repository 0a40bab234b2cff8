//! What the supervisor can be told: everything that [`Durably`](crate::Durably) does, by message, but for registering jobs.

use std::path::PathBuf;
use std::time::Duration;

use ractor::RpcReplyPort;
use serde_json::Value;

use crate::durably::{ForkRequest, Health, JobInfo, Paused, PendingCheck, Stats};
use crate::error::Error;
use crate::event::{Events, RunEvents};
use crate::id::RunId;
use crate::job::RateLimit;
use crate::run::{Explanation, LogLine, Run, RunFilter, RunStatus, StepInfo};
use crate::schedule::{Missed, ScheduleInfo};
use crate::store::compact::Compaction;
use crate::store::verify::Verification;
use crate::time::Timestamp;
use crate::trigger::{Disposition, Options, trigger_options};

/// A trigger as a message carries it: a job by name, JSON input, options.
#[derive(Debug, Clone)]
pub struct TriggerRequest {
    pub(crate) job: String,
    pub(crate) input: Value,
    pub(crate) options: Options,
}

impl TriggerRequest {
    /// A trigger of a registered job.
    pub fn new(job: impl Into<String>, input: Value) -> Self {
        TriggerRequest { job: job.into(), input, options: Options::default() }
    }
}

trigger_options!([] TriggerRequest, options);

/// A schedule as a message carries it: see [`Durably::schedule`](crate::Durably::schedule).
#[derive(Debug, Clone)]
pub struct ScheduleRequest {
    pub(crate) name: String,
    pub(crate) expression: String,
    pub(crate) time_zone: String,
    pub(crate) missed: Missed,
    pub(crate) trigger: TriggerRequest,
}

impl ScheduleRequest {
    /// A schedule in UTC: its name, when it is due, what it triggers then.
    pub fn new(name: impl Into<String>, expression: impl Into<String>, trigger: TriggerRequest) -> Self {
        let (name, expression) = (name.into(), expression.into());
        ScheduleRequest { name, expression, time_zone: "UTC".into(), missed: Missed::default(), trigger }
    }

    /// Read the expression on the wall clock of this zone.
    pub fn time_zone(mut self, name: impl Into<String>) -> Self {
        self.time_zone = name.into();
        self
    }

    /// What to do about due times that were missed.
    pub fn missed(mut self, missed: Missed) -> Self {
        self.missed = missed;
        self
    }
}

/// What a trigger by message is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TriggerReply {
    /// The run.
    pub run: RunId,
    /// Whether it was created, or was there already.
    pub disposition: Disposition,
    /// Its status as the trigger's commit left it.
    pub status: RunStatus,
    /// Whether the idempotency key's run has another input.
    pub input_differs: bool,
}

/// The port a request is answered on.
pub type Reply<T> = RpcReplyPort<Result<T, Error>>;

/// Messages to the supervisor.
///
/// Each has a port that it is answered on; a port that nobody waits on is no error. A request that finds no room, among those
/// that are served or among the writes that wait for the disk, is answered [`Error::Overloaded`] at once and holds nothing.
#[derive(Debug)]
#[non_exhaustive]
pub enum SupervisorMsg {
    /// Create a run.
    Trigger(TriggerRequest, Reply<TriggerReply>),
    /// Create many runs of one or several jobs, all or none; at most as many as
    /// [`JobHandle::batch_trigger`](crate::JobHandle::batch_trigger) takes.
    BatchTrigger(Vec<TriggerRequest>, Reply<Vec<TriggerReply>>),
    /// Cancel a run.
    Cancel(RunId, Reply<()>),
    /// Cancel every run of a filter that can be; answers how many.
    CancelWhere(RunFilter, Reply<usize>),
    /// Create a new run with an old one's input.
    Retrigger(RunId, Reply<RunId>),
    /// Retrigger every run of a filter that can be; answers the new ones.
    RetriggerWhere(RunFilter, Reply<Vec<RunId>>),
    /// Create a new run that begins with an old one's checkpoints.
    Fork(ForkRequest, Reply<RunId>),
    /// Go on with a failed or cancelled run, with the recorded failures of these steps cleared too: see
    /// [`ResumeRun::clear_failures`](crate::ResumeRun::clear_failures).
    Resume(RunId, Vec<String>, Reply<()>),
    /// Resume every run of a filter that can be; answers how many.
    ResumeWhere(RunFilter, Reply<usize>),
    /// Send a run a signal: its name, its value.
    Signal(RunId, String, Value, Reply<()>),
    /// Register a schedule, or replace its definition.
    Schedule(ScheduleRequest, Reply<ScheduleInfo>),
    /// Every schedule, by name.
    Schedules(Reply<Vec<ScheduleInfo>>),
    /// A schedule, by name.
    GetSchedule(String, Reply<Option<ScheduleInfo>>),
    /// Let a schedule fire nothing.
    PauseSchedule(String, Reply<()>),
    /// Let a paused schedule fire again.
    ResumeSchedule(String, Reply<()>),
    /// Trigger what a schedule triggers, now.
    FireSchedule(String, Reply<TriggerReply>),
    /// Remove a schedule; its runs stay.
    RemoveSchedule(String, Reply<()>),
    /// Delete a terminal run.
    Delete(RunId, Reply<()>),
    /// Delete terminal runs that ended before a moment, up to a number of them; answers how many.
    Purge(Timestamp, Option<usize>, Reply<usize>),
    /// A registered job, by name.
    GetJob(String, Reply<Option<JobInfo>>),
    /// A run as it is now.
    GetRun(RunId, Reply<Option<Run>>),
    /// Runs, newest first.
    GetRuns(RunFilter, Reply<Vec<Run>>),
    /// The steps of a run.
    GetSteps(RunId, Reply<Vec<StepInfo>>),
    /// The log lines of a run.
    GetLogs(RunId, Reply<Vec<LogLine>>),
    /// Wait for a run to complete, up to a timeout, and for as long as somebody waits for the answer.
    Wait(RunId, Option<Duration>, Reply<Run>),
    /// A stream of one run's events, snapshot first.
    Subscribe(RunId, Reply<RunEvents>),
    /// A stream of every event, from now or from after a sequence.
    Events(Option<u64>, Reply<Events>),
    /// Whether the registered code can read what runs in flight have stored.
    CheckPending(Reply<PendingCheck>),
    /// Why a run is, or is not, executing.
    Explain(RunId, Reply<Explanation>),
    /// Start no run of a job, by name, until it is resumed.
    PauseJob(String, Reply<()>),
    /// Start runs of a paused job again.
    ResumeJob(String, Reply<()>),
    /// Let no more runs have a concurrency key until it is resumed.
    PauseKey(String, Reply<()>),
    /// Let runs have a paused key again.
    ResumeKey(String, Reply<()>),
    /// What is paused.
    Paused(Reply<Vec<Paused>>),
    /// Bound how many runs of a concurrency key start in a time, or no longer.
    LimitKey(String, Option<RateLimit>, Reply<()>),
    /// Runs by job and status.
    Stats(Reply<Stats>),
    /// Whether the runtime works.
    Health(Reply<Health>),
    /// Give space that the file does not need back to the file system.
    Compact(Reply<Compaction>),
    /// Copy the file to a new one while the runtime works: see [`Durably::backup`](crate::Durably::backup).
    Backup(PathBuf, Reply<Verification>),
    /// Start runs (again).
    Start(Reply<()>),
    /// Start no new run; answers once the executing ones have ended.
    Stop(Reply<()>),
    /// Work the queue off, up to a number of runs; answers how many ended.
    RunUntilIdle(Option<u64>, Reply<u64>),
    /// Shut the runtime down. The answer comes from outside the actors, which are gone by then.
    Shutdown(Reply<()>),
    /// Between the runtime's own parts.
    #[doc(hidden)]
    Internal(Internal),
}

/// Between the runtime's own parts.
#[doc(hidden)]
#[derive(Debug)]
pub enum Internal {
    /// The leases of these runs are on disk.
    Start(Vec<RunId>),
    /// A key actor has had nothing to do since it was sent this many bodies.
    KeyIdle(std::sync::Arc<str>, u64),
    /// Look for bodies that a lost message was about.
    Sweep,
    /// A test makes the supervisor fail.
    #[cfg(test)]
    Panic,
}
