//! What executing runs write: leases, checkpoints, notes, their end.

use std::sync::Arc;

use bytes::Bytes;

use super::turn::{Effect, Loaded, Turn, subject};
use super::{Body, Fault, Start, Writer, waits};
use crate::codec::records::{LineRecord, LogRecord, LogTally, RunRecord, StateRecord};
use crate::codec::{self, keys};
use crate::config::{LogRetention, StepRetention};
use crate::engine::{Claim, Event as EngineEvent, Fence, Generation};
use crate::event::{Ended, EventKind, Payload, What};
use crate::hooks::Bug;
use crate::id::RunId;
use crate::job::{ErrorKind, JobError};
use crate::limits::{
    INLINE_BYTES_MAX, LOG_BYTES_MAX, LOG_LINES_MAX, OUTPUT_WITH_STATE_BYTES_MAX, STARTS_FOR_A_REPLAY, STARTS_MAX,
    UNUSED_STEPS_MAX,
};
use crate::run::RunStatus;
use crate::store::op::{Accepted, Checkpoint, End, Notes, NotesOf, Outcome};
use crate::store::steps::Change;
use crate::store::tables::Table;
use crate::store::tail::LiveChange;
use crate::time::Timestamp;

impl Writer {
    /// Writes a lease for every run that may start now, up to what one commit starts; the next goes on.
    pub(super) fn claim(&mut self, turn: &mut Turn<'_>) -> Result<(), Fault> {
        if self.publisher.effects.is_none() {
            return Ok(());
        }
        let most = STARTS_MAX + STARTS_FOR_A_REPLAY * turn.ends.len();
        while self.allowance != Some(0) && !self.starts_left {
            if turn.starts >= most {
                self.starts_left = true;
                break;
            }
            let Some(claim) = self.engine.claim(turn.monotonic) else { break };
            turn.starts += if claim.untouched { 1 } else { STARTS_FOR_A_REPLAY };
            if claim.counted {
                self.put_windows(turn, claim.run, &claim.keys);
            }
            match turn.load_as(claim.run, claim.untouched) {
                Ok(Some(loaded)) => self.lease(turn, &claim, loaded),
                Ok(None) => self.pass_over(turn, &claim, "its row is missing"),
                Err(Fault::Corrupted(row)) => self.pass_over(turn, &claim, &row.to_string()),
                Err(fault) => return Err(fault),
            }
            self.allowance = self.allowance.map(|left| left - 1);
        }
        Ok(())
    }

    /// A run whose rows can't be read is not started and not ended either: its rows stay as they are.
    fn pass_over(&mut self, turn: &mut Turn<'_>, claim: &Claim, reason: &str) {
        tracing::error!(run = %claim.run, reason, "a run can't be started");
        if let Some(job) = self.engine.job_of(claim.run) {
            self.tell_engine(turn, EngineEvent::PutAside { run: claim.run, job });
        }
        self.tell_engine(turn, EngineEvent::Ended { run: claim.run });
        self.tell_engine(turn, EngineEvent::Stopped { run: claim.run, generation: claim.generation });
    }

    fn lease(&mut self, turn: &mut Turn<'_>, claim: &Claim, loaded: Loaded) {
        let Loaded { record, mut input, mut state, .. } = loaded;
        if input.len() <= INLINE_BYTES_MAX {
            // It may be a part of its group's row, which is as large as a group, and is held for as long as the body lives.
            input = Bytes::copy_from_slice(&input);
        }
        let run = claim.run;
        let fresh = claim.generation == 1;
        // A run that was cancelled before its first start and then resumed has a state already.
        let stateless = fresh && state.updated_at.is_none();
        state.status = RunStatus::Leased.to_byte();
        state.generation = claim.generation;
        state.started_at = state.started_at.or(Some(turn.now));
        state.updated_at = Some(turn.now);
        // Counted before user code runs: should this execution take the process with it, the count is on disk already.
        state.crashes = if self.config.hooks.plants(Bug::CrashUncounted) { 0 } else { claim.crashes };
        state.front = false;
        state.ticket = None;
        state.blocked = None;
        turn.put_state(run, &state, stateless);
        let job_name = self.jobs.names.get(&record.job).cloned().unwrap_or_else(|| "".into());
        let subject = subject(run, &job_name, &record);
        let kind = EventKind::RunLeased {
            input: Payload::new(&input),
            lease_owner: self.config.owner.clone(),
            generation: claim.generation,
        };
        turn.tell(&subject, What::Kind(Box::new(kind)));
        turn.effects.push(Effect::Start(Arc::new(Start {
            run,
            generation: claim.generation,
            job: record.job,
            subject: subject.clone(),
            input,
            keys: claim.keys.clone(),
            replay: !fresh || record.forked_from.is_some(),
            version: record.version,
        })));
        let job = record.job;
        let generation = claim.generation;
        let (since, place) = (turn.now, self.places.take());
        let body = Body { generation, job, subject, record, state, since, checkpointed: false, news: Some(0), place };
        turn.live.push((run, LiveChange::Began(place, body.counters())));
        self.bodies.insert(run, Box::new(body));
    }

    pub(super) fn move_status(&mut self, turn: &mut Turn<'_>, run: RunId, from: RunStatus, to: RunStatus, fresh: bool) {
        turn.stage.delete(Table::ByStatus, keys::by_status(from, run));
        if fresh {
            turn.stage.insert(Table::ByStatus, keys::by_status(to, run), Vec::new());
        } else {
            turn.stage.put(Table::ByStatus, keys::by_status(to, run), Vec::new());
        }
    }

    /// Whether a lease may write, and the body it is of.
    pub(super) fn fenced(&mut self, run: RunId, generation: Generation) -> Option<&mut Body> {
        // A body is here for as long as the engine's fence holds for its lease: one search is enough.
        self.bodies.get_mut(&run).map(|body| &mut **body).filter(|body| body.generation == generation)
    }

    /// The body of a lease that is over with this group.
    pub(super) fn leave(&mut self, turn: &mut Turn<'_>, run: RunId) -> Option<Box<Body>> {
        let body = self.bodies.remove(&run)?;
        turn.live.push((run, LiveChange::Ended));
        self.places.left.push(body.place);
        Some(body)
    }

    /// The same, if it may write.
    fn end_lease(&mut self, turn: &mut Turn<'_>, run: RunId, generation: Generation) -> Option<Box<Body>> {
        self.fenced(run, generation)?;
        self.leave(turn, run)
    }

    pub(super) fn checkpoint(&mut self, turn: &mut Turn<'_>, step: &Checkpoint) -> Result<Accepted, Fault> {
        let Checkpoint { run, generation, ref told, ref notes, part } = *step;
        let keep_logs = self.config.keep_logs;
        let Some(body) = self.fenced(run, generation) else { return Ok(Accepted::Refused) };
        // Only a step that was counted can have been completed before.
        if told.error.is_some() && told.index < body.state.step_index {
            waits::count_back(turn, run, told.index, &mut body.state)?;
        }
        let noted = notes.as_ref().is_some_and(|notes| write_notes(turn, run, &mut body.state, notes, keep_logs));
        body.state.steps_bytes += told.record.len() as u64;
        let at = turn.stage.change_steps(run, Change::Put(told.index, told.record.clone()));
        if told.error.is_none() && !part {
            body.state.steps_completed += 1;
            body.state.step_index = body.state.step_index.max(told.index + 1);
            body.state.updated_at = Some(turn.now);
        }
        if !part {
            let what = if told.record.len() > INLINE_BYTES_MAX {
                What::Checkpoint(Box::new(told.clone()))
            } else {
                What::Staged { index: told.index, duration: told.duration, at }
            };
            turn.tell(&body.subject, what);
        }
        turn.live.push((run, body.live()));
        if noted {
            turn.put_state(run, &body.state, false);
        }
        if !body.checkpointed {
            body.checkpointed = true;
            self.tell_engine(turn, EngineEvent::Checkpointed { run });
        }
        Ok(Accepted::Recorded)
    }

    pub(super) fn notes(&mut self, turn: &mut Turn<'_>, noted: &NotesOf) -> Result<Accepted, Fault> {
        let NotesOf { run, generation, ref notes } = *noted;
        let keep_logs = self.config.keep_logs;
        let Some(body) = self.fenced(run, generation) else { return self.last_words(turn, noted) };
        if write_notes(turn, run, &mut body.state, notes, keep_logs) {
            turn.put_state(run, &body.state, false);
        }
        turn.live.push((run, body.live()));
        Ok(Accepted::Recorded)
    }

    /// What a cancelled run noted before its cancel, from a body that has only now stopped.
    fn last_words(&mut self, turn: &mut Turn<'_>, noted: &NotesOf) -> Result<Accepted, Fault> {
        let NotesOf { run, generation, ref notes } = *noted;
        let keep = match self.config.keep_logs {
            LogRetention::UntilTerminal => LogRetention::Off,
            keep => keep,
        };
        if self.engine.fence(run, generation) != Fence::Ended {
            return Ok(Accepted::Refused);
        }
        let Some(Loaded { mut state, output, .. }) = turn.load(run)? else { return Ok(Accepted::Refused) };
        if write_notes(turn, run, &mut state, notes, keep) {
            turn.put_ended(run, &state, &output);
        }
        Ok(Accepted::Recorded)
    }

    pub(super) fn end(&mut self, turn: &mut Turn<'_>, end: &End) -> Result<Accepted, Fault> {
        let End { run, generation, stopped, .. } = *end;
        let keep_logs = self.config.keep_logs;
        let Some(mut body) = self.end_lease(turn, run, generation) else {
            if stopped {
                self.stopped(turn, run, generation);
            }
            return Ok(Accepted::Refused);
        };
        let mut state = std::mem::take(&mut body.state);
        write_notes(turn, run, &mut state, &end.notes, keep_logs);
        state.updated_at = Some(turn.now);
        if !end.unused.is_empty() {
            let first = end.unused.iter().take(UNUSED_STEPS_MAX);
            state.unused = first.clone().map(|(index, _)| *index).collect();
            let keys = first.map(|(_, key)| key.clone()).collect();
            let kind = EventKind::StepsUnused { keys, count: end.unused.len() };
            turn.tell(&body.subject, What::Kind(Box::new(kind)));
        }
        match &end.outcome {
            Outcome::Completed(output) => {
                turn.ends.push((run, Ended::Completed(output.clone())));
                self.tell_awaiters(turn, run, &Ok(output.clone()))?;
                let kind = EventKind::RunCompleted { output: Payload::new(output), duration: end.duration };
                self.conclude(turn, run, &body, &mut state, RunStatus::Completed, kind)?;
                if output.len() <= OUTPUT_WITH_STATE_BYTES_MAX {
                    turn.put_ended(run, &state, output);
                } else {
                    turn.stage.insert(Table::Outputs, keys::run(run), codec::seal(&(), output));
                    turn.put_state(run, &state, false);
                }
            }
            Outcome::Continued(next) => self.continue_as(turn, run, &body, &mut state, next)?,
            Outcome::Failed(error) => {
                state.error = Some(error.clone());
                if let Some(key) = &body.record.idempotency_key
                    && self.config.hooks.plants(Bug::KeyFreedAtFailure)
                {
                    turn.stage.delete(Table::Idempotency, keys::idempotency(body.job, key));
                }
                let kind = EventKind::RunFailed { error: error.clone().into() };
                self.conclude(turn, run, &body, &mut state, RunStatus::Failed, kind)?;
            }
            Outcome::HandedBack => {
                // The lease counted a crash that did not come.
                let counted = u32::from(!self.config.hooks.plants(Bug::HandBackCountsCrash));
                state.crashes = if body.checkpointed { 0 } else { state.crashes.saturating_sub(counted) };
                self.put_back(turn, run, &body, &mut state, None);
            }
            Outcome::Suspended(suspension) => self.suspend(turn, run, &body, &mut state, suspension),
            Outcome::Blocked(reason) => {
                state.crashes = state.crashes.saturating_sub(1);
                self.put_back(turn, run, &body, &mut state, Some(reason.clone()));
            }
        }
        if stopped {
            self.stopped(turn, run, generation);
        }
        Ok(Accepted::Recorded)
    }

    /// Ends a leased run: its rows, its event, the engine.
    pub(super) fn conclude(
        &mut self,
        turn: &mut Turn<'_>,
        run: RunId,
        body: &Body,
        state: &mut StateRecord,
        status: RunStatus,
        kind: EventKind,
    ) -> Result<(), Fault> {
        self.end_rows(turn, run, &body.record, state, RunStatus::Leased, status)?;
        turn.tell(&body.subject, What::Kind(Box::new(kind)));
        self.tell_engine(turn, EngineEvent::Ended { run });
        Ok(())
    }

    /// Sees to it that a run ends by its moment, if it has one.
    pub(super) fn arm(&mut self, turn: &mut Turn<'_>, run: RunId, deadline: Option<Timestamp>) {
        if let Some(at) = deadline {
            self.tell_engine(turn, EngineEvent::Deadline { run, at, armed: true });
        }
    }

    /// Fails a run that has not ended by its moment.
    pub(super) fn exceed(&mut self, turn: &mut Turn<'_>, run: RunId) -> Result<(), Fault> {
        let Some(loaded) = turn.load(run)? else { return Ok(()) };
        let mut state = self.bodies.get(&run).map_or(&loaded.state, |body| &body.state).clone();
        let status = RunStatus::from_byte(state.status).unwrap_or(RunStatus::Suspended);
        let Some(deadline) = deadline_of(&loaded.record, &state).filter(|at| *at <= turn.now && !status.is_terminal())
        else {
            return Ok(());
        };
        let error = JobError::of_kind(ErrorKind::DeadlineExceeded, format!("the run had not ended by {deadline}"));
        let error = error.into_record();
        state.error = Some(error.clone());
        let has_children = state.has_children;
        let kind = EventKind::RunFailed { error: error.into() };
        match self.leave(turn, run) {
            Some(body) => {
                self.conclude(turn, run, &body, &mut state, RunStatus::Failed, kind)?;
                turn.effects.push(Effect::Cancel(run, body.generation));
            }
            None => self.end_waiting(turn, run, &loaded, &mut state, RunStatus::Failed, kind)?,
        }
        if has_children {
            self.cancel_children(turn, run)?;
        }
        Ok(())
    }

    /// The rows of a run's end, whatever it was before.
    pub(super) fn end_rows(
        &mut self,
        turn: &mut Turn<'_>,
        run: RunId,
        record: &RunRecord,
        state: &mut StateRecord,
        from: RunStatus,
        status: RunStatus,
    ) -> Result<(), Fault> {
        state.status = status.to_byte();
        state.completed_at = Some(turn.now);
        state.updated_at = Some(turn.now);
        state.crashes = 0;
        state.front = false;
        state.ticket = None;
        state.blocked = None;
        if self.config.keep_steps == StepRetention::UntilTerminal {
            if state.steps_bytes > 0 {
                turn.stage.change_steps(run, Change::Clear);
            }
            state.steps_bytes = 0;
        }
        if self.config.keep_logs == LogRetention::UntilTerminal {
            self.delete_logs(turn, run)?;
            state.logs = LogTally { next: state.logs.next, first: state.logs.next, ..LogTally::default() };
        }
        // A completed run's is written with its output.
        if status != RunStatus::Completed {
            turn.put_state(run, state, false);
        }
        self.move_status(turn, run, from, status, state.generation <= 1);
        turn.stage.put(Table::Ended, keys::ended(turn.now, run), Vec::new());
        self.tally(turn, record.job, status, 1);
        if let Some(at) = deadline_of(record, state) {
            self.tell_engine(turn, EngineEvent::Deadline { run, at, armed: false });
        }
        match status {
            RunStatus::Cancelled => {
                turn.ends.push((run, Ended::Cancelled));
                self.tell_awaiters(turn, run, &Err(waits::cancelled(run)))?;
            }
            RunStatus::Failed => {
                turn.ends.push((run, Ended::Failed));
                self.tell_awaiters(turn, run, &Err(waits::failed(run, state.error.as_ref())))?;
            }
            // A completed run's end carries its output, which is not here.
            _ => {}
        }
        Ok(())
    }

    /// Makes a leased run pending again, first in line; or out of line, if it is blocked.
    fn put_back(
        &mut self,
        turn: &mut Turn<'_>,
        run: RunId,
        body: &Body,
        state: &mut StateRecord,
        blocked: Option<String>,
    ) {
        state.status = RunStatus::Pending.to_byte();
        state.front = true;
        state.blocked.clone_from(&blocked);
        let line = line_of(&body.record, state, blocked.is_some());
        turn.put_state(run, state, false);
        turn.stage.delete(Table::ByStatus, keys::by_status(RunStatus::Leased, run));
        turn.stage.put(Table::ByStatus, keys::by_status(RunStatus::Pending, run), codec::seal(&line, &[]));
        let kind = match blocked {
            Some(reason) => EventKind::RunBlocked { reason },
            None => EventKind::RunReleased { crashed: false },
        };
        turn.tell(&body.subject, What::Kind(Box::new(kind)));
        self.tell_engine(turn, EngineEvent::Yielded { run });
        let next = match line.blocked {
            true => EngineEvent::PutAside { run, job: line.job },
            false => EngineEvent::Queued(super::triggers::queued(run, &line)),
        };
        self.tell_engine(turn, next);
    }

    /// A body is really gone: key and slot are free.
    pub(super) fn stopped(&mut self, turn: &mut Turn<'_>, run: RunId, generation: Generation) {
        if let Some(mut body) = self.end_lease(turn, run, generation) {
            // Its actor is gone without a word, which is a fault of ours: the run goes on, and no crash is counted.
            let mut state = std::mem::take(&mut body.state);
            state.crashes = if body.checkpointed { 0 } else { state.crashes.saturating_sub(1) };
            self.put_back(turn, run, &body, &mut state, None);
        }
        self.tell_engine(turn, EngineEvent::Stopped { run, generation });
        turn.effects.push(Effect::Stopped(run, generation));
    }
}

/// The moment by which a run must have ended, if that counts.
pub(super) fn deadline_of(record: &RunRecord, state: &StateRecord) -> Option<Timestamp> {
    record.deadline.filter(|_| !state.resumed)
}

/// A run's line as its index row has it.
pub(super) fn line_of(record: &RunRecord, state: &StateRecord, blocked: bool) -> LineRecord {
    LineRecord {
        job: record.job,
        keys: record.keys.clone(),
        priority: record.priority,
        generation: state.generation,
        crashes: state.crashes,
        front: state.front,
        ticket: state.ticket,
        blocked,
        touched: false,
        holds: false,
        not_before: None,
        deadline: deadline_of(record, state),
    }
}

/// Writes progress and log lines; says whether the run's state has changed and is to be written.
fn write_notes(turn: &mut Turn<'_>, run: RunId, state: &mut StateRecord, notes: &Notes, keep: LogRetention) -> bool {
    let mut changed = false;
    if let Some(progress) = &notes.progress {
        state.progress = Some(progress.clone());
        state.updated_at = Some(turn.now);
        changed = true;
    }
    if keep == LogRetention::Off {
        return changed;
    }
    if notes.dropped > 0 {
        // So many came at once that they leave no room for any older one.
        let tally = &mut state.logs;
        (tally.first..tally.next).for_each(|number| turn.stage.delete(Table::Logs, keys::of_run(run, number)));
        tally.dropped += u64::from(tally.next - tally.first) + u64::from(notes.dropped);
        tally.next = tally.next.saturating_add(notes.dropped);
        (tally.first, tally.bytes) = (tally.next, 0);
    }
    for line in &notes.lines {
        let record = LogRecord {
            level: line.level.to_byte(),
            at: line.at,
            step: line.step.as_deref().map(str::to_owned),
            message: line.message.clone(),
        };
        let value = codec::seal(&record, &line.fields);
        let tally = &mut state.logs;
        tally.bytes += value.len() as u64;
        turn.stage.insert(Table::Logs, keys::of_run(run, tally.next), value);
        tally.next += 1;
        changed = true;
    }
    changed |= trim_logs(turn, run, &mut state.logs);
    changed
}

/// Drops the oldest lines beyond the limits.
fn trim_logs(turn: &mut Turn<'_>, run: RunId, tally: &mut LogTally) -> bool {
    use crate::store::view::Rows;
    let before = tally.first;
    while tally.first < tally.next && (tally.next - tally.first > LOG_LINES_MAX || tally.bytes > LOG_BYTES_MAX as u64) {
        let key = keys::of_run(run, tally.first);
        // A line that can't be read counts nothing; the next ones go instead.
        let bytes = turn.rows().get(Table::Logs, &key).ok().flatten().map_or(0, |row: Bytes| row.len());
        tally.bytes = tally.bytes.saturating_sub(bytes as u64);
        turn.stage.delete(Table::Logs, key);
        tally.first += 1;
        tally.dropped += 1;
    }
    tally.first != before
}

/// A body as rebuilt from its rows.
pub(super) fn body_of(run: RunId, job_name: &Arc<str>, loaded: &Loaded, checkpointed: bool, place: u32) -> Body {
    Body {
        generation: loaded.state.generation,
        job: loaded.record.job,
        subject: subject(run, job_name, &loaded.record),
        record: loaded.record.clone(),
        state: loaded.state.clone(),
        since: loaded.state.started_at.unwrap_or(loaded.record.created_at),
        checkpointed,
        news: None,
        place,
    }
}
