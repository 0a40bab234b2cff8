//! What holds the starts of a job or of a key back: a pause, a rate.
//!
//! A rate is so many starts in a window of fixed length, which begins with the first start after the one before is over. It
//! counts runs that go in line behind the recovered and woken ones: those go on with what they were let in for.
//!
//! Moments are of the wall clock, since windows outlive the process. One that lies in the future, because the clock was set
//! back, begins now: nothing waits longer than one window.

use std::time::Duration;

use super::{Engine, JobNumber, KeyName, Keys, Place};
use crate::time::Timestamp;

/// So many starts in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) starts: u32,
    pub(crate) per: Duration,
}

/// The starts of the window under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) began: Timestamp,
    pub(crate) starts: u32,
}

impl Default for Window {
    fn default() -> Self {
        Window { began: Timestamp::from_millis(0), starts: 0 }
    }
}

/// What is held back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Throttled {
    Job(JobNumber),
    Key(KeyName),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Throttle {
    /// Paused since then.
    pub(crate) paused: Option<Timestamp>,
    pub(crate) rate: Option<Rate>,
    pub(crate) window: Window,
}

impl Throttle {
    /// When the window is over, if it has no room.
    pub(crate) fn full_until(&self) -> Option<Timestamp> {
        let rate = self.rate.filter(|rate| self.window.starts >= rate.starts)?;
        Some(self.window.began.saturating_add(rate.per))
    }

    pub(super) fn admits(&self, place: Place) -> bool {
        self.paused.is_none() && !(place.is_behind() && self.full_until().is_some())
    }

    /// A rate that is changed begins a new window; one that is told anew after a restart goes on with the one that was stored.
    pub(super) fn set_rate(&mut self, rate: Option<Rate>, now: Timestamp) {
        if self.rate.is_some() && self.rate != rate {
            self.window = Window::default();
        }
        self.rate = rate;
        self.look(now);
    }

    /// Brings the window up to date.
    pub(super) fn look(&mut self, now: Timestamp) {
        let Some(rate) = self.rate else { return };
        self.window.began = self.window.began.min(now);
        if self.window.began.saturating_add(rate.per) <= now {
            self.window = Window::default();
        }
    }

    /// Counts a start.
    pub(super) fn count(&mut self, now: Timestamp) {
        self.look(now);
        if self.window.starts == 0 {
            self.window.began = now;
        }
        self.window.starts = self.window.starts.saturating_add(1);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.paused.is_none() && self.rate.is_none() && self.window.starts == 0
    }
}

impl Engine {
    /// The wall clock reads this. What has room in its window again goes on.
    pub(crate) fn tell_time(&mut self, wall: Timestamp) {
        let before = std::mem::replace(&mut self.wall, wall);
        if self.reopen.is_empty() && wall >= before {
            return;
        }
        let back = wall < before;
        let due = |(at, of): &(Timestamp, Throttled)| (back || *at <= wall).then(|| of.clone());
        let due: Vec<Throttled> = self.reopen.iter().filter_map(due).collect();
        for of in due {
            self.throttle(&of, Throttle::look);
        }
        self.validate();
    }

    pub(crate) fn throttle_of(&self, of: &Throttled) -> Option<&Throttle> {
        match of {
            Throttled::Job(job) => self.lines.get(job)?.throttle.as_deref(),
            Throttled::Key(name) => self.throttles.get(name),
        }
    }

    /// What is paused, and since when.
    pub(crate) fn held(&self) -> impl Iterator<Item = (Throttled, Timestamp)> + '_ {
        let jobs =
            self.lines.iter().filter_map(|(job, line)| Some((Throttled::Job(*job), line.throttle.as_ref()?.paused?)));
        let keys = self.throttles.iter();
        jobs.chain(keys.filter_map(|(name, throttle)| Some((Throttled::Key(name.clone()), throttle.paused?))))
    }

    /// Changes what holds a job or a key back, and looks at what that lets through.
    pub(super) fn throttle(&mut self, of: &Throttled, change: impl FnOnce(&mut Throttle, Timestamp)) {
        let mut throttle = match of {
            Throttled::Job(job) => self.line(*job).throttle.take().map(|throttle| *throttle),
            Throttled::Key(name) => self.throttles.remove(name),
        };
        let throttle = throttle.get_or_insert_default();
        if let Some(at) = throttle.full_until() {
            self.reopen.remove(&(at, of.clone()));
        }
        change(throttle, self.wall);
        if let Some(at) = throttle.full_until() {
            self.reopen.insert((at, of.clone()));
        }
        let kept = Some(std::mem::take(throttle)).filter(|throttle| !throttle.is_idle());
        match of {
            Throttled::Job(job) => {
                self.line(*job).throttle = kept.map(Box::new);
                self.refresh(*job);
                self.pass_probation_on(*job);
            }
            Throttled::Key(name) => {
                if let Some(throttle) = kept {
                    self.throttles.insert(name.clone(), throttle);
                }
                self.offer(name);
            }
        }
    }

    /// A run on probation that a pause keeps from starting lets the next one go before it.
    fn pass_probation_on(&mut self, job: JobNumber) {
        let Some(line) = self.lines.get_mut(&job) else { return };
        if line.throttle.as_ref().is_some_and(|throttle| throttle.paused.is_some())
            && let Some(run) = self.probation.unstarted()
            && let Some(place) = self.pasts.get(&run).map(|past| past.place)
            && line.contains(place)
        {
            line.remove(place);
            self.probation.clear(run);
            self.probation.park(place, run, job);
            self.refresh(job);
        }
        self.unpark();
    }

    /// Counts a start against the rates of its job and keys; says whether there were any.
    pub(super) fn count_start(&mut self, place: Place, job: JobNumber, keys: &Keys) -> bool {
        let rated = |throttle: Option<&Throttle>| throttle.is_some_and(|throttle| throttle.rate.is_some());
        let of_job = self.lines.get(&job).and_then(|line| line.throttle.as_deref());
        if !place.is_behind() || (self.throttles.is_empty() && of_job.is_none()) {
            return false;
        }
        let job = rated(of_job).then_some(Throttled::Job(job));
        let keys = keys.iter().filter(|(name, _)| rated(self.throttles.get(name)));
        let counted: Vec<Throttled> =
            job.into_iter().chain(keys.map(|(name, _)| Throttled::Key(name.clone()))).collect();
        for of in &counted {
            self.throttle(of, Throttle::count);
        }
        !counted.is_empty()
    }
}
