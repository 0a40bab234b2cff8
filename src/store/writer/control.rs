//! What is done to runs from outside: cancel, resume, delete, purge, and waits between bodies.

use std::ops::{Bound, ControlFlow};

use super::execution::line_of;
use super::triggers::{expired, queued};
use super::turn::{Effect, Loaded, Turn};
use super::{Fault, Writer};
use crate::codec::records::{LineRecord, StateRecord, StepRecord, WaitRecord};
use crate::codec::{self, keys};
use crate::engine::{Action, Awaited, Event as EngineEvent, JobNumber, Keys, refuse};
use crate::error::Error;
use crate::event::{Ended, EventKind};
use crate::hooks::Bug;
use crate::id::RunId;
use crate::limits::{PURGE_SLICE_BESIDE, PURGE_UNDISTURBED, PURGED_FOR_AN_END};
use crate::run::{RunStatus, StepKind};
use crate::store::op::{Purge, Purged, Resume, Targets};
use crate::store::steps::Change;
use crate::store::tables::Table;
use crate::store::view::{Direction, Rows};

impl Writer {
    /// Loads what an action is about, if its status allows the action. `None`: passed over, since that was not asked to be strict.
    fn target(
        &self,
        turn: &Turn<'_>,
        run: RunId,
        action: Action,
        strict: bool,
    ) -> Result<Result<Option<Loaded>, Error>, Fault> {
        let loaded = match turn.load(run) {
            Err(Fault::Corrupted(row)) if !strict => {
                tracing::error!(%run, error = %row, "a run is passed over");
                None
            }
            loaded => loaded?,
        };
        let Some(loaded) = loaded else {
            return Ok(if strict { Err(Error::RunNotFound { run }) } else { Ok(None) });
        };
        let status = loaded.status();
        if !refuse(action, status) {
            return Ok(Ok(Some(loaded)));
        }
        let action = match action {
            Action::Cancel => "cancel",
            Action::Retrigger => "retrigger",
            Action::Resume => "resume",
            Action::Delete => "delete",
        };
        Ok(if strict { Err(Error::Conflict { action, run, status }) } else { Ok(None) })
    }

    pub(super) fn cancel(&mut self, turn: &mut Turn<'_>, targets: &Targets) -> Result<Result<usize, Error>, Fault> {
        let mut count = 0;
        for run in &targets.runs {
            let loaded = match self.target(turn, *run, Action::Cancel, targets.strict)? {
                Ok(Some(loaded)) => loaded,
                Ok(None) => continue,
                Err(error) => return Ok(Err(error)),
            };
            count += 1;
            // After its own end, so that theirs do not wake it.
            if self.cancel_one(turn, *run, &loaded)? {
                count += self.cancel_children(turn, *run)?;
            }
        }
        Ok(Ok(count))
    }

    /// Cancels a run; says whether it has triggered others.
    fn cancel_one(&mut self, turn: &mut Turn<'_>, run: RunId, loaded: &Loaded) -> Result<bool, Fault> {
        let Some(mut body) = self.leave(turn, run) else {
            let mut state = loaded.state.clone();
            self.end_pending(turn, run, loaded, &mut state)?;
            return Ok(state.has_children);
        };
        if self.config.hooks.plants(Bug::CancelInMemory) {
            turn.ends.push((run, Ended::Cancelled));
            turn.effects.push(Effect::Cancel(run, body.generation));
            return Ok(false);
        }
        let mut state = std::mem::take(&mut body.state);
        let kind = EventKind::RunCancelled { replaced_by: None };
        self.conclude(turn, run, &body, &mut state, RunStatus::Cancelled, kind)?;
        turn.effects.push(Effect::Cancel(run, body.generation));
        if self.config.hooks.plants(Bug::KeyFreeBeforeStop) {
            self.tell_engine(turn, EngineEvent::Stopped { run, generation: body.generation });
        }
        Ok(state.has_children)
    }

    /// Cancels the runs that a run has triggered, and those that these have, but for what goes its own way; gives how many. They
    /// may go down deeper than a stack does.
    pub(super) fn cancel_children(&mut self, turn: &mut Turn<'_>, parent: RunId) -> Result<usize, Fault> {
        let (mut count, mut parents) = (0, vec![parent]);
        while let Some(parent) = parents.pop() {
            let mut children = Vec::new();
            turn.rows().scan_prefix(Table::Children, parent.as_bytes(), &mut |key, detached| {
                if detached.first() == Some(&0) {
                    children.extend(keys::read_run(key));
                }
                Ok(ControlFlow::Continue(()))
            })?;
            for child in children {
                if let Ok(Some(loaded)) = self.target(turn, child, Action::Cancel, false)? {
                    count += 1;
                    if self.cancel_one(turn, child, &loaded)? {
                        parents.push(child);
                    }
                }
            }
        }
        Ok(count)
    }

    /// Ends a run that has no lease as cancelled.
    pub(super) fn end_pending(
        &mut self,
        turn: &mut Turn<'_>,
        run: RunId,
        loaded: &Loaded,
        state: &mut StateRecord,
    ) -> Result<(), Fault> {
        let kind = EventKind::RunCancelled { replaced_by: state.replaced_by };
        self.end_waiting(turn, run, loaded, state, RunStatus::Cancelled, kind)
    }

    /// Ends a run that has no lease.
    pub(super) fn end_waiting(
        &mut self,
        turn: &mut Turn<'_>,
        run: RunId,
        loaded: &Loaded,
        state: &mut StateRecord,
        status: RunStatus,
        kind: EventKind,
    ) -> Result<(), Fault> {
        let record = &loaded.record;
        self.end_rows(turn, run, record, state, loaded.status(), status)?;
        if let Some(name) = self.jobs.names.get(&record.job).cloned() {
            turn.event(run, &name, record, kind);
        }
        let (job, keys, priority) = (record.job, Keys::of(&record.keys), record.priority);
        self.tell_engine(turn, EngineEvent::Withdrawn { run, job, keys, priority });
        Ok(())
    }

    pub(super) fn resume(&mut self, turn: &mut Turn<'_>, resume: &Resume) -> Result<Result<usize, Error>, Fault> {
        let mut count = 0;
        for run in &resume.targets.runs {
            match self.target(turn, *run, Action::Resume, resume.targets.strict)? {
                Ok(Some(loaded)) => self.resume_one(turn, *run, loaded, &resume.clear_failures)?,
                Ok(None) => continue,
                Err(error) => return Ok(Err(error)),
            }
            count += 1;
        }
        Ok(Ok(count))
    }

    fn resume_one(&mut self, turn: &mut Turn<'_>, run: RunId, loaded: Loaded, clear: &[String]) -> Result<(), Fault> {
        let Loaded { record, mut state, .. } = loaded;
        let was = RunStatus::from_byte(state.status).unwrap_or(RunStatus::Failed);
        let culprit = state.error.take().and_then(|error| error.step);
        self.clear_failures(turn, run, |key| culprit.as_deref() == Some(key) || clear.iter().any(|name| name == key))?;
        if let Some(at) = state.completed_at.take() {
            turn.stage.delete(Table::Ended, keys::ended(at, run));
        }
        state.status = RunStatus::Pending.to_byte();
        state.updated_at = Some(turn.now);
        state.replaced_by = None;
        state.resumed = true;
        if state.steps_bytes == 0 {
            // Its checkpoints went with its end, so it starts from its first step and counts anew.
            (state.steps_completed, state.step_index) = (0, 0);
        }
        // To the back of the line: a ticket of now, from the same source as ids.
        let ticket = self.ids.next(turn.now);
        state.ticket = Some(ticket);
        turn.put_state(run, &state, false);
        let front = self.config.hooks.plants(Bug::ResumedGoFirst);
        let line = LineRecord { crashes: 0, front, ..line_of(&record, &state, false) };
        turn.stage.delete(Table::ByStatus, keys::by_status(was, run));
        turn.stage.put(Table::ByStatus, keys::by_status(RunStatus::Pending, run), codec::seal(&line, &[]));
        self.tally(turn, record.job, was, -1);
        if let Some(name) = self.jobs.names.get(&record.job).cloned() {
            turn.event(run, &name, &record, EventKind::RunResumed);
        }
        self.tell_engine(turn, EngineEvent::Queued(queued(run, &line)));
        Ok(())
    }

    /// Deletes the recorded failures of the steps that `which` picks, so that they run again; also those of attempts that were
    /// to be followed by others.
    fn clear_failures(&mut self, turn: &mut Turn<'_>, run: RunId, which: impl Fn(&str) -> bool) -> Result<(), Fault> {
        let mut cleared = Vec::new();
        turn.rows().steps(run, &mut |index, row| {
            let (step, payload) = codec::open::<StepRecord>(Table::Steps, &keys::of_run(run, index), &row)?;
            let failed = step.error.is_some() || (step.open.is_some() && !step.tries.is_empty());
            if failed && which(&step.key) {
                cleared.push((index, step, payload));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        for (index, step, payload) in cleared {
            let change = if step.kind == StepKind::Map.to_byte() && !payload.is_empty() {
                // The items that are done stay done.
                let open = StepRecord { error: None, open: Some(WaitRecord::default()), ..step };
                Change::Put(index, codec::seal(&open, &payload).into())
            } else {
                Change::Remove(index)
            };
            turn.stage.change_steps(run, change);
        }
        Ok(())
    }

    pub(super) fn delete(&mut self, turn: &mut Turn<'_>, run: RunId) -> Result<Result<(), Error>, Fault> {
        match self.target(turn, run, Action::Delete, true)? {
            Ok(Some(loaded)) => Ok(Ok(self.delete_run(turn, run, &loaded)?)),
            Ok(None) => Ok(Err(Error::RunNotFound { run })),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Deletes the rows of a terminal run, all of them.
    fn delete_run(&mut self, turn: &mut Turn<'_>, run: RunId, loaded: &Loaded) -> Result<(), Fault> {
        let Loaded { record, state, output, .. } = loaded;
        let status = loaded.status();
        if state.steps_bytes > 0 {
            turn.stage.change_steps(run, Change::Clear);
        }
        if state.logs.next > state.logs.first {
            self.delete_logs(turn, run)?;
        }
        if state.signalled {
            self.delete_prefix(turn, Table::Signals, run)?;
        }
        if state.has_children {
            self.delete_prefix(turn, Table::Children, run)?;
        }
        if let Some(parent) = record.parent {
            turn.stage.delete(Table::Children, keys::child(parent, run));
        }
        for (key, value) in &record.labels {
            turn.stage.delete(Table::ByLabel, keys::by_label(key, value, run));
        }
        if let Some(key) = &record.idempotency_key
            && turn.holder(record.job, key)? == Some(run)
            && !self.config.hooks.plants(Bug::IdempotencyKept)
        {
            turn.stage.delete(Table::Idempotency, keys::idempotency(record.job, key));
        }
        if let Some(at) = state.completed_at {
            turn.stage.delete(Table::Ended, keys::ended(at, run));
        }
        turn.stage.delete(Table::ByStatus, keys::by_status(status, run));
        turn.stage.delete(Table::ByJob, keys::by_job(record.job, run));
        if status == RunStatus::Completed && output.is_empty() {
            turn.stage.delete(Table::Outputs, keys::run(run));
        }
        turn.stage.delete(Table::States, keys::run(run));
        turn.stage.delete(Table::Runs, keys::run(run));
        self.tally(turn, record.job, status, -1);
        if let Some(name) = self.jobs.names.get(&record.job).cloned() {
            turn.event(run, &name, record, EventKind::RunDeleted);
        }
        turn.ends.push((run, Ended::Deleted));
        Ok(())
    }

    pub(super) fn delete_logs(&mut self, turn: &mut Turn<'_>, run: RunId) -> Result<(), Fault> {
        self.delete_prefix(turn, Table::Logs, run)
    }

    /// Deletes the rows of a table whose keys begin with a run.
    fn delete_prefix(&mut self, turn: &mut Turn<'_>, table: Table, run: RunId) -> Result<(), Fault> {
        for key in turn.rows().keys(table, run.as_bytes())? {
            turn.stage.delete(table, &key[..]);
        }
        Ok(())
    }

    /// Deletes a slice of the runs that ended before a moment, oldest end first. Runs whose idempotency key has a time that
    /// is not over are passed over.
    pub(super) fn purge(&mut self, turn: &mut Turn<'_>, purge: &Purge) -> Result<Result<Purged, Error>, Fault> {
        let before = keys::ended(purge.before, RunId::MIN);
        let ends = turn.ends.iter().filter(|(_, ended)| !matches!(ended, Ended::Deleted)).count();
        let keeping_up = PURGE_SLICE_BESIDE + PURGED_FOR_AN_END * ends;
        let in_nobodys_way = self.bodies.is_empty() || self.undisturbed >= PURGE_UNDISTURBED;
        let beside = if in_nobodys_way { usize::MAX } else { keeping_up };
        let limit = purge.limit.min(beside);
        let (mut deleted, mut looked_at, mut after) = (0, 0, purge.after.clone());
        // Those that their idempotency keys still hold cost little to pass by.
        while deleted < limit && looked_at < purge.limit {
            let wanted = (limit - deleted).min(purge.limit - looked_at);
            let lower = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut due: Vec<Vec<u8>> = Vec::new();
            turn.rows().scan(Table::Ended, (lower, Bound::Excluded(&before)), Direction::Forward, &mut |key, _| {
                due.push(key.to_vec());
                Ok(if due.len() >= wanted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            looked_at += due.len();
            let looked_at_all = due.len() < wanted;
            for run in due.iter().filter_map(|key| Some(keys::read_ended(key)?.1)) {
                deleted += usize::from(self.purge_one(turn, run)?);
            }
            after = due.pop();
            if looked_at_all {
                return Ok(Ok(Purged { deleted, after: None }));
            }
        }
        Ok(Ok(Purged { deleted, after }))
    }

    /// Deletes a run that has ended, unless its idempotency key still holds it. One that can't be read must not keep the others
    /// from going.
    fn purge_one(&mut self, turn: &mut Turn<'_>, run: RunId) -> Result<bool, Fault> {
        let Some(loaded) = self.target(turn, run, Action::Delete, false)?.unwrap_or(None) else { return Ok(false) };
        let goes = loaded.record.idempotency_ttl_ms.is_none()
            // Its key has gone on with its successor.
            || loaded.state.continued_as.is_some()
            || expired(&loaded.record, turn.now)
            || self.config.hooks.plants(Bug::PurgeIgnoresTtl);
        if goes {
            self.delete_run(turn, run, &loaded)?;
        }
        Ok(goes)
    }

    /// Whether a body may wait for a run: not if that could never end.
    pub(super) fn wait(&mut self, turn: &mut Turn<'_>, waiter: RunId, run: RunId) -> Result<Result<(), Error>, Fault> {
        let Some(loaded) = turn.load(run)? else { return Ok(Err(Error::RunNotFound { run })) };
        if loaded.status().is_terminal() {
            return Ok(Ok(()));
        }
        let awaited = Awaited { run, asked: run, job: loaded.record.job, keys: Keys::of(&loaded.record.keys) };
        let allowed = self.config.hooks.plants(Bug::DeadlocksAllowed);
        Ok(if self.engine.wait(waiter, awaited) || allowed { Ok(()) } else { Err(Error::WouldDeadlock { run }) })
    }

    /// Counts a terminal run in, or out.
    pub(super) fn tally(&mut self, turn: &mut Turn<'_>, job: JobNumber, status: RunStatus, by: i64) {
        let tally = self.tallies.entry(job).or_default();
        let count = match status {
            RunStatus::Completed => &mut tally.completed,
            RunStatus::Failed => &mut tally.failed,
            RunStatus::Cancelled => &mut tally.cancelled,
            RunStatus::Pending | RunStatus::Leased | RunStatus::Suspended => return,
        };
        *count = count.saturating_add_signed(by);
        turn.tallied.insert(job);
    }

    /// Writes the counts that the group has changed.
    pub(super) fn write_tallies(&mut self, turn: &mut Turn<'_>) {
        for job in std::mem::take(&mut turn.tallied) {
            if let Some(tally) = self.tallies.get(&job) {
                turn.stage.put(Table::Tallies, &job.to_be_bytes()[..], codec::seal(tally, &[]));
            }
        }
    }
}
