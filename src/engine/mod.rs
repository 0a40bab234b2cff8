//! The pure engine: which run goes next, who holds a key, who may write.
//!
//! `(state, event, now) -> claims`: the writer tells it what happens, in group order ([`Engine::apply`]), and takes the runs
//! that may start now ([`Engine::claim`]), whose leases it writes in the same transaction. There is no I/O, clock, randomness or async in here, and what it holds can be rebuilt from the
//! file at any time: a pending run is a place in line, an executing one its lease.
//!
//! Layout: [`Engine`] ties together the jobs' lines ([`job`]), the concurrency keys ([`key`]), the runs that wait for
//! something ([`sleep`]), probation ([`probation`]) and the waits between bodies ([`waits`]); [`transition`] says what may be
//! done to a run in which status, [`retry`] when a step is tried again.

mod job;
mod key;
mod probation;
mod retry;
mod sleep;
mod transition;
mod waits;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

pub(crate) use retry::{Backoff, JITTER_MAX};
pub(crate) use sleep::{Alarm, Sleeper};
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

/// A place in line: recovered and woken runs first, then by ticket, which is the run's own id unless it took over another's
/// place or went to the back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    behind: bool,
    ticket: RunId,
}

impl Place {
    pub(crate) fn new(front: bool, ticket: RunId) -> Self {
        Place { behind: !front, ticket }
    }

    /// The run whose place it is, or was.
    pub(crate) fn ticket(self) -> RunId {
        self.ticket
    }
}

/// A run that waits to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Queued {
    pub(crate) run: RunId,
    pub(crate) job: JobNumber,
    pub(crate) key: Option<(KeyName, u32)>,
    pub(crate) place: Place,
    /// Its last lease; zero if it was never started.
    pub(crate) generation: Generation,
    /// Consecutive crashes while executing, without a new checkpoint.
    pub(crate) crashes: u32,
    /// Something was done to it before its first start.
    pub(crate) touched: bool,
    /// It was suspended and kept its key, so it need not wait for that.
    pub(crate) holds: bool,
    /// It stands in no line before this moment.
    pub(crate) not_before: Option<Timestamp>,
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Code for a job is there now, with the most runs of it at a time.
    Registered { job: JobNumber, limit: u32 },
    /// A run waits: triggered, recovered, resumed, woken or handed back.
    Queued(Queued),
    /// A run waits for a moment, a signal or a child. Its slot is free once its body has stopped; its key stays held.
    Suspended(Sleeper),
    /// Something was done to a run that may never have started.
    Touched { run: RunId },
    /// A run has a moment by which it must have ended, or no longer.
    Deadline { run: RunId, at: Timestamp, armed: bool },
    /// A pending or suspended run waits no more: cancelled, replaced, or put aside.
    Withdrawn { run: RunId, job: JobNumber, key: Option<KeyName> },
    /// A run recorded a checkpoint, which ends its probation.
    Checkpointed { run: RunId },
    /// An executing run has its outcome: it writes no more. Key and slot stay held until its body has stopped.
    Ended { run: RunId },
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
    pub(crate) key: Option<(KeyName, u32)>,
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
    key: Option<KeyName>,
    key_limit: u32,
    ended: bool,
    /// What becomes of the run once this body is gone.
    next: Option<Next>,
}

/// What was decided about a run while its body was still stopping.
#[derive(Debug)]
enum Next {
    /// It goes in line.
    Queue(Queued),
    /// It sleeps.
    Sleep(Sleeper),
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
    lines: BTreeMap<JobNumber, Line>,
    keys: BTreeMap<KeyName, Key>,
    /// Runs of a key that stand in their job's line: at most one a key at a time.
    offers: BTreeMap<Place, KeyName>,
    /// Heads of the lines that may start a run now.
    heads: BTreeSet<(Place, JobNumber)>,
    /// Whose place it is, where the ticket is not the run's own id.
    tickets: BTreeMap<Place, RunId>,
    pasts: BTreeMap<RunId, Past>,
    /// Runs that never started and have a state all the same.
    touched: BTreeSet<RunId>,
    /// Runs in line that hold their key already.
    holding: BTreeMap<RunId, (KeyName, u32)>,
    executing: BTreeMap<RunId, Executing>,
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
            lines: BTreeMap::new(),
            keys: BTreeMap::new(),
            offers: BTreeMap::new(),
            heads: BTreeSet::new(),
            tickets: BTreeMap::new(),
            pasts: BTreeMap::new(),
            touched: BTreeSet::new(),
            holding: BTreeMap::new(),
            executing: BTreeMap::new(),
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
            Event::Queued(queued) => self.queue(queued),
            Event::Suspended(sleeper) => self.suspend(sleeper),
            Event::Touched { run } => drop(self.touched.insert(run)),
            Event::Deadline { run, at, armed } => self.sleepers.set_deadline(run, at, armed),
            Event::Withdrawn { run, job, key } => self.withdraw(run, job, key),
            Event::Checkpointed { run } => {
                if self.probation.clear(run) {
                    self.unpark();
                }
            }
            Event::Ended { run } => {
                if let Some(executing) = self.executing.get_mut(&run) {
                    executing.ended = true;
                }
                // Neither those who wait for it nor, its body being stopped, itself.
                self.waits.retain(|waiter, targets| {
                    targets.retain(|target| target.run != run);
                    *waiter != run && !targets.is_empty()
                });
            }
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
        line.ready.remove(&place);
        line.pending -= 1;
        line.executing += 1;
        let run = self.tickets.remove(&place).unwrap_or(place.ticket);
        let past = self.pasts.remove(&run);
        let touched = self.touched.remove(&run);
        let generation = past.map_or(0, |past| past.generation) + 1;
        let crashes = past.map_or(0, |past| past.crashes) + 1;
        let mut held = self.holding.remove(&run);
        if let Some(name) = self.offers.remove(&place)
            && let Some(key) = self.keys.get_mut(&name)
        {
            let limit = key.hold(place, run);
            held = Some((name, limit));
        }
        self.executing.insert(
            run,
            Executing {
                job,
                generation,
                key: held.as_ref().map(|(name, _)| name.clone()),
                key_limit: held.as_ref().map_or(0, |(_, limit)| *limit),
                ended: false,
                next: None,
            },
        );
        self.probation.started(run, now);
        self.refresh(job);
        if let Some((name, _)) = &held {
            self.offer(&name.clone());
        }
        self.validate();
        Some(Claim { run, generation, crashes, key: held, untouched: past.is_none() && !touched })
    }

    /// Whether a lease may write.
    pub(crate) fn fence(&self, run: RunId, generation: Generation) -> Fence {
        match self.executing.get(&run) {
            Some(executing) if executing.generation == generation && executing.ended => Fence::Ended,
            Some(executing) if executing.generation == generation => Fence::Holds,
            _ => Fence::Stale,
        }
    }

    /// A lease that is in force already: after the file was reopened, its body lives on. `crashes` counts the execution under
    /// way, and is zero where that has recorded a checkpoint.
    pub(crate) fn adopt(&mut self, queued: &Queued, ended: bool, now: Duration) {
        let line = self.lines.entry(queued.job).or_default();
        line.executing += 1;
        if let Some((name, limit)) = &queued.key {
            self.keys.entry(name.clone()).or_default().holders.push((queued.run, *limit));
        }
        let executing = Executing {
            job: queued.job,
            generation: queued.generation,
            key: queued.key.as_ref().map(|(name, _)| name.clone()),
            key_limit: queued.key.as_ref().map_or(0, |(_, limit)| *limit),
            ended,
            next: None,
        };
        self.executing.insert(queued.run, executing);
        if !ended && queued.crashes > probation::CRASHES && self.probation.admit(queued.run) {
            self.probation.started(queued.run, now);
        }
        self.refresh(queued.job);
    }

    /// The newest run of this job and key that waits and has never started.
    pub(crate) fn waiting(&self, job: JobNumber, key: &str) -> Option<(RunId, Place)> {
        let key = self.keys.get(key)?;
        let (place, _) = key.waiting.iter().rev().find(|(_, waiting)| waiting.job == job && !waiting.started)?;
        Some((self.tickets.get(place).copied().unwrap_or(place.ticket), *place))
    }

    /// Runs with a body, whatever their status.
    pub(crate) fn bodies(&self) -> usize {
        self.executing.len()
    }

    /// Whether a run could be started if the engine was not paused, now or once an executing one has ended.
    pub(crate) fn has_startable(&self) -> bool {
        !self.heads.is_empty()
            || self.lines.values().any(|line| line.registered && !line.ready.is_empty())
            || self.executing.values().any(|executing| matches!(executing.next, Some(Next::Queue(_))))
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Pending, executing and suspended runs of every job.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (JobNumber, [u64; 3])> + '_ {
        self.lines.iter().map(|(job, line)| {
            let mut counts = [line.pending, u64::from(line.executing), line.asleep];
            for executing in self.executing.values().filter(|executing| executing.job == *job && executing.ended) {
                counts[1] -= 1;
                match executing.next {
                    Some(Next::Queue(_)) => counts[0] += 1,
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
        self.sleepers.next_alarm()
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

    fn suspend(&mut self, sleeper: Sleeper) {
        if let Some(executing) = self.executing.get_mut(&sleeper.run) {
            executing.ended = true;
            executing.next = Some(Next::Sleep(sleeper));
            return;
        }
        if let Some((name, limit)) = &sleeper.key {
            self.keys.entry(name.clone()).or_default().ensure_held(sleeper.run, *limit);
            self.offer(&name.clone());
        }
        self.line(sleeper.job).asleep += 1;
        self.sleepers.add(sleeper);
    }

    fn queue(&mut self, queued: Queued) {
        if let Some(executing) = self.executing.get_mut(&queued.run) {
            executing.next = Some(Next::Queue(queued));
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
        let Queued { run, job, key, place, generation, crashes, touched, holds, not_before: _ } = queued;
        if touched {
            self.touched.insert(run);
        }
        if place.ticket != run {
            self.tickets.insert(place, run);
        }
        if generation > 0 || place.ticket != run {
            self.pasts.insert(run, Past { place, generation, crashes });
        }
        self.lines.entry(job).or_default().pending += 1;
        match key {
            None => self.make_ready(place, run, job),
            Some((name, limit)) if holds => {
                self.keys.entry(name.clone()).or_default().ensure_held(run, limit);
                self.offer(&name);
                self.holding.insert(run, (name, limit));
                self.make_ready(place, run, job);
            }
            Some((name, limit)) => {
                let waiting = Waiting { job, limit, started: generation > 0 };
                self.keys.entry(name.clone()).or_default().waiting.insert(place, waiting);
                self.offer(&name);
            }
        }
    }

    fn withdraw(&mut self, run: RunId, job: JobNumber, key: Option<KeyName>) {
        if let Some(executing) = self.executing.get_mut(&run) {
            executing.next = None;
            return;
        }
        if let Some(sleeper) = self.sleepers.remove(run) {
            self.line(job).asleep -= 1;
            return self.let_go(run, sleeper.key.map(|(name, _)| name));
        }
        if self.sleepers.take_delayed(run).is_some() {
            self.line(job).pending -= 1;
            return;
        }
        self.touched.remove(&run);
        let held = self.holding.remove(&run).map(|(name, _)| name);
        let key = if held.is_some() { None } else { key };
        let place = self.pasts.get(&run).map_or(Place::new(false, run), |past| past.place);
        let in_line = match &key {
            None => {
                self.probation.is_parked(place) || self.lines.get(&job).is_some_and(|line| line.ready.contains(&place))
            }
            Some(name) => self.keys.get(name).is_some_and(|key| key.waiting.contains_key(&place)),
        };
        if !in_line {
            // Put aside, or its rows could not be read.
            return;
        }
        self.pasts.remove(&run);
        self.tickets.remove(&place);
        if let Some(line) = self.lines.get_mut(&job) {
            line.pending -= 1;
        }
        match key {
            None => {
                self.unready(place, run, job);
                self.let_go(run, held);
            }
            Some(name) => {
                if self.offers.contains_key(&place) {
                    self.unoffer(place, run, job, &name);
                }
                if let Some(key) = self.keys.get_mut(&name) {
                    key.waiting.remove(&place);
                }
                self.offer(&name);
            }
        }
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
        match executing.next {
            Some(Next::Sleep(sleeper)) => self.suspend(sleeper),
            Some(Next::Queue(queued)) if queued.holds => self.queue(queued),
            next => {
                self.let_go(run, executing.key);
                if let Some(Next::Queue(queued)) = next {
                    self.queue(queued);
                }
            }
        }
    }

    /// A run holds its key no more.
    fn let_go(&mut self, run: RunId, key: Option<KeyName>) {
        if let Some(name) = key {
            if let Some(key) = self.keys.get_mut(&name) {
                key.release(run);
            }
            self.offer(&name);
        }
    }

    /// Puts the first run of a key in its job's line, if the key has room, and takes back one that is first no more.
    fn offer(&mut self, name: &KeyName) {
        let Some(key) = self.keys.get(name) else { return };
        let wanted = key.next();
        let offered = key.offered;
        if offered != wanted {
            if let Some(place) = offered {
                let run = self.run_at(place);
                if let Some(waiting) = key.waiting.get(&place) {
                    let job = waiting.job;
                    self.unoffer(place, run, job, name);
                }
            }
            if let Some(place) = wanted
                && let Some(key) = self.keys.get_mut(name)
                && let Some(waiting) = key.waiting.get(&place)
            {
                let job = waiting.job;
                key.offered = Some(place);
                self.offers.insert(place, name.clone());
                let run = self.run_at(place);
                self.make_ready(place, run, job);
            }
        }
        if self.keys.get(name).is_some_and(Key::is_idle) {
            self.keys.remove(name);
        }
    }

    fn unoffer(&mut self, place: Place, run: RunId, job: JobNumber, name: &KeyName) {
        self.offers.remove(&place);
        if let Some(key) = self.keys.get_mut(name) {
            key.offered = None;
        }
        self.unready(place, run, job);
    }

    fn make_ready(&mut self, place: Place, run: RunId, job: JobNumber) {
        let line = self.lines.entry(job).or_default();
        let suspect = self.pasts.get(&run).is_some_and(|past| past.crashes >= probation::CRASHES);
        if suspect && !(line.registered && self.probation.admit(run)) {
            self.probation.park(place, run, job);
        } else {
            line.ready.insert(place);
            self.refresh(job);
        }
    }

    fn unready(&mut self, place: Place, run: RunId, job: JobNumber) {
        self.probation.unpark(place);
        if let Some(line) = self.lines.get_mut(&job) {
            line.ready.remove(&place);
        }
        self.refresh(job);
        if self.probation.clear(run) {
            self.unpark();
        }
    }

    /// Lets the next probationer into its line.
    fn unpark(&mut self) {
        let lines = &self.lines;
        let registered = |job: JobNumber| lines.get(&job).is_some_and(|line| line.registered);
        if let Some((place, job)) = self.probation.next(registered) {
            self.lines.entry(job).or_default().ready.insert(place);
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
        self.tickets.get(&place).copied().unwrap_or(place.ticket)
    }

    /// What always holds. Checked after every event in debug builds, so every test of anything checks it.
    fn validate(&self) {
        if !cfg!(debug_assertions) || self.lines.values().map(|line| line.pending + line.asleep).sum::<u64>() > 200 {
            return;
        }
        for (name, key) in &self.keys {
            assert!(!key.is_idle(), "idle key {name} is kept");
            key.validate(name);
            if let Some(place) = key.offered {
                assert_eq!(self.offers.get(&place), Some(name), "an offer of {name} is not in the index");
            }
        }
        let offered = self.keys.values().filter(|key| key.offered.is_some()).count();
        assert_eq!(offered, self.offers.len(), "offers without a key");
        for (job, line) in &self.lines {
            line.validate();
            let executing = self.executing.values().filter(|executing| executing.job == *job).count();
            assert_eq!(executing, line.executing as usize, "executing runs of job {job}");
            let head = line.shown.map(|head| (head, *job));
            assert!(head.is_none_or(|head| self.heads.contains(&head)), "head of job {job} is not shown");
            assert_eq!(self.sleepers.of_job(*job), line.asleep, "sleeping runs of job {job}");
        }
        for (run, name, limit) in self.sleepers.held().chain(self.holding.iter().map(|(run, (key, n))| (*run, key, *n)))
        {
            let held = self.keys.get(name).is_some_and(|key| key.holders.contains(&(run, limit)));
            assert!(held, "{run} does not hold {name} any more");
        }
        for (run, executing) in &self.executing {
            if let Some(name) = &executing.key {
                let held = self.keys.get(name).is_some_and(|key| key.holders.contains(&(*run, executing.key_limit)));
                assert!(held, "{run} executes without holding {name}");
            }
        }
    }
}

#[cfg(test)]
mod tests;
