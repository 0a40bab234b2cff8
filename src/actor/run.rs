//! One execution of a run: its handler polls the user's future.
//!
//! The body is ended by its own return, by a verdict of the runtime, or by the grace after a cancel. However it ends, its
//! outcome goes to the writer once, and key and slot are reported free when the last of its code is gone.

use std::any::Any;
use std::fmt;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, MessagingErr, SpawnErr, SupervisionEvent};
use serde_json::Value;
use tracing::Instrument;

use super::body_gone;
use crate::durably::Core;
use crate::error::Error;
use crate::hooks::{Bug, Failpoint};
use crate::job::{BodyFuture, Definition, ErrorKind, JobError, JobResult};
use crate::limits::{NOTES_FLUSH_AFTER, READ_AGAIN_AFTER};
use crate::quietly::discard;
use crate::step::execution::{Alive, Execution, Verdict};
use crate::step::signals::Signal;
use crate::step::{Step, current};
use crate::store::Pending;
use crate::store::op::{Accepted, Admitted, Continuation, End, NotesOf, Op, Outcome};
use crate::store::writer::Start;
use crate::time::Timer;
use crate::trigger::labels::within;

/// A body that only waits is suspended when it has been polled so many times more without doing anything else.
const IDLE_POLLS: u32 = 2;

/// Polls one run's body after the other. One that has done waits for its next run, since making an actor and ending it is dearer
/// than all else that a run costs by itself.
struct RunActor;

/// Executes a run that has begun.
#[derive(Debug)]
pub(super) struct Execute(Work);

struct Work {
    core: Arc<Core>,
    start: Arc<Start>,
    alive: Arc<Alive>,
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").field("start", &self.start).finish_non_exhaustive()
    }
}

/// Gives a body that has begun to an actor that has done, or makes one, as a child of the nursery.
pub(super) async fn spawn(core: &Arc<Core>, start: Arc<Start>) -> Result<(), SpawnErr> {
    let (weak, run, generation) = (Arc::downgrade(core), start.run, start.generation);
    let alive = Alive::new(move |reported| {
        if let Some(core) = weak.upgrade() {
            body_gone(&core, run, generation, reported);
        }
    });
    if core.config.hooks.plants(Bug::RecoveredTwice) && start.replay {
        let twin = Work { core: core.clone(), start: start.clone(), alive: Alive::new(|_| {}) };
        begin(core, twin).await?;
    }
    begin(core, Work { core: core.clone(), start, alive }).await
}

async fn begin(core: &Core, work: Work) -> Result<(), SpawnErr> {
    let mut execute = Execute(work);
    while let Some(actor) = core.hub.waiting_actor() {
        match actor.send_message(execute) {
            Ok(()) => return Ok(()),
            // It has ended since.
            Err(MessagingErr::SendErr(unsent)) => execute = unsent,
            Err(_) => return Err(SpawnErr::ActorAlreadyStarted),
        }
    }
    let Some(nursery) = core.hub.nursery() else { return Err(SpawnErr::ActorAlreadyStarted) };
    let (actor, _) = Actor::spawn_linked(None, RunActor, (), nursery).await?;
    let _ = actor.send_message(execute);
    Ok(())
}

impl Actor for RunActor {
    type Msg = Execute;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Execute>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Execute>,
        Execute(work): Execute,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let Work { core, start, alive } = work;
        let span = tracing::info_span!(
            "durably.run",
            run_id = %start.run,
            job = &*start.subject.job_name,
            generation = start.generation,
            replay = start.replay,
        );
        execute(&core, start, alive).instrument(span).await;
        if let Some(unwanted) = core.hub.wait_for_run(myself) {
            unwanted.stop(None);
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Execute>,
        _: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

/// An execution from its lease to its end.
async fn execute(core: &Arc<Core>, start: Arc<Start>, alive: Arc<Alive>) {
    let execution = Execution::new(start.clone(), core.means().clone(), alive);
    let began = core.config.clock.monotonic();
    if !core.hub.bodies.attach(start.run, &execution) {
        // Cancelled before it began: there is no body, and nothing to record.
        drop(execution.release());
        return;
    }
    let mut whole = pin!(async {
        let outcome = match prepare(core, &execution).await {
            Ok((definition, body)) => supervise(core, &execution, &definition, body).await,
            Err(outcome) => Some(outcome),
        };
        finish(&execution, outcome, began).await;
    });
    let whole = poll_fn(|cx| match std::panic::catch_unwind(AssertUnwindSafe(|| whole.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    });
    if let Err(panic) = whole.await {
        // Those of the body fail its run, and do not come here: whatever this is, the run is put back.
        let error = panicked(panic);
        tracing::error!(run = %start.run, %error, "an execution failed; its run goes on from its last checkpoint");
        execution.set_over();
        drop(execution.release());
    }
}

/// Loads what earlier executions stored and starts the body.
async fn prepare(core: &Core, execution: &Arc<Execution>) -> Result<(Arc<Definition>, BodyFuture), Outcome> {
    let start = &execution.start;
    let Some(definition) = core.registry.get(&start.subject.job_name) else {
        return Err(Outcome::Blocked("no code for its job is registered".into()));
    };
    execution.set_retry(&definition.retry);
    execution.set_version(definition.version);
    let mut loaded = !start.replay;
    while !loaded {
        match core.store.replay(start.run).await {
            Ok(mut steps) => {
                if core.config.hooks.plants(Bug::FailedStepRunsAgain) {
                    steps.retain(|step| !matches!(step.outcome, crate::store::read::ReplayOutcome::Failed(_)));
                }
                execution.load(steps);
                loaded = true;
            }
            Err(error @ Error::Corrupted { .. }) => {
                return Err(Outcome::Failed(JobError::of_kind(ErrorKind::Corrupted, error.to_string()).into_record()));
            }
            // It is over with the runtime, which is no fault of the run's.
            Err(Error::ShutDown) => return Err(Outcome::HandedBack),
            // The file is being reopened; the lease stands.
            Err(_) => tokio::time::sleep(READ_AGAIN_AFTER).await,
        }
    }
    core.config.hooks.pass(Failpoint::BodyBegins);
    let step = Step::new(execution.clone());
    let started = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let _entered = current::enter(start.run, start.generation, None);
        definition.start(step, &start.input, start.version)
    }));
    match started {
        Ok(Ok(body)) => Ok((definition, body)),
        Ok(Err(error)) => {
            Err(Outcome::Blocked(format!("stored input at {:?} can't be decoded: {}", error.path, error.message)))
        }
        Err(panic) => Err(Outcome::Failed(panicked(panic).into_record())),
    }
}

/// Polls the body until it ends or is ended. `None`: the run has its outcome already.
async fn supervise(
    core: &Core,
    execution: &Arc<Execution>,
    definition: &Definition,
    mut body: BodyFuture,
) -> Option<Outcome> {
    let start = &execution.start;
    let (mut waker, mut grace, mut flush): (_, Option<Timer>, Option<Timer>) = (None, None, None);
    // One flush at a time is with the writer: while the file is away, what comes meanwhile is kept where it is bounded.
    let (mut flushing, mut unflushed): (Option<Pending<Accepted>>, bool) = (None, false);
    let mut idle = 0;
    let outcome = poll_fn(|cx| {
        execution.signals.leave(cx.waker(), &mut waker);
        let raised = execution.signals.take();
        if raised.has(Signal::Judged) {
            match execution.verdict() {
                Some(Verdict::Fails(error)) => return Poll::Ready(Some(Outcome::Failed(error.into_record()))),
                Some(Verdict::Continues(input)) => {
                    // To read the input is to run code of the user's, as in a body.
                    let next = std::panic::catch_unwind(AssertUnwindSafe(|| continued(core, definition, &input)));
                    let failed = |panic: Box<dyn Any + Send>| Outcome::Failed(panicked(panic).into_record());
                    return Poll::Ready(Some(next.unwrap_or_else(failed)));
                }
                Some(Verdict::HandedBack) => return Poll::Ready(Some(Outcome::HandedBack)),
                Some(Verdict::Over) => return Poll::Ready(None),
                None => {}
            }
        }
        let polled = {
            let _entered = current::enter(start.run, start.generation, None);
            std::panic::catch_unwind(AssertUnwindSafe(|| body.as_mut().poll(cx)))
        };
        match polled {
            Ok(Poll::Pending) => {}
            Ok(Poll::Ready(result)) => return Poll::Ready(conclude(core, execution, definition, result)),
            Err(panic) => return Poll::Ready(conclude(core, execution, definition, Err(panicked(panic)))),
        }
        if raised.has(Signal::Cancelled) && grace.is_none() {
            grace = Some(core.config.clock.sleep(core.config.cancel_grace));
        }
        if is_due(&mut grace, cx) {
            return Poll::Ready(None);
        }
        if raised.has(Signal::Noted) && flush.is_none() {
            flush = Some(Box::pin(tokio::time::sleep(NOTES_FLUSH_AFTER)));
        }
        if is_due(&mut flush, cx) {
            (flush, unflushed) = (None, true);
        }
        while flushing.as_mut().is_none_or(|flush| flush.poll(cx).is_ready()) {
            flushing = if std::mem::take(&mut unflushed) { flush_notes(execution) } else { None };
            if flushing.is_none() {
                break;
            }
        }
        match execution.suspension() {
            // What has only given way, to be polled again at once, gets its turn first.
            Some(_) if idle < IDLE_POLLS => {
                idle += 1;
                cx.waker().wake_by_ref();
            }
            Some(suspension) => return Poll::Ready(Some(Outcome::Suspended(suspension))),
            None => idle = 0,
        }
        Poll::Pending
    });
    #[cfg(feature = "testing")]
    let outcome = crate::testing::watched(core.config.hooks.rig(), &execution.motion, outcome);
    let outcome = outcome.await;
    execution.set_over();
    // Dropping user code may panic as well as running it.
    if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| drop(body))) {
        let error = panicked(panic);
        return outcome.map(|_| Outcome::Failed(error.into_record()));
    }
    outcome
}

/// What the input of the run that goes on means.
fn continued(core: &Core, definition: &Definition, input: &Value) -> Outcome {
    let admitted = definition.admit(input).and_then(|input| {
        within("input", input.len(), core.config.payload_bytes_max)?;
        Ok(Continuation { input: input.into(), version: definition.version })
    });
    match admitted {
        Ok(next) => Outcome::Continued(Box::new(next)),
        Err(error) => Outcome::Failed(JobError::from(error).with_kind(ErrorKind::Mismatch).into_record()),
    }
}

/// What a body's return means.
fn conclude(core: &Core, execution: &Execution, definition: &Definition, result: JobResult<Value>) -> Option<Outcome> {
    let result = result.and_then(|output| definition.conclude(&output, core.config.payload_bytes_max));
    match result {
        Ok(output) => Some(Outcome::Completed(output)),
        Err(error) if error.kind() == ErrorKind::Panic => Some(Outcome::Failed(error.into_record())),
        Err(_) if execution.is_cancelled() => None,
        // Told to stop, it failed: that is no outcome.
        Err(_) if execution.means.draining.is_cancelled() && !core.config.hooks.plants(Bug::DrainedFails) => {
            Some(Outcome::HandedBack)
        }
        Err(error) => Some(Outcome::Failed(error.into_record())),
    }
}

/// Hands the end to the writer, with key and slot if the last of the body's code is gone.
async fn finish(execution: &Arc<Execution>, outcome: Option<Outcome>, began: Duration) {
    execution.set_over();
    let start = &execution.start;
    let Some(outcome) = outcome else {
        // What it said before its cancel is still to be kept; once it is released, its lease is gone.
        drop(flush_notes(execution));
        drop(execution.release());
        return;
    };
    execution.means.hooks.pass(Failpoint::BodyEnded);
    let (bytes, completed) = match &outcome {
        Outcome::Completed(output) => (output.len(), true),
        Outcome::Continued(next) => (next.input.len(), true),
        _ => (0, false),
    };
    let admitted = execution.means.store.admit_body(bytes).await;
    let alive = execution.release().map(Arc::try_unwrap);
    let end = End {
        run: start.run,
        generation: start.generation,
        outcome,
        stopped: matches!(alive, Some(Ok(_))),
        duration: execution.elapsed_since(began),
        notes: execution.take_notes(),
        unused: if completed { execution.unused() } else { Vec::new() },
    };
    let shared = alive.and_then(|alive| alive.map(Alive::report).err());
    // Nothing is left to do for the answer; the writer has the end and keeps it over an outage.
    drop(execution.means.store.submit(Op::end, end, admitted));
    // Held until here: a body that is gone before its end has come is taken for one that never had one, and runs again.
    drop(shared);
}

fn flush_notes(execution: &Execution) -> Option<Pending<Accepted>> {
    let notes = Some(execution.take_notes()).filter(|notes| !notes.is_empty())?;
    let start = &execution.start;
    let notes = NotesOf { run: start.run, generation: start.generation, notes };
    Some(execution.means.store.submit(Op::notes, notes, Admitted::default()))
}

fn is_due(timer: &mut Option<Timer>, cx: &mut Context<'_>) -> bool {
    timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready())
}

/// A panic as the error it ends its run with.
pub(super) fn panicked(panic: Box<dyn Any + Send>) -> JobError {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let error = JobError::of_kind(ErrorKind::Panic, text.unwrap_or("a panic without a message").to_owned());
    discard(panic);
    error
}
