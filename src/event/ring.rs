//! The latest committed events, broadcast to any number of listeners.
//!
//! Gets events from the writer thread and from tasks, keeps the newest up to a number of bytes, gives each reader all of
//! them in one order. A reader is a position in that order and nothing more: a slow one costs no memory, it is told how
//! many events it missed. It is no log: what must not be missed is read from the store.
//!
//! The events of a commit come, and go, as one group. To keep a group takes no step for each event, since most are pushed out
//! again without anyone having looked.
//!
//! Invariant: a registered waker belongs to a reader that has seen everything buffered, so publishing and closing take
//! all wakers out at once and the list holds none that could be missed.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;

use crate::quietly::quietly;

/// Events that are dropped together, at most.
const GROUP_EVENTS_MAX: usize = 1_024;

/// What the ring needs of an event as it is buffered.
pub(crate) trait Buffered: Clone + Send + Sync + 'static {
    /// The event as a reader gets it.
    type Event;

    /// What the events of a group have in common.
    type Common: Clone + Default + Send + Sync;

    /// The number of the commit it came with, dense and rising; an event without a commit has that of the last one.
    fn sequence(&self) -> u64;

    /// Heap memory it holds, in bytes. The ring adds the size of the event itself and of its own slot.
    fn bytes(&self) -> usize;

    /// Heap memory that a group holds beside its events, in bytes.
    fn common_bytes(common: &Self::Common) -> usize;

    /// Puts the event together, for one reader.
    fn event(&self, common: &Self::Common) -> Arc<Self::Event>;
}

/// A bounded broadcast buffer. Clones share it; when the last one goes, it is closed.
pub(crate) struct Ring<E: Buffered> {
    /// Closes on drop.
    owner: Arc<Owner<E>>,
}

/// What a reader gets.
#[derive(Debug)]
pub(crate) enum Received<E> {
    /// The next event.
    Event(Arc<E>),
    /// The reader was too slow, or asked for a past that is gone. The next event is the oldest that is still there.
    Lagged {
        /// Events missed: exact for a reader that fell behind, at least this many for the time before it subscribed.
        missed: u64,
    },
}

/// A listener: yields what is published until the ring closes and the rest is drained.
pub(crate) struct Reader<E: Buffered> {
    /// The ring without its closing handle.
    shared: Arc<Shared<E>>,
    /// Ordinal of the next event.
    position: u64,
    /// Missed before this reader existed, not yet told.
    missed: u64,
    /// Where its waker is, if it still is.
    ticket: Option<Ticket>,
}

/// The writing side, counted apart from the readers, so they do not keep it open.
struct Owner<E: Buffered> {
    /// What it closes.
    shared: Arc<Shared<E>>,
}

/// What the ring and its readers share.
struct Shared<E: Buffered> {
    /// Never held while foreign code runs, except for cloning a waker: wakers wake outside, and no event holds any.
    state: Mutex<State<E>>,
    /// Readers alive.
    readers: AtomicUsize,
    /// Bytes held at most, but always the newest event.
    bytes_max: usize,
}

/// The buffer. Ordinals count every event ever published, from 0.
struct State<E: Buffered> {
    /// Oldest first, their sequences never falling.
    chunks: VecDeque<Chunk<E>>,
    /// Ordinal of the oldest event, so also how many were dropped.
    first: u64,
    /// Ordinal of the event that comes next.
    end: u64,
    /// Sum of the chunks' bytes.
    bytes: usize,
    /// The ring knows nothing up to this sequence but what is still in the chunks.
    forgotten: u64,
    /// The sequence the ring began after.
    began_after: u64,
    /// No more events come.
    closed: bool,
    /// Readers with nothing to read.
    waiting: Waiting,
    /// Memory of a group that was dropped.
    spare: Vec<E>,
}

/// Buffered events that follow each other.
struct Chunk<E: Buffered> {
    /// Ordinal of the oldest.
    first: u64,
    /// Of the newest: at least its own.
    sequence: u64,
    /// What it counts against the limit.
    bytes: usize,
    events: Events<E>,
}

enum Events<E: Buffered> {
    /// They came one by one, and go so.
    Loose(VecDeque<Slot<E>>),
    /// They came together, and go together.
    Group(Vec<E>, E::Common),
}

/// A buffered event that came by itself.
struct Slot<E> {
    event: E,
    /// At least the event's own: an uncommitted event may be published after a commit it does not know of.
    sequence: u64,
    /// What it counts against the limit.
    bytes: usize,
}

/// The wakers of the waiting readers.
#[derive(Default)]
struct Waiting {
    /// Goes up when all are taken, which makes every older ticket void.
    epoch: u64,
    /// A ticket's place; empty after its reader went.
    wakers: Vec<Option<Waker>>,
    /// The empty places.
    free: Vec<usize>,
}

/// Readers that have something to read. To wake them is to run foreign code.
#[must_use]
#[derive(Debug, Default)]
pub(crate) struct Wakers(Vec<Option<Waker>>);

impl Wakers {
    pub(crate) fn wake(self) {
        self.0.into_iter().flatten().for_each(|waker| quietly("who wakes a listener", || waker.wake()));
    }
}

/// A place among the wakers.
#[derive(Clone, Copy)]
struct Ticket {
    /// Void in a later one.
    epoch: u64,
    /// Index of the waker.
    place: usize,
}

impl<E: Buffered> Ring<E> {
    /// A ring that knows every event from sequence 1 on.
    ///
    /// Holds at most `bytes_max` bytes, or the newest event alone where that one is larger.
    #[cfg(test)]
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self::starting_after(bytes_max, 0)
    }

    /// A ring after a restart: what was committed up to `sequence` is past, and a reader asking for it has missed it.
    pub(crate) fn starting_after(bytes_max: usize, sequence: u64) -> Self {
        let state = State {
            chunks: VecDeque::new(),
            first: 0,
            end: 0,
            bytes: 0,
            forgotten: sequence,
            began_after: sequence,
            closed: false,
            waiting: Waiting::default(),
            spare: Vec::new(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), readers: AtomicUsize::new(0), bytes_max });
        Self { owner: Arc::new(Owner { shared }) }
    }

    /// Appends events, in one step for all readers, and drops the oldest over the limit. Never waits for a reader.
    ///
    /// After [`Ring::close`] the events are dropped.
    pub(crate) fn publish(&self, events: impl IntoIterator<Item = E>) {
        let shared = &self.owner.shared;
        let mut state = shared.lock();
        if state.closed {
            return;
        }
        let before = state.end;
        for event in events {
            state.push(Slot::new(event));
        }
        if state.end == before {
            return;
        }
        let gone = state.drop_oldest(shared.bytes_max);
        let wakers = Wakers(state.waiting.take());
        drop(state);
        drop(gone);
        wakers.wake();
    }

    /// Appends a group of events like [`Ring::publish`], and leaves it to [`Ring::settle`] to drop what they push out: that is most
    /// of the work, and the publisher may be in a hurry. Leaves memory for the next group, and readers to be woken.
    pub(crate) fn publish_group(&self, events: &mut Vec<E>, common: E::Common) -> Wakers {
        let count = events.len();
        // Memory that is mostly empty is not kept for as long as the events are; what is long does not go all at once.
        let parts = (count > GROUP_EVENTS_MAX || events.capacity() > 2 * count).then(|| parts(events));
        let shared = &self.owner.shared;
        let mut state = shared.lock();
        if state.closed || count == 0 {
            events.clear();
            return Wakers::default();
        }
        // Nobody may have settled the group before.
        let gone = state.drop_oldest(shared.bytes_max);
        match parts {
            None => {
                let memory = std::mem::take(&mut state.spare);
                state.push_group(std::mem::replace(events, memory), common);
            }
            // What they have in common counts for each of them: too much rather than too little.
            Some(parts) => parts.into_iter().for_each(|part| state.push_group(part, common.clone())),
        }
        let wakers = state.waiting.take();
        drop(state);
        drop(gone);
        Wakers(wakers)
    }

    /// Drops what groups have pushed out.
    pub(crate) fn settle(&self) {
        let shared = &self.owner.shared;
        let gone = shared.lock().drop_oldest(shared.bytes_max);
        for mut group in gone {
            group.clear();
            shared.lock().spare = group;
        }
    }

    /// Listens from now on.
    pub(crate) fn subscribe(&self) -> Reader<E> {
        let position = self.owner.shared.lock().end;
        self.reader(position, 0)
    }

    /// Listens from what is still buffered with a sequence over `sequence`, then on.
    ///
    /// If older ones are gone the reader first says [`Received::Lagged`]. How many is counted from the sequences, which
    /// leaves out uncommitted events: at least that many. A sequence the ring has not come to yet means from now on.
    pub(crate) fn subscribe_after(&self, sequence: u64) -> Reader<E> {
        let state = self.owner.shared.lock();
        let position = state.after(sequence);
        let mut missed = state.forgotten.saturating_sub(sequence);
        if sequence >= state.began_after {
            missed = missed.min(state.first);
        }
        drop(state);
        self.reader(position, missed)
    }

    /// Ends the stream: readers drain what is buffered, then end. Doing it twice is fine.
    pub(crate) fn close(&self) {
        self.owner.shared.close();
    }

    /// Whether anyone listens now. A hint: a reader may subscribe the moment after, and replays what is buffered, so
    /// events are published regardless.
    pub(crate) fn has_readers(&self) -> bool {
        self.owner.shared.readers.load(Relaxed) > 0
    }

    /// A reader at a position.
    fn reader(&self, position: u64, missed: u64) -> Reader<E> {
        let shared = Arc::clone(&self.owner.shared);
        shared.readers.fetch_add(1, Relaxed);
        Reader { shared, position, missed, ticket: None }
    }
}

impl<E: Buffered> Clone for Ring<E> {
    fn clone(&self) -> Self {
        Self { owner: Arc::clone(&self.owner) }
    }
}

impl<E: Buffered> Drop for Owner<E> {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl<E: Buffered> Shared<E> {
    /// Takes the lock. A panic in a waker's clone leaves the state whole, so a poisoned lock is taken all the same.
    fn lock(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the readers drain and end.
    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let wakers = Wakers(state.waiting.take());
        drop(state);
        wakers.wake();
    }
}

/// The events, in pieces of their own.
fn parts<E>(events: &mut Vec<E>) -> Vec<Vec<E>> {
    let mut left = events.drain(..);
    let part = || Some(left.by_ref().take(GROUP_EVENTS_MAX).collect()).filter(|part: &Vec<E>| !part.is_empty());
    std::iter::from_fn(part).collect()
}

impl<E: Buffered> State<E> {
    /// The sequence of the newest event.
    fn last(&self) -> u64 {
        self.chunks.back().map_or(self.forgotten, |chunk| chunk.sequence)
    }

    /// Appends one.
    fn push(&mut self, mut slot: Slot<E>) {
        slot.sequence = slot.sequence.max(self.last());
        let (sequence, bytes) = (slot.sequence, slot.bytes);
        match self.chunks.back_mut() {
            Some(Chunk { events: Events::Loose(slots), sequence: last, bytes: sum, .. }) => {
                slots.push_back(slot);
                (*last, *sum) = (sequence, *sum + bytes);
            }
            _ => {
                let events = Events::Loose(VecDeque::from([slot]));
                self.chunks.push_back(Chunk { first: self.end, sequence, bytes, events });
            }
        }
        self.bytes += bytes;
        self.end += 1;
    }

    /// Appends those of a group, whose sequences don't fall.
    fn push_group(&mut self, events: Vec<E>, common: E::Common) {
        let sequence = events.last().map_or(0, E::sequence).max(self.last());
        let held = events.iter().map(E::bytes).sum::<usize>() + E::common_bytes(&common);
        let bytes = held + events.capacity() * size_of::<E>() + size_of::<Chunk<E>>();
        let first = self.end;
        self.bytes += bytes;
        self.end += events.len() as u64;
        self.chunks.push_back(Chunk { first, sequence, bytes, events: Events::Group(events, common) });
    }

    /// Drops the oldest over the limit, but never the newest. Gives the groups among them, to be freed without the lock.
    fn drop_oldest(&mut self, bytes_max: usize) -> Vec<Vec<E>> {
        let mut groups = Vec::new();
        while self.bytes > bytes_max && self.end - self.first > 1 {
            let is_last = self.chunks.len() == 1;
            let Some(chunk) = self.chunks.front_mut() else { break };
            match &mut chunk.events {
                Events::Loose(slots) => {
                    let Some(oldest) = slots.pop_front() else { break };
                    chunk.first += 1;
                    chunk.bytes -= oldest.bytes;
                    self.bytes -= oldest.bytes;
                    self.forgotten = oldest.sequence;
                    self.first += 1;
                    if slots.is_empty() {
                        self.chunks.pop_front();
                    }
                }
                Events::Group(..) if is_last => break,
                Events::Group(events, _) => {
                    self.bytes -= chunk.bytes;
                    self.forgotten = chunk.sequence;
                    self.first += events.len() as u64;
                    groups.push(std::mem::take(events));
                    self.chunks.pop_front();
                }
            }
        }
        groups
    }

    /// Ordinal of the first event with a sequence over this one.
    fn after(&self, sequence: u64) -> u64 {
        let at = self.chunks.partition_point(|chunk| chunk.sequence <= sequence);
        let Some(chunk) = self.chunks.get(at) else { return self.end };
        let before = match &chunk.events {
            Events::Loose(slots) => slots.partition_point(|slot| slot.sequence <= sequence),
            Events::Group(events, _) => events.partition_point(|event| event.sequence() <= sequence),
        };
        chunk.first + before as u64
    }

    /// The event of an ordinal, if it is there.
    fn get(&self, ordinal: u64) -> Option<(E, E::Common)> {
        let at = self.chunks.partition_point(|chunk| chunk.first <= ordinal).checked_sub(1)?;
        let chunk = self.chunks.get(at)?;
        let within = usize::try_from(ordinal - chunk.first).ok()?;
        match &chunk.events {
            Events::Loose(slots) => slots.get(within).map(|slot| (slot.event.clone(), E::Common::default())),
            Events::Group(events, common) => events.get(within).map(|event| (event.clone(), common.clone())),
        }
    }
}

impl<E: Buffered> Slot<E> {
    /// Measures and wraps an event.
    fn new(event: E) -> Self {
        Self { sequence: event.sequence(), bytes: event.bytes() + size_of::<Self>(), event }
    }
}

impl<E: Buffered> Reader<E> {
    /// Waits for the next event; `None` once the ring is closed and drained, and from then on.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: the position moves only when something is returned.
    pub(crate) async fn next(&mut self) -> Option<Received<E::Event>> {
        poll_fn(|cx| self.poll(Some(cx))).await
    }

    /// What is there without waiting: `Pending` is nothing yet, `Ready(None)` the end.
    #[cfg(test)]
    pub(crate) fn try_next(&mut self) -> Poll<Option<Received<E::Event>>> {
        self.poll(None)
    }

    /// Takes the next, or leaves the task's waker.
    fn poll(&mut self, cx: Option<&mut Context<'_>>) -> Poll<Option<Received<E::Event>>> {
        let mut state = self.shared.lock();
        let behind = state.first.saturating_sub(self.position);
        let missed = std::mem::take(&mut self.missed) + behind;
        self.position += behind;
        if missed > 0 {
            return Poll::Ready(Some(Received::Lagged { missed }));
        }
        if let Some((told, common)) = state.get(self.position) {
            self.position += 1;
            drop(state);
            return Poll::Ready(Some(Received::Event(told.event(&common))));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        if let Some(cx) = cx {
            let (ticket, replaced) = state.waiting.put(self.ticket, cx.waker());
            self.ticket = Some(ticket);
            // Dropping a waker may drop a task, and with it a reader of this ring, which takes the lock.
            drop(state);
            drop(replaced);
        }
        Poll::Pending
    }
}

impl<E: Buffered + Unpin> Stream for Reader<E> {
    type Item = Received<E::Event>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Reader::poll(&mut self, Some(cx))
    }
}

impl<E: Buffered> Drop for Reader<E> {
    fn drop(&mut self) {
        self.shared.readers.fetch_sub(1, Relaxed);
        if let Some(ticket) = self.ticket {
            let waker = self.shared.lock().waiting.remove(ticket);
            drop(waker);
        }
    }
}

impl Waiting {
    /// Leaves a waker, in the reader's old place while that is valid. Returns the one that was there.
    fn put(&mut self, ticket: Option<Ticket>, waker: &Waker) -> (Ticket, Option<Waker>) {
        if let Some(ticket) = ticket.filter(|ticket| ticket.epoch == self.epoch) {
            let old = self.wakers.get_mut(ticket.place);
            let old = old.filter(|old| old.as_ref().is_none_or(|old| !old.will_wake(waker)));
            return (ticket, old.and_then(|old| old.replace(waker.clone())));
        }
        let place = self.free.pop().unwrap_or(self.wakers.len());
        match self.wakers.get_mut(place) {
            Some(empty) => *empty = Some(waker.clone()),
            None => self.wakers.push(Some(waker.clone())),
        }
        let epoch = self.epoch;
        (Ticket { epoch, place }, None)
    }

    /// Takes the waker of a reader that goes.
    fn remove(&mut self, ticket: Ticket) -> Option<Waker> {
        if ticket.epoch != self.epoch {
            return None;
        }
        let waker = self.wakers.get_mut(ticket.place)?.take()?;
        self.free.push(ticket.place);
        Some(waker)
    }

    /// Takes all wakers, to be woken outside the lock.
    fn take(&mut self) -> Vec<Option<Waker>> {
        if self.wakers.is_empty() {
            return Vec::new();
        }
        self.epoch += 1;
        self.free.clear();
        std::mem::take(&mut self.wakers)
    }
}

#[cfg(test)]
mod tests;
