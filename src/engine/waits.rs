//! Bodies that wait for other runs: which waits could never end.

use std::collections::BTreeSet;

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

impl Engine {
    /// A body is about to wait for a run. `false`: that wait could never end, since what the other needs is held by bodies
    /// that wait themselves.
    pub(crate) fn wait(&mut self, waiter: RunId, target: Awaited) -> bool {
        self.waits.insert(waiter, target);
        let ends = !self.stuck().contains(&waiter);
        if !ends {
            self.waits.remove(&waiter);
        }
        ends
    }

    /// The wait is over, one way or the other.
    pub(crate) fn wait_over(&mut self, waiter: RunId) {
        self.waits.remove(&waiter);
    }

    /// Takes over what bodies wait for from the engine before, for those that live on.
    pub(crate) fn keep_waits(&mut self, before: &mut Engine) {
        self.waits = std::mem::take(&mut before.waits);
        self.waits.retain(|waiter, _| self.executing.contains_key(waiter));
    }

    /// Bodies whose waits can never end: all that wait, less those that can go on, less those that can go on then.
    fn stuck(&self) -> BTreeSet<RunId> {
        let mut stuck: BTreeSet<RunId> =
            self.waits.keys().filter(|waiter| self.executing.contains_key(waiter)).copied().collect();
        loop {
            let freed = |waiter: &RunId| self.waits.get(waiter).is_none_or(|target| self.can_end(target, &stuck));
            let still: BTreeSet<RunId> = stuck.iter().copied().filter(|waiter| !freed(waiter)).collect();
            if still.len() == stuck.len() {
                return stuck;
            }
            stuck = still;
        }
    }

    /// Whether a run can make progress: an executing one if it is not stuck; a pending one if a slot, a place among its
    /// job's and its key are free or held by one that is not.
    fn can_end(&self, target: &Awaited, stuck: &BTreeSet<RunId>) -> bool {
        let goes_on = |run: &RunId| !stuck.contains(run);
        if self.executing.contains_key(&target.run) {
            return goes_on(&target.run);
        }
        let slot = self.executing.len() < self.slots as usize || self.executing.len() > stuck.len();
        let place = self.lines.get(&target.job).is_none_or(|line| line.executing < line.limit)
            || self.executing.iter().any(|(run, other)| other.job == target.job && goes_on(run));
        let key = target
            .key
            .as_deref()
            .and_then(|name| self.keys.get(name))
            .is_none_or(|key| key.has_room(target.key_limit) || key.holders.iter().any(|(run, _)| goes_on(run)));
        slot && place && key
    }
}
