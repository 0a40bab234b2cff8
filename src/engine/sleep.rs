//! Runs that wait for something that is not a place: a moment, a signal, a child, the time of their first start.
//!
//! They are rows on disk; here stands only what wakes them, in few bytes, since there may be very many. All moments are of the
//! wall clock, since that is what survives a
//! restart: whoever asks looks again from time to time, so that a clock that jumps is noticed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::{JobNumber, KeyName, Keys, Place, Queued};
use crate::id::RunId;
use crate::time::Timestamp;

/// A suspended run. It keeps its keys and takes no slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sleeper {
    pub(crate) run: RunId,
    pub(crate) job: JobNumber,
    pub(crate) keys: Keys,
    /// When it is to be woken; `None`: by a signal or a child only.
    pub(crate) due: Option<Timestamp>,
}

/// What is to happen to a run at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alarm {
    /// A delayed run goes in line.
    Start,
    /// A suspended run is to be woken.
    Wake,
    /// A run must have ended by now.
    Deadline,
}

#[derive(Debug, Default)]
pub(super) struct Sleepers {
    asleep: BTreeMap<RunId, Asleep>,
    /// Of those asleep that have one.
    keys: BTreeMap<RunId, Keys>,
    delayed: BTreeMap<RunId, Queued>,
    /// Those with a key that have never started, by key and job.
    delayed_keys: BTreeMap<(KeyName, JobNumber), BTreeSet<(Place, RunId)>>,
    alarms: BTreeSet<Due>,
}

#[derive(Debug, Clone, Copy)]
struct Asleep {
    job: JobNumber,
    /// The end of time for none.
    due: Timestamp,
}

const NEVER: Timestamp = Timestamp::from_millis(u64::MAX);

/// An alarm by its moment; bytes, so that nothing is lost to alignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: [u8; 8],
    run: RunId,
    alarm: Alarm,
}

impl Due {
    fn new(at: Timestamp, run: RunId, alarm: Alarm) -> Self {
        Due { at: at.as_millis().to_be_bytes(), run, alarm }
    }

    fn at(&self) -> Timestamp {
        Timestamp::from_millis(u64::from_be_bytes(self.at))
    }
}

impl Sleepers {
    pub(super) fn add(&mut self, sleeper: Sleeper) {
        self.remove(sleeper.run);
        let Sleeper { run, job, keys, due } = sleeper;
        self.alarms.extend(due.map(|due| Due::new(due, run, Alarm::Wake)));
        if !keys.is_empty() {
            self.keys.insert(run, keys);
        }
        self.asleep.insert(run, Asleep { job, due: due.unwrap_or(NEVER) });
    }

    pub(super) fn remove(&mut self, run: RunId) -> Option<Sleeper> {
        let Asleep { job, due } = self.asleep.remove(&run)?;
        self.alarms.remove(&Due::new(due, run, Alarm::Wake));
        let keys = self.keys.remove(&run).unwrap_or_default();
        Some(Sleeper { run, job, keys, due: Some(due).filter(|due| *due != NEVER) })
    }

    /// Keeps a pending run out of its line until its moment.
    pub(super) fn delay(&mut self, queued: Queued) {
        self.alarms.extend(queued.not_before.map(|at| Due::new(at, queued.run, Alarm::Start)));
        for key in keys_of(&queued) {
            self.delayed_keys.entry(key).or_default().insert((queued.place, queued.run));
        }
        self.delayed.insert(queued.run, queued);
    }

    /// Delayed runs of this job and key that have never started, the last in line first.
    pub(super) fn delayed_of(
        &self,
        job: JobNumber,
        key: &str,
        before: Option<Place>,
    ) -> impl Iterator<Item = (RunId, Place)> + '_ {
        let places = if self.delayed_keys.is_empty() { None } else { self.delayed_keys.get(&(key.into(), job)) };
        let end = before.map_or(Bound::Unbounded, |place| Bound::Excluded((place, RunId::MIN)));
        let places = places.into_iter().flat_map(move |places| places.range((Bound::Unbounded, end)).rev());
        places.map(|(place, run)| (*run, *place))
    }

    pub(super) fn delayed_until(&self, run: RunId) -> Option<Timestamp> {
        self.delayed.get(&run)?.not_before
    }

    pub(super) fn take_delayed(&mut self, run: RunId) -> Option<Queued> {
        let queued = self.delayed.remove(&run)?;
        for key in keys_of(&queued) {
            if let Some(places) = self.delayed_keys.get_mut(&key) {
                places.remove(&(queued.place, run));
                if places.is_empty() {
                    self.delayed_keys.remove(&key);
                }
            }
        }
        if let Some(at) = queued.not_before {
            self.alarms.remove(&Due::new(at, run, Alarm::Start));
        }
        Some(queued)
    }

    pub(super) fn set_deadline(&mut self, run: RunId, at: Timestamp, armed: bool) {
        let alarm = Due::new(at, run, Alarm::Deadline);
        if armed {
            self.alarms.insert(alarm)
        } else {
            self.alarms.remove(&alarm)
        };
    }

    pub(super) fn next_alarm(&self) -> Option<Timestamp> {
        self.alarms.first().map(Due::at)
    }

    /// Takes the first alarm that is due.
    pub(super) fn ring(&mut self, now: Timestamp) -> Option<(RunId, Alarm)> {
        self.alarms.first().filter(|due| due.at() <= now)?;
        self.alarms.pop_first().map(|due| (due.run, due.alarm))
    }

    pub(super) fn of_job(&self, job: JobNumber) -> u64 {
        self.asleep.values().filter(|asleep| asleep.job == job).count() as u64
    }

    /// The keys that sleeping runs hold.
    pub(super) fn held(&self) -> impl Iterator<Item = (RunId, &Keys)> {
        self.keys.iter().map(|(run, keys)| (*run, keys))
    }

    pub(super) fn contains(&self, run: RunId) -> bool {
        self.asleep.contains_key(&run)
    }
}

/// Under which keys a delayed run is found; under none once it has been started.
fn keys_of(queued: &Queued) -> impl Iterator<Item = (KeyName, JobNumber)> + '_ {
    let keys = if queued.generation == 0 { &queued.keys[..] } else { &[] };
    keys.iter().map(|(key, _)| (key.clone(), queued.job))
}
