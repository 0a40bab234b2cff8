//! Bodies that wait for other runs: which waits could never end.

use std::collections::{BTreeMap, BTreeSet};

use super::{Engine, Keys};
use crate::id::RunId;

/// A pending run as a wait sees it.
#[derive(Debug, Clone)]
pub(crate) struct Awaited {
    pub(crate) run: RunId,
    /// What the wait is known by: the run that was asked for, for which `run` may go on meanwhile.
    pub(crate) asked: RunId,
    pub(crate) job: super::JobNumber,
    pub(crate) keys: Keys,
}

/// Which body waits for what.
pub(crate) type Waits = BTreeMap<RunId, Vec<Awaited>>;

impl Engine {
    /// A body is about to wait for a run. `false`: that wait could never end, since what the other needs is held by bodies
    /// that wait themselves. One that is being stopped waits for nobody.
    pub(crate) fn wait(&mut self, waiter: RunId, target: Awaited) -> bool {
        let ends = self.can_go_on(&target, &self.going_on(waiter));
        if ends && self.executing.get(&waiter).is_some_and(|executing| !executing.ended) {
            self.waits.entry(waiter).or_default().push(target);
        }
        ends
    }

    /// A wait is over, one way or the other.
    pub(crate) fn wait_over(&mut self, waiter: RunId, run: RunId) {
        if let Some(targets) = self.waits.get_mut(&waiter) {
            if let Some(at) = targets.iter().position(|target| target.asked == run) {
                targets.swap_remove(at);
            }
            if targets.is_empty() {
                self.waits.remove(&waiter);
            }
        }
    }

    /// A run has ended: nobody waits for it any more.
    pub(super) fn no_longer_awaited(&mut self, run: RunId) {
        self.waits.retain(|_, targets| {
            targets.retain(|target| target.run != run);
            !targets.is_empty()
        });
    }

    /// What bodies wait for: the one thing in here that is in no file.
    pub(crate) fn waits(&self) -> Waits {
        self.waits.clone()
    }

    /// The bodies that wait, each with the run that it waits for now.
    pub(crate) fn waiting_bodies(&self) -> impl Iterator<Item = (RunId, RunId)> + '_ {
        self.waits.iter().flat_map(|(waiter, targets)| targets.iter().map(|target| (*waiter, target.run)))
    }

    /// Takes over what bodies wait for from an engine before.
    pub(crate) fn keep_waits(&mut self, waits: Waits) {
        self.waits = waits;
    }

    /// The bodies that live on are known now: others wait for nothing.
    pub(crate) fn forget_waits_of_others(&mut self) {
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
    /// among its job's and its keys are free or held by one that does.
    fn can_go_on(&self, target: &Awaited, going: &BTreeSet<RunId>) -> bool {
        let slot = self.executing.len() < self.slots as usize || !going.is_empty();
        // Whether what a sleeping run waits for comes is not known here, so it counts as coming. Then it needs a slot.
        if self.sleepers.contains(target.run) {
            return slot;
        }
        if self.executing.contains_key(&target.run) {
            return going.contains(&target.run);
        }
        let place = self.lines.get(&target.job).is_none_or(|line| line.executing < line.limit)
            || going.iter().any(|run| self.executing.get(run).is_some_and(|other| other.job == target.job));
        let keys = target.keys.iter().all(|(name, limit)| {
            let goes_on = |run: &RunId| going.contains(run) || (slot && !self.executing.contains_key(run));
            let comes_free =
                |key: &super::key::Key| key.has_room(*limit) || key.holders.iter().any(|(run, _)| goes_on(run));
            self.keys.get(name).is_none_or(comes_free)
        });
        slot && place && keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Event, Place, Queued, Sleeper};

    const JOB: u32 = 1;

    fn run(n: u128) -> RunId {
        RunId::numbered(n)
    }

    fn pending(n: u128, key: Option<&str>) -> Awaited {
        Awaited { run: run(n), asked: run(n), job: JOB, keys: keys(key) }
    }

    fn keys(key: Option<&str>) -> Keys {
        key.map_or(Keys::None, |key| Keys::one(key.into(), 1))
    }

    /// An engine with so many slots, all of them taken by runs 1, 2, … with these keys.
    fn full(names: &[Option<&str>]) -> Engine {
        let mut engine = Engine::new(names.len() as u32, false);
        engine.apply(Event::Registered { job: JOB, limit: u32::MAX }, std::time::Duration::ZERO);
        for (n, key) in (1..).zip(names) {
            let keys = self::keys(*key);
            let place = Place::new(false, run(n));
            engine.apply(
                Event::Queued(Queued {
                    run: run(n),
                    job: JOB,
                    keys,
                    place,
                    generation: 0,
                    crashes: 0,
                    touched: false,
                    holds: false,
                    not_before: None,
                }),
                std::time::Duration::ZERO,
            );
            assert!(engine.claim(std::time::Duration::ZERO).is_some());
        }
        engine
    }

    #[test]
    fn a_wait_that_could_end_is_not_refused_whatever_the_order_of_ids() {
        // 1 waits for a slot, 2 for 1, and 3 goes on: so the key of 2 comes free in the end.
        let mut engine = full(&[None, Some("k"), None, None]);
        assert!(engine.wait(run(1), pending(10, None)));
        assert!(engine.wait(run(2), pending(1, None)));
        assert!(engine.wait(run(4), pending(11, Some("k"))));
        // Were 3 to wait as well, nobody would go on.
        assert!(!engine.wait(run(3), pending(12, None)));
    }

    #[test]
    fn the_end_of_one_wait_leaves_the_others_of_its_body() {
        let mut engine = full(&[None, None]);
        assert!(engine.wait(run(1), pending(10, None)));
        assert!(engine.wait(run(1), pending(11, None)));
        engine.wait_over(run(1), run(10));
        assert!(!engine.wait(run(2), pending(12, None)));
        engine.wait_over(run(1), run(11));
        assert!(engine.wait(run(2), pending(12, None)));
    }

    /// Run 10 sleeps and holds this key.
    fn asleep(engine: &mut Engine, key: Option<&str>) {
        let sleeper = Sleeper { run: run(10), job: JOB, keys: keys(key), due: None };
        engine.apply(Event::Suspended(sleeper), std::time::Duration::ZERO);
    }

    #[test]
    fn a_sleeping_run_needs_a_slot_when_it_wakes() {
        let mut engine = full(&[None, None]);
        asleep(&mut engine, None);
        assert!(engine.wait(run(1), pending(10, None)), "2 may end");
        assert!(!engine.wait(run(2), pending(10, None)), "nobody would make room for it");
    }

    #[test]
    fn the_key_of_a_sleeping_run_comes_free_only_if_that_can_go_on() {
        let mut engine = full(&[None, None]);
        asleep(&mut engine, Some("k"));
        assert!(engine.wait(run(1), pending(11, Some("k"))));
        assert!(!engine.wait(run(2), pending(12, Some("k"))));
    }
}
