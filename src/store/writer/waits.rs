//! Runs that wait: for a moment, a signal, or the end of another run.
//!
//! A step that waits has a record without an outcome. A moment and a signal are asked for by the step itself, so that only
//! one that is really waiting takes a signal; the end of a run is recorded in the steps that wait for it by the commit that
//! ends the run, so that it can't be missed however late they look. A run all of whose steps wait is suspended: its row
//! says what wakes it.

use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;

use super::execution::{deadline_of, line_of};
use super::triggers::queued;
use super::turn::{Effect, Loaded, Turn, subject};
use super::{Body, Fault, Writer};
use crate::codec::records::{ErrorRecord, LineRecord, RunRecord, SleepRecord, StateRecord, StepRecord};
use crate::codec::{self, Corrupted, keys};
use crate::engine::{Alarm, Event as EngineEvent, Keys, Sleeper};
use crate::error::Error;
use crate::event::{EventKind, Payload, What};
use crate::hooks::Bug;
use crate::id::RunId;
use crate::job::{ErrorKind, JobError};
use crate::limits::{ALARMS_IN_GROUP_MAX, SIGNALS_MAX};
use crate::run::{RunStatus, StepKind};
use crate::store::op::{Await, News, Settled, Signal, Spawn, Suspension};
use crate::store::steps::Change;
use crate::store::tables::Table;
use crate::store::view::Rows;

/// What a step that waited has become.
type Outcome = Result<Bytes, Box<ErrorRecord>>;

impl Writer {
    /// Does what is due by the wall clock, a slice of it.
    pub(super) fn ring(&mut self, turn: &mut Turn<'_>) -> Result<(), Fault> {
        for _ in 0..ALARMS_IN_GROUP_MAX {
            let Some((run, alarm)) = self.engine.ring(turn.now) else { break };
            let done = match alarm {
                Alarm::Start => Ok(()),
                Alarm::Wake => self.wake(turn, run),
                Alarm::Deadline => self.exceed(turn, run),
            };
            match done {
                Err(Fault::Corrupted(row)) => tracing::error!(%run, error = %row, "what is due can't be done"),
                done => done?,
            }
        }
        Ok(())
    }

    /// A step begins to wait, or asks again.
    pub(super) fn step_waits(&mut self, turn: &mut Turn<'_>, asked: &Await) -> Result<Settled, Fault> {
        let Await { run, generation, index, stored, .. } = *asked;
        if self.fenced(run, generation).is_none() {
            return Ok(Settled::Refused);
        }
        let mut asked = Await { record: asked.record.clone(), ..*asked };
        // The end of a run is recorded where that ends, and so is which one goes on for it.
        if stored
            && asked.record.open.as_ref().is_some_and(|open| open.run.is_some())
            && let Some(row) = turn.rows().step(run, index)?
        {
            let (record, output) = codec::open::<StepRecord>(Table::Steps, &keys::of_run(run, index), &row)?;
            match decided_as(&record, output) {
                Some(outcome) => return Ok(Settled::Decided(outcome)),
                None => asked.record = record,
            }
        }
        // Another run may have gone on for it where nobody waited who could be told.
        let open = asked.record.open.as_mut();
        let awaited = open.and_then(|open| open.run.as_mut());
        let mut moved = false;
        if let Some(awaited) = awaited
            && let Some((last, _)) = last_of(turn, *awaited)?
        {
            moved = std::mem::replace(awaited, last) != last;
        }
        let (asked, record) = (&asked, &asked.record);
        if let Some(outcome) = self.come(turn, asked)? {
            self.decide_step(turn, run, index, record.clone(), &outcome)?;
            return Ok(Settled::Decided(outcome));
        }
        if !stored {
            self.record_step(turn, run, index, record, &[], waiting(record, index));
        } else if moved {
            turn.stage.change_steps(run, Change::Put(index, codec::seal(record, &[]).into()));
        }
        Ok(Settled::Open(Box::new(record.clone())))
    }

    /// Whether what a step waits for has come, and what it is.
    fn come(&mut self, turn: &mut Turn<'_>, asked: &Await) -> Result<Option<Outcome>, Fault> {
        let Await { run, index, ref record, .. } = *asked;
        let open = record.open.clone().unwrap_or_default();
        if let Some(name) = &open.signal {
            let prefix = keys::signals_prefix(run, name);
            let mut first = None;
            turn.rows().scan_prefix(Table::Signals, &prefix, &mut |key, row| {
                first = Some((key.to_vec(), row));
                Ok(ControlFlow::Break(()))
            })?;
            if let Some((key, row)) = first {
                if !self.config.hooks.plants(Bug::SignalKept) {
                    turn.stage.delete(Table::Signals, &key[..]);
                }
                return Ok(Some(Ok(codec::open::<()>(Table::Signals, &key, &row)?.1)));
            }
        }
        if let Some(awaited) = open.run
            && let Some(outcome) = self.end_of(turn, asked, awaited)?
        {
            return Ok(Some(outcome));
        }
        let is_due = open.due.is_some_and(|due| due <= turn.now);
        let outcome = match StepKind::from_byte(record.kind) {
            _ if !is_due => None,
            Some(StepKind::Sleep) => Some(Ok(Bytes::from_static(b"null"))),
            Some(StepKind::Signal | StepKind::Call) => {
                let what = open.signal.map_or_else(|| "the run".to_owned(), |name| format!("signal {name:?}"));
                let message = format!("step {:?} waited too long for {what}", record.key);
                Some(Err(failure(ErrorKind::Timeout, message)))
            }
            _ => None,
        };
        if outcome.is_some()
            && let Some(awaited) = open.run
        {
            self.no_longer_awaits(turn, awaited, run, index);
        }
        Ok(outcome)
    }

    /// How a run ended for the step that waits for it; notes that the step waits if it has not.
    fn end_of(&mut self, turn: &mut Turn<'_>, asked: &Await, awaited: RunId) -> Result<Option<Outcome>, Fault> {
        let Await { run, index, .. } = *asked;
        let Some(loaded) = turn.load(awaited)? else {
            return Ok(Some(Err(failure(ErrorKind::ChildFailed, format!("run {awaited} does not exist any more")))));
        };
        Ok(match loaded.status() {
            RunStatus::Completed => {
                let output = if loaded.output.is_empty() {
                    let row = turn.rows().get(Table::Outputs, awaited.as_bytes())?;
                    let row = row.map(|row| codec::open::<()>(Table::Outputs, awaited.as_bytes(), &row)).transpose()?;
                    row.map_or_else(|| Bytes::from_static(b"null"), |(_, output)| output)
                } else {
                    loaded.output
                };
                Some(Ok(output))
            }
            RunStatus::Failed => Some(Err(failed(awaited, loaded.state.error.as_ref()))),
            RunStatus::Cancelled => Some(Err(cancelled(awaited))),
            RunStatus::Pending | RunStatus::Leased | RunStatus::Suspended => {
                if self.awaited.insert((awaited, run, index)) {
                    turn.stage.put(Table::Awaiters, keys::awaiter(awaited, run, index), Vec::new());
                }
                None
            }
        })
    }

    pub(super) fn no_longer_awaits(&mut self, turn: &mut Turn<'_>, awaited: RunId, waiter: RunId, index: u32) {
        if self.awaited.remove(&(awaited, waiter, index)) {
            turn.stage.delete(Table::Awaiters, keys::awaiter(awaited, waiter, index));
        }
    }

    /// Gives a step of an executing run its outcome. It is a checkpoint of this lease, whichever began to wait.
    fn decide_step(
        &mut self,
        turn: &mut Turn<'_>,
        run: RunId,
        index: u32,
        mut record: StepRecord,
        outcome: &Outcome,
    ) -> Result<(), Fault> {
        if let Some(body) = self.bodies.get(&run) {
            record.generation = body.generation;
        }
        let (record, payload, kind) = decided(record, index, outcome, turn);
        self.record_step(turn, run, index, &record, &payload, kind);
        Ok(())
    }

    /// Writes a step's record for a run that executes.
    fn record_step(
        &mut self,
        turn: &mut Turn<'_>,
        run: RunId,
        index: u32,
        record: &StepRecord,
        payload: &[u8],
        kind: EventKind,
    ) {
        let sealed = codec::seal(record, payload);
        let Some(body) = self.bodies.get_mut(&run) else { return };
        count_step(turn, &mut body.state, index, record, sealed.len());
        turn.stage.change_steps(run, Change::Put(index, sealed.into()));
        turn.tell(&body.subject, What::Kind(Box::new(kind)));
        turn.live.push((run, body.live()));
        if !body.checkpointed {
            body.checkpointed = true;
            self.tell_engine(turn, EngineEvent::Checkpointed { run });
        }
    }

    /// A step triggers a run.
    pub(super) fn spawn(&mut self, turn: &mut Turn<'_>, spawn: &Spawn) -> Result<Result<Settled, Error>, Fault> {
        let Spawn { step, child } = spawn;
        let Await { run, generation, index, ref record, .. } = *step;
        if self.fenced(run, generation).is_none() {
            return Ok(Ok(Settled::Refused));
        }
        let waits = StepKind::from_byte(record.kind) == Some(StepKind::Call);
        let (items, job) = (std::slice::from_ref(child), self.job_number(turn, &child.job));
        let decision = match self.decide_all(turn, items, &[job])? {
            Ok(mut decisions) => decisions.pop(),
            Err(error) => return Ok(Err(error)),
        };
        let Some(decision) = decision else { return Ok(Err(Error::ShutDown)) };
        if waits && let Some(run) = self.in_the_way(turn, step, child, &decision)? {
            return Ok(Err(Error::WouldDeadlock { run }));
        }
        let child = self.carry_out(turn, &items[0], job, decision, &[])?.run;
        if let Some(body) = self.bodies.get_mut(&run)
            && !body.state.has_children
        {
            body.state.has_children = true;
            let state = body.state.clone();
            turn.put_state(run, &state, false);
        }
        let mut record = record.clone();
        record.open.get_or_insert_default().run = Some(child);
        if self.config.hooks.plants(Bug::ChildUnrecorded) {
            return Ok(Ok(Settled::Open(Box::new(record))));
        }
        if waits {
            return self.step_waits(turn, &Await { record, stored: false, ..*step }).map(Ok);
        }
        let id = serde_json::to_vec(&child).unwrap_or_default();
        let outcome = Ok(Bytes::from(id));
        self.decide_step(turn, run, index, record, &outcome)?;
        Ok(Ok(Settled::Decided(outcome)))
    }

    /// Keeps a signal until a step takes it.
    pub(super) fn signal(&mut self, turn: &mut Turn<'_>, signal: &Signal) -> Result<Result<(), Error>, Fault> {
        let Signal { run, ref name, ref payload } = *signal;
        let Some(Loaded { record, mut state, .. }) = turn.load(run)? else {
            return Ok(Err(Error::RunNotFound { run }));
        };
        let status = RunStatus::from_byte(state.status).unwrap_or(RunStatus::Suspended);
        if status.is_terminal() {
            return Ok(Err(Error::Conflict { action: "signal", run, status }));
        }
        if state.signalled {
            let count = turn.rows().keys(Table::Signals, run.as_bytes())?.len();
            if count >= SIGNALS_MAX {
                return Ok(Err(Error::TooMany { what: "signals of a run", count: count + 1, count_max: SIGNALS_MAX }));
            }
        }
        let ticket = self.ids.next(turn.now);
        turn.stage.insert(Table::Signals, keys::signal(run, name, ticket), codec::seal(&(), payload));
        let subject = subject(run, &self.job_name(record.job), &record);
        turn.tell(&subject, What::Kind(Box::new(EventKind::RunSignalled { name: name.clone() })));
        if let Some(body) = self.bodies.get_mut(&run) {
            let first = !body.state.signalled;
            body.state.signalled = true;
            body.news = body.news.map(|news| news + 1);
            turn.effects.push(Effect::News(run, body.generation, News::Signal(name.clone())));
            if first {
                let state = body.state.clone();
                turn.put_state(run, &state, false);
            }
            return Ok(Ok(()));
        }
        if !state.signalled {
            state.signalled = true;
            state.updated_at = Some(turn.now);
            turn.put_state(run, &state, false);
            if status == RunStatus::Pending {
                self.touch(turn, run)?;
            }
        }
        if status == RunStatus::Suspended
            && sleep_of(turn, run)?.is_some_and(|sleep| sleep.signals.iter().any(|other| **other == **name))
        {
            self.wake(turn, run)?;
        }
        Ok(Ok(()))
    }

    /// Notes that a pending run has a state, though it may never have started.
    fn touch(&mut self, turn: &mut Turn<'_>, run: RunId) -> Result<(), Fault> {
        let key = keys::by_status(RunStatus::Pending, run);
        let Some(row) = turn.rows().get(Table::ByStatus, &key)? else { return Ok(()) };
        let (line, _) = codec::open::<LineRecord>(Table::ByStatus, &key, &row)?;
        turn.stage.put(Table::ByStatus, key, codec::seal(&LineRecord { touched: true, ..line }, &[]));
        self.tell_engine(turn, EngineEvent::Touched { run });
        Ok(())
    }

    /// Records the end of a run in the steps that wait for it, and wakes their runs.
    pub(super) fn tell_awaiters(&mut self, turn: &mut Turn<'_>, run: RunId, outcome: &Outcome) -> Result<(), Fault> {
        if self.awaited.is_empty() || self.config.hooks.plants(Bug::EndUntold) {
            return Ok(());
        }
        let awaiters: Vec<_> =
            self.awaited.range(awaiters_of(run)).map(|(_, waiter, index)| (*waiter, *index)).collect();
        for (waiter, index) in awaiters {
            self.no_longer_awaits(turn, run, waiter, index);
            match self.tell_awaiter(turn, run, (waiter, index), outcome) {
                Err(Fault::Corrupted(row)) => {
                    tracing::error!(run = %waiter, error = %row, "the end of a run can't be told to one that waits for it");
                }
                told => told?,
            }
        }
        Ok(())
    }

    fn tell_awaiter(
        &mut self,
        turn: &mut Turn<'_>,
        ended: RunId,
        (waiter, index): (RunId, u32),
        outcome: &Outcome,
    ) -> Result<(), Fault> {
        let Some(row) = turn.rows().step(waiter, index)? else { return Ok(()) };
        let (record, _) = codec::open::<StepRecord>(Table::Steps, &keys::of_run(waiter, index), &row)?;
        if !awaits(&record, ended) {
            return Ok(());
        }
        if let Some(body) = self.bodies.get_mut(&waiter) {
            body.news = body.news.map(|news| news + 1);
            turn.effects.push(Effect::News(waiter, body.generation, News::Step(index)));
            return self.decide_step(turn, waiter, index, record, outcome);
        }
        let Some(Loaded { record: run, mut state, .. }) = turn.load(waiter)? else { return Ok(()) };
        let status = RunStatus::from_byte(state.status).unwrap_or(RunStatus::Suspended);
        if status.is_terminal() {
            // Nothing is recorded for a run that has ended. Should it be resumed, the step asks again.
            return Ok(());
        }
        let (record, payload, kind) = decided(record, index, outcome, turn);
        let sealed = codec::seal(&record, &payload);
        count_step(turn, &mut state, index, &record, sealed.len());
        turn.stage.change_steps(waiter, Change::Put(index, sealed.into()));
        turn.put_state(waiter, &state, false);
        turn.event(waiter, &self.job_name(run.job), &run, kind);
        if status == RunStatus::Suspended { self.wake(turn, waiter) } else { Ok(()) }
    }

    /// Suspends a run whose body has ended, unless what it waits for has come meanwhile.
    pub(super) fn suspend(
        &mut self,
        turn: &mut Turn<'_>,
        run: RunId,
        body: &Body,
        state: &mut StateRecord,
        suspension: &Suspension,
    ) {
        let record = &body.record;
        // The lease counted a crash that did not come.
        state.crashes = if body.checkpointed { 0 } else { state.crashes.saturating_sub(1) };
        turn.stage.delete(Table::ByStatus, keys::by_status(RunStatus::Leased, run));
        let suspended = EventKind::RunSuspended { until: suspension.due };
        turn.tell(&body.subject, What::Kind(Box::new(suspended)));
        self.tell_engine(turn, EngineEvent::Yielded { run });
        let missed = body.news != Some(suspension.heard) && !self.config.hooks.plants(Bug::NewsForgotten);
        if missed || suspension.due.is_some_and(|due| due <= turn.now) {
            let line = self.woken(turn, run, record, state);
            turn.tell(&body.subject, What::Kind(Box::new(EventKind::RunWoken)));
            self.tell_engine(turn, EngineEvent::Queued(queued(run, &line)));
            return;
        }
        state.status = RunStatus::Suspended.to_byte();
        turn.put_state(run, state, false);
        let sleep = SleepRecord {
            job: record.job,
            keys: record.keys.clone(),
            generation: state.generation,
            due: suspension.due,
            signals: suspension.signals.iter().map(|name| name.to_string()).collect(),
            deadline: deadline_of(record, state),
        };
        turn.stage.put(Table::ByStatus, keys::by_status(RunStatus::Suspended, run), codec::seal(&sleep, &[]));
        self.tell_engine(turn, EngineEvent::Suspended(sleeper(run, &sleep)));
    }

    /// Makes a suspended run pending, first in line, its keys still held.
    pub(super) fn wake(&mut self, turn: &mut Turn<'_>, run: RunId) -> Result<(), Fault> {
        let Some(Loaded { record, mut state, .. }) = turn.load(run)? else { return Ok(()) };
        if state.status != RunStatus::Suspended.to_byte() {
            return Ok(());
        }
        turn.stage.delete(Table::ByStatus, keys::by_status(RunStatus::Suspended, run));
        let line = self.woken(turn, run, &record, &mut state);
        turn.event(run, &self.job_name(record.job), &record, EventKind::RunWoken);
        self.tell_engine(turn, EngineEvent::Queued(queued(run, &line)));
        Ok(())
    }

    /// The rows of a woken run.
    fn woken(&self, turn: &mut Turn<'_>, run: RunId, record: &RunRecord, state: &mut StateRecord) -> LineRecord {
        state.status = RunStatus::Pending.to_byte();
        state.front = true;
        state.updated_at = Some(turn.now);
        let line = LineRecord { holds: true, ..line_of(record, state, false) };
        turn.put_state(run, state, false);
        turn.stage.put(Table::ByStatus, keys::by_status(RunStatus::Pending, run), codec::seal(&line, &[]));
        line
    }

    /// What suspended runs wait for, from their index rows, and the runs that steps wait for.
    pub(super) fn read_sleepers(&mut self, turn: &mut Turn<'_>) -> Result<(), Fault> {
        // There may be very many, so they are not gathered first.
        let (engine, now) = (&mut self.engine, turn.monotonic);
        turn.rows().scan_prefix(Table::ByStatus, &keys::by_status_prefix(RunStatus::Suspended), &mut |key, row| {
            let run = keys::read_run(key).ok_or_else(|| Corrupted::new(Table::ByStatus, key, "not a run id"))?;
            match codec::open::<SleepRecord>(Table::ByStatus, key, &row) {
                Ok((sleep, _)) => {
                    let deadline = sleep.deadline.map(|at| EngineEvent::Deadline { run, at, armed: true });
                    let events = deadline.into_iter().chain([EngineEvent::Suspended(sleeper(run, &sleep))]);
                    events.for_each(|event| engine.apply(event, now));
                }
                Err(row) => tracing::error!(%run, error = %row, "a suspended run can't be woken"),
            }
            Ok(ControlFlow::Continue(()))
        })?;
        let keys = turn.rows().keys(Table::Awaiters, &[])?;
        self.awaited = keys.iter().filter_map(|key| keys::read_awaiter(key)).collect();
        Ok(())
    }
}

/// Those that wait for the end of a run.
pub(super) fn awaiters_of(run: RunId) -> RangeInclusive<(RunId, RunId, u32)> {
    (run, RunId::MIN, 0)..=(run, RunId::MAX, u32::MAX)
}

/// A run, or the last of those that have gone on for it.
pub(super) fn last_of(turn: &Turn<'_>, mut run: RunId) -> Result<Option<(RunId, Loaded)>, Fault> {
    while let Some(loaded) = turn.load(run)? {
        match loaded.state.continued_as {
            Some(next) if loaded.status() == RunStatus::Completed => run = next,
            _ => return Ok(Some((run, loaded))),
        }
    }
    Ok(None)
}

/// Whether a step waits for the end of this run. One that waited for it in an execution whose steps went with its end may wait
/// for another by now.
pub(super) fn awaits(record: &StepRecord, run: RunId) -> bool {
    record.open.as_ref().is_some_and(|open| open.run == Some(run))
}

fn sleeper(run: RunId, sleep: &SleepRecord) -> Sleeper {
    Sleeper { run, job: sleep.job, keys: Keys::of(&sleep.keys), due: sleep.due }
}

fn sleep_of(turn: &Turn<'_>, run: RunId) -> Result<Option<SleepRecord>, Fault> {
    let key = keys::by_status(RunStatus::Suspended, run);
    let Some(row) = turn.rows().get(Table::ByStatus, &key)? else { return Ok(None) };
    Ok(Some(codec::open(Table::ByStatus, &key, &row)?.0))
}

/// The outcome of a step, if it has one.
fn decided_as(record: &StepRecord, output: Bytes) -> Option<Outcome> {
    match (&record.open, &record.error) {
        (Some(_), _) => None,
        (None, Some(error)) => Some(Err(Box::new(error.clone()))),
        (None, None) => Some(Ok(output)),
    }
}

/// A waiting step's record with its outcome: the record, its payload, what is told of it.
fn decided(mut record: StepRecord, index: u32, outcome: &Outcome, turn: &Turn<'_>) -> (StepRecord, Bytes, EventKind) {
    record.open = None;
    record.completed_at = turn.now;
    let step: Arc<str> = record.key.as_str().into();
    match outcome {
        Ok(output) => {
            let duration = turn.now.since(record.started_at);
            let kind = EventKind::StepCompleted { step, index, output: Payload::new(output), duration };
            (record, output.clone(), kind)
        }
        Err(error) => {
            let error = ErrorRecord { step: Some(record.key.clone()), ..ErrorRecord::clone(error) };
            record.error = Some(error.clone());
            (record, Bytes::new(), EventKind::StepFailed { step, index, error: error.into() })
        }
    }
}

/// What is told of a step that begins to wait, or is to be tried again.
fn waiting(record: &StepRecord, index: u32) -> EventKind {
    let (step, open) = (record.key.as_str().into(), record.open.as_ref());
    match (record.tries.last(), open.and_then(|open| open.due)) {
        (Some(tried), Some(until)) => {
            EventKind::StepRetrying { step, index, attempt: tried.number, error: tried.error.clone().into(), until }
        }
        _ => EventKind::StepWaiting { step, index },
    }
}

/// Counts a step's record into its run's state.
fn count_step(turn: &Turn<'_>, state: &mut StateRecord, index: u32, record: &StepRecord, bytes: usize) {
    state.steps_bytes += bytes as u64;
    if record.is_completed() {
        state.steps_completed += 1;
        state.step_index = state.step_index.max(index + 1);
        state.updated_at = Some(turn.now);
    }
}

/// A step fails: if it had its outcome before, as one whose signal does not fit, that counts no more.
#[cold]
pub(super) fn count_back(turn: &Turn<'_>, run: RunId, index: u32, state: &mut StateRecord) -> Result<(), Fault> {
    let is_completed = |index, row: &Bytes| {
        let step = codec::open::<StepRecord>(Table::Steps, &keys::of_run(run, index), row);
        // One that can't be read has the say of whoever asks for it.
        step.is_ok_and(|(step, _)| step.is_completed())
    };
    let before = match turn.rows().step(run, index) {
        Err(Fault::Corrupted(_)) => None,
        before => before?,
    };
    if !before.is_some_and(|row| is_completed(index, &row)) {
        return Ok(());
    }
    state.steps_completed = state.steps_completed.saturating_sub(1);
    if state.step_index > index + 1 {
        return Ok(());
    }
    let mut last = 0;
    let counted = turn.rows().steps(run, &mut |at, row| {
        if at >= index {
            return Ok(ControlFlow::Break(()));
        }
        if is_completed(at, &row) {
            last = at + 1;
        }
        Ok(ControlFlow::Continue(()))
    });
    state.step_index = last;
    match counted {
        Err(Fault::Corrupted(_)) => Ok(()),
        counted => counted,
    }
}

fn failure(kind: ErrorKind, message: String) -> Box<ErrorRecord> {
    Box::new(JobError::of_kind(kind, message).into_record())
}

/// What a step that waits for a run fails with if that was cancelled.
pub(super) fn cancelled(run: RunId) -> Box<ErrorRecord> {
    failure(ErrorKind::ChildCancelled, format!("run {run} was cancelled"))
}

/// What a step that waits for a run fails with if that failed.
pub(super) fn failed(run: RunId, error: Option<&ErrorRecord>) -> Box<ErrorRecord> {
    let mut record = failure(ErrorKind::ChildFailed, format!("run {run} failed"));
    if let Some(error) = error {
        record.chain = std::iter::once(&error.message).chain(&error.chain).cloned().collect();
        record.terminal = error.terminal;
    }
    record
}
