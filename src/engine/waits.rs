//! Bodies that wait for other runs: which waits could never end.

use std::collections::BTreeMap;

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
        self.waits.insert(waiter, target.clone());
        let ends = self.can_go_on(&target, &mut BTreeMap::new());
        if !ends {
            self.waits.remove(&waiter);
        }
        ends
    }

    /// The wait is over, one way or the other.
    pub(crate) fn wait_over(&mut self, waiter: RunId) {
        self.waits.remove(&waiter);
    }

    /// Whether a run can make progress: an executing one that does not wait can; a waiting one if what it waits for can; a
    /// pending one if a slot, a place among its job's and its key are free or held by one that can.
    fn can_go_on(&self, target: &Awaited, seen: &mut BTreeMap<RunId, bool>) -> bool {
        if self.executing.contains_key(&target.run) {
            return self.body_can_go_on(target.run, seen);
        }
        let slot = self.executing.len() < self.slots as usize
            || self.executing.keys().any(|run| self.body_can_go_on(*run, seen));
        let place = self.lines.get(&target.job).is_none_or(|line| line.executing < line.limit)
            || self.executing.iter().any(|(run, other)| other.job == target.job && self.body_can_go_on(*run, seen));
        let key = target.key.as_deref().and_then(|name| self.keys.get(name)).is_none_or(|key| {
            key.has_room(target.key_limit) || key.holders.iter().any(|(run, _)| self.body_can_go_on(*run, seen))
        });
        slot && place && key
    }

    fn body_can_go_on(&self, run: RunId, seen: &mut BTreeMap<RunId, bool>) -> bool {
        if let Some(known) = seen.get(&run) {
            return *known;
        }
        // A circle of waits makes no progress.
        seen.insert(run, false);
        let goes_on = match self.waits.get(&run) {
            None => true,
            Some(target) => self.can_go_on(target, seen),
        };
        seen.insert(run, goes_on);
        goes_on
    }
}
