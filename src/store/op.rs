//! What the writer is asked to do.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::codec::records::{ErrorRecord, ProgressRecord, StepRecord};
use crate::engine::{Generation, Rate};
use crate::error::Error;
use crate::event::StepTold;
use crate::id::RunId;
use crate::limits::{LOG_BYTES_MAX, LOG_LINES_MAX};
use crate::quietly::quietly;
use crate::run::{Explanation, LogLevel, RunStatus};
use crate::schedule::{Missed, Timetable};
use crate::store::compact::Compaction;
use crate::time::Timestamp;
use crate::trigger::{Disposition, OnConflict};

/// Room among the writes that wait for the disk; given back when the operation is answered.
#[derive(Debug, Default)]
pub(crate) struct Admitted {
    pub(crate) _call: Option<OwnedSemaphorePermit>,
    pub(crate) _bytes: Option<OwnedSemaphorePermit>,
}

/// A request that is answered after the commit that carries it.
///
/// The request outlives its application, so that it can be applied again should the commit turn out not to have happened.
#[derive(Debug)]
pub(crate) struct Call<Q, A> {
    pub(crate) request: Q,
    /// Boxed, since operations pass from core to core and hardly any of them fails.
    answer: Option<Result<A, Box<Error>>>,
    reply: oneshot::Sender<Result<A, Error>>,
    /// Held until the answer is about to be given.
    _admitted: Admitted,
}

impl<Q, A> Call<Q, A> {
    pub(crate) fn new(request: Q, admitted: Admitted) -> (Self, oneshot::Receiver<Result<A, Error>>) {
        let (reply, receiver) = oneshot::channel();
        (Call { request, answer: None, reply, _admitted: admitted }, receiver)
    }

    /// What is answered, should the commit happen.
    pub(crate) fn decide(&mut self, answer: Result<A, Error>) {
        self.answer = Some(answer.map_err(Box::new));
    }

    /// Tells the caller what was decided, or why nothing was. One that has gone away is not told; what was done stays done.
    fn settle(self, failure: Option<Error>) {
        let Call { answer, reply, _admitted, .. } = self;
        // Whoever hears the answer finds the room that this took.
        quietly("who waits for room", || drop(_admitted));
        let decided = || answer.map_or(Err(Error::ShutDown), |answer| answer.map_err(|error| *error));
        let answer = failure.map_or_else(decided, Err);
        quietly("who wakes a caller", || drop(reply.send(answer)));
    }
}

#[derive(Debug)]
pub(crate) enum Op {
    Register(Call<Vec<JobSpec>, ()>),
    Trigger(Call<Vec<NewRun>, Vec<Triggered>>),
    Cancel(Call<Targets, usize>),
    Resume(Call<Resume, usize>),
    Delete(Call<RunId, ()>),
    Purge(Call<Purge, Purged>),
    /// A body is about to wait for a run, or has stopped waiting.
    Wait(Call<(RunId, RunId), ()>),
    WaitOver(RunId, RunId),
    Checkpoint(Call<Checkpoint, Accepted>),
    /// A step waits for something, or asks whether that has come.
    Await(Box<Call<Await, Settled>>),
    /// A step triggers a run.
    Spawn(Box<Call<Spawn, Settled>>),
    Signal(Box<Call<Signal, ()>>),
    Schedule(Call<Box<NewSchedule>, ()>),
    ChangeSchedule(Call<(Arc<str>, Change), ()>),
    /// Trigger what a schedule triggers, now.
    Fire(Call<Arc<str>, Triggered>),
    // Boxed: every operation takes as much memory as the largest, and most are checkpoints.
    End(Box<Call<End, Accepted>>),
    Notes(Box<Call<NotesOf, Accepted>>),
    /// The body of that lease is really gone.
    Stopped(RunId, Generation),
    /// Start no new run, or go on; answered when it is in force.
    Pause(Call<bool, ()>),
    /// Start no new run any more, whatever is asked for from here on: the end is near.
    Drain,
    /// Answered once no body is left.
    Quiet(Call<(), ()>),
    /// Start up to that many runs, if paused; answered with how many ended once none is left to start.
    Idle(Call<Option<u64>, u64>),
    /// Time has passed: what is due is done.
    Tick,
    /// Why a run is, or is not, executing; but for what its steps say.
    Explain(Call<RunId, Explanation>),
    /// Pause or resume a job or a key, or give a key a rate.
    Throttle(Call<Throttling, ()>),
    /// What is paused.
    Throttled(Call<(), Vec<Paused>>),
    Stats(Call<(), Counts>),
    /// Give space back. Goes alone.
    Compact(Call<(), Compaction>),
    /// Fold, close, and end the writer.
    /// Whether what still executes is handed back, or left to be found as crashed.
    Close(Call<bool, ()>),
}

impl Op {
    pub(crate) fn end(call: Call<End, Accepted>) -> Op {
        Op::End(Box::new(call))
    }

    pub(crate) fn signal(call: Call<Signal, ()>) -> Op {
        Op::Signal(Box::new(call))
    }

    pub(crate) fn notes(call: Call<NotesOf, Accepted>) -> Op {
        Op::Notes(Box::new(call))
    }

    /// About what it adds to a commit.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Op::Trigger(call) => call.request.iter().map(NewRun::bytes).sum(),
            Op::Checkpoint(call) => {
                let notes = call.request.notes.as_ref().map_or(0, |notes| notes.bytes());
                call.request.told.record.len() + 64 + notes
            }
            Op::Await(call) => call.request.record.bytes() + 64,
            Op::Spawn(call) => call.request.child.bytes(),
            Op::Signal(call) => call.request.payload.len() + 128,
            Op::Schedule(call) => call.request.run.bytes() + 512,
            Op::End(call) => {
                let outcome = match &call.request.outcome {
                    Outcome::Completed(output) => output.len() + 256,
                    Outcome::Continued(next) => next.input.len() + 1_024,
                    _ => 512,
                };
                outcome + call.request.notes.bytes()
            }
            Op::Notes(call) => call.request.notes.bytes() + 128,
            _ => 128,
        }
    }

    /// Whether someone outside waits for this, rather than a body: outside callers get an error when the store stays away,
    /// bodies wait until it is back.
    pub(crate) fn is_from_outside(&self) -> bool {
        let of_the_runtime =
            matches!(self, Op::Register(_) | Op::Drain | Op::Quiet(_) | Op::Idle(_) | Op::Tick | Op::Close(_));
        !of_the_runtime && !self.is_of_body()
    }

    /// Whether it is an executing body, or what is left of one, that asks.
    pub(crate) fn is_of_body(&self) -> bool {
        matches!(
            self,
            Op::Checkpoint(_)
                | Op::Await(_)
                | Op::Spawn(_)
                | Op::End(_)
                | Op::Notes(_)
                | Op::Stopped(..)
                | Op::WaitOver(..)
        )
    }

    /// Answers with what was decided, or with a failure.
    pub(crate) fn settle(self, failure: Option<Error>) {
        match self {
            Op::Register(call) => call.settle(failure),
            Op::Trigger(call) => call.settle(failure),
            Op::Cancel(call) => call.settle(failure),
            Op::Resume(call) => call.settle(failure),
            Op::Delete(call) => call.settle(failure),
            Op::Purge(call) => call.settle(failure),
            Op::Wait(call) => call.settle(failure),
            Op::Checkpoint(call) => call.settle(failure),
            Op::Await(call) => call.settle(failure),
            Op::Spawn(call) => call.settle(failure),
            Op::Signal(call) => call.settle(failure),
            Op::Schedule(call) => call.settle(failure),
            Op::ChangeSchedule(call) => call.settle(failure),
            Op::Fire(call) => call.settle(failure),
            Op::End(call) => call.settle(failure),
            Op::Notes(call) => call.settle(failure),
            Op::Pause(call) => call.settle(failure),
            Op::Quiet(call) => call.settle(failure),
            Op::Idle(call) => call.settle(failure),
            Op::Explain(call) => call.settle(failure),
            Op::Throttle(call) => call.settle(failure),
            Op::Throttled(call) => call.settle(failure),
            Op::Stats(call) => call.settle(failure),
            Op::Compact(call) => call.settle(failure),
            Op::Close(call) => call.settle(failure),
            Op::WaitOver(..) | Op::Stopped(..) | Op::Drain | Op::Tick => {}
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct JobSpec {
    pub(crate) name: Arc<str>,
    pub(crate) terms: Terms,
}

/// On what terms runs of a job start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Runs at a time.
    pub(crate) limit: u32,
    pub(crate) rate: Option<Rate>,
    /// Runs with different keys take turns.
    pub(crate) fair: bool,
}

/// What is to hold a job or a key back, or no longer.
#[derive(Debug, Clone)]
pub(crate) struct Throttling {
    pub(crate) of: Part,
    pub(crate) change: ThrottleChange,
}

/// A job or a key, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Job(String),
    Key(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThrottleChange {
    Pause(bool),
    Rate(Option<Rate>),
}

/// What is paused, since when.
#[derive(Debug, Clone)]
pub(crate) struct Paused {
    pub(crate) of: Part,
    pub(crate) since: Timestamp,
}

/// A run to be created.
#[derive(Debug, Clone)]
pub(crate) struct NewRun {
    pub(crate) job: Arc<str>,
    pub(crate) input: Bytes,
    pub(crate) fingerprint: [u8; 16],
    pub(crate) idempotency: Option<Idempotency>,
    pub(crate) concurrency: Option<Concurrency>,
    pub(crate) labels: Vec<(String, String)>,
    /// The version of the job's code.
    pub(crate) version: u32,
    pub(crate) retriggered_from: Option<RunId>,
    pub(crate) forked: Option<Box<Forked>>,
    pub(crate) parent: Option<Parent>,
    pub(crate) not_before: Option<NotBefore>,
    /// How long after its trigger it must have ended.
    pub(crate) deadline: Option<Duration>,
    pub(crate) priority: i8,
    /// The schedule that asks for it, and its due time.
    pub(crate) schedule: Option<(Arc<str>, Option<Timestamp>)>,
}

/// When a run may start first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotBefore {
    At(Timestamp),
    /// So long after the run is created, by the clock that says when that is.
    After(Duration),
}

impl NotBefore {
    /// The moment, for a run created now; `None` if that is over.
    pub(crate) fn moment(self, now: Timestamp) -> Option<Timestamp> {
        let at = match self {
            NotBefore::At(at) => at,
            NotBefore::After(delay) => now.saturating_add(delay),
        };
        (at > now).then_some(at)
    }

    /// Milliseconds of a delay.
    pub(crate) fn delay_ms(self) -> Option<u64> {
        match self {
            NotBefore::At(_) => None,
            NotBefore::After(delay) => Some(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

/// A schedule to be registered.
#[derive(Debug, Clone)]
pub(crate) struct NewSchedule {
    pub(crate) name: Arc<str>,
    pub(crate) timetable: Timetable,
    pub(crate) expression: String,
    pub(crate) time_zone: String,
    pub(crate) missed: Missed,
    /// What every firing asks for.
    pub(crate) run: NewRun,
}

/// What is to become of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Pause,
    Resume,
    Remove,
}

/// The checkpoints that a run begins with.
#[derive(Debug, Clone)]
pub(crate) struct Forked {
    pub(crate) from: RunId,
    /// By index, sealed as they are to be stored.
    pub(crate) steps: Vec<(u32, Arc<[u8]>)>,
    /// Those among them that have an output, and one more than the highest index of these.
    pub(crate) completed: u32,
    pub(crate) step_index: u32,
    pub(crate) bytes: usize,
}

/// The run whose step triggers a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parent {
    pub(crate) run: RunId,
    /// It is not cancelled with its parent.
    pub(crate) detached: bool,
}

impl NewRun {
    /// Its concurrency keys, each with its limit.
    pub(crate) fn keys(&self) -> &[(String, u32)] {
        self.concurrency.as_ref().map_or(&[], |concurrency| &concurrency.keys)
    }

    /// Whether it starts later, if it is created now.
    pub(crate) fn is_delayed(&self, now: Timestamp) -> bool {
        self.not_before.and_then(|at| at.moment(now)).is_some()
    }

    pub(crate) fn bytes(&self) -> usize {
        let labels: usize = self.labels.iter().map(|(key, value)| key.len() + value.len() + 40).sum();
        let forked = self.forked.as_ref().map_or(0, |forked| forked.bytes + forked.steps.len() * 32);
        self.input.len() + labels + forked + 256
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Idempotency {
    pub(crate) key: String,
    pub(crate) ttl: Option<Duration>,
    pub(crate) reject_changed_input: bool,
    pub(crate) reuse_after_failure: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Concurrency {
    /// Each once, with its limit; at least one.
    pub(crate) keys: Vec<(String, u32)>,
    pub(crate) on_conflict: OnConflict,
    /// How many may be left waiting for each.
    pub(crate) max_queued: Option<u32>,
}

/// What became of a trigger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Triggered {
    pub(crate) run: RunId,
    pub(crate) disposition: Disposition,
    pub(crate) status: RunStatus,
    pub(crate) input_differs: bool,
}

/// Runs to do something to.
#[derive(Debug, Clone)]
pub(crate) struct Targets {
    pub(crate) runs: Vec<RunId>,
    /// Whether a run whose status forbids it is an error, or is passed over.
    pub(crate) strict: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Resume {
    pub(crate) targets: Targets,
    /// Steps whose recorded failure is cleared as well.
    pub(crate) clear_failures: Vec<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Purge {
    pub(crate) before: Timestamp,
    pub(crate) limit: usize,
    /// Where the last slice stopped.
    pub(crate) after: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Purged {
    pub(crate) deleted: usize,
    /// Where to go on; `None` if there is nothing more.
    pub(crate) after: Option<Vec<u8>>,
}

/// A step's outcome, to be recorded.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoint {
    pub(crate) run: RunId,
    pub(crate) generation: Generation,
    pub(crate) told: StepTold,
    /// It is a part of a step, and no outcome: nobody is told.
    pub(crate) part: bool,
    /// What was noted since the run's last write.
    pub(crate) notes: Option<Box<Notes>>,
}

/// A step that waits.
#[derive(Debug, Clone)]
pub(crate) struct Await {
    pub(crate) run: RunId,
    pub(crate) generation: Generation,
    pub(crate) index: u32,
    /// Open, with what it waits for.
    pub(crate) record: StepRecord,
    /// The record is on disk as it is.
    pub(crate) stored: bool,
}

/// A step that triggers a run, and goes on, or waits for its end.
#[derive(Debug, Clone)]
pub(crate) struct Spawn {
    /// The step; its record is open and waits for nothing yet.
    pub(crate) step: Await,
    pub(crate) child: NewRun,
}

/// How a waiting step stands.
#[derive(Debug, Clone)]
#[must_use]
pub(crate) enum Settled {
    /// It has its outcome, on disk.
    Decided(Result<Bytes, Box<ErrorRecord>>),
    /// It waits for what this says, on disk.
    Open(Box<StepRecord>),
    /// The run has its outcome already, or another lease: nothing was recorded.
    Refused,
}

/// A signal for a run.
#[derive(Debug, Clone)]
pub(crate) struct Signal {
    pub(crate) run: RunId,
    pub(crate) name: Arc<str>,
    pub(crate) payload: Bytes,
}

/// What a body in memory is told about what its steps wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// A step has its outcome.
    Step(u32),
    /// A signal of this name has come.
    Signal(Arc<str>),
}

/// Whether a write of a run was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Accepted {
    Recorded,
    /// The run has its outcome already, or another lease: nothing was recorded.
    Refused,
}

/// The end of an execution.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub(crate) run: RunId,
    pub(crate) generation: Generation,
    pub(crate) outcome: Outcome,
    /// The body is really gone, so that key and slot are free with this commit.
    pub(crate) stopped: bool,
    pub(crate) duration: Duration,
    pub(crate) notes: Notes,
    /// Steps on disk that the body did not ask for, where it completed.
    pub(crate) unused: Vec<(u32, String)>,
}

#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Completed(Bytes),
    /// Another run goes on for it.
    Continued(Box<Continuation>),
    Failed(ErrorRecord),
    /// Pending again, first in line, nothing counted: a shutdown, or a fault of ours.
    HandedBack,
    /// All that the body waits for is stored.
    Suspended(Suspension),
    /// Pending and not in line: the registered code can't decode the stored input.
    Blocked(String),
}

/// What a run that goes on for another begins with.
#[derive(Debug, Clone)]
pub(crate) struct Continuation {
    pub(crate) input: Bytes,
    /// The version of the job's code.
    pub(crate) version: u32,
}

/// What wakes a suspended run, besides the runs that it waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Suspension {
    pub(crate) due: Option<Timestamp>,
    /// Names, each once.
    pub(crate) signals: Vec<Arc<str>>,
    /// How much news the body had heard of: if there was more, it must look again.
    pub(crate) heard: u64,
}

/// Progress and log lines that ride on a run's next commit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes {
    pub(crate) progress: Option<ProgressRecord>,
    pub(crate) lines: VecDeque<Line>,
    /// Lines before these that are gone already.
    pub(crate) dropped: u32,
    bytes: usize,
}

impl Notes {
    /// Adds a line. A body that writes more than a run keeps before it gives way loses the oldest, as it would on disk.
    pub(crate) fn push(&mut self, line: Line) {
        self.bytes += line.bytes();
        self.lines.push_back(line);
        while self.lines.len() > LOG_LINES_MAX as usize || self.bytes > LOG_BYTES_MAX {
            let Some(oldest) = self.lines.pop_front() else { return };
            self.bytes -= oldest.bytes();
            self.dropped = self.dropped.saturating_add(1);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.progress.is_none() && self.lines.is_empty()
    }

    /// About how much of a commit they are.
    fn bytes(&self) -> usize {
        self.bytes + self.lines.len() * 64
    }
}

#[derive(Debug, Clone)]
pub(crate) struct NotesOf {
    pub(crate) run: RunId,
    pub(crate) generation: Generation,
    pub(crate) notes: Notes,
}

#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) level: LogLevel,
    pub(crate) at: Timestamp,
    pub(crate) step: Option<Arc<str>>,
    pub(crate) message: String,
    pub(crate) fields: Bytes,
}

impl Line {
    fn bytes(&self) -> usize {
        self.message.len() + self.fields.len()
    }
}

/// Runs by job and status.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    pub(crate) jobs: Vec<(String, [u64; 6])>,
    pub(crate) commits: u64,
    pub(crate) flushes: u64,
    pub(crate) bytes_written: u64,
}
