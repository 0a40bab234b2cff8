//! One concurrency key: which runs hold it, and which goes next.
//!
//! Invariant: a run is only admitted while fewer runs hold the key than the smallest limit among them and it.

use std::collections::BTreeMap;

use super::{JobNumber, Place};
use crate::id::RunId;

#[derive(Debug, Default)]
pub(super) struct Key {
    /// Runs whose bodies have not stopped, and those that sleep or were woken, with the limit each asked for.
    pub(super) holders: Vec<(RunId, u32)>,
    pub(super) waiting: BTreeMap<Place, Waiting>,
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

    pub(super) fn has_room(&self, limit: u32) -> bool {
        let limit = self.holders.iter().map(|(_, limit)| *limit).fold(limit, u32::min);
        self.holders.len() < limit as usize
    }

    /// The offered run starts: it holds the key from here. Gives its limit.
    pub(super) fn hold(&mut self, place: Place, run: RunId) -> u32 {
        self.offered = None;
        let limit = self.waiting.remove(&place).map_or(1, |waiting| waiting.limit);
        self.holders.push((run, limit));
        limit
    }

    /// The run holds the key, as it did before.
    pub(super) fn ensure_held(&mut self, run: RunId, limit: u32) {
        if !self.holders.iter().any(|(holder, _)| *holder == run) {
            self.holders.push((run, limit));
        }
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
        assert_eq!(self.offered, self.next(), "what {name} offers is out of date");
    }
}
