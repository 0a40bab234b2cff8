//! One job's line: the runs that could start if there was room.

use std::collections::BTreeSet;

use super::Place;

#[derive(Debug)]
pub(super) struct Line {
    /// Code for the job is there. Without it, runs stay in line and nothing starts.
    pub(super) registered: bool,
    /// Runs of the job at a time.
    pub(super) limit: u32,
    pub(super) executing: u32,
    /// Pending runs, those behind a concurrency key included.
    pub(super) pending: u64,
    /// Suspended runs.
    pub(super) asleep: u64,
    pub(super) ready: BTreeSet<Place>,
    /// The head as the engine's index of heads has it.
    pub(super) shown: Option<Place>,
}

impl Default for Line {
    fn default() -> Self {
        Line {
            registered: false,
            limit: u32::MAX,
            executing: 0,
            pending: 0,
            asleep: 0,
            ready: BTreeSet::new(),
            shown: None,
        }
    }
}

impl Line {
    /// The run that may start next, if the job has room for one.
    pub(super) fn head(&self) -> Option<Place> {
        if self.registered && self.executing < self.limit { self.ready.first().copied() } else { None }
    }

    pub(super) fn validate(&self) {
        assert!(self.ready.len() as u64 <= self.pending, "more runs ready than pending");
        assert_eq!(self.shown, self.head(), "the shown head is out of date");
    }
}
