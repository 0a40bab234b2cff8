//! Engine and bodies, rebuilt from the file: at open, and after the file was reopened.
//!
//! At open, runs that were leased crashed with the last process and become pending. After a reopening, the bodies that are
//! alive keep their leases, and no crash is counted: the fault was ours.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use super::execution::{body_of, deadline_of, line_of};
use super::triggers::queued;
use super::turn::{Loaded, Turn};
use super::{Alive, Body, Fault, Places, Writer, waits};
use crate::codec::records::{ErrorRecord, JobRecord, LineRecord, StateRecord, StepRecord, TallyRecord};
use crate::codec::{self, Corrupted, keys};
use crate::engine::{Engine, Event as EngineEvent, Generation, JobNumber, Place, Queued, Recovered, recover};
use crate::event::EventKind;
use crate::hooks::{Bug, Failpoint};
use crate::id::{IdSource, RunId};
use crate::job::ErrorKind;
use crate::run::RunStatus;
use crate::store::tables::Table;
use crate::store::tail::LiveChange;
use crate::store::view::{Direction, Rows};

/// What a run's checkpoints add up to.
#[derive(Debug, Default)]
struct Sum {
    completed: u32,
    index: u32,
    bytes: u64,
    /// The lease that recorded the last of them.
    generation: u64,
}

/// Runs that have crashed too often, each with what it fails with.
type GivenUp = Vec<(RunId, ErrorRecord)>;

impl Writer {
    /// Drops the engine's state and reads it from the file again.
    pub(super) fn rebuild(&mut self) -> Result<(), Fault> {
        let shared = self.disk.shared().clone();
        let view = shared.view()?;
        let mut turn = Turn::new(&view, self.disk.next_sequence(), self.clock.now(), self.clock.monotonic());
        let engine = Engine::new(self.config.slots, self.paused && !self.working_off);
        // The new one has them at once: what is read from here on may fail, and they are in no file.
        let waits = std::mem::replace(&mut self.engine, engine).waits();
        self.engine.keep_waits(waits);
        self.bodies.clear();
        self.places = Places::default();
        self.awaited.clear();
        turn.live.extend(view.all_executing().map(|run| (run, LiveChange::Ended)));
        self.ids = IdSource::new(self.disk.last_id().max(self.ids.last()), self.config.seed);
        self.read_names(&mut turn)?;
        self.engine.tell_time(turn.now);
        self.read_throttles(&mut turn)?;
        for (job, terms) in self.jobs.registered.clone() {
            self.tell_terms(&mut turn, job, terms);
        }
        self.adopt_alive(&mut turn)?;
        self.engine.forget_waits_of_others();
        let (leased, poisoned) = self.recover_leased(&mut turn)?;
        self.read_sleepers(&mut turn)?;
        self.read_schedules(&mut turn)?;
        self.queue_pending(&mut turn, &leased)?;
        // Now that it is known who waits for them, and where those stand.
        for (run, error) in poisoned {
            self.tell_awaiters(&mut turn, run, &Err(waits::failed(run, Some(&error))))?;
        }
        self.write_tallies(&mut turn);
        let mut done = turn.done();
        drop(view);
        let mut live = std::mem::take(&mut done.live);
        self.config.hooks.pass(Failpoint::Rebuilt);
        if done.stage.is_empty() {
            self.disk.set_live(live);
        } else {
            self.disk.commit(&done.stage, done.sequences(), self.ids.last(), &mut live, |_| ())?;
        }
        self.config.hooks.pass(Failpoint::Recovered);
        let mut nobody = Vec::new();
        let rest = self.publisher.tell(&mut done.news, done.stage.bytes(), self.disk.next_sequence() - 1, &mut nobody);
        self.publisher.tell_rest(rest, &mut done.news, &done.ends, &mut nobody);
        Ok(())
    }

    fn read_names(&mut self, turn: &mut Turn<'_>) -> Result<(), Fault> {
        let jobs = &mut self.jobs;
        (jobs.names, jobs.numbers, jobs.nameless) = Default::default();
        let mut unreadable = false;
        turn.rows().scan_prefix(Table::Jobs, &[], &mut |key, row| {
            let name = std::str::from_utf8(key).map_err(|_| Corrupted::new(Table::Jobs, key, "not text"));
            match name.and_then(|name| Ok((name, codec::open::<JobRecord>(Table::Jobs, key, &row)?.0))) {
                Ok((name, record)) => jobs.add(name.into(), record.number),
                Err(row) => {
                    // The runs of that job wait without a name; those of others do not wait for them.
                    tracing::error!(error = %row, "a job's name can't be read");
                    unreadable = true;
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if unreadable {
            let last = turn.rows().first(Table::ByJob, (Bound::Unbounded, Bound::Unbounded), Direction::Backward)?;
            let number = last.and_then(|(key, _)| Some(JobNumber::from_be_bytes(key.get(..4)?.try_into().ok()?)));
            jobs.nameless = number.unwrap_or_default();
        }
        // A registration that was lost with its commit is not registered; whoever asked for it is told or asks again.
        jobs.registered.retain(|job, _| jobs.names.contains_key(job));
        let tallies = &mut self.tallies;
        tallies.clear();
        let counted = turn.rows().scan_prefix(Table::Tallies, &[], &mut |key, row| {
            let (tally, _) = codec::open::<TallyRecord>(Table::Tallies, key, &row)?;
            let job = key.try_into().map_err(|_| Corrupted::new(Table::Tallies, key, "not a job's number"))?;
            tallies.insert(JobNumber::from_be_bytes(job), tally);
            Ok(ControlFlow::Continue(()))
        });
        match counted {
            Err(Fault::Corrupted(row)) => {
                tracing::error!(error = %row, "ended runs are counted anew");
                self.recount(turn)
            }
            counted => counted,
        }
    }

    /// Counts what has ended by looking at it.
    fn recount(&mut self, turn: &mut Turn<'_>) -> Result<(), Fault> {
        self.tallies.clear();
        for status in RunStatus::ALL.into_iter().filter(|status| status.is_terminal()) {
            for key in turn.rows().keys(Table::ByStatus, &keys::by_status_prefix(status))? {
                let Some(run) = keys::read_run(&key) else { continue };
                match turn.load(run) {
                    Ok(Some(loaded)) => self.tally(turn, loaded.record.job, status, 1),
                    Ok(None) | Err(Fault::Corrupted(_)) => {}
                    Err(fault) => return Err(fault),
                }
            }
        }
        Ok(())
    }

    /// Bodies that live on keep their leases, with key and slot.
    fn adopt_alive(&mut self, turn: &mut Turn<'_>) -> Result<(), Fault> {
        let mut alive: Vec<_> = self.publisher.alive.iter().map(|(run, alive)| (*run, alive.clone())).collect();
        alive.sort_unstable_by_key(|(run, _)| *run);
        for (run, Alive { generation, job, keys }) in alive {
            let body = match self.body_on_file(turn, run, generation) {
                Err(Fault::Corrupted(row)) => {
                    tracing::error!(%run, error = %row, "what an executing run writes is refused from here on");
                    None
                }
                body => body?,
            };
            let crashes = body.as_ref().filter(|body| !body.checkpointed).map_or(0, |body| body.state.crashes);
            let place = Place::new(true, run);
            let (touched, holds, not_before) = (false, true, None);
            let queued = Queued { run, job, keys, place, generation, crashes, touched, holds, not_before };
            self.engine.adopt(&queued, body.is_none(), turn.monotonic);
            if let Some(body) = body {
                turn.live.push((run, LiveChange::Began(body.place, body.counters())));
                self.arm(turn, run, deadline_of(&body.record, &body.state));
                self.bodies.insert(run, Box::new(body));
            }
        }
        Ok(())
    }

    /// A body as the file has it, if its lease is in force there. It may be deleted even, while its body is still stopping.
    fn body_on_file(&mut self, turn: &Turn<'_>, run: RunId, generation: Generation) -> Result<Option<Body>, Fault> {
        let Some(loaded) = turn.load(run)? else { return Ok(None) };
        if loaded.status() != RunStatus::Leased || loaded.state.generation != generation {
            return Ok(None);
        }
        let (loaded, sum) = summed(turn, run, loaded)?;
        let (job_name, place) = (self.job_name(loaded.record.job), self.places.take());
        Ok(Some(body_of(run, &job_name, &loaded, sum.generation == generation, place)))
    }

    /// Leased runs without a body crashed with their process. Gives those that stay leased, and those that are given up.
    fn recover_leased(&mut self, turn: &mut Turn<'_>) -> Result<(BTreeSet<RunId>, GivenUp), Fault> {
        let (mut stay, mut poisoned) = (BTreeSet::new(), Vec::new());
        for run in turn.maybe_leased()? {
            if self.publisher.alive.contains_key(&run) {
                stay.insert(run);
                continue;
            }
            let loaded = turn.load(run).and_then(|loaded| loaded.map(|loaded| summed(turn, run, loaded)).transpose());
            match loaded {
                Ok(Some((loaded, _))) if loaded.status() != RunStatus::Leased => continue,
                Ok(Some((loaded, sum))) => {
                    poisoned.extend(self.recover_one(turn, run, loaded, &sum)?.map(|error| (run, error)));
                    continue;
                }
                Ok(None) => tracing::error!(%run, "a leased run has no row"),
                Err(Fault::Corrupted(row)) => tracing::error!(%run, error = %row, "a leased run can't be recovered"),
                Err(fault) => return Err(fault),
            }
            stay.insert(run);
        }
        Ok((stay, poisoned))
    }

    /// Gives what it fails with, if it is given up. Who waits for it is told later.
    fn recover_one(
        &mut self,
        turn: &mut Turn<'_>,
        run: RunId,
        loaded: Loaded,
        sum: &Sum,
    ) -> Result<Option<ErrorRecord>, Fault> {
        let Loaded { record, mut state, .. } = loaded;
        let name = self.job_name(record.job);
        state.recoveries += 1;
        let got_on = sum.generation == state.generation && !self.config.hooks.plants(Bug::CrashesNeverForgotten);
        match recover(state.crashes, got_on, self.config.max_recoveries) {
            Recovered::Pending { crashes } => {
                state.status = RunStatus::Pending.to_byte();
                state.crashes = crashes;
                let front = !self.config.hooks.plants(Bug::RecoveredGoLast);
                state.front = front;
                let ticket = if front { None } else { Some(self.ids.next(turn.now)) };
                let line = LineRecord { ticket, ..line_of(&record, &state, false) };
                turn.put_state(run, &state, false);
                turn.stage.delete(Table::ByStatus, keys::by_status(RunStatus::Leased, run));
                turn.stage.put(Table::ByStatus, keys::by_status(RunStatus::Pending, run), codec::seal(&line, &[]));
                turn.event(run, &name, &record, EventKind::RunReleased { crashed: true });
                Ok(None)
            }
            Recovered::Poisoned { crashes } => {
                let message = format!("the process ended {crashes} times in a row while this run executed");
                let error = ErrorRecord {
                    kind: ErrorKind::Poisoned.to_byte(),
                    message,
                    chain: Vec::new(),
                    step: None,
                    terminal: true,
                };
                state.error = Some(error.clone());
                self.end_rows(turn, run, &record, &mut state, RunStatus::Leased, RunStatus::Failed)?;
                turn.event(run, &name, &record, EventKind::RunFailed { error: error.clone().into() });
                Ok(Some(error))
            }
        }
    }

    fn queue_pending(&mut self, turn: &mut Turn<'_>, leased: &BTreeSet<RunId>) -> Result<(), Fault> {
        let mut lines = Vec::new();
        turn.rows().scan_prefix(Table::ByStatus, &keys::by_status_prefix(RunStatus::Pending), &mut |key, row| {
            let run = keys::read_run(key).ok_or_else(|| Corrupted::new(Table::ByStatus, key, "not a run id"))?;
            if leased.contains(&run) {
                return Ok(ControlFlow::Continue(()));
            }
            match codec::open::<LineRecord>(Table::ByStatus, key, &row) {
                // Also what was put aside: the code may be another one now, so it is tried again.
                Ok((mut line, _)) => {
                    if self.config.hooks.plants(Bug::LimitGrowsOnRestart) {
                        line.keys.iter_mut().for_each(|(_, limit)| *limit += 1);
                    }
                    lines.push((queued(run, &line), line.deadline));
                }
                Err(row) => tracing::error!(%run, error = %row, "a pending run can't be put in line"),
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if self.config.hooks.plants(Bug::WakeUpLostOnRestart) {
            lines.pop();
        }
        for (line, deadline) in lines {
            self.arm(turn, line.run, deadline);
            match self.goes_on_for(turn, &line) {
                Some(run) => self.tell_engine(turn, EngineEvent::Continued { run, next: line }),
                None => self.tell_engine(turn, EngineEvent::Queued(line)),
            }
        }
        Ok(())
    }

    /// The run whose body has not stopped and for which a pending one goes on: the key is to be handed over then.
    fn goes_on_for(&self, turn: &Turn<'_>, line: &Queued) -> Option<RunId> {
        if !line.holds || line.generation > 0 || self.publisher.alive.is_empty() {
            return None;
        }
        let record = turn.load(line.run).ok().flatten()?.record;
        record.continued_from.filter(|run| self.publisher.alive.contains_key(run))
    }

    pub(super) fn job_name(&self, job: JobNumber) -> Arc<str> {
        self.jobs.names.get(&job).cloned().unwrap_or_else(|| "".into())
    }
}

/// A run's state with the counters that its checkpoints add up to.
fn summed(turn: &Turn<'_>, run: RunId, mut loaded: Loaded) -> Result<(Loaded, Sum), Fault> {
    let mut sum = Sum::default();
    let mut last: Option<StepRecord> = None;
    turn.rows().steps(run, &mut |index, row| {
        sum.bytes += row.len() as u64;
        let (step, _) = codec::open::<StepRecord>(Table::Steps, &keys::of_run(run, index), &row)?;
        if step.is_completed() {
            sum.completed += 1;
            sum.index = index + 1;
        }
        sum.generation = sum.generation.max(step.generation);
        last = Some(step);
        Ok(ControlFlow::Continue(()))
    })?;
    let state: &mut StateRecord = &mut loaded.state;
    (state.steps_completed, state.step_index, state.steps_bytes) = (sum.completed, sum.index, sum.bytes);
    if let Some(at) = last.map(|step| step.completed_at) {
        state.updated_at = state.updated_at.max(Some(at));
    }
    Ok((loaded, sum))
}
