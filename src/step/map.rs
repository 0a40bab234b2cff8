//! Many items under one key: a bounded number of them at a time, stored in segments.
//!
//! The map has a record under its own key, open from the first segment on until all items are done; a segment is a record
//! without a key. One segment at a time is on its way to the disk, and takes what was done meanwhile with the next. Items that
//! take their time come in small segments, so the newest one is written again as long as it is small.
//!
//! Invariant: an item in a stored segment is never begun again.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::execution::{Execution, Known, Ticket, Verdict};
use super::logger::{Logger, ProgressReport};
use super::run::{self, never};
use super::{Claimed, current};
use crate::codec;
use crate::codec::records::{ErrorRecord, StepRecordRef, WaitRecord};
use crate::codec::segment::{MapHeader, Segment, Stored};
use crate::error::Error;
use crate::event::{EventKind, StepTold};
use crate::hooks::Bug;
use crate::job::{ErrorKind, JobError, JobResult, not_storable, schema};
use crate::limits::{
    MAP_CONCURRENCY_MAX, MAP_ITEMS_MAX, SEGMENT_BYTES, SEGMENT_BYTES_MIN, SEGMENT_FLUSH_AFTER, SEGMENT_ITEMS,
    SEGMENTS_BACKLOG,
};
use crate::run::StepKind;
use crate::store::Pending;
use crate::store::op::{Accepted, Admitted};
use crate::store::read::{ReplayOutcome, StoredItems};
use crate::time::Timestamp;

/// Segments read at once.
const SEGMENTS_READ: usize = 16;
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

struct Mapping {
    concurrency: usize,
    quiet: bool,
    collect: bool,
}

/// What is known of the items.
struct Work<T> {
    outputs: Vec<Option<T>>,
    failures: BTreeMap<usize, ErrorRecord>,
    done: usize,
}

impl<T: DeserializeOwned> Work<T> {
    fn new(items: usize) -> Self {
        Work { outputs: std::iter::repeat_with(|| None).take(items).collect(), failures: BTreeMap::new(), done: 0 }
    }

    fn is_done(&self, item: usize) -> bool {
        self.outputs.get(item).is_some_and(Option::is_some) || self.failures.contains_key(&item)
    }

    fn put(&mut self, item: usize, outcome: Result<T, ErrorRecord>) {
        self.done += usize::from(!self.is_done(item));
        match outcome {
            Ok(output) => {
                if let Some(place) = self.outputs.get_mut(item) {
                    *place = Some(output);
                }
            }
            Err(error) => drop(self.failures.insert(item, error)),
        }
    }

    /// Takes up a stored segment.
    fn load(&mut self, payload: &[u8]) -> Result<(), (ErrorKind, String)> {
        let mut misfit = None;
        let mut put = |work: &mut Self, item: u64, json: &[u8]| match schema::decode::<T>(json) {
            Ok(output) => work.put(item as usize, Ok(output)),
            Err(error) => {
                misfit.get_or_insert_with(|| {
                    let name = std::any::type_name::<T>();
                    format!("the stored output of item {item} does not fit {name}: {}", error.message)
                });
            }
        };
        let items = self.outputs.len() as u64;
        let read = Segment::decode(payload, items, &mut |stored| match stored {
            Stored::Nulls(range) => range.for_each(|item| put(self, item, b"null")),
            Stored::Output(item, json) => put(self, item, json),
            Stored::Failed(item, error) => self.put(item as usize, Err(error)),
        });
        read.map_err(|reason| (ErrorKind::Corrupted, reason.to_owned()))?;
        misfit.map_or(Ok(()), |message| Err((ErrorKind::CheckpointMismatch, message)))
    }

    fn into_mapped(self) -> Mapped<T> {
        let outputs = self.outputs.into_iter().enumerate();
        Mapped {
            outputs: outputs.filter_map(|(item, output)| output.map(|output| (item, output))).collect(),
            failures: self.failures.into_iter().map(|(item, error)| (item, JobError::from_record(error))).collect(),
        }
    }
}

async fn map<I, T, F, Fut>(mut ticket: Ticket, items: Vec<I>, mapping: Mapping, mut body: F) -> JobResult<Mapped<T>>
where
    I: Serialize,
    T: Serialize + DeserializeOwned,
    F: FnMut(ItemCx, I) -> Fut,
    Fut: Future<Output = JobResult<T>>,
{
    let execution = ticket.execution.clone();
    if execution.cancelled.is_cancelled() {
        execution.stuck();
        return never().await;
    }
    if ticket.is_other_kind(StepKind::Map) || !mapping.fits(&ticket, items.len()) {
        return never().await;
    }
    let started_at = execution.now();
    let header = match fingerprint(&items) {
        Ok(fingerprint) => MapHeader { items: items.len() as u64, failed: 0, fingerprint },
        Err(error) => return run::record_failure(ticket, StepKind::Map, started_at, error).await,
    };
    let stored = stored(&mut ticket).await;
    let mut work = Work::new(items.len());
    let mut writing = Writing::new(started_at, &header);
    if let Some(items) = &stored {
        if let Some(Err(error)) = &items.outcome {
            ticket.done = true;
            return Err(JobError::from_record(error.clone()));
        }
        writing.has_header = true;
        let loaded = match unchanged(items, &header) {
            Ok(()) if items.outcome.is_none() && execution.means.hooks.plants(Bug::ItemsForgotten) => Ok(()),
            Ok(()) => load(&execution, &mut work, &items.segments).await,
            Err(changed) => Err(changed),
        };
        if let Err((kind, what)) = loaded {
            execution.fail(kind, format!("step {:?}: {what}", ticket.key));
            return never().await;
        }
        if let Some(Ok(())) = items.outcome {
            if work.done < work.outputs.len() {
                execution.fail(ErrorKind::Corrupted, format!("step {:?}: segments of it are missing", ticket.key));
                return never().await;
            }
            ticket.done = true;
            return Ok(work.into_mapped());
        }
    } else {
        let (step, index) = (&ticket.key, ticket.index);
        execution.tell(|| EventKind::StepStarted { step: step.clone(), index });
    }
    let failure = work_off(&mut ticket, items, &mapping, &mut body, &mut work, &mut writing).await;
    let header = MapHeader { failed: work.failures.len() as u64, ..header };
    let summary = serde_json::to_vec(&header).unwrap_or_default();
    run::record_outcome(&mut ticket, StepKind::Map, started_at, failure.as_ref(), &summary).await;
    ticket.done = true;
    match failure {
        None => Ok(work.into_mapped()),
        Some(error) => Err(JobError::from_record(error)),
    }
}

impl Mapping {
    /// Whether its numbers are within their limits; where they are not, the run is ended.
    fn fits(&self, ticket: &Ticket, items: usize) -> bool {
        let what = if items > MAP_ITEMS_MAX {
            format!("{items} items: at most {MAP_ITEMS_MAX}")
        } else if !(1..=MAP_CONCURRENCY_MAX).contains(&self.concurrency) {
            format!("{} items at a time: 1 to {MAP_CONCURRENCY_MAX}", self.concurrency)
        } else {
            return true;
        };
        ticket.execution.fail(ErrorKind::OverLimit, format!("map {:?} of {what}", ticket.key));
        false
    }
}

/// SHA-256 of the items' JSON, cut to 32 hex digits.
fn fingerprint<I: Serialize>(items: &[I]) -> JobResult<String> {
    struct Hashed(Sha256, Vec<u8>);
    let mut hashed = Hashed(Sha256::new(), Vec::new());
    for item in items {
        serde_json::to_writer(&mut hashed.1, item).map_err(|error| not_storable(&error))?;
        hashed.1.push(b'\n');
        if hashed.1.len() > SEGMENT_BYTES {
            hashed.0.update(&hashed.1);
            hashed.1.clear();
        }
    }
    hashed.0.update(&hashed.1);
    Ok(hex(&hashed.0.finalize()[..16]))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What earlier executions, or an earlier call of this one, have stored.
async fn stored(ticket: &mut Ticket) -> Option<StoredItems> {
    match ticket.known.take().map(|known| *known) {
        Some(Known::Replayed(_, _, _, ReplayOutcome::Items(items))) => {
            let kept = ReplayOutcome::Items(items.clone());
            ticket.known =
                Some(Box::new(Known::Replayed(ticket.index, StepKind::Map, ticket.execution.version(), kept)));
            Some(*items)
        }
        Some(handed @ Known::Handed(..)) => {
            ticket.known = Some(Box::new(handed));
            let (header, outcome) = match run::decided(ticket).await {
                Ok(header) => (header, Ok(())),
                Err(error) => (Bytes::new(), Err(error)),
            };
            let execution = &ticket.execution;
            let segments = again(execution, || execution.means.store.segments_of(execution.start.run, ticket.index));
            let segments = segments.await;
            let items = StoredItems { header, segments, outcome: Some(outcome) };
            let kept = ReplayOutcome::Items(Box::new(items.clone()));
            ticket.known =
                Some(Box::new(Known::Replayed(ticket.index, StepKind::Map, ticket.execution.version(), kept)));
            Some(items)
        }
        _ => None,
    }
}

/// Reads; waits as long as the file is away.
async fn again<V, F: Future<Output = Result<V, Error>>>(execution: &Execution, read: impl Fn() -> F) -> V {
    loop {
        match read().await {
            Ok(value) => return value,
            Err(error @ Error::Corrupted { .. }) => {
                execution.fail(ErrorKind::Corrupted, error.to_string());
                return never().await;
            }
            Err(Error::ShutDown) => return never().await,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn unchanged(items: &StoredItems, header: &MapHeader) -> Result<(), (ErrorKind, String)> {
    if items.header.is_empty() {
        return Ok(());
    }
    let before: MapHeader = serde_json::from_slice(&items.header)
        .map_err(|_| (ErrorKind::Corrupted, "what is stored of its items can't be read".to_owned()))?;
    let what = if before.items != header.items {
        format!("it had {} items and has {} now", before.items, header.items)
    } else if before.fingerprint != header.fingerprint {
        "its items are other ones than before".to_owned()
    } else {
        return Ok(());
    };
    Err((ErrorKind::CheckpointMismatch, what))
}

async fn load<T: DeserializeOwned>(
    execution: &Execution,
    work: &mut Work<T>,
    segments: &[u32],
) -> Result<(), (ErrorKind, String)> {
    for some in segments.chunks(SEGMENTS_READ) {
        let read = again(execution, || execution.means.store.segments(execution.start.run, some.to_vec()));
        for payload in read.await {
            work.load(&payload)?;
        }
    }
    Ok(())
}

/// How segments get to the disk.
struct Writing {
    started_at: Timestamp,
    header: Vec<u8>,
    has_header: bool,
    /// Done, and not handed over yet.
    gathered: Segment,
    /// The newest segment, where it may be written again, and its bytes.
    newest: Option<(u32, Segment, usize)>,
    in_flight: Option<Pending<Accepted>>,
}

impl Writing {
    fn new(started_at: Timestamp, header: &MapHeader) -> Self {
        Writing {
            started_at,
            header: serde_json::to_vec(header).unwrap_or_default(),
            has_header: false,
            gathered: Segment::default(),
            newest: None,
            in_flight: None,
        }
    }

    fn is_full(&self) -> bool {
        self.gathered.len() >= SEGMENT_ITEMS || self.gathered.bytes() >= SEGMENT_BYTES
    }

    fn is_behind(&self) -> bool {
        let (items, bytes) = (SEGMENT_ITEMS * SEGMENTS_BACKLOG, SEGMENT_BYTES * SEGMENTS_BACKLOG);
        self.gathered.len() >= items || self.gathered.bytes() >= bytes
    }

    /// Hands over what has gathered; comes back when it is with the writer.
    async fn flush(&mut self, ticket: &mut Ticket) {
        let execution = ticket.execution.clone();
        let gathered = std::mem::take(&mut self.gathered);
        let (index, segment, before) = match self.newest.take() {
            Some((index, mut segment, bytes)) if segment.bytes() < SEGMENT_BYTES_MIN => {
                segment.append(&gathered);
                (index, segment, bytes)
            }
            _ => match execution.next_part() {
                Some(index) => (index, gathered, 0),
                None => return never().await,
            },
        };
        let payload = segment.encode(ticket.index);
        let part = self.part(ticket, "", StepKind::SEGMENT, index, &payload);
        let header = (!self.has_header)
            .then(|| self.part(ticket, &ticket.key, StepKind::Map.to_byte(), ticket.index, &self.header));
        let bytes = part.record.len();
        let with_header = bytes + header.as_ref().map_or(0, |header| header.record.len());
        if !execution.count_bytes(with_header.saturating_sub(before)) {
            execution.fail_over_bytes();
            return never().await;
        }
        let admitted = execution.means.store.admit_body(with_header).await;
        if let Some(header) = header {
            // Before the first segment, and most often in one commit with it: what becomes of that is what became of this.
            drop(execution.hand_part(header, Admitted::default()));
            self.has_header = true;
            // Known from here on, should this be dropped before it is done.
            let items = StoredItems { header: self.header.clone().into(), segments: Vec::new(), outcome: None };
            let known = Known::Replayed(
                ticket.index,
                StepKind::Map,
                ticket.execution.version(),
                ReplayOutcome::Items(Box::new(items)),
            );
            ticket.known = Some(Box::new(known));
        }
        if before == 0
            && let Some(Known::Replayed(_, _, _, ReplayOutcome::Items(items))) = ticket.known.as_deref_mut()
        {
            items.segments.push(index);
        }
        self.in_flight = Some(execution.hand_part(part, admitted));
        self.newest = Some((index, segment, bytes));
    }

    fn part(&self, ticket: &Ticket, key: &str, kind: u8, index: u32, payload: &[u8]) -> StepTold {
        let execution = &ticket.execution;
        let open = WaitRecord::default();
        let header = StepRecordRef {
            key,
            kind,
            generation: execution.start.generation,
            started_at: self.started_at,
            completed_at: execution.now(),
            attempts: 1,
            version: execution.version(),
            error: None,
            open: Some(&open),
            tries: &[],
        };
        let mut sealed = Vec::new();
        let Ok(output_at) = codec::seal_into(&mut sealed, &header, |out| {
            out.extend_from_slice(payload);
            Ok::<(), Infallible>(())
        });
        let step = ticket.key.clone();
        StepTold { step, index, duration: Duration::ZERO, record: sealed.into(), output_at, error: None }
    }
}

/// What happens while items are under way.
enum Happened<T> {
    Done(usize, JobResult<T>),
    Recorded(Result<Accepted, Error>),
    /// What has gathered is to go to disk.
    Due,
    /// The body is told to stop.
    Stopped,
}

/// Works on all items that are not done, until all of them are or one fails that must not; gives its failure.
async fn work_off<I, T, F, Fut>(
    ticket: &mut Ticket,
    items: Vec<I>,
    mapping: &Mapping,
    body: &mut F,
    work: &mut Work<T>,
    writing: &mut Writing,
) -> Option<ErrorRecord>
where
    T: Serialize + DeserializeOwned,
    F: FnMut(ItemCx, I) -> Fut,
    Fut: Future<Output = JobResult<T>>,
{
    let execution = ticket.execution.clone();
    let (start, key) = (execution.start.clone(), ticket.key.clone());
    let scope = || current::enter(start.run, start.generation, Some(&key));
    let progress = |done: usize, total: usize| {
        if !mapping.quiet {
            drop(ProgressReport::new(&execution, done as u64, Some(total as u64)));
        }
    };
    let mut stop = pin!(async {
        tokio::select! {
            biased;
            () = execution.cancelled.cancelled() => {}
            () = execution.means.draining.cancelled() => {}
        }
    });
    // A failure stored by code that let items fail counts for code that does not.
    let mut failure =
        work.failures.first_key_value().filter(|_| !mapping.collect).map(|(item, error)| (*item, error.clone()));
    let (mut stopping, mut scratch) = (false, Vec::new());
    let mut timer: Option<Pin<Box<tokio::time::Sleep>>> = None;
    let mut running = FuturesUnordered::new();
    let mut left = items.into_iter().enumerate();
    loop {
        while failure.is_none() && !stopping && running.len() < mapping.concurrency && !writing.is_behind() {
            let Some((item, input)) = left.next() else { break };
            if work.is_done(item) {
                continue;
            }
            let cx = ItemCx { execution: execution.clone(), key: key.clone(), index: item };
            let _entered = scope();
            let under_way = body(cx, input);
            running.push(async move { (item, under_way.await) });
        }
        let nothing_else = running.is_empty() && (stopping || failure.is_some() || left.len() == 0);
        if writing.in_flight.is_none() && writing.gathered.len() > 0 && (nothing_else || writing.is_full()) {
            timer = None;
            progress(work.done, work.outputs.len());
            writing.flush(ticket).await;
            continue;
        }
        if nothing_else && writing.in_flight.is_none() {
            break;
        }
        if timer.is_none() && writing.gathered.len() > 0 && writing.in_flight.is_none() {
            timer = Some(Box::pin(tokio::time::sleep(SEGMENT_FLUSH_AFTER)));
        }
        let happened = poll_fn(|cx| {
            if let Some(in_flight) = &mut writing.in_flight
                && let Poll::Ready(answer) = in_flight.poll(cx)
            {
                return Poll::Ready(Happened::Recorded(answer));
            }
            if !stopping && stop.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Happened::Stopped);
            }
            if let Some(timer) = &mut timer
                && timer.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Happened::Due);
            }
            let _entered = scope();
            match Pin::new(&mut running).poll_next(cx) {
                Poll::Ready(Some((item, result))) => Poll::Ready(Happened::Done(item, result)),
                Poll::Ready(None) | Poll::Pending => Poll::Pending,
            }
        });
        match happened.await {
            Happened::Recorded(Ok(Accepted::Recorded)) => writing.in_flight = None,
            Happened::Recorded(_) => {
                execution.stuck();
                return never().await;
            }
            Happened::Due => {
                timer = None;
                progress(work.done, work.outputs.len());
                writing.flush(ticket).await;
            }
            Happened::Stopped => stopping = true,
            // Told to stop, it failed: that is no outcome.
            Happened::Done(_, Err(_)) if execution.is_stopping() => stopping = true,
            Happened::Done(item, result) => match settle(&mut scratch, execution.means.payload_bytes_max, result) {
                Ok(output) => {
                    writing.gathered.push_output(item as u64, &scratch);
                    work.put(item, Ok(output));
                }
                Err(error) if mapping.collect => {
                    let error = ErrorRecord { step: Some(key.to_string()), ..error.into_record() };
                    writing.gathered.push_failure(item as u64, &error);
                    work.put(item, Err(error));
                }
                Err(error) => {
                    failure = Some((item, error.into_record()));
                    running.clear();
                }
            },
        }
    }
    if let Some((item, error)) = failure {
        let message = format!("item {item}: {}", error.message);
        return Some(ErrorRecord { message, step: Some(key.to_string()), ..error });
    }
    if work.done < work.outputs.len() {
        match execution.cancelled.is_cancelled() {
            true => execution.stuck(),
            false => execution.judge(Verdict::HandedBack),
        }
        return never().await;
    }
    None
}

/// An item's value as it is stored, and as it reads back from that.
fn settle<T: Serialize + DeserializeOwned>(
    scratch: &mut Vec<u8>,
    bytes_max: usize,
    result: JobResult<T>,
) -> JobResult<T> {
    scratch.clear();
    serde_json::to_writer(&mut *scratch, &result?).map_err(|error| not_storable(&error))?;
    run::read_back(bytes_max, scratch)
}
