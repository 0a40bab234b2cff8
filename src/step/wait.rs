//! Steps that wait: for a moment, a signal, another run.
//!
//! Such a step has a record on disk from its first call on, so what it waits for is the same over every restart. While all
//! that a body does is wait, its run is suspended; the next execution comes back here and asks again.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use tracing::{Instrument, Span};

use super::execution::{Asked, Known, Ticket};
use super::run::{self, fitting, never};
use crate::codec::records::{ErrorRecord, StepRecord, WaitRecord};
use crate::error::Error;
use crate::hooks::Bug;
use crate::job::{ErrorKind, JobError, JobResult, schema};
use crate::limits::ALARM_RECHECK;
use crate::run::StepKind;
use crate::store::op::{Admitted, Await, NewRun, Op, Settled, Spawn};
use crate::time::Timestamp;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = JobResult<T>> + Send + 'a>>;

/// A step that waits: set its options, then await it. See [`Step::sleep`](super::Step::sleep),
/// [`Step::wait_signal`](super::Step::wait_signal) and [`Step::call`](super::Step::call).
///
/// # Cancel safety
/// Dropped, it waits no more; what it waits for stays recorded, and the next call of its key goes on with that.
#[must_use = "a step does nothing until it is awaited"]
pub struct StepWait<'a, T> {
    state: State<'a, T>,
}

enum State<'a, T> {
    Called(Ticket, Box<Wanted>),
    Waiting(Boxed<'a, T>),
    Detached(String),
    Never,
}

/// What a step is to wait for.
pub(crate) struct Wanted {
    pub(crate) kind: StepKind,
    pub(crate) until: Until,
    pub(crate) signal: Option<String>,
    /// The run to be triggered first, or why it can't be.
    pub(crate) child: Option<Result<NewRun, Error>>,
}

impl Wanted {
    pub(crate) fn new(kind: StepKind) -> Self {
        Wanted { kind, until: Until::Ever, signal: None, child: None }
    }

    pub(super) fn pause(until: Until) -> Self {
        Wanted { until, ..Wanted::new(StepKind::Sleep) }
    }
}

/// How long a step waits.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    Ever,
    /// From its first call on.
    For(Duration),
    At(Timestamp),
}

impl<T> Unpin for StepWait<'_, T> {}

impl<T> fmt::Debug for StepWait<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepWait").finish_non_exhaustive()
    }
}

impl<T> StepWait<'_, T> {
    pub(super) fn new(ticket: Ticket, wanted: Wanted) -> Self {
        StepWait { state: State::Called(ticket, Box::new(wanted)) }
    }

    pub(super) fn detached(key: String) -> Self {
        StepWait { state: State::Detached(key) }
    }

    pub(super) fn never() -> Self {
        StepWait { state: State::Never }
    }

    /// The run to be triggered, unless that was done in an earlier execution.
    pub(crate) fn set_child(&mut self, child: impl FnOnce() -> Result<NewRun, Error>) {
        if let State::Called(ticket, wanted) = &mut self.state
            && ticket.known.is_none()
        {
            wanted.child = Some(child());
        }
    }

    /// Fail the step with [`ErrorKind::Timeout`] if what it waits for has not come this long after its first call. That moment
    /// is stored, so a restart does not begin it anew. A pause comes of itself: it takes as long as it takes.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        if let State::Called(_, wanted) = &mut self.state
            && wanted.kind != StepKind::Sleep
        {
            wanted.until = Until::For(timeout);
        }
        self
    }
}

impl<'a, T: DeserializeOwned + Send + 'a> Future for StepWait<'a, T> {
    type Output = JobResult<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<JobResult<T>> {
        let state = &mut self.get_mut().state;
        *state = match std::mem::replace(state, State::Never) {
            State::Called(ticket, wanted) => {
                let span = run::span_of(&ticket);
                State::Waiting(begin(ticket, *wanted, span))
            }
            state => state,
        };
        match state {
            State::Waiting(waiting) => waiting.as_mut().poll(cx),
            State::Detached(key) => Poll::Ready(Err(run::detached(key))),
            State::Called(..) | State::Never => Poll::Pending,
        }
    }
}

fn begin<'a, T: DeserializeOwned + Send + 'a>(ticket: Ticket, wanted: Wanted, span: Span) -> Boxed<'a, T> {
    let execution = &ticket.execution;
    if let Some(error) = run::outlived(&ticket) {
        return Box::pin(std::future::ready(Err(error)));
    }
    if execution.is_cancelled() {
        execution.stuck();
        return Box::pin(never());
    }
    if ticket.is_other_kind(wanted.kind) {
        return Box::pin(never());
    }
    ticket.note_begin();
    match ticket.known.as_deref() {
        Some(Known::Replayed(..) | Known::Handed(..)) => Box::pin(replay(ticket, wanted.kind).instrument(span)),
        Some(Known::Waits(..) | Known::Asked(..)) | None => Box::pin(wait(ticket, wanted).instrument(span)),
    }
}

/// A step that waited in an earlier execution.
async fn replay<T: DeserializeOwned>(mut ticket: Ticket, kind: StepKind) -> JobResult<T> {
    let outcome = run::decided(&mut ticket).await.map_err(Box::new);
    conclude(ticket, kind, outcome).await
}

async fn wait<T: DeserializeOwned>(mut ticket: Ticket, wanted: Wanted) -> JobResult<T> {
    let execution = ticket.execution.clone();
    let now = execution.now();
    let (mut record, mut stored) = match ticket.known.take().map(|known| *known) {
        Some(Known::Asked(_, asked)) => {
            let record = asked.record.clone();
            ticket.asked = Some(asked);
            (record, true)
        }
        Some(Known::Waits(_, record)) if !execution.means.hooks.plants(Bug::PauseBegunAnew) => (*record, true),
        _ => (first_record(&ticket, &wanted, now), false),
    };
    let mut child = wanted.child.filter(|_| !stored);
    loop {
        if ticket.asked.is_none() {
            match child.take().transpose() {
                Ok(child) => ask(&mut ticket, record.clone(), stored, child),
                Err(error) => {
                    let error = JobError::from(error).with_kind(ErrorKind::NotTriggered);
                    return run::record_failure(ticket, wanted.kind, now, error).await;
                }
            }
        }
        let (answer, signals) = answered(&mut ticket).await;
        if execution.means.hooks.is_dead() {
            return never().await;
        }
        match answer {
            Ok(Settled::Decided(outcome)) => return conclude(ticket, wanted.kind, outcome).await,
            Ok(Settled::Open(open)) => (record, stored) = (*open, true),
            Ok(Settled::Refused) | Err(Error::ShutDown) => {
                execution.stuck();
                return never().await;
            }
            Err(error @ Error::Corrupted { .. }) => {
                execution.fail(ErrorKind::Corrupted, error.to_string());
                return never().await;
            }
            Err(error) => {
                let error = JobError::from(error).with_kind(ErrorKind::NotTriggered);
                return run::record_failure(ticket, wanted.kind, now, error).await;
            }
        }
        ticket.known = Some(Box::new(Known::Waits(ticket.index, Box::new(record.clone()))));
        park(&mut ticket, record.open.clone().unwrap_or_default(), signals).await;
    }
}

/// Asks the writer. Dropped before it is answered, the answer is for the next call of the key: what the writer has done for this
/// step by then, a signal taken or a run triggered, was done for the key.
fn ask(ticket: &mut Ticket, record: StepRecord, stored: bool, child: Option<NewRun>) {
    let execution = &ticket.execution;
    let (signals, start, store) = (execution.signals_heard(), &execution.start, &execution.means.store);
    let step =
        Await { run: start.run, generation: start.generation, index: ticket.index, record: record.clone(), stored };
    let pending = match child {
        None => store.submit(|call| Op::Await(Box::new(call)), step, Admitted::default()),
        Some(child) => store.submit(|call| Op::Spawn(Box::new(call)), Spawn { step, child }, Admitted::default()),
    };
    ticket.asked = Some(Box::new(Asked { record, signals, pending }));
}

/// The answer, and how many signals had come when it was asked for.
async fn answered(ticket: &mut Ticket) -> (Result<Settled, Error>, u64) {
    let answer = poll_fn(|cx| match &mut ticket.asked {
        Some(asked) => asked.pending.poll(cx),
        None => Poll::Pending,
    });
    let answer = answer.await;
    (answer, ticket.asked.take().map_or(0, |asked| asked.signals))
}

fn first_record(ticket: &Ticket, wanted: &Wanted, now: Timestamp) -> StepRecord {
    let due = match wanted.until {
        Until::Ever => None,
        Until::For(duration) => Some(now.saturating_add(duration)),
        Until::At(at) => Some(at),
    };
    StepRecord {
        key: ticket.key.to_string(),
        kind: wanted.kind.to_byte(),
        version: ticket.execution.version(),
        generation: ticket.execution.start.generation,
        started_at: now,
        completed_at: now,
        attempts: 1,
        error: None,
        open: Some(WaitRecord { due, signal: wanted.signal.clone(), run: None }),
        tries: Vec::new(),
    }
}

/// Waits until there is something to ask for: the moment has come, or the writer has told of something. What was tried before
/// is not tried again once the runtime shuts down.
pub(super) async fn park(ticket: &mut Ticket, open: WaitRecord, signals: u64) {
    let (clock, draining) = (ticket.execution.means.clock.clone(), ticket.execution.means.draining.clone());
    let mut drained = std::pin::pin!(draining.cancelled());
    let (mut stopping, tried) = (false, ticket.tried().is_some_and(|record| record.kind == StepKind::Run.to_byte()));
    loop {
        // The wall clock may be set while this waits by another one, so it is looked at again from time to time.
        let left = open.due.filter(|_| !(stopping && tried)).map(|due| due.since(clock.now()));
        let mut timer = left.map(|left| clock.sleep(left.min(ALARM_RECHECK)));
        let told = poll_fn(|cx| {
            if ticket.park(&open, signals, cx.waker()) {
                return Poll::Ready(true);
            }
            // A shutdown suspends what only waits, so the body is to be looked at.
            if !stopping && drained.as_mut().poll(cx).is_ready() {
                stopping = true;
                return Poll::Ready(false);
            }
            match &mut timer {
                Some(timer) => timer.as_mut().poll(cx).map(|()| false),
                None => Poll::Pending,
            }
        });
        let told = told.await;
        if told || (!(stopping && tried) && open.due.is_some_and(|due| due <= clock.now())) {
            return ticket.unpark();
        }
    }
}

/// The outcome as the body gets it.
async fn conclude<T: DeserializeOwned>(
    mut ticket: Ticket,
    kind: StepKind,
    outcome: Result<Bytes, Box<ErrorRecord>>,
) -> JobResult<T> {
    match outcome {
        Ok(json) if kind == StepKind::Signal => match schema::decode::<T>(&json) {
            Ok(value) => {
                ticket.done = true;
                Ok(value)
            }
            Err(error) => {
                let message = format!(
                    "signal of step {:?} does not fit {}: {} at {:?}",
                    ticket.key,
                    std::any::type_name::<T>(),
                    error.message,
                    error.path
                );
                let now = ticket.execution.now();
                run::record_failure(ticket, kind, now, JobError::of_kind(ErrorKind::Mismatch, message)).await
            }
        },
        Ok(json) => {
            let value = fitting(&ticket, &json).await;
            ticket.done = true;
            Ok(value)
        }
        Err(error) => {
            ticket.done = true;
            Err(JobError::from_record(*error))
        }
    }
}
