//! One job's line: the runs that could start if there was room.

use std::collections::{BTreeMap, BTreeSet};

use super::Place;
use super::throttle::Throttle;

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
    ready: BTreeSet<Place>,
    /// Of a job whose keys take turns.
    rotation: Option<Box<Rotation>>,
    pub(super) throttle: Option<Box<Throttle>>,
    /// The head as the engine's index of heads has it.
    pub(super) shown: Option<Place>,
}

/// Turns: a key has at most one run in the line at a time, which goes behind those that are there. Runs without a key are
/// one group.
#[derive(Debug, Default)]
struct Rotation {
    last: u64,
    order: BTreeSet<((bool, u8), u64, Place)>,
    turns: BTreeMap<Place, u64>,
    /// Runs without a key: the first of them has the group's turn.
    keyless: BTreeSet<Place>,
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
            rotation: None,
            throttle: None,
            shown: None,
        }
    }
}

impl Line {
    /// The run that may start next, if the job has room for one.
    pub(super) fn head(&self) -> Option<Place> {
        if self.executing < self.limit { self.startable() } else { None }
    }

    /// The run that may start next, now or once another has ended.
    pub(super) fn startable(&self) -> Option<Place> {
        let first = match &self.rotation {
            Some(rotation) => rotation.order.first().map(|(_, _, place)| *place),
            None => self.ready.first().copied(),
        };
        let admits = |place: &Place| self.throttle.as_ref().is_none_or(|throttle| throttle.admits(*place));
        first.filter(|place| self.registered && admits(place))
    }

    /// Whether its runs could be started if there was room.
    pub(super) fn is_open(&self) -> bool {
        self.registered && self.throttle.as_ref().is_none_or(|throttle| throttle.paused.is_none())
    }

    pub(super) fn insert(&mut self, place: Place, keyed: bool) {
        self.ready.insert(place);
        if let Some(rotation) = &mut self.rotation {
            rotation.insert(place, keyed);
        }
    }

    pub(super) fn remove(&mut self, place: Place) {
        self.ready.remove(&place);
        if let Some(rotation) = &mut self.rotation {
            rotation.remove(place);
        }
    }

    pub(super) fn contains(&self, place: Place) -> bool {
        self.ready.contains(&place)
    }

    /// How many of the line stand before a place. Among keys that take turns there is no such order.
    pub(super) fn ahead(&self, place: Place) -> usize {
        self.ready.range(..place).count()
    }

    /// Lets keys take turns, or not.
    pub(super) fn set_fair(&mut self, fair: bool, is_keyed: impl Fn(Place) -> bool) {
        if !fair {
            self.rotation = None;
        } else if self.rotation.is_none() {
            let mut rotation = Box::new(Rotation::default());
            self.ready.iter().for_each(|place| rotation.insert(*place, is_keyed(*place)));
            self.rotation = Some(rotation);
        }
    }

    pub(super) fn validate(&self) {
        assert!(self.ready.len() as u64 <= self.pending, "more runs ready than pending");
        assert_eq!(self.shown, self.head(), "the shown head is out of date");
        if let Some(rotation) = &self.rotation {
            let hidden = rotation.keyless.len().saturating_sub(1);
            assert_eq!(rotation.order.len() + hidden, self.ready.len(), "runs in the rotation");
            assert_eq!(rotation.order.len(), rotation.turns.len(), "turns of the rotation");
        }
    }
}

impl Rotation {
    fn insert(&mut self, place: Place, keyed: bool) {
        if keyed {
            self.last += 1;
            return self.show(place, self.last);
        }
        let first = self.keyless.first().copied();
        self.keyless.insert(place);
        match first {
            // A new first one takes over the group's turn.
            Some(first) if place < first => {
                let turn = self.hide(first).unwrap_or(self.last);
                self.show(place, turn);
            }
            Some(_) => {}
            None => {
                self.last += 1;
                self.show(place, self.last);
            }
        }
    }

    fn remove(&mut self, place: Place) {
        let shown = self.hide(place).is_some();
        if self.keyless.remove(&place)
            && shown
            && let Some(next) = self.keyless.first().copied()
        {
            self.last += 1;
            self.show(next, self.last);
        }
    }

    fn show(&mut self, place: Place, turn: u64) {
        self.turns.insert(place, turn);
        self.order.insert((place.rank(), turn, place));
    }

    fn hide(&mut self, place: Place) -> Option<u64> {
        let turn = self.turns.remove(&place)?;
        self.order.remove(&(place.rank(), turn, place));
        Some(turn)
    }
}
