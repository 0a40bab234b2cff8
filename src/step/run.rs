//! One step: builder, future, and what happens when it is polled.

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::oneshot;
use tracing::Span;

use super::execution::{Execution, Known, Ticket};
use super::{StepCx, current, retry};
use crate::codec;
use crate::codec::records::{ErrorRecord, StepRecordRef};
use crate::error::Error;
use crate::event::{EventKind, StepTold};
use crate::hooks::Failpoint;
use crate::job::{ErrorKind, JobError, JobResult, Retry, not_storable, schema, upcast};
use crate::limits::READ_AGAIN_AFTER;
use crate::run::StepKind;
use crate::store::op::{Accepted, Admitted};
use crate::store::read::ReplayOutcome;
use crate::time::{Timer, Timestamp};

pub(super) type BodyFuture<'a, T> = Pin<Box<dyn Future<Output = JobResult<T>> + Send + 'a>>;
pub(super) type Body<'a, T> = Box<dyn FnMut(StepCx) -> BodyFuture<'a, T> + Send + 'a>;

/// A step that is called: set its options, then await it. See [`Step::run`](super::Step::run).
#[must_use = "a step does nothing until it is awaited"]
pub struct StepRun<'a, T> {
    state: State<'a, T>,
    timeout: Option<Duration>,
    retry: Option<Box<Retry>>,
    /// Where there are none, they cost nothing.
    upcasts: Option<Box<Upcasts<'a>>>,
    span: Span,
}

/// Conversions of outputs that code up to a version has stored.
type Upcasts<'a> = Vec<(u32, Box<dyn Fn(Value) -> JobResult<Value> + Send + 'a>)>;

enum State<'a, T> {
    Called(Ticket, Body<'a, T>),
    /// Its outcome was decided before.
    Replayed(BodyFuture<'a, T>),
    /// Its body is tried.
    Tried(Try<'a, T>),
    /// An attempt failed, and the next one is not due yet.
    Retried(Retried, Body<'a, T>),
    /// What came out waits for room among the writes.
    Admitted(Admitting, Box<Outcome<T>>),
    /// What came out is with the writer. It is given to the body once it is on disk.
    Recording(Ticket, Result<T, ErrorRecord>),
    /// It was called after its body had ended.
    Detached(String),
    /// It never resolves: the runtime ends the body.
    Never,
}

type Retried = Pin<Box<dyn Future<Output = Ticket> + Send>>;
type Admitting = Pin<Box<dyn Future<Output = Admitted> + Send>>;

impl<T> Unpin for StepRun<'_, T> {}

impl<T> fmt::Debug for StepRun<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepRun").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl<'a, T> StepRun<'a, T> {
    pub(super) fn new(ticket: Ticket, body: Body<'a, T>) -> Self {
        Self::of(State::Called(ticket, body))
    }

    pub(super) fn never() -> Self {
        Self::of(State::Never)
    }

    pub(super) fn detached(key: String) -> Self {
        Self::of(State::Detached(key))
    }

    fn of(state: State<'a, T>) -> Self {
        StepRun { state, timeout: None, retry: None, upcasts: None, span: Span::none() }
    }

    /// Fail an attempt if the body takes longer than this; without it, it takes as long as it takes. The body is dropped then,
    /// and unless the step is tried again the failure is its outcome.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Try the step again when it fails, as this says, whatever the [job's own](crate::Job::retry) says. The body is called anew
    /// for each attempt.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = Some(Box::new(retry));
        self
    }

    /// Converts outputs that older code has stored: what [versions](crate::Job::version) up to `from_version` stored, into what
    /// the next one stores. Several are applied in the order of their versions, so each goes one step only; what came out of
    /// the last is what the step's type is read from. It may take and give types or [`serde_json::Value`]s, and must not have
    /// effects: it is called at every replay, and nothing is rewritten on disk. An output that can't be converted ends the
    /// run as one that does not fit, with [`ErrorKind::CheckpointMismatch`].
    ///
    /// ```
    /// # use durably::{JobResult, Step};
    /// # use serde::{Serialize, Deserialize};
    /// #[derive(Serialize, Deserialize)]
    /// struct User { name: String, mails: Vec<String> }
    ///
    /// # async fn load() -> JobResult<User> { Ok(User { name: "ann".into(), mails: Vec::new() }) }
    /// # async fn body(step: Step) -> JobResult<()> {
    /// let user: User = step
    ///     .run("user", || load())
    ///     .upcast(0, |name: String| Ok((name, None::<String>)))
    ///     .upcast(1, |(name, mail): (String, Option<String>)| Ok(User { name, mails: mail.into_iter().collect() }))
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub fn upcast<A, B>(mut self, from_version: u32, convert: impl Fn(A) -> JobResult<B> + Send + 'a) -> Self
    where
        A: DeserializeOwned,
        B: Serialize,
    {
        let convert = Box::new(move |old| upcast::typed(old, &convert));
        self.upcasts.get_or_insert_default().push((from_version, convert));
        self
    }
}

impl<'a, T: Serialize + DeserializeOwned + Send + 'a> Future for StepRun<'a, T> {
    type Output = JobResult<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<JobResult<T>> {
        let StepRun { state, timeout, retry, upcasts, span } = self.get_mut();
        if let State::Called(ticket, _) = state {
            if let Some(error) = outlived(ticket) {
                *state = State::Never;
                return Poll::Ready(Err(error));
            }
            *span = span_of(ticket);
        }
        let _entered = span.enter();
        loop {
            *state = match state {
                // What waits longest is polled where it stands: to move it and put it back is dearer than to look.
                State::Tried(trying) => {
                    let result = ready!(trying.poll(cx));
                    match state.take() {
                        State::Tried(trying) => trying.conclude(result, retry.as_deref()),
                        other => other,
                    }
                }
                State::Recording(ticket, _) => {
                    let recorded = ready!(poll_recorded(ticket, cx));
                    match state.take() {
                        State::Recording(mut ticket, result) if recorded.is_some() => {
                            ticket.execution.means.hooks.pass(Failpoint::CheckpointRecorded);
                            ticket.done = true;
                            return Poll::Ready(result.map_err(JobError::from_record));
                        }
                        _ => State::Never,
                    }
                }
                State::Never => return Poll::Pending,
                _ => match state.take() {
                    State::Called(ticket, _) if ticket.execution.is_cancelled() => {
                        // Nothing may be recorded any more, and nothing recorded be gone on from.
                        ticket.execution.stuck();
                        State::Never
                    }
                    State::Called(ticket, _) if ticket.is_other_kind(StepKind::Run) => State::Never,
                    State::Called(ticket, body) if ticket.tried().is_some() => {
                        State::Retried(Box::pin(retry::due(ticket)), body)
                    }
                    State::Called(ticket, _) if ticket.known.is_some() => {
                        State::Replayed(Box::pin(replay(ticket, upcasts.take())))
                    }
                    State::Called(ticket, body) => Try::begin(ticket, body, *timeout),
                    State::Retried(mut waiting, body) => match waiting.as_mut().poll(cx) {
                        Poll::Ready(ticket) => Try::begin(ticket, body, *timeout),
                        Poll::Pending => {
                            *state = State::Retried(waiting, body);
                            return Poll::Pending;
                        }
                    },
                    State::Admitted(mut admitting, outcome) => match admitting.as_mut().poll(cx) {
                        Poll::Ready(admitted) => outcome.hand_over(admitted),
                        Poll::Pending => {
                            *state = State::Admitted(admitting, outcome);
                            return Poll::Pending;
                        }
                    },
                    State::Replayed(mut replayed) => {
                        let polled = replayed.as_mut().poll(cx);
                        if polled.is_pending() {
                            *state = State::Replayed(replayed);
                        }
                        return polled;
                    }
                    State::Detached(key) => return Poll::Ready(Err(detached(&key))),
                    waiting @ (State::Tried(_) | State::Recording(..) | State::Never) => waiting,
                },
            }
        }
    }
}

/// What a step gives that is awaited first when its body has ended. Where the world has ended with it, nobody learns anything.
pub(super) fn outlived(ticket: &Ticket) -> Option<JobError> {
    let execution = &ticket.execution;
    (execution.is_over() && !execution.means.hooks.is_dead()).then(|| detached(&ticket.key))
}

pub(super) fn detached(key: &str) -> JobError {
    JobError::of_kind(ErrorKind::Detached, format!("step {key:?} was called after its body had ended"))
}

impl<T> State<'_, T> {
    fn take(&mut self) -> Self {
        std::mem::replace(self, State::Never)
    }
}

pub(super) fn span_of(ticket: &Ticket) -> Span {
    let subject = &ticket.execution.start.subject;
    tracing::info_span!(
        "durably.step",
        run_id = %subject.run,
        job = &*subject.job_name,
        step = &*ticket.key,
        index = ticket.index,
        replayed = ticket.known.is_some() && ticket.tried().is_none(),
    )
}

/// One try of a step's body, inside its scope and its timeout.
struct Try<'a, T> {
    body: BodyFuture<'a, T>,
    /// For the next attempt.
    again: Body<'a, T>,
    timer: Option<(Timer, Duration)>,
    started_at: Timestamp,
    began: Duration,
    ticket: Ticket,
}

impl<'a, T: Serialize + DeserializeOwned + Send + 'a> Try<'a, T> {
    fn begin(ticket: Ticket, mut body: Body<'a, T>, timeout: Option<Duration>) -> State<'a, T> {
        let execution = &ticket.execution;
        let (step, index) = (&ticket.key, ticket.index);
        execution.tell(|| EventKind::StepStarted { step: step.clone(), index });
        let cx = StepCx { execution: execution.clone(), key: step.clone(), attempt: ticket.next_attempt() };
        State::Tried(Try {
            body: call(&mut body, cx),
            again: body,
            timer: timeout.map(|timeout| (execution.means.clock.sleep(timeout), timeout)),
            started_at: execution.now(),
            began: execution.means.clock.monotonic(),
            ticket,
        })
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<JobResult<T>> {
        let start = &self.ticket.execution.start;
        let entered = current::enter(start.run, start.generation, Some(&self.ticket.key));
        if let Poll::Ready(result) = self.body.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        drop(entered);
        let Some((timer, timeout)) = &mut self.timer else { return Poll::Pending };
        timer.as_mut().poll(cx).map(|()| {
            let message = format!("step {:?} took longer than {timeout:?}", self.ticket.key);
            Err(JobError::of_kind(ErrorKind::Timeout, message))
        })
    }

    /// The body is over: what came out is handed to the writer, unless it does not count.
    fn conclude(self, result: JobResult<T>, asked: Option<&Retry>) -> State<'a, T> {
        let Try { body, again, ticket, started_at, began, .. } = self;
        drop(body);
        let execution = &ticket.execution;
        if result.is_err() && execution.is_stopping() {
            // Told to stop, it failed: that is no outcome. The run is handed back, or is cancelled already.
            if execution.is_cancelled() {
                let (step, index) = (&ticket.key, ticket.index);
                execution.tell(|| EventKind::StepCancelled { step: step.clone(), index });
                execution.stuck();
            } else {
                execution.judge(super::execution::Verdict::HandedBack);
            }
            return State::Never;
        }
        let result = match result {
            Err(error) => match retry::delay(&ticket, asked, &error) {
                Some(delay) => return State::Retried(Box::pin(retry::again(ticket, error, started_at, delay)), again),
                None => Err(error),
            },
            Ok(value) => Ok(value),
        };
        drop(again);
        let outcome = Outcome::seal(ticket, result, started_at, began);
        let execution = outcome.ticket.execution.clone();
        let bytes = outcome.told.record.len() - outcome.told.output_at + outcome.told.step.len() + 64;
        if !execution.count_bytes(bytes) {
            execution.fail_over_bytes();
            return State::Never;
        }
        match execution.means.store.try_admit_body(bytes) {
            Some(admitted) => outcome.hand_over(admitted),
            None => {
                let admitting = async move { execution.means.store.admit_body(bytes).await };
                State::Admitted(Box::pin(admitting), Box::new(outcome))
            }
        }
    }
}

/// Calls a step's body, unless a test puts something in its place.
fn call<'a, T: DeserializeOwned + Send + 'a>(body: &mut Body<'a, T>, cx: StepCx) -> BodyFuture<'a, T> {
    #[cfg(feature = "testing")]
    if let Some(rig) = cx.execution.means.hooks.rig() {
        return crate::testing::staged(rig.clone(), cx, body);
    }
    body(cx)
}

/// What came out of a step, as the body gets it and as it is stored.
struct Outcome<T> {
    ticket: Ticket,
    result: Result<T, ErrorRecord>,
    told: StepTold,
}

thread_local! {
    /// What records are written in; each is copied into memory of its own size.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A scratch that has grown beyond this is not kept.
const SCRATCH_BYTES_MAX: usize = 64 << 10;

impl<T: Serialize + DeserializeOwned> Outcome<T> {
    fn seal(ticket: Ticket, result: JobResult<T>, started_at: Timestamp, began: Duration) -> Self {
        // Taken out, since a user's Serialize may come here again.
        let mut scratch = SCRATCH.take();
        let execution = &ticket.execution;
        let before = ticket.tried();
        let header = StepRecordRef {
            key: &ticket.key,
            kind: StepKind::Run.to_byte(),
            version: execution.version(),
            generation: execution.start.generation,
            started_at: before.map_or(started_at, |before| before.started_at),
            completed_at: execution.now(),
            attempts: ticket.next_attempt(),
            error: None,
            open: None,
            tries: before.map_or(&[], |before| &before.tries),
        };
        let sealed = result.and_then(|value| {
            let output_at = codec::seal_into(&mut scratch, &header, |out| {
                serde_json::to_writer(out, &value).map_err(|error| not_storable(&error))
            })?;
            let value = read_back(execution.means.payload_bytes_max, &scratch[output_at..])?;
            Ok((output_at, value))
        });
        let (output_at, result) = match sealed {
            Ok((output_at, value)) => (output_at, Ok(value)),
            Err(error) => {
                let mut record = error.into_record();
                record.step = Some(ticket.key.to_string());
                let mut tries = header.tries.to_vec();
                if before.is_some() {
                    let times = (started_at, header.completed_at);
                    retry::add_try(&mut tries, header.attempts, &record, times);
                }
                let header = StepRecordRef { error: Some(&record), tries: &tries, ..header };
                let Ok(output_at) = codec::seal_into(&mut scratch, &header, |_| Ok::<(), Infallible>(()));
                (output_at, Err(record))
            }
        };
        let told = StepTold {
            step: ticket.key.clone(),
            index: ticket.index,
            duration: execution.elapsed_since(began),
            record: Arc::from(&scratch[..]),
            output_at,
            error: result.as_ref().err().map(|record| Box::new(record.clone())),
        };
        if scratch.capacity() <= SCRATCH_BYTES_MAX {
            SCRATCH.set(scratch);
        }
        Outcome { ticket, result, told }
    }
}

impl<T> Outcome<T> {
    fn hand_over<'a>(self, admitted: Admitted) -> State<'a, T> {
        let Outcome { mut ticket, result, told } = self;
        ticket.handed = Some(ticket.execution.hand_over(told, admitted));
        ticket.execution.means.hooks.pass(Failpoint::CheckpointHandedOver);
        State::Recording(ticket, result)
    }
}

/// Records that a step has failed, and gives that to the body once it is on disk.
pub(super) async fn record_failure<T>(
    mut ticket: Ticket,
    kind: StepKind,
    started_at: Timestamp,
    error: JobError,
) -> JobResult<T> {
    let mut record = error.into_record();
    record.step = Some(ticket.key.to_string());
    record_outcome(&mut ticket, kind, started_at, Some(&record), &[]).await;
    ticket.done = true;
    Err(JobError::from_record(record))
}

/// Records a step's outcome that no try of a body gave: an error, or else an output. It comes back once that is on disk, and never if it does not count.
pub(super) async fn record_outcome(
    ticket: &mut Ticket,
    kind: StepKind,
    started_at: Timestamp,
    error: Option<&ErrorRecord>,
    output: &[u8],
) {
    let execution = ticket.execution.clone();
    let header = StepRecordRef {
        key: &ticket.key,
        kind: kind.to_byte(),
        version: execution.version(),
        generation: execution.start.generation,
        started_at,
        completed_at: execution.now(),
        attempts: 1,
        error,
        open: None,
        tries: &[],
    };
    let mut sealed = Vec::new();
    let Ok(output_at) = codec::seal_into(&mut sealed, &header, |out| {
        out.extend_from_slice(output);
        Ok::<(), Infallible>(())
    });
    if !execution.count_bytes(sealed.len()) {
        execution.fail_over_bytes();
        return never().await;
    }
    let admitted = execution.means.store.admit_body(sealed.len()).await;
    let told = StepTold {
        step: ticket.key.clone(),
        index: ticket.index,
        duration: execution.now().since(started_at),
        record: sealed.into(),
        output_at,
        error: error.map(|record| Box::new(record.clone())),
    };
    ticket.handed = Some(execution.hand_over(told, admitted));
    if poll_fn(|cx| poll_recorded(ticket, cx)).await.is_none() {
        never().await
    }
}

/// A value as it reads back from what is stored: the body gets what a replay will give it.
pub(super) fn read_back<T: DeserializeOwned>(bytes_max: usize, json: &[u8]) -> JobResult<T> {
    if json.len() > bytes_max {
        let message = format!("checkpoint of {} bytes is over the limit of {bytes_max}", json.len());
        return Err(JobError::of_kind(ErrorKind::OverLimit, message));
    }
    schema::decode::<T>(json).map_err(|error| {
        let message = format!("the value can't be read back from JSON: {} at {:?}", error.message, error.path);
        JobError::of_kind(ErrorKind::NotStorable, message)
    })
}

/// Whether what was handed over is on disk, and what it was. `None`: it does not count, and the runtime ends the body.
fn poll_recorded(ticket: &mut Ticket, cx: &mut Context<'_>) -> Poll<Option<StepTold>> {
    let Some(handed) = &mut ticket.handed else { return Poll::Ready(None) };
    let accepted = ready!(handed.pending.poll(cx));
    if ticket.execution.means.hooks.is_dead() {
        return Poll::Pending;
    }
    let handed = ticket.handed.take();
    Poll::Ready(match (accepted, handed) {
        (Ok(Accepted::Recorded), Some(handed)) => Some(handed.told),
        _ => {
            let (execution, step, index) = (&ticket.execution, &ticket.key, ticket.index);
            if execution.is_cancelled() {
                execution.tell(|| EventKind::StepCancelled { step: step.clone(), index });
            }
            execution.stuck();
            None
        }
    })
}

/// A step whose outcome was decided before: its body does not run again.
async fn replay<T: DeserializeOwned>(mut ticket: Ticket, upcasts: Option<Box<Upcasts<'_>>>) -> JobResult<T> {
    let version = match ticket.known.as_deref() {
        Some(Known::Replayed(_, _, version, _)) => Some(*version),
        _ => None,
    };
    let outcome = match decided(&mut ticket).await {
        Ok(json) => {
            let json = match version.zip(upcasts).map(|(version, upcasts)| converted(&json, version, &upcasts)) {
                None => json,
                Some(Ok(json)) => json,
                Some(Err(error)) => {
                    unfitting(&ticket, &json, &format!("can't be converted: {error}"));
                    return never().await;
                }
            };
            Ok(fitting(&ticket, &json).await)
        }
        Err(record) => Err(record),
    };
    ticket.done = true;
    outcome.map_err(JobError::from_record)
}

pub(super) async fn decided(ticket: &mut Ticket) -> Result<Bytes, ErrorRecord> {
    let (index, kind, version, outcome) = match ticket.known.take().map(|known| *known) {
        Some(Known::Handed(_, handed)) => {
            ticket.handed = Some(handed);
            return match poll_fn(|cx| poll_recorded(ticket, cx)).await {
                Some(StepTold { error: Some(error), .. }) => Err(*error),
                Some(told) => Ok(Bytes::copy_from_slice(told.record.get(told.output_at..).unwrap_or_default())),
                None => never().await,
            };
        }
        Some(Known::Replayed(index, kind, version, outcome)) => (index, kind, version, outcome),
        // A wait goes on where it is awaited.
        Some(Known::Waits(..) | Known::Asked(..)) | None => return never().await,
    };
    // It stays known, should this be dropped before it is done.
    ticket.known = Some(Box::new(Known::Replayed(index, kind, version, outcome.clone())));
    match outcome {
        ReplayOutcome::Stored => Ok(stored(&ticket.execution.clone(), index).await),
        ReplayOutcome::Output(json) => Ok(json),
        ReplayOutcome::Failed(record) => Err(record),
        ReplayOutcome::Open(_) | ReplayOutcome::Items(_) => never().await,
    }
}

/// A stored output as the code of now would have stored it.
fn converted(json: &Bytes, version: u32, upcasts: &Upcasts<'_>) -> JobResult<Bytes> {
    if !upcasts.iter().any(|(from, _)| version <= *from) {
        return Ok(json.clone());
    }
    let old = schema::decode::<Value>(json).map_err(|error| JobError::msg(error.message))?;
    let upcasts = upcasts.iter().map(|(from, convert)| (*from, &**convert as &upcast::Convert<'_>));
    let new = upcast::apply(upcasts, version, old)?;
    Ok(serde_json::to_vec(&new).map_err(|error| not_storable(&error))?.into())
}

/// Ends the run: a stored output is not what the code expects.
fn unfitting(ticket: &Ticket, json: &[u8], why: &str) {
    let shown: String = String::from_utf8_lossy(json).chars().take(200).collect();
    let message = format!("the stored output of step {:?} {why}; stored: {shown}", ticket.key);
    ticket.execution.fail(ErrorKind::CheckpointMismatch, message);
}

/// A stored output as the type that is expected now; one that does not fit ends the run.
pub(super) async fn fitting<T: DeserializeOwned>(ticket: &Ticket, json: &[u8]) -> T {
    match schema::decode::<T>(json) {
        Ok(value) => value,
        Err(error) => {
            let name = std::any::type_name::<T>();
            unfitting(ticket, json, &format!("does not fit {name}: {} at {:?}", error.message, error.path));
            never().await
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
            Err(_) => tokio::time::sleep(READ_AGAIN_AFTER).await,
        }
    }
}

/// Runs blocking code on one of the runtime's threads. The thread counts as the body's until it has returned.
pub(super) async fn on_thread<T: Send + 'static>(
    execution: &Arc<Execution>,
    step: Arc<str>,
    body: impl FnOnce() -> JobResult<T> + Send + 'static,
) -> JobResult<T> {
    let (sender, result) = oneshot::channel();
    let (run, generation) = (execution.start.run, execution.start.generation);
    let (alive, of) = (execution.alive(), execution.clone());
    let task = Box::new(move || {
        // It may have waited long for a thread. What nobody awaits any more, or may not be recorded, does not begin.
        let begins = !sender.is_closed() && !of.is_cancelled() && !of.is_over();
        drop(of);
        if !begins {
            drop(body);
            drop(alive);
            return;
        }
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
        // It did not begin.
        Err(_) => {
            execution.stuck();
            never().await
        }
    }
}

/// What the runtime's own doings resolve to.
pub(super) async fn never<T>() -> T {
    std::future::pending().await
}
