//! One concurrency key: which runs hold it, and which goes next.
//!
//! Invariant: a run is only admitted while fewer runs hold the key than the smallest limit among them and it.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::{JobNumber, Place};
use crate::id::RunId;

#[derive(Debug, Default)]
pub(super) struct Key {
    /// Runs whose bodies have not stopped, and those that sleep or were woken, with the limit each asked for.
    pub(super) holders: Vec<(RunId, u32)>,
    waiting: BTreeMap<Place, Waiting>,
    /// How many of the waiting have never started.
    unstarted: usize,
    /// The one of the waiting that stands in its job's line.
    pub(super) offered: Option<Place>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) job: JobNumber,
    pub(super) limit: u32,
    /// It has executed before, so no trigger may be answered with it or replace it.
    pub(super) started: bool,
}

impl Key {
    /// The first in line, if the key has room for it. The line is strict: nobody overtakes it.
    pub(super) fn next(&self) -> Option<Place> {
        let (place, waiting) = self.waiting.first_key_value()?;
        self.has_room(waiting.limit).then_some(*place)
    }

    pub(super) fn first(&self) -> Option<Place> {
        self.waiting.first_key_value().map(|(place, _)| *place)
    }

    /// How many more runs that ask for this limit could hold it.
    pub(super) fn room(&self, limit: u32) -> usize {
        let limit = self.holders.iter().map(|(_, limit)| *limit).fold(limit, u32::min);
        (limit as usize).saturating_sub(self.holders.len())
    }

    pub(super) fn has_room(&self, limit: u32) -> bool {
        self.room(limit) > 0
    }

    pub(super) fn wait(&mut self, place: Place, waiting: Waiting) {
        self.unstarted += usize::from(!waiting.started);
        self.waiting.insert(place, waiting);
    }

    pub(super) fn leave(&mut self, place: Place) -> Option<Waiting> {
        let waiting = self.waiting.remove(&place)?;
        self.unstarted -= usize::from(!waiting.started);
        Some(waiting)
    }

    pub(super) fn waiting(&self, place: Place) -> Option<&Waiting> {
        self.waiting.get(&place)
    }

    /// Those of a job's in line that have never started, the last of them first; all, or those before a place.
    pub(super) fn unstarted_of(&self, job: JobNumber, before: Option<Place>) -> impl Iterator<Item = Place> + '_ {
        let waiting = self.waiting.range((Bound::Unbounded, before.map_or(Bound::Unbounded, Bound::Excluded))).rev();
        waiting.filter(move |(_, waiting)| waiting.job == job && !waiting.started).map(|(place, _)| *place)
    }

    pub(super) fn in_line(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn unstarted(&self) -> usize {
        self.unstarted
    }

    /// How many stand before a place.
    pub(super) fn ahead(&self, place: Place) -> usize {
        self.waiting.range(..place).count()
    }

    /// The offered run starts: it holds the key from here.
    pub(super) fn hold(&mut self, place: Place, run: RunId) {
        self.offered = None;
        let limit = self.leave(place).map_or(1, |waiting| waiting.limit);
        self.holders.push((run, limit));
    }

    /// The run holds the key, as it did before.
    pub(super) fn ensure_held(&mut self, run: RunId, limit: u32) {
        if !self.holders.iter().any(|(holder, _)| *holder == run) {
            self.holders.push((run, limit));
        }
    }

    /// A run holds the key instead of another.
    pub(super) fn hand_over(&mut self, from: RunId, to: RunId, limit: u32) {
        self.release(from);
        self.ensure_held(to, limit);
    }

    pub(super) fn release(&mut self, run: RunId) {
        self.holders.retain(|(holder, _)| *holder != run);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.holders.is_empty() && self.waiting.is_empty()
    }

    pub(super) fn validate(&self, name: &str) {
        let limit = self.holders.iter().map(|(_, limit)| *limit).min().unwrap_or(u32::MAX);
        assert!(self.holders.len() <= limit as usize, "{} runs hold {name}, limit {limit}", self.holders.len());
        assert!(self.offered.is_none_or(|offered| self.next() == Some(offered)), "what {name} offers is out of date");
        let unstarted = self.waiting.values().filter(|waiting| !waiting.started).count();
        assert_eq!(unstarted, self.unstarted, "never started runs in line for {name}");
    }
}
