//! Runs that wait for something that is not a place: a moment, a signal, a child, the time of their first start.
//!
//! They are rows on disk; here stands only what wakes them. All moments are of the wall clock, since that is what survives a
//! restart: whoever asks looks again from time to time, so that a clock that jumps is noticed.

use std::collections::{BTreeMap, BTreeSet};

use super::{Generation, JobNumber, Keys, Queued};
use crate::id::RunId;
use crate::time::Timestamp;

/// A suspended run. It keeps its keys and takes no slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sleeper {
    pub(crate) run: RunId,
    pub(crate) job: JobNumber,
    pub(crate) keys: Keys,
    /// Its last lease.
    pub(crate) generation: Generation,
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
    asleep: BTreeMap<RunId, Sleeper>,
    delayed: BTreeMap<RunId, Queued>,
    alarms: BTreeSet<(Timestamp, RunId, Alarm)>,
}

impl Sleepers {
    pub(super) fn add(&mut self, sleeper: Sleeper) {
        self.remove(sleeper.run);
        self.alarms.extend(sleeper.due.map(|due| (due, sleeper.run, Alarm::Wake)));
        self.asleep.insert(sleeper.run, sleeper);
    }

    pub(super) fn get(&self, run: RunId) -> Option<&Sleeper> {
        self.asleep.get(&run)
    }

    pub(super) fn remove(&mut self, run: RunId) -> Option<Sleeper> {
        let sleeper = self.asleep.remove(&run)?;
        if let Some(due) = sleeper.due {
            self.alarms.remove(&(due, run, Alarm::Wake));
        }
        Some(sleeper)
    }

    /// Keeps a pending run out of its line until its moment.
    pub(super) fn delay(&mut self, queued: Queued) {
        self.alarms.extend(queued.not_before.map(|at| (at, queued.run, Alarm::Start)));
        self.delayed.insert(queued.run, queued);
    }

    pub(super) fn delayed_until(&self, run: RunId) -> Option<Timestamp> {
        self.delayed.get(&run)?.not_before
    }

    pub(super) fn take_delayed(&mut self, run: RunId) -> Option<Queued> {
        let queued = self.delayed.remove(&run)?;
        if let Some(at) = queued.not_before {
            self.alarms.remove(&(at, run, Alarm::Start));
        }
        Some(queued)
    }

    pub(super) fn set_deadline(&mut self, run: RunId, at: Timestamp, armed: bool) {
        let alarm = (at, run, Alarm::Deadline);
        if armed {
            self.alarms.insert(alarm)
        } else {
            self.alarms.remove(&alarm)
        };
    }

    pub(super) fn next_alarm(&self) -> Option<Timestamp> {
        self.alarms.first().map(|(at, ..)| *at)
    }

    /// Takes the first alarm that is due.
    pub(super) fn ring(&mut self, now: Timestamp) -> Option<(RunId, Alarm)> {
        self.alarms.first().filter(|(at, ..)| *at <= now)?;
        self.alarms.pop_first().map(|(_, run, alarm)| (run, alarm))
    }

    pub(super) fn of_job(&self, job: JobNumber) -> u64 {
        self.asleep.values().filter(|sleeper| sleeper.job == job).count() as u64
    }

    /// The keys that sleeping runs hold.
    pub(super) fn held(&self) -> impl Iterator<Item = (RunId, &Keys)> {
        self.asleep.values().map(|sleeper| (sleeper.run, &sleeper.keys))
    }

    pub(super) fn contains(&self, run: RunId) -> bool {
        self.asleep.contains_key(&run)
    }
}
