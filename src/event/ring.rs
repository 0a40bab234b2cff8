//! The latest committed events, broadcast to any number of listeners.
//!
//! Gets events from the writer thread and from tasks, keeps the newest up to a number of bytes, gives each reader all of
//! them in one order. A reader is a position in that order and nothing more: a slow one costs no memory, it is told how
//! many events it missed. It is no log: what must not be missed is read from the store.
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

/// What the ring needs of an event as it is buffered.
pub(crate) trait Buffered: Clone + Send + Sync + 'static {
    /// The event as a reader gets it.
    type Event;

    /// The number of the commit it came with, dense and rising; an event without a commit has that of the last one.
    fn sequence(&self) -> u64;

    /// Heap memory it holds, in bytes. The ring adds the size of the event itself and of its own slot.
    fn bytes(&self) -> usize;

    /// Puts the event together, for one reader.
    fn event(&self) -> Arc<Self::Event>;
}

/// A bounded broadcast buffer. Clones share it; when the last one goes, it is closed.
pub(crate) struct Ring<E> {
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
pub(crate) struct Reader<E> {
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
struct Owner<E> {
    /// What it closes.
    shared: Arc<Shared<E>>,
}

/// What the ring and its readers share.
struct Shared<E> {
    /// Never held while foreign code runs, except for cloning a waker: wakers wake outside, and no event holds any.
    state: Mutex<State<E>>,
    /// Readers alive.
    readers: AtomicUsize,
    /// Bytes held at most, but always the newest event.
    bytes_max: usize,
}

/// The buffer. Ordinals count every event ever published, from 0.
struct State<E> {
    /// The newest group, if it is published and not buffered yet. Whoever looks at the rest buffers it before.
    arrived: Vec<E>,
    /// Oldest first, their sequences never falling.
    slots: VecDeque<Slot<E>>,
    /// Ordinal of the oldest slot, so also how many were dropped.
    first: u64,
    /// Sum of the slots' bytes.
    bytes: usize,
    /// The ring knows nothing up to this sequence but what is still in the slots.
    forgotten: u64,
    /// The sequence the ring began after.
    began_after: u64,
    /// No more events come.
    closed: bool,
    /// Readers with nothing to read.
    waiting: Waiting,
}

/// A buffered event.
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
            arrived: Vec::new(),
            slots: VecDeque::new(),
            first: 0,
            bytes: 0,
            forgotten: sequence,
            began_after: sequence,
            closed: false,
            waiting: Waiting::default(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), readers: AtomicUsize::new(0), bytes_max });
        Self { owner: Arc::new(Owner { shared }) }
    }

    /// Appends events, in one step for all readers, and drops the oldest over the limit. Never waits for a reader.
    ///
    /// After [`Ring::close`] the events are dropped.
    pub(crate) fn publish(&self, events: impl IntoIterator<Item = E>) {
        let shared = &self.owner.shared;
        let mut state = shared.buffered();
        if state.closed {
            return;
        }
        let before = state.end();
        for event in events {
            state.push(Slot::new(event), shared.bytes_max);
        }
        if state.end() == before {
            return;
        }
        let wakers = state.waiting.take();
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Appends a group of events like [`Ring::publish`], and leaves it to the next who comes to buffer them and to drop what
    /// they push out: that is most of the work, and the publisher may be in a hurry. Leaves memory for the next group.
    pub(crate) fn publish_group(&self, events: &mut Vec<E>) {
        let shared = &self.owner.shared;
        let mut state = shared.lock();
        if state.closed || events.is_empty() {
            events.clear();
            return;
        }
        state.buffer(shared.bytes_max);
        std::mem::swap(&mut state.arrived, events);
        let wakers = state.waiting.take();
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Buffers the group that was published last.
    pub(crate) fn settle(&self) {
        drop(self.owner.shared.buffered());
    }

    /// Listens from now on.
    pub(crate) fn subscribe(&self) -> Reader<E> {
        let position = self.owner.shared.buffered().end();
        self.reader(position, 0)
    }

    /// Listens from what is still buffered with a sequence over `sequence`, then on.
    ///
    /// If older ones are gone the reader first says [`Received::Lagged`]. How many is counted from the sequences, which
    /// leaves out uncommitted events: at least that many. A sequence the ring has not come to yet means from now on.
    pub(crate) fn subscribe_after(&self, sequence: u64) -> Reader<E> {
        let state = self.owner.shared.buffered();
        let skipped = state.slots.partition_point(|s| s.sequence <= sequence);
        let position = state.first + skipped as u64;
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

impl<E> Clone for Ring<E> {
    fn clone(&self) -> Self {
        Self { owner: Arc::clone(&self.owner) }
    }
}

impl<E> Drop for Owner<E> {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl<E> Shared<E> {
    /// Takes the lock. A panic in a waker's clone leaves the state whole, so a poisoned lock is taken all the same.
    fn lock(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state with every published event in its slot.
    fn buffered(&self) -> MutexGuard<'_, State<E>>
    where
        E: Buffered,
    {
        let mut state = self.lock();
        state.buffer(self.bytes_max);
        state
    }

    /// Lets the readers drain and end.
    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let wakers = state.waiting.take();
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl<E: Buffered> State<E> {
    /// Gives each event of the group that has arrived its slot.
    fn buffer(&mut self, bytes_max: usize) {
        let mut group = std::mem::take(&mut self.arrived);
        group.drain(..).for_each(|event| self.push(Slot::new(event), bytes_max));
        self.arrived = group;
    }
}

impl<E> State<E> {
    /// Ordinal of the event that comes next.
    fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// Appends one and drops the oldest over the limit.
    fn push(&mut self, mut slot: Slot<E>, bytes_max: usize) {
        let last = self.slots.back().map_or(self.forgotten, |s| s.sequence);
        slot.sequence = slot.sequence.max(last);
        self.bytes += slot.bytes;
        self.slots.push_back(slot);
        while self.bytes > bytes_max && self.slots.len() > 1 {
            let Some(oldest) = self.slots.pop_front() else {
                return;
            };
            self.bytes -= oldest.bytes;
            self.first += 1;
            self.forgotten = oldest.sequence;
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
        let mut state = self.shared.buffered();
        let behind = state.first.saturating_sub(self.position);
        let missed = std::mem::take(&mut self.missed) + behind;
        self.position += behind;
        if missed > 0 {
            return Poll::Ready(Some(Received::Lagged { missed }));
        }
        let index = usize::try_from(self.position - state.first).unwrap_or(usize::MAX);
        if let Some(slot) = state.slots.get(index) {
            let told = slot.event.clone();
            self.position += 1;
            drop(state);
            return Poll::Ready(Some(Received::Event(told.event())));
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

impl<E> Drop for Reader<E> {
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
