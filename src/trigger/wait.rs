//! Waiting for a run to end.
//!
//! The end itself comes through the [`Bell`](crate::event::Bell), which wakes only those who wait for that run; progress and log lines, if they
//! are asked for, come from the ring of events.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::Disposition;
use crate::durably::Core;
use crate::error::Error;
use crate::event::{Ended, Event, EventKind, Reader, Told, ring::Received};
use crate::id::RunId;
use crate::job::schema;
use crate::run::{LogLine, Progress, Run, RunStatus};
use crate::step::current;
use crate::step::execution::Execution;
use crate::store::op::{Admitted, Op};

type OnProgress = Box<dyn FnMut(&Progress) + Send>;
type OnLog = Box<dyn FnMut(&LogLine) + Send>;

#[derive(Default)]
pub(crate) struct Callbacks {
    pub(crate) progress: Option<OnProgress>,
    pub(crate) log: Option<OnLog>,
}

impl Callbacks {
    pub(crate) fn listens(&self) -> bool {
        self.progress.is_some() || self.log.is_some()
    }

    fn call(&mut self, event: &Event) {
        match (&event.kind, &mut self.progress, &mut self.log) {
            (EventKind::RunProgress { progress }, Some(callback), _) => callback(progress),
            (EventKind::LogWritten { step, level, message, data }, _, Some(callback)) => callback(&LogLine {
                run_id: event.run_id,
                number: 0,
                level: *level,
                step_name: step.as_deref().map(str::to_owned),
                message: message.clone(),
                data: data.clone(),
                created_at: event.timestamp,
            }),
            _ => {}
        }
    }
}

/// What [`JobHandle::trigger_and_wait`](crate::JobHandle::trigger_and_wait) gives.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finished<O> {
    /// The run's id.
    pub id: RunId,
    /// Its output.
    pub output: O,
    /// What became of the trigger.
    pub disposition: Disposition,
}

/// A wait that has not begun: set its options, then await it for the completed run.
#[must_use = "a wait does nothing until it is awaited"]
pub struct WaitForRun {
    core: Arc<Core>,
    run: RunId,
    timeout: Option<Duration>,
    callbacks: Callbacks,
    events: Option<Reader<Told>>,
}

impl fmt::Debug for WaitForRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitForRun").field("run", &self.run).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl WaitForRun {
    pub(crate) fn new(core: Arc<Core>, run: RunId) -> Self {
        WaitForRun { core, run, timeout: None, callbacks: Callbacks::default(), events: None }
    }

    pub(crate) fn with(self, timeout: Option<Duration>, callbacks: Callbacks, events: Option<Reader<Told>>) -> Self {
        WaitForRun { timeout, callbacks, events, ..self }
    }

    /// Wait no longer than this; without it, as long as it takes. The run goes on after a timeout.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Call this with every progress that the run reports from here on.
    /// A callback that panics ends the wait with that panic; the run goes on.
    pub fn on_progress(mut self, callback: impl FnMut(&Progress) + Send + 'static) -> Self {
        self.callbacks.progress = Some(Box::new(callback));
        self
    }

    /// Call this with every log line that the run writes from here on.
    pub fn on_log(mut self, callback: impl FnMut(&LogLine) + Send + 'static) -> Self {
        self.callbacks.log = Some(Box::new(callback));
        self
    }

    /// Waits for the end, of whatever sort.
    async fn ended(mut self) -> Result<(Arc<Core>, RunId, Ended), Error> {
        let (core, mut run) = (self.core.clone(), self.run);
        if self.callbacks.listens() && self.events.is_none() {
            self.events = Some(core.store.events().subscribe());
        }
        let (_waiting, mut listening, already) = loop {
            let waiting = BodyWait::begin(&core, run).await?;
            let listening = core.store.bell().listen(run);
            let rows = core.store.rowset(run).await?;
            match rows.state.continued_as {
                Some(next) => run = next,
                None => break (waiting, listening, ended_already(&rows.state.status, rows.output)),
            }
        };
        let WaitForRun { timeout, mut callbacks, mut events, .. } = self;
        let ending = async {
            match already {
                Some(ended) => Some((run, ended)),
                None => listening.ended().await,
            }
        };
        let waiting = async {
            tokio::pin!(ending);
            let mut current = run;
            loop {
                // What was told before the end is heard before it, also where the end came first.
                tokio::select! {
                    biased;
                    event = next(&mut events) => match event {
                        Some(Received::Event(event)) if event.run_id == current => match event.kind {
                            EventKind::RunContinued { next } => current = next,
                            _ => callbacks.call(&event),
                        },
                        Some(_) => {}
                        None => events = None,
                    },
                    ended = &mut ending => return ended.ok_or(Error::ShutDown),
                }
            }
        };
        let (run, ended) = match timeout {
            Some(timeout) => match tokio::time::timeout(timeout, waiting).await {
                Ok(ended) => ended?,
                Err(_) => return Err(Error::WaitTimeout { run, timeout }),
            },
            None => waiting.await?,
        };
        Ok((core, run, ended))
    }

    /// Waits for the output.
    pub(crate) async fn output<O: DeserializeOwned>(self) -> Result<O, Error> {
        let (core, run, ended) = self.ended().await?;
        match ended {
            Ended::Completed(output) => schema::decode(&output).map_err(|error| Error::decode("output", error)),
            other => Err(failure(&core, run, other).await),
        }
    }
}

impl IntoFuture for WaitForRun {
    type Output = Result<Run, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Run, Error>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (core, run, ended) = self.ended().await?;
            match ended {
                Ended::Completed(_) => core.store.get_run(run).await?.ok_or(Error::RunNotFound { run }),
                other => Err(failure(&core, run, other).await),
            }
        })
    }
}

/// What has ended already; `None` while it has not.
fn ended_already(status: &u8, output: Option<Bytes>) -> Option<Ended> {
    match RunStatus::from_byte(*status)? {
        RunStatus::Completed => Some(Ended::Completed(output.unwrap_or_else(|| Bytes::from_static(b"null")))),
        RunStatus::Failed => Some(Ended::Failed),
        RunStatus::Cancelled => Some(Ended::Cancelled),
        RunStatus::Pending | RunStatus::Leased | RunStatus::Suspended => None,
    }
}

/// The error that tells of an end other than completion.
async fn failure(core: &Core, run: RunId, ended: Ended) -> Error {
    match ended {
        Ended::Cancelled => Error::RunCancelled { run },
        Ended::Deleted => Error::RunNotFound { run },
        Ended::Completed(_) | Ended::Continued(_) | Ended::Failed => match core.store.get_run(run).await {
            Ok(Some(found)) => Error::RunFailed { run: Box::new(found) },
            Ok(None) => Error::RunNotFound { run },
            Err(error) => error,
        },
    }
}

async fn next(events: &mut Option<Reader<Told>>) -> Option<Received<Event>> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

/// A body that waits tells the engine, which refuses a wait that could never end.
struct BodyWait {
    core: Arc<Core>,
    waiter: RunId,
    run: RunId,
    /// The engine does not keep it.
    refused: bool,
    _busy: Busy,
}

/// A body that is not to be suspended meanwhile: this wait is nothing that would wake it.
struct Busy(Option<Arc<Execution>>);

impl Busy {
    fn of(execution: Option<Arc<Execution>>) -> Busy {
        execution.iter().for_each(|execution| execution.set_busy(true));
        Busy(execution)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.iter().for_each(|execution| execution.set_busy(false));
    }
}

impl BodyWait {
    async fn begin(core: &Arc<Core>, run: RunId) -> Result<Option<BodyWait>, Error> {
        let Some(waiter) = current::run() else { return Ok(None) };
        // Busy before it asks: what else the body waits for may be there before the answer.
        let busy = Busy::of(core.hub.bodies.execution(waiter, None));
        let asked = core.store.submit(Op::Wait, (waiter, run), Admitted::default());
        // There from here on: the engine has been asked, even if the answer is never heard.
        let mut waiting = BodyWait { core: core.clone(), waiter, run, refused: false, _busy: busy };
        let answer = asked.answer().await;
        // The body may wait for that run elsewhere, which is not over with this.
        waiting.refused = matches!(
            answer,
            Err(Error::WouldDeadlock { .. }
                | Error::RunNotFound { .. }
                | Error::Corrupted { .. }
                | Error::Overloaded { .. })
        );
        answer.map(|()| Some(waiting))
    }
}

impl Drop for BodyWait {
    fn drop(&mut self) {
        if !self.refused {
            self.core.store.send(Op::WaitOver(self.waiter, self.run));
        }
    }
}
