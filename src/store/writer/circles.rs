//! Calls that could never end: of a run that waits for the caller, or for a key that the caller or one that waits for it holds.
//!
//! The engine says so of waits in bodies, which are in memory. A call is a row, and so is who waits for it.

use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use super::triggers::Decision;
use super::turn::Turn;
use super::waits::{awaiters_of, last_of};
use super::{Fault, Writer};
use crate::codec::records::{RunRecord, StepRecord, WaitRecord};
use crate::codec::{self, keys};
use crate::id::RunId;
use crate::run::RunStatus;
use crate::store::op::{Await, NewRun};
use crate::store::tables::Table;
use crate::store::view::Rows;

impl Writer {
    /// What keeps a call from ever ending: the run that it is given, where that waits for the caller; or the nearest run that
    /// holds a key which is needed, where that one waits for the caller, or is it.
    pub(super) fn in_the_way(
        &self,
        turn: &Turn<'_>,
        step: &Await,
        child: &NewRun,
        decision: &Decision,
    ) -> Result<Option<RunId>, Fault> {
        let given = match decision {
            Decision::Repeat { run, .. } => last_of(turn, *run)?,
            Decision::Coalesce { waiting } => last_of(turn, waiting.0)?,
            _ => None,
        };
        let needed = match &given {
            Some((_, given)) if given.status().is_terminal() => return Ok(None),
            // What executes, or sleeps, has its keys.
            Some((run, given)) if given.status() == RunStatus::Pending && !self.engine.holds_keys(*run) => {
                &given.record.keys
            }
            Some(_) => &[][..],
            None => child.keys(),
        };
        if given.is_none() && needed.is_empty() {
            return Ok(None);
        }
        let above = self.waiting_for(turn, step.run)?;
        if let Some((run, _)) = given
            && self.is_stuck(turn, run, step, &above)?
        {
            return Ok(Some(run));
        }
        for (key, limit) in needed {
            let held = above
                .iter()
                .filter_map(|(run, record)| Some((*run, record.keys.iter().find(|(other, _)| other == key)?.1)));
            let held: Vec<(RunId, u32)> = held.collect();
            let least = held.iter().map(|(_, limit)| *limit).fold(*limit, u32::min);
            if held.len() >= least as usize {
                return Ok(held.first().map(|(run, _)| *run));
            }
        }
        Ok(None)
    }

    /// A run and those that wait for it to end, by a step or in their bodies, one by way of others too, the nearest first.
    fn waiting_for(&self, turn: &Turn<'_>, run: RunId) -> Result<Vec<(RunId, Arc<RunRecord>)>, Fault> {
        let (mut found, mut seen, mut next) = (Vec::new(), BTreeSet::new(), VecDeque::from([run]));
        while let Some(run) = next.pop_front() {
            if !seen.insert(run) {
                continue;
            }
            let Some(loaded) = turn.load(run)?.filter(|loaded| !loaded.status().is_terminal()) else { continue };
            next.extend(self.awaited.range(awaiters_of(run)).map(|(_, waiter, _)| *waiter));
            next.extend(self.engine.waiting_bodies().filter(|(_, target)| *target == run).map(|(waiter, _)| waiter));
            found.push((run, loaded.record));
        }
        Ok(found)
    }

    /// Whether a run waits for the caller, and all that any of those on the way waits for is another of them. A signal or a moment
    /// that one waits for besides may be what it goes on with; what its body does besides waiting is not known here.
    fn is_stuck(
        &self,
        turn: &Turn<'_>,
        given: RunId,
        asked: &Await,
        above: &[(RunId, Arc<RunRecord>)],
    ) -> Result<bool, Fault> {
        let mut stuck: BTreeSet<RunId> = above.iter().map(|(run, _)| *run).collect();
        if !stuck.contains(&given) || asked.record.open.as_ref().is_some_and(|open| open.due.is_some()) {
            return Ok(false);
        }
        let waiting = |run: RunId| WaitRecord { run: Some(run), ..WaitRecord::default() };
        let in_bodies = self.engine.waiting_bodies().filter(|(waiter, _)| stuck.contains(waiter));
        let mut waits: Vec<_> = in_bodies.map(|(waiter, target)| (waiter, waiting(target))).collect();
        for run in &stuck {
            turn.rows().steps(*run, &mut |index, row| {
                let (step, _) = codec::open::<StepRecord>(Table::Steps, &keys::of_run(*run, index), &row)?;
                waits.extend(step.open.map(|open| (*run, open)));
                Ok(ControlFlow::Continue(()))
            })?;
        }
        loop {
            let goes_on = |open: &WaitRecord| {
                open.due.is_some() || open.signal.is_some() || open.run.is_some_and(|run| !stuck.contains(&run))
            };
            let free: Vec<RunId> = waits.iter().filter(|(_, open)| goes_on(open)).map(|(run, _)| *run).collect();
            let before = stuck.len();
            stuck.retain(|run| !free.contains(run));
            if stuck.len() == before {
                return Ok(stuck.contains(&given));
            }
        }
    }
}
