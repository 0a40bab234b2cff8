//! Why a run is, or is not, executing.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::{RunStatus, StepKind, WaitingFor};
use crate::id::RunId;
use crate::time::Timestamp;

/// Why a run is, or is not, executing: what [`Durably::explain`](crate::Durably::explain) answers. Its text is one line for
/// people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum Explanation {
    /// It waits to be started.
    #[non_exhaustive]
    Pending {
        /// All that stands in its way, what concerns it alone first. None: it starts at once.
        obstacles: Vec<Obstacle>,
    },
    /// It executes.
    #[non_exhaustive]
    Executing {
        /// When this execution was started.
        since: Timestamp,
        /// Names of the steps that are under way, ascending. Between two steps there is none.
        steps: Vec<String>,
        /// Steps that wait, in memory: soon due, or beside steps that are under way.
        waiting: Vec<OpenStep>,
    },
    /// It is suspended.
    #[non_exhaustive]
    Suspended {
        /// Since when.
        since: Timestamp,
        /// The steps that it waits in: the first of them to come wakes it.
        waiting: Vec<OpenStep>,
    },
    /// It has ended.
    #[non_exhaustive]
    Ended {
        /// How.
        status: RunStatus,
        /// When.
        at: Timestamp,
        /// The message of what ended a failed one.
        error: Option<String>,
        /// The run that took its place.
        replaced_by: Option<RunId>,
        /// Its body has not stopped yet: it still takes its slot and its keys.
        stopping: bool,
    },
}

/// What stands in the way of a run that waits to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum Obstacle {
    /// It is not to start before this: [`delay`](crate::TriggerCall::delay) and its kin.
    #[non_exhaustive]
    Delayed {
        /// The moment.
        until: Timestamp,
    },
    /// An earlier body of it, that was cancelled or handed back, has not stopped yet.
    Stopping,
    /// The registered code can't decode its stored input. It is tried again when the runtime is opened again.
    #[non_exhaustive]
    Blocked {
        /// What is wrong.
        reason: String,
    },
    /// It is in no line, since its rows could not be read, or those of its job: see the log.
    SetAside,
    /// A concurrency key has no room for it, or other runs stand before it in line.
    #[non_exhaustive]
    Key {
        /// The key.
        key: String,
        /// Who holds it, the first 64 of them.
        holders: Vec<Holder>,
        /// Runs that may hold it at a time, by the smallest limit of those that hold it and of this one.
        limit: u32,
        /// Runs before it in line.
        ahead: usize,
    },
    /// The key is paused.
    #[non_exhaustive]
    KeyPaused {
        /// The key.
        key: String,
        /// Since when.
        since: Timestamp,
    },
    /// The key has had all the starts that its rate allows.
    #[non_exhaustive]
    KeyRate {
        /// The key.
        key: String,
        /// Starts in a window.
        starts: u32,
        /// The window's length.
        per: Duration,
        /// When the window is over.
        until: Timestamp,
    },
    /// The process ended while it executed, several times in a row, so it waits for another such run to do well or end.
    #[non_exhaustive]
    Probation {
        /// The run that is on probation now.
        behind: Option<RunId>,
    },
    /// No code is registered for its job.
    #[non_exhaustive]
    JobNotRegistered {
        /// The job.
        job: String,
    },
    /// Its job is paused.
    #[non_exhaustive]
    JobPaused {
        /// The job.
        job: String,
        /// Since when.
        since: Timestamp,
    },
    /// Its job has had all the starts that its rate allows.
    #[non_exhaustive]
    JobRate {
        /// The job.
        job: String,
        /// Starts in a window.
        starts: u32,
        /// The window's length.
        per: Duration,
        /// When the window is over.
        until: Timestamp,
    },
    /// As many runs of its job execute as [`Job::concurrency`](crate::Job::concurrency) allows.
    #[non_exhaustive]
    JobConcurrency {
        /// The job.
        job: String,
        /// How many execute.
        executing: u32,
        /// How many may.
        limit: u32,
    },
    /// The runtime starts no run: [`Durably::stop`](crate::Durably::stop), `paused(true)`, or a shutdown.
    RuntimePaused,
    /// As many runs execute as `max_concurrent_runs` allows.
    #[non_exhaustive]
    Slots {
        /// How many execute.
        executing: usize,
        /// How many may.
        limit: u32,
    },
    /// Runs of the same job that could start stand before it.
    #[non_exhaustive]
    InLine {
        /// How many.
        ahead: usize,
    },
}

/// A run that holds a concurrency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Holder {
    /// The run.
    pub run: RunId,
    /// Its status: one that has ended holds the key until its body has stopped.
    pub status: RunStatus,
    /// When it was first started.
    pub since: Option<Timestamp>,
}

/// A step that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OpenStep {
    /// Its key.
    pub name: String,
    /// What sort of step it is. One of the kind `Run` waits to be tried again.
    pub kind: StepKind,
    /// What it waits for.
    pub waiting_for: WaitingFor,
}

impl Explanation {
    pub(crate) fn pending(obstacles: Vec<Obstacle>) -> Self {
        Explanation::Pending { obstacles }
    }

    /// The same with what its steps say.
    pub(crate) fn with_steps(mut self, open: Vec<OpenStep>, under_way: Vec<String>) -> Self {
        match &mut self {
            Explanation::Executing { steps, waiting, .. } => (*steps, *waiting) = (under_way, open),
            Explanation::Suspended { waiting, .. } => *waiting = open,
            Explanation::Pending { .. } | Explanation::Ended { .. } => {}
        }
        self
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Explanation::Pending { obstacles } if obstacles.is_empty() => f.write_str("about to start"),
            Explanation::Pending { obstacles } => {
                f.write_str("waiting: ")?;
                list(f, obstacles)
            }
            Explanation::Executing { since, steps, waiting } => {
                write!(f, "executing since {since}")?;
                match &steps[..] {
                    [] => {}
                    [step] => write!(f, ", in step {step:?}")?,
                    [first, rest @ ..] => {
                        write!(f, ", in steps {first:?}")?;
                        rest.iter().try_for_each(|step| write!(f, ", {step:?}"))?;
                    }
                }
                if !waiting.is_empty() {
                    f.write_str("; waiting: ")?;
                    list(f, waiting)?;
                }
                Ok(())
            }
            Explanation::Suspended { since, waiting } => {
                write!(f, "suspended since {since}")?;
                if !waiting.is_empty() {
                    f.write_str(": ")?;
                    list(f, waiting)?;
                }
                Ok(())
            }
            Explanation::Ended { status, at, error, replaced_by, stopping } => {
                write!(f, "{status} at {at}")?;
                if let Some(error) = error {
                    write!(f, ": {error}")?;
                }
                if let Some(run) = replaced_by {
                    write!(f, ", replaced by run {run}")?;
                }
                if *stopping {
                    f.write_str("; its body has not stopped yet")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = |f: &mut fmt::Formatter<'_>, starts: &u32, per: &Duration, until: &Timestamp| {
            write!(f, "has had its {starts} starts in {per:?}, until {until}")
        };
        match self {
            Obstacle::Delayed { until } => write!(f, "it is delayed until {until}"),
            Obstacle::Stopping => f.write_str("an earlier body of it has not stopped yet"),
            Obstacle::Blocked { reason } => write!(f, "its input does not fit the registered code: {reason}"),
            Obstacle::SetAside => f.write_str("it is put aside, since rows could not be read"),
            Obstacle::Key { key, holders, limit, ahead } => {
                write!(f, "concurrency key {key:?} ")?;
                match &holders[..] {
                    [] => f.write_str("is free")?,
                    [holder, rest @ ..] => {
                        write!(f, "is held by {holder}")?;
                        rest.iter().try_for_each(|holder| write!(f, " and {holder}"))?;
                    }
                }
                if *limit > 1 {
                    write!(f, " of {limit} at a time")?;
                }
                match ahead {
                    0 => Ok(()),
                    1 => f.write_str(", 1 run is ahead in its line"),
                    ahead => write!(f, ", {ahead} runs are ahead in its line"),
                }
            }
            Obstacle::KeyPaused { key, since } => write!(f, "concurrency key {key:?} is paused since {since}"),
            Obstacle::KeyRate { key, starts, per: length, until } => {
                write!(f, "concurrency key {key:?} ")?;
                per(f, starts, length, until)
            }
            Obstacle::Probation { behind: None } => f.write_str("it is on probation"),
            Obstacle::Probation { behind: Some(run) } => {
                write!(f, "run {run} is on probation, as this one will be: such runs go one at a time")
            }
            Obstacle::JobNotRegistered { job } => write!(f, "job {job} is not registered"),
            Obstacle::JobPaused { job, since } => write!(f, "job {job} is paused since {since}"),
            Obstacle::JobRate { job, starts, per: length, until } => {
                write!(f, "job {job} ")?;
                per(f, starts, length, until)
            }
            Obstacle::JobConcurrency { job, executing, limit } => {
                write!(f, "{executing} runs of job {job} execute, of {limit} at a time")
            }
            Obstacle::RuntimePaused => f.write_str("the runtime starts no runs"),
            Obstacle::Slots { executing, limit } => write!(f, "{executing} runs execute, of {limit} at a time"),
            Obstacle::InLine { ahead: 1 } => f.write_str("1 run of its job is ahead in line"),
            Obstacle::InLine { ahead } => write!(f, "{ahead} runs of its job are ahead in line"),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run {}", self.run)?;
        if let Some(since) = self.since {
            write!(f, " ({}, started {since})", self.status)?;
        }
        Ok(())
    }
}

impl fmt::Display for OpenStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {:?} ", self.name)?;
        let WaitingFor { until, signal, run } = &self.waiting_for;
        match (signal, run) {
            (Some(signal), _) => write!(f, "waits for signal {signal:?}")?,
            (None, Some(run)) => write!(f, "waits for run {run}")?,
            (None, None) if self.kind == StepKind::Run => f.write_str("is tried again")?,
            (None, None) => f.write_str("sleeps")?,
        }
        match until {
            Some(until) if self.kind == StepKind::Run => write!(f, " at {until}"),
            Some(until) => write!(f, " until {until}"),
            None => Ok(()),
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, items: &[impl fmt::Display]) -> fmt::Result {
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            f.write_str("; ")?;
        }
        write!(f, "{item}")?;
    }
    Ok(())
}
