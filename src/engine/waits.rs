//! Bodies that wait for other runs: which waits could never end.

use std::collections::{BTreeMap, BTreeSet};

use super::Engine;
use crate::id::RunId;

/// A pending run as a wait sees it.
#[derive(Debug, Clone)]
pub(crate) struct Awaited {
    pub(crate) run: RunId,
    pub(crate) job: super::JobNumber,
    pub(crate) key: Option<String>,
    pub(crate) key_limit: u32,
}

/// Which body waits for what.
pub(crate) type Waits = BTreeMap<RunId, Vec<Awaited>>;

impl Engine {
    /// A body is about to wait for a run. `false`: that wait could never end, since what the other needs is held by bodies
    /// that wait themselves.
    pub(crate) fn wait(&mut self, waiter: RunId, target: Awaited) -> bool {
        let ends = self.can_go_on(&target, &self.going_on(waiter));
        if ends {
            self.waits.entry(waiter).or_default().push(target);
        }
        ends
    }

    /// A wait is over, one way or the other.
    pub(crate) fn wait_over(&mut self, waiter: RunId, run: RunId) {
        if let Some(targets) = self.waits.get_mut(&waiter) {
            if let Some(at) = targets.iter().position(|target| target.run == run) {
                targets.swap_remove(at);
            }
            if targets.is_empty() {
                self.waits.remove(&waiter);
            }
        }
    }

    /// What bodies wait for: the one thing in here that is in no file.
    pub(crate) fn waits(&self) -> Waits {
        self.waits.clone()
    }

    /// Takes over what bodies wait for from an engine before, for those that live on.
    pub(crate) fn keep_waits(&mut self, waits: Waits) {
        self.waits = waits;
        self.waits.retain(|waiter, _| self.executing.contains_key(waiter));
    }

    /// The bodies that can make progress while `waiter` makes none: those that wait for nothing, then those that wait for
    /// something which these can bring about, and so on. One that waits for several runs needs only one of them, as in
    /// `select!`: no wait that could end is refused.
    fn going_on(&self, waiter: RunId) -> BTreeSet<RunId> {
        let waits = |run: &RunId| *run == waiter || self.waits.contains_key(run);
        let mut going: BTreeSet<RunId> = self.executing.keys().filter(|run| !waits(run)).copied().collect();
        let mut stuck: Vec<_> = self.waits.iter().filter(|(run, _)| **run != waiter).collect();
        loop {
            let before = stuck.len();
            stuck.retain(|(run, targets)| {
                let goes_on = targets.iter().any(|target| self.can_go_on(target, &going));
                if goes_on {
                    going.insert(**run);
                }
                !goes_on
            });
            if stuck.len() == before {
                return going;
            }
        }
    }

    /// Whether a run can make progress: an executing one if it is among those that do; a pending one if a slot, a place
    /// among its job's and its key are free or held by one that does.
    fn can_go_on(&self, target: &Awaited, going: &BTreeSet<RunId>) -> bool {
        if self.executing.contains_key(&target.run) {
            return going.contains(&target.run);
        }
        let slot = self.executing.len() < self.slots as usize || !going.is_empty();
        let place = self.lines.get(&target.job).is_none_or(|line| line.executing < line.limit)
            || going.iter().any(|run| self.executing.get(run).is_some_and(|other| other.job == target.job));
        let key =
            target.key.as_deref().and_then(|name| self.keys.get(name)).is_none_or(|key| {
                key.has_room(target.key_limit) || key.holders.iter().any(|(run, _)| going.contains(run))
            });
        slot && place && key
    }
}
