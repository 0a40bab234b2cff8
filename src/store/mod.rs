//! The store: one file, one writer, short reads.
//!
//! [`Store`] is the async handle. What is to be written goes as an operation to the [`writer`], through admission and the
//! [`inbox`], and is answered after its commit; what is read goes through a [`view`] on a thread that may block.
//!
//! Layout, from the outside in: [`op`] what can be asked · [`inbox`] · [`writer`] the thread that decides and commits ·
//! [`stage`] a group being built · [`disk`] the handle · [`journal`], [`tail`], [`layer`] and [`fold`] the log-structured half ·
//! [`steps`] and [`blocks`] checkpoints in either ·
//! [`view`] reads through tables plus tail · [`read`] and [`query`] what is asked of it · [`tables`] the layout on disk ·
//! [`file`](mod@file), [`backend`] and [`reserve`] the file itself.

pub(crate) mod backend;
mod backup;
mod blocks;
mod bulk;
pub(crate) mod compact;
pub(crate) mod disk;
pub(crate) mod file;
mod fold;
pub(crate) mod fork;
mod held;
pub(crate) mod host;
mod inbox;
mod journal;
mod layer;
pub(crate) mod op;
mod pace;
pub(crate) mod pending;
mod query;
pub(crate) mod read;
mod reserve;
mod schedules;
mod stage;
mod steps;
pub(crate) mod tables;
mod tail;
pub(crate) mod verify;
mod view;
pub(crate) mod writer;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, oneshot};

use crate::codec::Corrupted;
use crate::config::Config;
use crate::error::Error;
use crate::event::{Bell, Ring, Told};
use crate::hooks::{Bug, Hooks};
use crate::limits::{EVENT_BUFFER_BYTES, REPLAYS_MAX, UNACKED_BYTES_MAX, UNACKED_CALLS_MAX};
use disk::{Disk, Shared};
use file::{IntegrityCheck, Medium, OpenError, OpenOptions};
use host::{Host, Inline, Threaded};
use inbox::Inbox;
use op::{Admitted, Call, Op};
use reserve::Reserve;
use writer::{Condition, Effects, Surroundings, Writer, WriterConfig};

/// What goes wrong between us and the file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Corrupted(#[from] Corrupted),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the file is closed")]
    Closed,
    #[error("a read of the file failed")]
    Unread,
    #[error("the file is another one, or an older state of it: what was acknowledged is not all there")]
    Other,
    #[error("the file is away: it failed, and could not be reopened yet")]
    Away,
    #[error("what was asked is not in memory")]
    Elsewhere,
    #[error("the storage engine panicked")]
    Panicked,
    #[error(transparent)]
    Redb(redb::Error),
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for Fault {
            fn from(error: $error) -> Self {
                Fault::Redb(error.into())
            }
        }
    )*};
}
from_redb!(redb::StorageError, redb::TableError, redb::TransactionError, redb::CommitError, redb::Error);

impl Fault {
    /// The storage failed, and redb gives nothing more until it is opened again.
    fn is_io(&self) -> bool {
        matches!(self, Fault::Redb(redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::LockPoisoned(_)))
    }

    /// The handle was swapped under a reader; the next view has the new one.
    fn is_swapped(&self) -> bool {
        match self {
            Fault::Closed => true,
            Fault::Redb(error) => is_swapped(error),
            _ => false,
        }
    }
}

fn is_swapped(error: &redb::Error) -> bool {
    matches!(error, redb::Error::DatabaseClosed | redb::Error::PreviousIo)
}

/// Where the store runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// The writer has its own thread, reads go to threads that may block.
    Threads,
    /// Everything happens on the caller's thread, in call order: for a simulation.
    #[cfg_attr(
        not(any(test, feature = "testing")),
        expect(dead_code, reason = "only a simulation runs the writer inline")
    )]
    Inline,
}

/// The async handle.
#[derive(Clone)]
pub(crate) struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    host: Box<dyn Host>,
    placement: Placement,
    shared: Arc<Shared>,
    events: Ring<Told>,
    bell: Arc<Bell>,
    condition: Arc<Condition>,
    calls: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    replays: Semaphore,
    admission_timeout: Duration,
    owner: Arc<str>,
    hooks: Hooks,
}

/// So often a read is tried again while the file is being reopened, after such a pause.
const READ_TRIES: u32 = 100;
const READ_PAUSE: Duration = Duration::from_millis(20);

/// Admission counts bytes in units of this, since a semaphore counts to 2^32.
const BYTES_UNIT: usize = 64;

impl Store {
    /// Opens or creates the file, recovers, and starts the writer. Blocks; nothing is started before `connect`.
    pub(crate) fn open(medium: Medium, config: &Config, placement: Placement) -> Result<Store, Error> {
        let options = OpenOptions {
            cache_bytes: config.cache_bytes,
            check_integrity: IntegrityCheck::default(),
            lock_wait: config.lock_wait,
            hooks: config.hooks.clone(),
            ..OpenOptions::default()
        };
        let disk = Disk::open(medium.clone(), options, config.clock.clone(), config.two_phase_commit)?;
        // Only once the file is ours: what lies beside another's file is not touched.
        let reserve = Reserve::hold(&medium).unwrap_or_else(|error| {
            tracing::warn!(%error, "no reserve is held for a full disk");
            Reserve::absent()
        });
        let shared = disk.shared().clone();
        let events = Ring::starting_after(EVENT_BUFFER_BYTES, disk.next_sequence() - 1);
        let bell = Arc::new(Bell::default());
        let condition = Arc::new(Condition::default());
        let inbox = Arc::new(Inbox::default());
        let owner: Arc<str> = format!("{}-{}", std::process::id(), disk.next_group()).into();
        let writer_config = WriterConfig {
            slots: config.max_concurrent_runs as u32,
            paused: config.paused,
            max_recoveries: config.max_recoveries,
            keep_steps: config.keep_steps,
            keep_logs: config.keep_logs,
            seed: config.seed,
            hooks: config.hooks.clone(),
            owner: owner.clone(),
        };
        let surroundings = Surroundings {
            inbox: inbox.clone(),
            events: events.clone(),
            bell: bell.clone(),
            condition: condition.clone(),
            clock: config.clock.clone(),
        };
        let mut writer = Writer::new(disk, reserve, writer_config, surroundings)?;
        if config.compact_on_open {
            writer.compact_at_open()?;
        }
        let host: Box<dyn Host> = match placement {
            Placement::Threads => Box::new(Threaded::new(writer, inbox)),
            Placement::Inline => Box::new(Inline::new(writer, inbox)),
        };
        Ok(Store {
            inner: Arc::new(Inner {
                host,
                placement,
                shared,
                events,
                bell,
                condition,
                calls: Arc::new(Semaphore::new(UNACKED_CALLS_MAX)),
                bytes: Arc::new(Semaphore::new(UNACKED_BYTES_MAX / BYTES_UNIT)),
                replays: Semaphore::new(REPLAYS_MAX),
                admission_timeout: config.admission_timeout,
                owner,
                hooks: config.hooks.clone(),
            }),
        })
    }

    /// Tells the writer whom to tell, and lets it start runs.
    pub(crate) fn connect(&self, effects: Arc<dyn Effects>) -> Result<(), Error> {
        self.inner.host.connect(effects)
    }

    pub(crate) fn events(&self) -> &Ring<Told> {
        &self.inner.events
    }

    pub(crate) fn bell(&self) -> &Arc<Bell> {
        &self.inner.bell
    }

    /// The sequence of the last committed event.
    pub(crate) fn sequence(&self) -> u64 {
        self.inner.condition.sequence()
    }

    pub(crate) fn is_degraded(&self) -> bool {
        self.inner.condition.is_degraded()
    }

    /// The name of this runtime as the holder of leases.
    pub(crate) fn owner(&self) -> &Arc<str> {
        &self.inner.owner
    }

    /// Room for a call from outside, if there is some at once.
    pub(crate) fn try_admit(&self, bytes: usize) -> Result<Admitted, Error> {
        let inner = &self.inner;
        if inner.hooks.plants(Bug::AdmissionUnbounded) {
            return Ok(Admitted::default());
        }
        let tried = (inner.calls.clone().try_acquire_owned(), inner.bytes.clone().try_acquire_many_owned(units(bytes)));
        match tried {
            (Ok(call), Ok(bytes)) => Ok(Admitted { _call: Some(call), _bytes: Some(bytes) }),
            _ => Err(Error::Overloaded { waited: Duration::ZERO }),
        }
    }

    /// Room for a call from outside: waits up to the admission timeout, or not at all.
    pub(crate) async fn admit(&self, bytes: usize, wait: bool) -> Result<Admitted, Error> {
        let inner = &self.inner;
        let waited = inner.admission_timeout;
        match self.try_admit(bytes) {
            Err(_) if wait && !waited.is_zero() => {}
            decided => return decided,
        }
        let units = units(bytes);
        let both = async {
            let call = inner.calls.clone().acquire_owned().await.ok();
            let bytes = inner.bytes.clone().acquire_many_owned(units).await.ok();
            Admitted { _call: call, _bytes: bytes }
        };
        tokio::time::timeout(waited, both).await.map_err(|_| Error::Overloaded { waited })
    }

    /// Room for what a body has finished, if there is some at once.
    pub(crate) fn try_admit_body(&self, bytes: usize) -> Option<Admitted> {
        let permit = self.inner.bytes.clone().try_acquire_many_owned(units(bytes)).ok()?;
        Some(Admitted { _call: None, _bytes: Some(permit) })
    }

    /// Room for what a body has finished: waits as long as it takes.
    pub(crate) async fn admit_body(&self, bytes: usize) -> Admitted {
        let permit: Option<OwnedSemaphorePermit> = self.inner.bytes.clone().acquire_many_owned(units(bytes)).await.ok();
        Admitted { _call: None, _bytes: permit }
    }

    /// Hands a request over and gives what it will be answered on.
    ///
    /// # Cancel safety
    /// Once handed over, the request is carried out whether or not the answer is waited for.
    pub(crate) fn submit<Q, A>(
        &self,
        wrap: impl FnOnce(Call<Q, A>) -> Op,
        request: Q,
        admitted: Admitted,
    ) -> Pending<A> {
        let (call, answer) = Call::new(request, admitted);
        self.send(wrap(call));
        Pending { answer }
    }

    /// Does what is due for a writer without a thread: gives how long nothing is, and what tells that this has changed.
    /// `None`: it has a thread, or has ended.
    pub(crate) fn idle_for(&self) -> Option<host::Idle> {
        self.inner.host.idle_for()
    }

    /// How long until something is due, and how many bodies there are, of a writer without a thread.
    #[cfg(feature = "testing")]
    pub(crate) fn outlook(&self) -> (Option<Duration>, usize) {
        self.inner.host.outlook()
    }

    /// Hands over an operation; after the end, it is answered with [`Error::ShutDown`].
    pub(crate) fn send(&self, op: Op) {
        if let Some(op) = self.inner.host.submit(op) {
            op.settle(Some(Error::ShutDown));
        }
    }

    /// Reads what is likely to be in memory: there if it is, else off the async threads.
    async fn read_recent<T: Send + 'static>(
        &self,
        read: impl Fn(&view::View<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        match self.inner.shared.view_of_tail().map(|view| read(&view)) {
            None | Some(Err(Fault::Elsewhere)) => self.read(read).await,
            Some(result) => Ok(result?),
        }
    }

    /// A turn among those that read for replay.
    async fn replaying(&self) -> Option<SemaphorePermit<'_>> {
        self.inner.replays.acquire().await.ok()
    }

    /// Reads again while the file is being reopened, for some time. A file that stays away longer may still come back.
    fn read_retrying<T>(&self, read: impl Fn(&view::View<'_>) -> Result<T, Fault>) -> Result<T, Error> {
        let (shared, mut tries) = (&self.inner.shared, 0);
        loop {
            let result = shared.view().and_then(|view| read(&view));
            if result.as_ref().is_err_and(Fault::is_io) {
                self.read_failed();
            }
            match result {
                Err(fault) if fault.is_swapped() && tries < READ_TRIES && !shared.is_closed() => {
                    tries += 1;
                    std::thread::sleep(READ_PAUSE);
                }
                Err(Fault::Closed) if !shared.is_closed() => return Err(Error::Storage(Box::new(Fault::Away))),
                result => return Ok(result?),
            }
        }
    }

    /// Has the file reopened: while nothing is written, nobody else would notice.
    fn read_failed(&self) {
        if self.inner.shared.suspect() {
            self.send(Op::Tick);
        }
    }

    /// Copies the file to a new one.
    pub(crate) async fn backup(&self, path: std::path::PathBuf) -> Result<verify::Verification, Error> {
        let abandon = backup::Abandon::default();
        let (store, abandoned) = (self.clone(), abandon.0.clone());
        let copy = move || backup::copy(&store.inner.shared, &path, &abandoned, &|| store.read_failed());
        match self.inner.placement {
            Placement::Inline => copy(),
            Placement::Threads => {
                let copied = tokio::task::spawn_blocking(copy).await;
                copied.map_err(|error| if error.is_panic() { Fault::Panicked.into() } else { Error::ShutDown })?
            }
        }
    }

    /// Reads, off the async threads.
    async fn read<T: Send + 'static>(
        &self,
        read: impl Fn(&view::View<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        self.read_then(read, Ok).await
    }

    /// Reads, and works on what was read once the view is gone, since commits wait for that; both off the async threads.
    async fn read_then<R: 'static, T: Send + 'static>(
        &self,
        read: impl Fn(&view::View<'_>) -> Result<R, Fault> + Send + 'static,
        then: impl FnOnce(R) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        match self.inner.placement {
            Placement::Inline => Ok(then(self.read_retrying(read)?)?),
            Placement::Threads => {
                let store = self.clone();
                let work = move || -> Result<T, Error> { Ok(then(store.read_retrying(read)?)?) };
                let task = tokio::task::spawn_blocking(work);
                // Cancelled: the tokio runtime is going. A panic: the file is damaged in a way that redb trips over.
                task.await.map_err(|error| if error.is_panic() { Fault::Panicked.into() } else { Error::ShutDown })?
            }
        }
    }
}

/// Whether bytes can be read as a row of the journal.
#[cfg(feature = "testing")]
pub(crate) fn is_journal_row(bytes: &[u8]) -> bool {
    journal::read(bytes.to_vec(), &Hooks::default())
        .is_ok_and(|row| row.values().all(|value| value.len() <= bytes.len()))
}

/// Whether bytes can be read as a block of steps.
#[cfg(feature = "testing")]
pub(crate) fn is_block_of_steps(bytes: &bytes::Bytes) -> bool {
    blocks::read(&crate::codec::keys::of_run(crate::id::RunId::MIN, 0), bytes).is_ok()
}

fn units(bytes: usize) -> u32 {
    (bytes.min(UNACKED_BYTES_MAX) / BYTES_UNIT) as u32
}

/// An answer that is on its way.
#[derive(Debug)]
#[must_use]
pub(crate) struct Pending<A> {
    answer: oneshot::Receiver<Result<A, Error>>,
}

impl<A> Pending<A> {
    pub(crate) async fn answer(self) -> Result<A, Error> {
        self.answer.await.unwrap_or(Err(Error::ShutDown))
    }

    /// The answer, for someone who may stop waiting and go on later.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<A, Error>> {
        Pin::new(&mut self.answer).poll(cx).map(|answer| answer.unwrap_or(Err(Error::ShutDown)))
    }
}

#[cfg(test)]
mod tests;
