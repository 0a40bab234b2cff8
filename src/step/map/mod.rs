//! Many items under one key: a bounded number of them at a time, stored in segments.
//!
//! The map has a record under its own key, open from the first segment on until all items are done; a segment is a record
//! without a key. One segment at a time is on its way to the disk, and takes what was done meanwhile with the next. Items that
//! take their time come in small segments, so the newest one is written again as long as it is small.
//!
//! Invariant: an item in a stored segment is never begun again.

mod work;
mod writing;

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::Claimed;
use super::execution::Execution;
use super::logger::Logger;
use super::run;
use crate::codec::keys::hex;
use crate::job::{JobError, JobResult};
use work::{Mapping, map};

const CONCURRENCY: usize = 16;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = JobResult<T>> + Send + 'a>>;

/// The first failure of an item fails the map; see [`StepMap`].
#[derive(Debug, Clone, Copy)]
pub struct Stop;

/// Failures of items are part of the result; see [`StepMap::collect_failures`].
#[derive(Debug, Clone, Copy)]
pub struct Collect;

/// A map over items: set its options, then give it the work on an item. See [`Step::map`](super::Step::map).
#[must_use = "a map does nothing until it is given the work, and awaited"]
pub struct StepMap<'a, I, Failures = Stop> {
    claimed: Claimed,
    items: Vec<I>,
    concurrency: usize,
    quiet: bool,
    failures: PhantomData<fn(&'a ()) -> Failures>,
}

impl<I, Failures> fmt::Debug for StepMap<'_, I, Failures> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("StepMap");
        shown.field("items", &self.items.len()).field("concurrency", &self.concurrency).finish_non_exhaustive()
    }
}

impl<I> StepMap<'_, I> {
    pub(super) fn new(claimed: Claimed, items: Vec<I>) -> Self {
        StepMap { claimed, items, concurrency: CONCURRENCY, quiet: false, failures: PhantomData }
    }
}

impl<'a, I, Failures> StepMap<'a, I, Failures> {
    /// Items under way at a time, 1 to 4,096; default 16. Another number ends the run.
    pub fn concurrency(mut self, items: usize) -> Self {
        self.concurrency = items;
        self
    }

    /// Report no progress: the run's stays the body's own.
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    fn drive<T, O, F, Fut>(
        self,
        collect: bool,
        body: F,
        shape: impl FnOnce(Mapped<T>) -> O + Send + 'a,
    ) -> MapRun<'a, O>
    where
        I: Serialize + Send + 'a,
        T: Serialize + DeserializeOwned + Send + 'a,
        O: 'a,
        F: FnMut(ItemCx, I) -> Fut + Send + 'a,
        Fut: Future<Output = JobResult<T>> + Send + 'a,
    {
        let StepMap { claimed, items, concurrency, quiet, .. } = self;
        let state = match claimed {
            Claimed::Ticket(ticket) => {
                let span = run::span_of(&ticket);
                let mapping = Mapping { concurrency, quiet, collect };
                let mapped = async move { map(ticket, items, mapping, body).await.map(shape) };
                State::Mapping(Box::pin(mapped.instrument(span)))
            }
            Claimed::Detached(key) => State::Detached(key),
            Claimed::Never => State::Never,
        };
        MapRun { state }
    }
}

impl<'a, I: Serialize + Send + 'a> StepMap<'a, I, Stop> {
    /// Let items fail: the map completes, with the failures in its result. They are stored, and such an item does not run again.
    pub fn collect_failures(self) -> StepMap<'a, I, Collect> {
        let StepMap { claimed, items, concurrency, quiet, .. } = self;
        StepMap { claimed, items, concurrency, quiet, failures: PhantomData }
    }

    /// The work on one item. The map gives the items' values in their order.
    pub fn run<T, F, Fut>(self, mut body: F) -> MapRun<'a, Vec<T>>
    where
        T: Serialize + DeserializeOwned + Send + 'a,
        F: FnMut(I) -> Fut + Send + 'a,
        Fut: Future<Output = JobResult<T>> + Send + 'a,
    {
        self.run_with(move |_, item| body(item))
    }

    /// Like [`run`](StepMap::run), with the item's own context.
    pub fn run_with<T, F, Fut>(self, body: F) -> MapRun<'a, Vec<T>>
    where
        T: Serialize + DeserializeOwned + Send + 'a,
        F: FnMut(ItemCx, I) -> Fut + Send + 'a,
        Fut: Future<Output = JobResult<T>> + Send + 'a,
    {
        self.drive(false, body, |mapped| mapped.outputs.into_iter().map(|(_, output)| output).collect())
    }
}

impl<'a, I: Serialize + Send + 'a> StepMap<'a, I, Collect> {
    /// The work on one item. The map gives the items' values and failures, each with its item's index.
    pub fn run<T, F, Fut>(self, mut body: F) -> MapRun<'a, Mapped<T>>
    where
        T: Serialize + DeserializeOwned + Send + 'a,
        F: FnMut(I) -> Fut + Send + 'a,
        Fut: Future<Output = JobResult<T>> + Send + 'a,
    {
        self.run_with(move |_, item| body(item))
    }

    /// Like [`run`](StepMap::run), with the item's own context.
    pub fn run_with<T, F, Fut>(self, body: F) -> MapRun<'a, Mapped<T>>
    where
        T: Serialize + DeserializeOwned + Send + 'a,
        F: FnMut(ItemCx, I) -> Fut + Send + 'a,
        Fut: Future<Output = JobResult<T>> + Send + 'a,
    {
        self.drive(true, body, |mapped| mapped)
    }
}

/// What became of the items of a map that lets them fail.
#[derive(Debug)]
#[non_exhaustive]
pub struct Mapped<T> {
    /// Indexes and values of the items that gave one, in their order.
    pub outputs: Vec<(usize, T)>,
    /// Indexes and errors of those that failed, in their order.
    pub failures: Vec<(usize, JobError)>,
}

/// A map at work: await it. See [`Step::map`](super::Step::map).
#[must_use = "a map does nothing until it is awaited"]
pub struct MapRun<'a, O> {
    state: State<'a, O>,
}

enum State<'a, O> {
    Mapping(Boxed<'a, O>),
    Detached(String),
    Never,
}

impl<O> fmt::Debug for MapRun<'_, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapRun").finish_non_exhaustive()
    }
}

impl<O> Future for MapRun<'_, O> {
    type Output = JobResult<O>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<JobResult<O>> {
        match &mut self.get_mut().state {
            State::Mapping(mapping) => mapping.as_mut().poll(cx),
            State::Detached(key) => Poll::Ready(Err(run::detached(key))),
            State::Never => Poll::Pending,
        }
    }
}

/// An item of a map, as its body sees it.
#[derive(Clone)]
pub struct ItemCx {
    execution: Arc<Execution>,
    key: Arc<str>,
    index: usize,
}

impl fmt::Debug for ItemCx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ItemCx").field("key", &self.key).field("index", &self.index).finish_non_exhaustive()
    }
}

impl ItemCx {
    /// The item's place among the items, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The run's log, with lines of this map.
    pub fn log(&self) -> Logger {
        Logger::new(self.execution.clone(), Some(self.key.clone()))
    }

    /// Fires when the run is cancelled.
    pub fn cancelled(&self) -> CancellationToken {
        self.execution.watch()
    }

    /// A key for other services' idempotency: 32 hex digits, the same over recovery and resume for this item, another one for a
    /// retriggered run.
    pub fn effect_key(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(self.execution.start.run.as_bytes());
        hasher.update(self.key.as_bytes());
        hasher.update(b"\0item\0");
        hasher.update((self.index as u64).to_be_bytes());
        hex(&hasher.finalize()[..16])
    }
}
