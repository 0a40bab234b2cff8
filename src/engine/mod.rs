//! The pure engine: which run goes next, who holds a key, who may write.
//!
//! `(state, event, now) -> claims`: the writer tells it what happens, in group order ([`Engine::apply`]), and takes the runs
//! that may start now ([`Engine::claim`]), whose leases it writes in the same transaction. There is no I/O, clock, randomness or async in here, and what it holds can be rebuilt from the
//! file at any time: a pending run is a place in line, an executing one its lease.
//!
//! Layout: [`Engine`] ties together the jobs' lines ([`job`]), the concurrency keys ([`key`]), what holds either back
//! ([`throttle`]), the runs that wait for something ([`sleep`]), probation ([`probation`]) and the waits between bodies
//! ([`waits`]); [`transition`] says what may be done to a run in which status, [`explain`] why one does not start, [`retry`]
//! when a step is tried again.

mod explain;
mod job;
mod key;
mod keys;
mod place;
mod probation;
mod retry;
mod sleep;
mod throttle;
mod transition;
mod waits;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

pub(crate) use explain::Obstacle;
pub(crate) use keys::Keys;
pub(crate) use place::Place;
pub(crate) use retry::{Backoff, JITTER_MAX};
pub(crate) use sleep::{Alarm, Sleeper};
pub(crate) use throttle::{Rate, Throttle, Throttled, Window};
pub(crate) use transition::{Action, Recovered, recover, refuse};
pub(crate) use waits::Awaited;

use crate::id::RunId;
use crate::time::Timestamp;
use job::Line;
use key::{Key, Waiting};
use probation::Probation;
use sleep::Sleepers;

/// A job's number in the file.
pub(crate) type JobNumber = u32;
/// The fencing token of a lease: it only grows.
pub(crate) type Generation = u64;
pub(crate) type KeyName = Arc<str>;

/// A run that waits to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Queued {
    pub(crate) run: RunId,
    pub(crate) job: JobNumber,
    pub(crate) keys: Keys,
    pub(crate) place: Place,
    /// Its last lease; zero if it was never started.
    pub(crate) generation: Generation,
    /// Consecutive crashes while executing, without a new checkpoint.
    pub(crate) crashes: u32,
    /// Something was done to it before its first start.
    pub(crate) touched: bool,
    /// It was suspended and kept its keys, so it need not wait for them.
    pub(crate) holds: bool,
    /// It stands in no line before this moment.
    pub(crate) not_before: Option<Timestamp>,
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Code for a job is there now, with the most runs of it at a time.
    Registered { job: JobNumber, limit: u32 },
    /// Runs of a job with different keys take turns from here on, or go in order of trigger.
    TakesTurns { job: JobNumber, fair: bool },
    /// A job or a key has a rate, or none any more.
    Rated(Throttled, Option<Rate>),
    /// No run of a job is started, or none is let in for a key, since that moment; or they are again.
    Held(Throttled, Option<Timestamp>),
    /// What the file says of a job or a key that is held back.
    Restored(Throttled, Throttle),
    /// A run waits: triggered, recovered, resumed, woken or handed back.
    Queued(Queued),
    /// A run waits for a moment, a signal or a child. Its slot is free once its body has stopped; its keys stay held.
    Suspended(Sleeper),
    /// Something was done to a run that may never have started.
    Touched { run: RunId },
    /// A run has a moment by which it must have ended, or no longer.
    Deadline { run: RunId, at: Timestamp, armed: bool },
    /// A run is pending and stands in no line: its code can't read its input, or its rows can't be read.
    PutAside { run: RunId, job: JobNumber },
    /// A pending or suspended run waits no more: cancelled, or replaced.
    Withdrawn { run: RunId, job: JobNumber, keys: Keys, priority: i8 },
    /// A run recorded a checkpoint, which ends its probation.
    Checkpointed { run: RunId },
    /// An executing run has its outcome: it writes no more. Keys and slot stay held until its body has stopped.
    Ended { run: RunId },
    /// The same of one whose execution is over while the run is not: it is suspended, or waits in line again.
    Yielded { run: RunId },
    /// An executing run has ended and another goes on for it. That one waits once the body has stopped, and takes over its key
    /// without a gap.
    Continued { run: RunId, next: Queued },
    /// The body of that lease is really gone.
    Stopped { run: RunId, generation: Generation },
    /// No run is started from here on, or again.
    Paused(bool),
    /// Time has passed.
    Tick,
}

/// The command that the engine gives: write the lease of this run, and start its body once that is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) run: RunId,
    pub(crate) generation: Generation,
    /// What the count of crashes will be if this execution crashes.
    pub(crate) crashes: u32,
    pub(crate) keys: Keys,
    /// It was counted among the starts of its job's rate, or of a key's.
    pub(crate) counted: bool,
    /// Nothing has been done to it since its trigger, so that it has no state.
    pub(crate) untouched: bool,
}

/// Whether a write for a run may be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Fence {
    /// The lease is in force.
    Holds,
    /// The run has its outcome (cancelled, say); its body is still stopping.
    Ended,
    /// Another lease, or none.
    Stale,
}

#[derive(Debug)]
struct Executing {
    job: JobNumber,
    generation: Generation,
    keys: Keys,
    ended: bool,
    /// What becomes of the run once this body is gone. Boxed, since it is large and hardly any has it.
    next: Option<Box<Next>>,
}

/// What was decided about a run while its body was still stopping.
#[derive(Debug)]
enum Next {
    /// It goes in line.
    Queue(Queued),
    /// It sleeps.
    Sleep(Sleeper),
    /// Another run goes on for it.
    Succeed(Queued),
}

/// What is known of a pending run beyond its place, for those that differ from a newly triggered one.
#[derive(Debug, Clone, Copy)]
struct Past {
    place: Place,
    generation: Generation,
    crashes: u32,
}

#[derive(Debug)]
pub(crate) struct Engine {
    slots: u32,
    paused: bool,
    /// What the wall clock said last.
    wall: Timestamp,
    lines: BTreeMap<JobNumber, Line>,
    keys: BTreeMap<KeyName, Key>,
    /// Runs with keys that stand in their job's line, first in line for each of them: at most one a key at a time.
    offers: BTreeMap<Place, Keys>,
    /// The keys of runs in line for more than one.
    several: BTreeMap<Place, Keys>,
    /// Keys that are paused or have a rate.
    throttles: BTreeMap<KeyName, Throttle>,
    /// When what has no room in its window has some again.
    reopen: BTreeSet<(Timestamp, Throttled)>,
    /// Heads of the lines that may start a run now.
    heads: BTreeSet<(Place, JobNumber)>,
    /// Whose place it is, where the ticket is not the run's own id.
    tickets: BTreeMap<Place, RunId>,
    pasts: BTreeMap<RunId, Past>,
    /// Runs that never started and have a state all the same.
    touched: BTreeSet<RunId>,
    /// Pending runs that stand in no line, each with its job.
    aside: BTreeMap<RunId, JobNumber>,
    /// Runs in line that hold their keys already.
    holding: BTreeMap<RunId, Keys>,
    executing: BTreeMap<RunId, Executing>,
    /// Runs that go on for one whose body has not stopped yet: the new run, the old one.
    successors: BTreeMap<RunId, RunId>,
    sleepers: Sleepers,
    probation: Probation,
    waits: BTreeMap<RunId, Vec<Awaited>>,
}

impl Engine {
    /// An engine with room for `slots` executing runs, nothing in line.
    pub(crate) fn new(slots: u32, paused: bool) -> Self {
        Engine {
            slots,
            paused,
            wall: Timestamp::from_millis(0),
            lines: BTreeMap::new(),
            keys: BTreeMap::new(),
            offers: BTreeMap::new(),
            several: BTreeMap::new(),
            throttles: BTreeMap::new(),
            reopen: BTreeSet::new(),
            heads: BTreeSet::new(),
            tickets: BTreeMap::new(),
            pasts: BTreeMap::new(),
            touched: BTreeSet::new(),
            aside: BTreeMap::new(),
            holding: BTreeMap::new(),
            executing: BTreeMap::new(),
            successors: BTreeMap::new(),
            sleepers: Sleepers::default(),
            probation: Probation::default(),
            waits: BTreeMap::new(),
        }
    }

    /// Takes up an event. Claims are not made here but in [`Engine::claim`], so that the items of a batch are decided before
    /// any of them starts.
    pub(crate) fn apply(&mut self, event: Event, now: Duration) {
        match event {
            Event::Registered { job, limit } => {
                let line = self.lines.entry(job).or_default();
                line.registered = true;
                line.limit = limit;
                self.unpark();
                self.refresh(job);
            }
            Event::TakesTurns { job, fair } => self.take_turns(job, fair),
            Event::Rated(of, rate) => self.throttle(&of, |throttle, now| throttle.set_rate(rate, now)),
            Event::Held(of, since) => self.throttle(&of, |throttle, _| throttle.paused = since),
            Event::Restored(of, stored) => self.throttle(&of, |throttle, now| {
                *throttle = stored;
                throttle.look(now);
            }),
            Event::Queued(queued) => self.queue(queued),
            Event::Suspended(sleeper) => self.suspend(sleeper),
            Event::Touched { run } => drop(self.touched.insert(run)),
            Event::Deadline { run, at, armed } => self.sleepers.set_deadline(run, at, armed),
            Event::PutAside { run, job } => drop(self.aside.insert(run, job)),
            Event::Withdrawn { run, job, keys, priority } => {
                self.withdraw(run, job, &keys, priority);
                self.no_longer_awaited(run);
            }
            Event::Checkpointed { run } => {
                if self.probation.clear(run) {
                    self.unpark();
                }
            }
            Event::Ended { run } => {
                self.end_execution(run);
                self.no_longer_awaited(run);
            }
            Event::Yielded { run } => self.end_execution(run),
            Event::Continued { run, next } => self.succeed(run, next),
            Event::Stopped { run, generation } => self.stopped(run, generation),
            Event::Paused(paused) => self.paused = paused,
            Event::Tick => {
                if self.probation.expire(now) {
                    self.unpark();
                }
            }
        }
        self.validate();
    }

    /// The next run to start, if one may.
    pub(crate) fn claim(&mut self, now: Duration) -> Option<Claim> {
        if self.paused || self.executing.len() >= self.slots as usize {
            return None;
        }
        let (place, job) = *self.heads.first()?;
        let line = self.lines.get_mut(&job)?;
        line.remove(place);
        line.pending -= 1;
        line.executing += 1;
        let run = self.tickets.remove(&place).unwrap_or(place.ticket());
        let past = self.pasts.remove(&run);
        let touched = self.touched.remove(&run);
        let generation = past.map_or(0, |past| past.generation) + 1;
        let crashes = past.map_or(0, |past| past.crashes) + 1;
        let mut keys = self.holding.remove(&run).unwrap_or_default();
        if let Some(offered) = self.offers.remove(&place) {
            self.several.remove(&place);
            for (name, _) in offered.iter() {
                if let Some(key) = self.keys.get_mut(name) {
                    key.hold(place, run);
                }
            }
            keys = offered;
        }
        self.executing.insert(run, Executing { job, generation, keys: keys.clone(), ended: false, next: None });
        self.probation.started(run, now);
        let counted = self.count_start(place, job, &keys);
        self.refresh(job);
        self.offer_all(&keys);
        self.validate();
        Some(Claim { run, generation, crashes, keys, counted, untouched: past.is_none() && !touched })
    }

    /// Whether a lease may write.
    pub(crate) fn fence(&self, run: RunId, generation: Generation) -> Fence {
        match self.executing.get(&run) {
            Some(executing) if executing.generation == generation && executing.ended => Fence::Ended,
            Some(executing) if executing.generation == generation => Fence::Holds,
            _ => Fence::Stale,
        }
    }

    /// The job of a run that executes.
    pub(crate) fn job_of(&self, run: RunId) -> Option<JobNumber> {
        self.executing.get(&run).map(|executing| executing.job)
    }

    /// A lease that is in force already: after the file was reopened, its body lives on. `crashes` counts the execution under
    /// way, and is zero where that has recorded a checkpoint.
    pub(crate) fn adopt(&mut self, queued: &Queued, ended: bool, now: Duration) {
        let line = self.lines.entry(queued.job).or_default();
        line.executing += 1;
        for (name, limit) in queued.keys.iter() {
            self.keys.entry(name.clone()).or_default().holders.push((queued.run, *limit));
        }
        let (job, generation, keys) = (queued.job, queued.generation, queued.keys.clone());
        let executing = Executing { job, generation, keys, ended, next: None };
        self.executing.insert(queued.run, executing);
        if !ended && queued.crashes > probation::CRASHES && self.probation.admit(queued.run) {
            self.probation.started(queued.run, now);
        }
        self.refresh(queued.job);
    }

    /// The last in line of the runs of this job and key that have never started, the newest of the least priority, without
    /// those that are about to be replaced. Delayed ones count as if they stood in line. With a place, only those before it are
    /// looked at.
    pub(crate) fn waiting(
        &self,
        job: JobNumber,
        key: &str,
        besides: &BTreeSet<RunId>,
        before: Option<Place>,
    ) -> Option<(RunId, Place)> {
        let in_line = self.keys.get(key).into_iter().flat_map(|key| key.unstarted_of(job, before));
        let in_line = in_line.map(|place| (self.run_at(place), place)).find(|(run, _)| !besides.contains(run));
        let delayed = self.sleepers.delayed_of(job, key, before).find(|(run, _)| !besides.contains(run));
        in_line.into_iter().chain(delayed).max_by_key(|(_, place)| *place)
    }

    /// Whether a pending run has its keys already.
    pub(crate) fn holds_keys(&self, run: RunId) -> bool {
        self.holding.contains_key(&run)
    }

    /// Whether a run waits for its moment, and so stands in no line.
    pub(crate) fn is_delayed(&self, run: RunId) -> bool {
        self.sleepers.delayed_until(run).is_some()
    }

    /// How many runs that have never started would wait for a key besides a new one, which comes behind so many more (or less)
    /// than there are now; `None`: it would find room.
    pub(crate) fn backlog(&self, key: &str, limit: u32, more: isize) -> Option<usize> {
        let shut = self.throttles.get(key).is_some_and(|throttle| !throttle.admits(Place::new(false, RunId::MIN)));
        let key = self.keys.get(key);
        let room = if shut { 0 } else { key.map_or(limit as usize, |key| key.room(limit)) };
        let (in_line, unstarted) = key.map_or((0, 0), |key| (key.in_line(), key.unstarted()));
        let waits = in_line.saturating_add_signed(more) >= room;
        waits.then(|| unstarted.saturating_add_signed(more).saturating_sub(room))
    }

    /// Runs with a body, whatever their status.
    pub(crate) fn bodies(&self) -> usize {
        self.executing.len()
    }

    /// Whether a run could be started if the engine was not paused, now or once an executing one has ended.
    pub(crate) fn has_startable(&self) -> bool {
        !self.heads.is_empty()
            || self.lines.values().any(|line| line.startable().is_some())
            || self
                .executing
                .values()
                .any(|executing| matches!(executing.next.as_deref(), Some(Next::Queue(_) | Next::Succeed(_))))
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Pending, executing and suspended runs of every job.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (JobNumber, [u64; 3])> + '_ {
        let mut aside: BTreeMap<JobNumber, u64> = BTreeMap::new();
        for job in self.aside.values() {
            *aside.entry(*job).or_default() += 1;
        }
        self.lines.iter().map(move |(job, line)| {
            let pending = line.pending + aside.get(job).copied().unwrap_or_default();
            let mut counts = [pending, u64::from(line.executing), line.asleep];
            for executing in self.executing.values().filter(|executing| executing.job == *job && executing.ended) {
                counts[1] -= 1;
                match executing.next.as_deref() {
                    Some(Next::Queue(_) | Next::Succeed(_)) => counts[0] += 1,
                    Some(Next::Sleep(_)) => counts[2] += 1,
                    None => {}
                }
            }
            (*job, counts)
        })
    }

    /// When [`Event::Tick`] is due next.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.probation.deadline()
    }

    /// When the next alarm is due, by the wall clock.
    pub(crate) fn next_alarm(&self) -> Option<Timestamp> {
        let reopens = self.reopen.first().map(|(at, _)| *at);
        self.sleepers.next_alarm().into_iter().chain(reopens).min()
    }

    /// The next alarm that is due. A delayed run stands in its line from here on; what the others ask for is the caller's.
    pub(crate) fn ring(&mut self, now: Timestamp) -> Option<(RunId, Alarm)> {
        let (run, alarm) = self.sleepers.ring(now)?;
        if alarm == Alarm::Start
            && let Some(queued) = self.sleepers.take_delayed(run)
        {
            self.line(queued.job).pending -= 1;
            self.queue(Queued { not_before: None, ..queued });
            self.validate();
        }
        Some((run, alarm))
    }

    fn line(&mut self, job: JobNumber) -> &mut Line {
        self.lines.entry(job).or_default()
    }

    /// An execution writes no more, and its body, being stopped, waits for nobody.
    fn end_execution(&mut self, run: RunId) {
        if let Some(executing) = self.executing.get_mut(&run) {
            executing.ended = true;
        }
        self.waits.remove(&run);
    }

    fn suspend(&mut self, sleeper: Sleeper) {
        if let Some(executing) = self.executing.get_mut(&sleeper.run) {
            executing.ended = true;
            executing.next = Some(Box::new(Next::Sleep(sleeper)));
            return;
        }
        self.keep_held(sleeper.run, &sleeper.keys);
        self.line(sleeper.job).asleep += 1;
        self.sleepers.add(sleeper);
    }

    fn queue(&mut self, queued: Queued) {
        if let Some(executing) = self.executing.get_mut(&queued.run) {
            executing.next = Some(Box::new(Next::Queue(queued)));
            return;
        }
        if let Some(sleeper) = self.sleepers.remove(queued.run) {
            self.line(sleeper.job).asleep -= 1;
        }
        if queued.not_before.is_some() {
            self.line(queued.job).pending += 1;
            self.sleepers.delay(queued);
            return;
        }
        let Queued { run, job, keys, place, generation, crashes, touched, holds, not_before: _ } = queued;
        if touched {
            self.touched.insert(run);
        }
        if place.ticket() != run {
            self.tickets.insert(place, run);
        }
        if generation > 0 || place.ticket() != run || !place.is_behind() {
            self.pasts.insert(run, Past { place, generation, crashes });
        }
        self.lines.entry(job).or_default().pending += 1;
        if keys.is_empty() {
            self.make_ready(place, run, job, false);
        } else if holds {
            self.keep_held(run, &keys);
            self.holding.insert(run, keys);
            self.make_ready(place, run, job, true);
        } else {
            for (name, limit) in keys.iter() {
                let waiting = Waiting { job, limit: *limit, started: generation > 0 };
                self.keys.entry(name.clone()).or_default().wait(place, waiting);
            }
            if let Keys::Several(_) = keys {
                self.several.insert(place, keys.clone());
            }
            self.offer_all(&keys);
        }
    }

    fn succeed(&mut self, run: RunId, next: Queued) {
        // Whoever waits for the one waits for the other.
        self.waits.remove(&run);
        for target in self.waits.values_mut().flatten().filter(|target| target.run == run) {
            target.run = next.run;
        }
        match self.executing.get_mut(&run) {
            Some(executing) => {
                executing.ended = true;
                self.successors.insert(next.run, run);
                executing.next = Some(Box::new(Next::Succeed(next)));
            }
            None => self.queue(next),
        }
    }

    fn withdraw(&mut self, run: RunId, job: JobNumber, keys: &Keys, priority: i8) {
        self.touched.remove(&run);
        if self.aside.remove(&run).is_some() {
            return;
        }
        if let Some(old) = self.successors.remove(&run)
            && let Some(executing) = self.executing.get_mut(&old)
        {
            executing.next = None;
            return;
        }
        if let Some(executing) = self.executing.get_mut(&run) {
            executing.next = None;
            return;
        }
        if let Some(sleeper) = self.sleepers.remove(run) {
            self.line(job).asleep -= 1;
            return self.let_go(run, &sleeper.keys);
        }
        if self.sleepers.take_delayed(run).is_some() {
            self.line(job).pending -= 1;
            return;
        }
        let held = self.holding.remove(&run);
        let place = self.pasts.get(&run).map_or(Place::new(false, run).with(priority), |past| past.place);
        let first = keys.first().filter(|_| held.is_none());
        let in_line = match first {
            None => self.probation.is_parked(place) || self.lines.get(&job).is_some_and(|line| line.contains(place)),
            Some((name, _)) => self.keys.get(name).is_some_and(|key| key.waiting(place).is_some()),
        };
        if !in_line {
            // Put aside, or its rows could not be read.
            return;
        }
        if first.is_some() {
            self.unoffer(place);
        } else {
            self.unready(place, run, job);
        }
        self.pasts.remove(&run);
        self.tickets.remove(&place);
        if let Some(line) = self.lines.get_mut(&job) {
            line.pending -= 1;
        }
        if let Some(held) = held {
            return self.let_go(run, &held);
        }
        self.several.remove(&place);
        for (name, _) in keys.iter() {
            if let Some(key) = self.keys.get_mut(name) {
                key.leave(place);
            }
        }
        self.offer_all(keys);
    }

    fn stopped(&mut self, run: RunId, generation: Generation) {
        if self.executing.get(&run).is_none_or(|executing| executing.generation != generation) {
            return;
        }
        let Some(executing) = self.executing.remove(&run) else { return };
        self.waits.remove(&run);
        if let Some(line) = self.lines.get_mut(&executing.job) {
            line.executing -= 1;
        }
        if self.probation.clear(run) {
            self.unpark();
        }
        self.refresh(executing.job);
        match executing.next.map(|next| *next) {
            Some(Next::Sleep(sleeper)) => self.suspend(sleeper),
            Some(Next::Queue(queued)) if queued.holds => self.queue(queued),
            Some(Next::Succeed(queued)) => {
                self.successors.remove(&queued.run);
                for (name, limit) in executing.keys.iter() {
                    if let Some(key) = self.keys.get_mut(name) {
                        key.hand_over(run, queued.run, *limit);
                    }
                }
                self.queue(queued);
            }
            next => {
                self.let_go(run, &executing.keys);
                if let Some(Next::Queue(queued)) = next {
                    self.queue(queued);
                }
            }
        }
    }

    /// A run that holds its keys goes on doing so.
    fn keep_held(&mut self, run: RunId, keys: &Keys) {
        for (name, limit) in keys.iter() {
            self.keys.entry(name.clone()).or_default().ensure_held(run, *limit);
        }
        self.offer_all(keys);
    }

    /// A run holds its keys no more.
    fn let_go(&mut self, run: RunId, keys: &Keys) {
        for (name, _) in keys.iter() {
            if let Some(key) = self.keys.get_mut(name) {
                key.release(run);
            }
        }
        self.offer_all(keys);
    }

    fn offer_all(&mut self, keys: &Keys) {
        keys.iter().for_each(|(name, _)| self.offer(name));
    }

    /// Puts the first run of a key in its job's line, if that is first for all its keys and they have room, and takes back
    /// one that is not any more. A run that is first of all that wait is first in each of its lines, so there is always one
    /// that waits for nothing but room.
    fn offer(&mut self, name: &KeyName) {
        let Some(key) = self.keys.get(name) else { return };
        if let Some(place) = key.offered
            && !self.admits(name, place)
        {
            self.unoffer(place);
        }
        let Some(key) = self.keys.get(name) else { return };
        if key.is_idle() {
            self.keys.remove(name);
        } else if key.offered.is_none()
            && let Some(place) = key.first()
            && let Some(Waiting { job, limit, .. }) = key.waiting(place).copied()
            && self.admits(name, place)
        {
            let keys = self.several.get(&place).cloned().unwrap_or_else(|| Keys::one(name.clone(), limit));
            for (name, _) in keys.iter() {
                // What another key of it has offered up to now is first no more.
                if let Some(other) = self.keys.get(name).and_then(|key| key.offered) {
                    self.unoffer(other);
                }
                if let Some(key) = self.keys.get_mut(name) {
                    key.offered = Some(place);
                }
            }
            self.offers.insert(place, keys);
            let run = self.run_at(place);
            self.make_ready(place, run, job, true);
        }
    }

    /// Whether the run at this place, which waits for this key, is the next for all its keys.
    fn admits(&self, name: &KeyName, place: Place) -> bool {
        let admits = |name: &KeyName| {
            let throttle = if self.throttles.is_empty() { None } else { self.throttles.get(name) };
            self.keys.get(name).is_some_and(|key| key.next() == Some(place))
                && throttle.is_none_or(|throttle| throttle.admits(place))
        };
        match self.several.get(&place) {
            None => admits(name),
            Some(keys) => keys.iter().all(|(name, _)| admits(name)),
        }
    }

    fn unoffer(&mut self, place: Place) {
        let Some(keys) = self.offers.remove(&place) else { return };
        let mut job = None;
        for (name, _) in keys.iter() {
            if let Some(key) = self.keys.get_mut(name) {
                key.offered = None;
                job = key.waiting(place).map(|waiting| waiting.job);
            }
        }
        if let Some(job) = job {
            let run = self.run_at(place);
            self.unready(place, run, job);
        }
    }

    fn make_ready(&mut self, place: Place, run: RunId, job: JobNumber, keyed: bool) {
        let line = self.lines.entry(job).or_default();
        let suspect = self.pasts.get(&run).is_some_and(|past| past.crashes >= probation::CRASHES);
        if suspect && !(line.is_open() && self.probation.admit(run)) {
            self.probation.park(place, run, job);
        } else {
            line.insert(place, keyed);
            self.refresh(job);
        }
    }

    fn unready(&mut self, place: Place, run: RunId, job: JobNumber) {
        self.probation.unpark(place);
        if let Some(line) = self.lines.get_mut(&job) {
            line.remove(place);
        }
        self.refresh(job);
        if self.probation.clear(run) {
            self.unpark();
        }
    }

    /// Lets the next probationer into its line.
    fn unpark(&mut self) {
        let lines = &self.lines;
        let open = |job: JobNumber| lines.get(&job).is_some_and(Line::is_open);
        if let Some((place, job)) = self.probation.next(open) {
            let keyed = self.is_keyed(place);
            self.lines.entry(job).or_default().insert(place, keyed);
            self.refresh(job);
        }
    }

    /// Brings a line's entry among the heads up to date.
    fn refresh(&mut self, job: JobNumber) {
        let Some(line) = self.lines.get_mut(&job) else { return };
        let head = line.head();
        if line.shown != head {
            if let Some(old) = line.shown {
                self.heads.remove(&(old, job));
            }
            if let Some(new) = head {
                self.heads.insert((new, job));
            }
            line.shown = head;
        }
    }

    fn run_at(&self, place: Place) -> RunId {
        self.tickets.get(&place).copied().unwrap_or(place.ticket())
    }

    /// Whether the run that stands in its job's line here has a key.
    fn is_keyed(&self, place: Place) -> bool {
        self.offers.contains_key(&place) || self.holding.contains_key(&self.run_at(place))
    }

    fn take_turns(&mut self, job: JobNumber, fair: bool) {
        let mut line = std::mem::take(self.line(job));
        line.set_fair(fair, |place| self.is_keyed(place));
        *self.line(job) = line;
        self.refresh(job);
    }

    /// What always holds. Checked after every event in debug builds, so every test of anything checks it.
    fn validate(&self) {
        if !cfg!(debug_assertions) || self.lines.values().map(|line| line.pending + line.asleep).sum::<u64>() > 200 {
            return;
        }
        for (name, key) in &self.keys {
            assert!(!key.is_idle(), "idle key {name} is kept");
            key.validate(name);
            match key.offered {
                Some(place) => {
                    let shown = self.offers.get(&place).is_some_and(|keys| keys.has(name));
                    assert!(shown, "an offer of {name} is not in the index");
                    assert!(self.admits(name, place), "what {name} offers is not let in");
                }
                None => {
                    let next = key.first().filter(|place| self.admits(name, *place));
                    assert_eq!(next, None, "{name} offers nothing");
                }
            }
        }
        let offered = self.keys.values().filter(|key| key.offered.is_some()).count();
        assert_eq!(offered, self.offers.values().map(|keys| keys.len()).sum::<usize>(), "offers without a key");
        for place in self.several.keys() {
            assert!(self.keys.values().any(|key| key.waiting(*place).is_some()), "{place:?} waits for no key");
        }
        for (job, line) in &self.lines {
            line.validate();
            let executing = self.executing.values().filter(|executing| executing.job == *job).count();
            assert_eq!(executing, line.executing as usize, "executing runs of job {job}");
            let head = line.shown.map(|head| (head, *job));
            assert!(head.is_none_or(|head| self.heads.contains(&head)), "head of job {job} is not shown");
            assert_eq!(self.sleepers.of_job(*job), line.asleep, "sleeping runs of job {job}");
        }
        for (new, old) in &self.successors {
            let next = self.executing.get(old).and_then(|executing| executing.next.as_deref());
            assert!(matches!(next, Some(Next::Succeed(next)) if next.run == *new), "{new} goes on for nobody");
        }
        let asleep = self.sleepers.held().chain(self.holding.iter().map(|(run, keys)| (*run, keys)));
        for (run, keys) in asleep.chain(self.executing.iter().map(|(run, executing)| (*run, &executing.keys))) {
            for (name, limit) in keys.iter() {
                let held = self.keys.get(name).is_some_and(|key| key.holders.contains(&(run, *limit)));
                assert!(held, "{run} does not hold {name}");
            }
        }
        for (at, of) in &self.reopen {
            assert_eq!(self.throttle_of(of).and_then(Throttle::full_until), Some(*at), "{of:?} is not full until then");
        }
    }
}

#[cfg(test)]
mod tests;
