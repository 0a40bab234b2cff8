//! Streams of events.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;

use super::{Event, EventKind, Payload, Reader, Told, ring};
use crate::durably::Core;
use crate::error::Error;
use crate::id::RunId;
use crate::limits::READ_AGAIN_AFTER;
use crate::run::{Progress, RunStatus};
use crate::store::read::Rowset;
use crate::time::Timestamp;

/// What a stream of events gives.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Received {
    /// The next event.
    Event(Arc<Event>),
    /// Events were dropped before they were read: this listener was too slow, or asked for a past that is gone. The next
    /// event is the oldest still there.
    Lagged {
        /// How many, at least.
        missed: u64,
    },
}

impl Received {
    /// The event, if it is one.
    pub fn event(&self) -> Option<&Arc<Event>> {
        match self {
            Received::Event(event) => Some(event),
            Received::Lagged { .. } => None,
        }
    }
}

impl From<ring::Received<Event>> for Received {
    fn from(received: ring::Received<Event>) -> Self {
        match received {
            ring::Received::Event(event) => Received::Event(event),
            ring::Received::Lagged { missed } => Received::Lagged { missed },
        }
    }
}

/// Every event of the runtime, from now on; it ends when the runtime does.
///
/// A listener that is slow is told how many events it missed; it never delays a run and costs no memory.
pub struct Events {
    core: Arc<Core>,
    reader: Reader<Told>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

impl Events {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        let reader = core.store.events().subscribe();
        Events { core, reader }
    }

    /// Begin after this sequence instead of now. What is not buffered any more is reported as missed.
    pub fn after(self, sequence: u64) -> Self {
        let reader = self.core.store.events().subscribe_after(sequence);
        Events { reader, ..self }
    }

    /// The next event; `None` at the end of the runtime.
    ///
    /// # Cancel safety
    /// Dropped, it has taken nothing.
    pub async fn next(&mut self) -> Option<Received> {
        self.reader.next().await.map(Into::into)
    }
}

impl Stream for Events {
    type Item = Received;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Received>> {
        Pin::new(&mut self.reader).poll_next(cx).map(|received| received.map(Into::into))
    }
}

/// One run's events: first a snapshot of where it stands, then what happens, up to its end.
///
/// The snapshot's events have sequence 0. The stream ends after the run has completed, failed, been cancelled or deleted.
pub struct RunEvents {
    core: Arc<Core>,
    run: RunId,
    snapshot: VecDeque<Event>,
    reader: Reader<Told>,
    /// Events up to this one are in the snapshot.
    seen: u64,
    /// After a lag, where the run stands now: its end may be among what was missed.
    rereading: Option<Snapshotting>,
    over: bool,
}

type Snapshotting = Pin<Box<dyn Future<Output = Result<(Rowset, u64, Arc<str>), Error>> + Send>>;

impl std::fmt::Debug for RunEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunEvents").field("run", &self.run).finish_non_exhaustive()
    }
}

impl RunEvents {
    /// Begins to listen, then reads where the run stands.
    pub(crate) async fn new(core: Arc<Core>, run: RunId) -> Result<Self, Error> {
        let reader = core.store.events().subscribe();
        let (rows, seen, job_name) = core.store.snapshot(run).await?;
        let snapshot = snapshot(run, &rows, job_name, core.store.owner());
        Ok(RunEvents { core, run, snapshot, reader, seen, rereading: None, over: false })
    }

    /// The next event; `None` after the run's end.
    ///
    /// # Cancel safety
    /// Dropped, it has taken nothing.
    pub async fn next(&mut self) -> Option<Received> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    fn reread(&mut self) {
        let (store, run) = (self.core.store.clone(), self.run);
        self.rereading = Some(Box::pin(async move {
            loop {
                match store.snapshot(run).await {
                    // The file is away or being reopened, which is no end of the run.
                    Err(Error::Storage(_)) => tokio::time::sleep(READ_AGAIN_AFTER).await,
                    read => return read,
                }
            }
        }));
    }
}

impl Stream for RunEvents {
    type Item = Received;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Received>> {
        let this = self.get_mut();
        loop {
            if this.over {
                return Poll::Ready(None);
            }
            if let Some(event) = this.snapshot.pop_front() {
                this.over = event.kind.ends_run();
                return Poll::Ready(Some(Received::Event(Arc::new(event))));
            }
            if let Some(rereading) = &mut this.rereading {
                match std::task::ready!(rereading.as_mut().poll(cx)) {
                    Ok((rows, seen, job_name)) => {
                        this.snapshot = snapshot(this.run, &rows, job_name, this.core.store.owner());
                        this.seen = seen;
                    }
                    Err(_) => this.over = true,
                }
                this.rereading = None;
                continue;
            }
            let received = match Pin::new(&mut this.reader).poll_next(cx) {
                Poll::Ready(Some(received)) => received,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            };
            if let ring::Received::Event(event) = &received {
                // What the snapshot tells already is not told twice; an uncommitted event is never in it.
                if event.run_id != this.run || (event.committed && event.sequence <= this.seen) {
                    continue;
                }
                this.over = event.kind.ends_run();
            } else {
                this.reread();
            }
            return Poll::Ready(Some(received.into()));
        }
    }
}

/// Where a run stands, as the events that would have brought it there.
fn snapshot(run: RunId, rows: &Rowset, job_name: Arc<str>, owner: &Arc<str>) -> VecDeque<Event> {
    let labels = Arc::new(rows.record.labels.iter().cloned().collect());
    let event = |timestamp: Timestamp, kind| Event {
        sequence: 0,
        committed: true,
        timestamp,
        run_id: run,
        job_name: job_name.clone(),
        labels: Arc::clone(&labels),
        kind,
    };
    let state = &rows.state;
    let at = state.updated_at.unwrap_or(rows.record.created_at);
    let mut events = VecDeque::new();
    match RunStatus::from_byte(state.status) {
        Some(RunStatus::Leased) => {
            let kind = EventKind::RunLeased {
                input: Payload::new(&rows.input),
                lease_owner: owner.clone(),
                generation: state.generation,
            };
            events.push_back(event(state.started_at.unwrap_or(at), kind));
            if let Some(progress) = &state.progress {
                let progress =
                    Progress { current: progress.current, total: progress.total, message: progress.message.clone() };
                events.push_back(event(at, EventKind::RunProgress { progress }));
            }
        }
        Some(RunStatus::Completed) if state.continued_as.is_some() => {
            events.extend(state.continued_as.map(|next| event(at, EventKind::RunContinued { next })));
        }
        Some(RunStatus::Completed) => {
            let output = rows.output.as_ref().map(Payload::new).unwrap_or_default();
            events.push_back(event(at, EventKind::RunCompleted { output, duration: std::time::Duration::ZERO }));
        }
        Some(RunStatus::Failed) => {
            if let Some(error) = state.error.clone() {
                events.push_back(event(at, EventKind::RunFailed { error: error.into() }));
            }
        }
        Some(RunStatus::Cancelled) => {
            events.push_back(event(at, EventKind::RunCancelled { replaced_by: state.replaced_by }));
        }
        Some(RunStatus::Pending | RunStatus::Suspended) | None => {}
    }
    events
}
