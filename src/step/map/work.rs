//! Working off the items of a map, from where an earlier execution left them.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::Bytes;
use futures_core::Stream;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::writing::Writing;
use super::{ItemCx, Mapped};
use crate::codec::keys::hex;
use crate::codec::records::ErrorRecord;
use crate::codec::segment::{MapHeader, Segment, Stored};
use crate::error::Error;
use crate::event::EventKind;
use crate::hooks::Bug;
use crate::job::{ErrorKind, JobError, JobResult, not_storable, schema};
use crate::limits::{MAP_CONCURRENCY_MAX, MAP_ITEMS_MAX, READ_AGAIN_AFTER, SEGMENT_BYTES, SEGMENT_FLUSH_AFTER};
use crate::run::StepKind;
use crate::step::current;
use crate::step::execution::{Execution, Known, Ticket, Verdict};
use crate::step::logger::ProgressReport;
use crate::step::run::{self, never};
use crate::store::op::Accepted;
use crate::store::read::{ReplayOutcome, StoredItems};

/// Segments read at once.
const SEGMENTS_READ: usize = 16;

pub(super) struct Mapping {
    pub(super) concurrency: usize,
    pub(super) quiet: bool,
    pub(super) collect: bool,
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

pub(super) async fn map<I, T, F, Fut>(
    mut ticket: Ticket,
    items: Vec<I>,
    mapping: Mapping,
    mut body: F,
) -> JobResult<Mapped<T>>
where
    I: Serialize,
    T: Serialize + DeserializeOwned,
    F: FnMut(ItemCx, I) -> Fut,
    Fut: Future<Output = JobResult<T>>,
{
    let execution = ticket.execution.clone();
    if let Some(error) = run::outlived(&ticket) {
        return Err(error);
    }
    if execution.is_cancelled() {
        execution.stuck();
        return never().await;
    }
    if ticket.is_other_kind(StepKind::Map) || !mapping.fits(&ticket, items.len()) {
        return never().await;
    }
    ticket.note_begin();
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

/// What earlier executions, or an earlier call of this one, have stored.
async fn stored(ticket: &mut Ticket) -> Option<StoredItems> {
    match ticket.known.take().map(|known| *known) {
        Some(Known::Replayed(_, _, _, ReplayOutcome::Items(items))) => {
            let kept = ReplayOutcome::Items(items.clone());
            ticket.known =
                Some(Box::new(Known::Replayed(ticket.index, StepKind::Map, ticket.execution.version(), kept)));
            if !items.settled {
                // A call that was dropped has handed over what may not be on disk yet.
                drop(ticket.execution.hand_nothing().answer().await);
            }
            Some(*items)
        }
        Some(handed @ Known::Handed(..)) => {
            ticket.known = Some(Box::new(handed));
            // All of them were on disk before the outcome was handed over. They are read first, so that the outcome is still
            // known should this be dropped.
            let execution = &ticket.execution;
            let segments = again(execution, || execution.means.store.segments_of(execution.start.run, ticket.index));
            let segments = segments.await;
            let (header, outcome) = match run::decided(ticket).await {
                Ok(header) => (header, Ok(())),
                Err(error) => (Bytes::new(), Err(error)),
            };
            let items = StoredItems { header, segments, outcome: Some(outcome), settled: true };
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
            Err(_) => tokio::time::sleep(READ_AGAIN_AFTER).await,
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
            () = execution.token().cancelled() => {}
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
        match execution.is_cancelled() {
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
