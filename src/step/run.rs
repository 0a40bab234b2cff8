//! One step: builder, future, and what happens when it is polled.

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tracing::Instrument;

use super::execution::{Execution, Known, Ticket};
use super::{StepCx, current};
use crate::codec::records::ErrorRecord;
use crate::error::Error;
use crate::event::EventKind;
use crate::job::{ErrorKind, JobError, JobResult, not_storable, schema};
use crate::store::op::{Accepted, Checkpoint, Notes};
use crate::store::read::ReplayOutcome;

pub(super) type BodyFuture<'a, T> = Pin<Box<dyn Future<Output = JobResult<T>> + Send + 'a>>;
pub(super) type Body<'a, T> = Box<dyn FnMut(StepCx) -> BodyFuture<'a, T> + Send + 'a>;

/// A step that is called: set its options, then await it. See [`Step::run`](super::Step::run).
#[must_use = "a step does nothing until it is awaited"]
pub struct StepRun<'a, T> {
    state: State<'a, T>,
    timeout: Option<Duration>,
}

enum State<'a, T> {
    Called(Box<Ticket>, Body<'a, T>),
    Running(BodyFuture<'a, T>),
    /// It was called after its body had ended.
    Detached(String),
    /// It never resolves: the runtime ends the body.
    Never,
}

impl<T> Unpin for StepRun<'_, T> {}

impl<T> fmt::Debug for StepRun<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepRun").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl<'a, T> StepRun<'a, T> {
    pub(super) fn new(ticket: Ticket, body: Body<'a, T>) -> Self {
        StepRun { state: State::Called(Box::new(ticket), body), timeout: None }
    }

    pub(super) fn never() -> Self {
        StepRun { state: State::Never, timeout: None }
    }

    pub(super) fn detached(key: String) -> Self {
        StepRun { state: State::Detached(key), timeout: None }
    }

    /// Fail the step if its body takes longer than this; without it, it takes as long as it takes. The body is dropped then,
    /// and the failure is the step's outcome.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

impl<'a, T: Serialize + DeserializeOwned + Send + 'a> Future for StepRun<'a, T> {
    type Output = JobResult<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<JobResult<T>> {
        loop {
            match std::mem::replace(&mut self.state, State::Never) {
                State::Called(ticket, body) => {
                    let timeout = self.timeout;
                    let span = tracing::info_span!(
                        "durably.step",
                        run_id = %ticket.execution.start.run,
                        job = &*ticket.execution.start.job_name,
                        step = &*ticket.key,
                        index = ticket.index,
                        replayed = ticket.known.is_some(),
                    );
                    self.state = State::Running(Box::pin(drive(*ticket, body, timeout).instrument(span)));
                }
                State::Running(mut running) => {
                    let polled = running.as_mut().poll(cx);
                    if polled.is_pending() {
                        self.state = State::Running(running);
                    }
                    return polled;
                }
                State::Detached(key) => {
                    let message = format!("step {key:?} was called after its body had ended");
                    return Poll::Ready(Err(JobError::of_kind(ErrorKind::Detached, message)));
                }
                State::Never => return Poll::Pending,
            }
        }
    }
}

/// A step from its first poll to its outcome. Whatever is not the step's own outcome leaves it pending for ever.
async fn drive<T: Serialize + DeserializeOwned + Send>(
    mut ticket: Ticket,
    body: Body<'_, T>,
    timeout: Option<Duration>,
) -> JobResult<T> {
    let outcome = match replayed(&mut ticket).await {
        Some(Ok(json)) => Ok(fitting(&ticket, &json).await),
        Some(Err(record)) => Err(record),
        None => execute(&mut ticket, body, timeout).await,
    };
    ticket.done = true;
    outcome.map_err(JobError::from_record)
}

/// A stored output as the type that is expected now; one that does not fit ends the run.
async fn fitting<T: DeserializeOwned>(ticket: &Ticket, json: &[u8]) -> T {
    match schema::decode::<T>(json) {
        Ok(value) => value,
        Err(error) => {
            let shown: String = String::from_utf8_lossy(json).chars().take(200).collect();
            let message = format!(
                "the stored output of step {:?} does not fit {}: {} at {:?}; stored: {shown}",
                ticket.key,
                std::any::type_name::<T>(),
                error.message,
                error.path,
            );
            ticket.execution.fail(ErrorKind::CheckpointMismatch, message);
            never().await
        }
    }
}

/// The outcome that is decided already, if there is one.
async fn replayed(ticket: &mut Ticket) -> Option<Result<Bytes, ErrorRecord>> {
    let execution = ticket.execution.clone();
    match ticket.known.take()? {
        Known::Handed(_, outcome, pending) => {
            ticket.handed = Some((outcome, pending));
            Some(recorded(ticket).await)
        }
        Known::Replayed(index, ReplayOutcome::Stored) => {
            ticket.known = Some(Known::Replayed(index, ReplayOutcome::Stored));
            Some(Ok(stored(&execution, index).await))
        }
        Known::Replayed(index, ReplayOutcome::Output(json)) => {
            ticket.known = Some(Known::Replayed(index, ReplayOutcome::Output(json.clone())));
            Some(Ok(json))
        }
        Known::Replayed(index, ReplayOutcome::Failed(record)) => {
            ticket.known = Some(Known::Replayed(index, ReplayOutcome::Failed(record.clone())));
            Some(Err(record))
        }
    }
}

/// Reads a large output; waits as long as the file is away.
async fn stored(execution: &Execution, index: u32) -> Bytes {
    loop {
        match execution.means.store.step_output(execution.start.run, index).await {
            Ok(json) => return json,
            Err(error @ Error::Corrupted { .. }) => {
                execution.fail(ErrorKind::Corrupted, error.to_string());
                return never().await;
            }
            Err(Error::ShutDown) => return never().await,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Runs the body and records its outcome.
async fn execute<T: Serialize + DeserializeOwned>(
    ticket: &mut Ticket,
    mut body: Body<'_, T>,
    timeout: Option<Duration>,
) -> Result<T, ErrorRecord> {
    let execution = ticket.execution.clone();
    if execution.cancelled.is_cancelled() {
        execution.stuck();
        return never().await;
    }
    let (step, index) = (ticket.key.clone(), ticket.index);
    execution.tell(EventKind::StepStarted { step: step.clone(), index });
    let started_at = execution.now();
    let began = execution.means.clock.monotonic();
    let cx = StepCx { execution: execution.clone(), key: step.clone(), attempt: 1 };
    let result = attempt(&execution, &step, body(cx), timeout).await;
    if result.is_err() && execution.is_stopping() {
        // Told to stop, it failed: that is no outcome. The run is handed back, or is cancelled already.
        if execution.cancelled.is_cancelled() {
            execution.tell(EventKind::StepCancelled { step, index });
            execution.stuck();
        } else {
            execution.judge(super::execution::Verdict::HandedBack);
        }
        return never().await;
    }
    let encoded = result.and_then(|value| encode(&execution, &value)).map_err(|error| {
        let mut record = error.into_record();
        record.step = Some(step.to_string());
        record
    });
    let (outcome, result) = match encoded {
        Ok((json, value)) => (Ok(json), Ok(value)),
        Err(record) => (Err(record.clone()), Err(record)),
    };
    let bytes = outcome.as_ref().map_or(0, Bytes::len) + step.len() + 64;
    if !execution.count_bytes(bytes) {
        let message = format!("the checkpoints of a run can't be more than {} bytes", crate::limits::STEPS_BYTES_MAX);
        execution.fail(ErrorKind::OverLimit, message);
        return never().await;
    }
    let checkpoint = Checkpoint {
        run: execution.start.run,
        generation: execution.start.generation,
        index,
        key: step,
        outcome: outcome.clone(),
        attempts: 1,
        started_at,
        completed_at: execution.now(),
        duration: execution.elapsed_since(began),
        notes: Notes::default(),
    };
    let pending = execution.hand_over(checkpoint).await;
    ticket.handed = Some((outcome, pending));
    // Comes back only once it is on disk.
    drop(recorded(ticket).await);
    result
}

/// Waits until what was handed over is on disk, and gives it.
async fn recorded(ticket: &mut Ticket) -> Result<Bytes, ErrorRecord> {
    let Some((_, pending)) = &mut ticket.handed else { return never().await };
    let accepted = pending.answer_mut().await;
    let handed = ticket.handed.take();
    match (accepted, handed) {
        (Ok(Accepted::Recorded), Some((outcome, _))) => outcome,
        _ => {
            let (execution, step) = (&ticket.execution, ticket.key.clone());
            if execution.cancelled.is_cancelled() {
                execution.tell(EventKind::StepCancelled { step, index: ticket.index });
            }
            execution.stuck();
            never().await
        }
    }
}

/// One try of the body, inside its scope and its timeout.
async fn attempt<T>(
    execution: &Execution,
    step: &Arc<str>,
    mut body: BodyFuture<'_, T>,
    timeout: Option<Duration>,
) -> JobResult<T> {
    let (run, generation) = (execution.start.run, execution.start.generation);
    let scoped = poll_fn(|cx| {
        let _entered = current::enter(run, generation, Some(step));
        body.as_mut().poll(cx)
    });
    match timeout {
        None => scoped.await,
        Some(timeout) => tokio::time::timeout(timeout, scoped).await.unwrap_or_else(|_| {
            let message = format!("step {step:?} took longer than {timeout:?}");
            Err(JobError::of_kind(ErrorKind::Timeout, message))
        }),
    }
}

/// A value as it is stored, and as it reads back from that: the body gets what a replay will give it.
fn encode<T: Serialize + DeserializeOwned>(execution: &Execution, value: &T) -> JobResult<(Bytes, T)> {
    let json = serde_json::to_vec(value).map_err(|error| not_storable(&error))?;
    let bytes_max = execution.means.payload_bytes_max;
    if json.len() > bytes_max {
        let message = format!("checkpoint of {} bytes is over the limit of {bytes_max}", json.len());
        return Err(JobError::of_kind(ErrorKind::OverLimit, message));
    }
    let value = schema::decode::<T>(&json).map_err(|error| {
        let message = format!("the value can't be read back from JSON: {} at {:?}", error.message, error.path);
        JobError::of_kind(ErrorKind::NotStorable, message)
    })?;
    Ok((json.into(), value))
}

/// Runs blocking code on one of the runtime's threads. The thread counts as the body's until it has returned.
pub(super) async fn on_thread<T: Send + 'static>(
    execution: &Arc<Execution>,
    step: Arc<str>,
    body: impl FnOnce() -> JobResult<T> + Send + 'static,
) -> JobResult<T> {
    let (sender, result) = oneshot::channel();
    let (run, generation) = (execution.start.run, execution.start.generation);
    let alive = execution.alive();
    let task = Box::new(move || {
        let caught = {
            let _entered = current::enter(run, generation, Some(&step));
            std::panic::catch_unwind(AssertUnwindSafe(body))
        };
        // Released before the result is given, so that a body that ends with it has nothing left behind.
        drop(alive);
        let _ = sender.send(caught);
    });
    execution.means.pool.run(task)?;
    match result.await {
        Ok(Ok(result)) => result,
        // The panic goes on in the body that called the step.
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(_) => never().await,
    }
}

/// What the runtime's own doings resolve to.
async fn never<T>() -> T {
    std::future::pending().await
}
