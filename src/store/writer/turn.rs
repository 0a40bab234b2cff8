//! One group while it is being built.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Start;
use super::publisher::Rest;
use crate::codec::records::{RunRecord, StateRecord};
use crate::codec::{self, Corrupted, keys};
use crate::engine::{Generation, JobNumber};
use crate::event::{Ended, EventKind, Subject, Told, What};
use crate::id::RunId;
use crate::run::RunStatus;
use crate::store::Fault;
use crate::store::journal::Row;
use crate::store::op;
use crate::store::stage::Stage;
use crate::store::tables::Table;
use crate::store::tail::LiveChange;
use crate::store::view::{Rows, Staged, View};
use crate::time::Timestamp;

/// What is done once the group is on disk.
#[derive(Debug)]
pub(super) enum Effect {
    Start(Arc<Start>),
    Cancel(RunId, Generation),
    News(RunId, Generation, op::News),
    /// A body is known to be gone.
    Stopped(RunId, Generation),
}

impl Effect {
    /// Whether it wakes what a body awaits, by a waker that may be the body's own.
    pub(super) fn may_run_foreign_code(&self) -> bool {
        matches!(self, Effect::Cancel(..) | Effect::News(..))
    }
}

pub(super) struct Turn<'v> {
    view: &'v View<'v>,
    pub(super) stage: Stage,
    pub(super) now: Timestamp,
    pub(super) monotonic: Duration,
    pub(super) effects: Vec<Effect>,
    /// Runs that it starts, those that replay counted several times.
    pub(super) starts: usize,
    pub(super) live: Vec<(RunId, LiveChange)>,
    pub(super) tallied: BTreeSet<JobNumber>,
    pub(super) ends: Vec<(RunId, Ended)>,
    events: Vec<Told>,
    next_sequence: u64,
}

/// A group that is built: what to commit and what to publish then.
pub(super) struct Done {
    pub(super) stage: Stage,
    pub(super) news: News,
    /// What is left to be told, where the rest was told when it got to disk.
    pub(super) told: Option<Rest>,
    pub(super) live: Vec<(RunId, LiveChange)>,
    pub(super) ends: Vec<(RunId, Ended)>,
}

/// What is told of a group.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) events: Vec<Told>,
    /// Where the records lie that they tell of, once the group is on disk.
    pub(super) row: Bytes,
    pub(super) effects: Vec<Effect>,
}

/// Memory that groups use one after the other. Large pieces that come and go make allocators walk their heaps.
#[derive(Debug, Default)]
pub(super) struct Spare {
    stage: Stage,
    events: Vec<Told>,
    effects: Vec<Effect>,
    ends: Vec<(RunId, Ended)>,
    live: Vec<(RunId, LiveChange)>,
}

impl News {
    /// The group is on disk, as this row: what its steps tell is told from there. Without the row at hand, it is copied.
    pub(super) fn recorded(&mut self, stage: &Stage, row: Option<&Row>) {
        let steps = stage.steps().len();
        let (mut tells, mut copied) = (false, Vec::new());
        for event in &mut self.events {
            if let What::Staged { index, duration, at } = event.what {
                let place = row.and_then(|row| row.step(steps, at)).unwrap_or_else(|| {
                    let from = copied.len();
                    copied.extend_from_slice(stage.record(at));
                    from..copied.len()
                });
                // A row is shorter than 4 GiB: what goes into it is bounded, and large values lie elsewhere.
                let (at, bytes) = (place.start as u32, place.len() as u32);
                event.what = What::Recorded { index, duration, at, bytes };
                tells = true;
            }
        }
        // A row that nothing is told from is not kept for its events.
        if tells {
            self.row = row.map_or_else(|| copied.into(), |row| row.bytes.clone());
        }
    }
}

impl Done {
    /// What is left once everything is published.
    pub(super) fn into_spare(self) -> Spare {
        let Done { mut stage, news: News { mut events, mut effects, .. }, mut ends, mut live, .. } = self;
        stage.clear();
        events.clear();
        effects.clear();
        ends.clear();
        live.clear();
        Spare { stage, events, effects, ends, live }
    }

    /// How many sequence numbers the group takes.
    pub(super) fn sequences(&self) -> u64 {
        if self.stage.is_empty() { 0 } else { self.news.events.len() as u64 }
    }
}

/// A run's rows.
#[derive(Debug, Clone)]
pub(super) struct Loaded {
    pub(super) record: Arc<RunRecord>,
    pub(super) input: Bytes,
    pub(super) state: StateRecord,
    /// The output that stands with the state; empty where there is none.
    pub(super) output: Bytes,
}

impl Loaded {
    pub(super) fn status(&self) -> RunStatus {
        // A number that no build knows reads as the state that nothing is done to by itself.
        RunStatus::from_byte(self.state.status).unwrap_or(RunStatus::Suspended)
    }
}

impl<'v> Turn<'v> {
    pub(super) fn new(view: &'v View<'v>, next_sequence: u64, now: Timestamp, monotonic: Duration) -> Self {
        Self::with(Spare::default(), view, next_sequence, now, monotonic)
    }

    /// A turn that uses the memory of an earlier one.
    pub(super) fn with(
        spare: Spare,
        view: &'v View<'v>,
        next_sequence: u64,
        now: Timestamp,
        monotonic: Duration,
    ) -> Self {
        let Spare { stage, events, effects, ends, live } = spare;
        Turn {
            view,
            stage,
            now,
            monotonic,
            effects,
            starts: 0,
            live,
            tallied: BTreeSet::new(),
            ends,
            events,
            next_sequence,
        }
    }

    pub(super) fn done(self) -> Done {
        let Turn { stage, mut events, effects, live, ends, next_sequence, .. } = self;
        if stage.is_empty() {
            // Nothing is written, so there is no row to carry sequences: these events are told like uncommitted ones.
            for event in &mut events {
                (event.committed, event.sequence) = (false, next_sequence - 1);
            }
        }
        Done { stage, news: News { events, row: Bytes::new(), effects }, told: None, live, ends }
    }

    /// The file as it will be with this group.
    pub(super) fn rows(&self) -> Staged<'_, 'v> {
        self.view.with(&self.stage)
    }

    pub(super) fn load(&self, run: RunId) -> Result<Option<Loaded>, Fault> {
        self.load_as(run, false)
    }

    /// Loads a run; its state is not looked for where it is `untouched`.
    pub(super) fn load_as(&self, run: RunId, untouched: bool) -> Result<Option<Loaded>, Fault> {
        let key = run.as_bytes();
        let Some(bytes) = self.rows().get(Table::Runs, key)? else { return Ok(None) };
        let (record, input) = codec::open(Table::Runs, key, &bytes)?;
        let (state, output) = if untouched { Default::default() } else { self.state(run)? };
        Ok(Some(Loaded { record: Arc::new(record), input, state, output }))
    }

    fn state(&self, run: RunId) -> Result<(StateRecord, Bytes), Fault> {
        match self.rows().get(Table::States, run.as_bytes())? {
            Some(bytes) => Ok(codec::open(Table::States, run.as_bytes(), &bytes)?),
            None => Ok(Default::default()),
        }
    }

    /// Of the runs that have not ended, those whose state says that they are leased, or can't be read here.
    pub(super) fn maybe_leased(&self) -> Result<Vec<RunId>, Fault> {
        /// So many states of others are passed by before the next run's is looked for by its key.
        const PASSED_MAX: usize = 16;
        let mut open = Vec::new();
        self.rows().scan_prefix(Table::ByStatus, &keys::by_status_prefix(RunStatus::Leased), &mut |key, _| {
            open.extend(keys::read_run(key));
            Ok(ControlFlow::Continue(()))
        })?;
        let mut leased = Vec::new();
        let mut open = open.into_iter().peekable();
        while let Some(next) = open.peek().copied() {
            let mut passed = 0;
            let from = (Bound::Included(&next.as_bytes()[..]), Bound::Unbounded);
            self.view.stored_in(Table::States, from, &mut |key, row| {
                let Some(run) = keys::read_run(key) else { return Ok(ControlFlow::Continue(())) };
                while open.next_if(|open| *open < run).is_some() {}
                if open.next_if_eq(&run).is_none() {
                    passed += 1;
                } else {
                    passed = 0;
                    match codec::open::<StateRecord>(Table::States, key, &row) {
                        Ok((state, _)) if state.status != RunStatus::Leased.to_byte() => {}
                        _ => leased.push(run),
                    }
                }
                let go_on = passed < PASSED_MAX && open.peek().is_some();
                Ok(if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            if passed < PASSED_MAX {
                // The states end before the next run: nothing was ever done to it, nor to those after it.
                break;
            }
        }
        Ok(leased)
    }

    /// The run that holds an idempotency key.
    pub(super) fn holder(&self, job: JobNumber, key: &str) -> Result<Option<RunId>, Fault> {
        let key = keys::idempotency(job, key);
        let Some(row) = self.rows().get(Table::Idempotency, &key)? else { return Ok(None) };
        let run = RunId::from_slice(&row).ok_or_else(|| Corrupted::new(Table::Idempotency, &key, "not a run id"))?;
        Ok(Some(run))
    }

    /// Whether a run is created by this group: what a read of before the group would not show.
    pub(super) fn creates(&self, run: RunId) -> bool {
        self.view.get(Table::Runs, run.as_bytes()).is_ok_and(|row| row.is_none())
    }

    /// Writes a run's state. `fresh`: it never had one.
    pub(super) fn put_state(&mut self, run: RunId, state: &StateRecord, fresh: bool) {
        let value = codec::seal(state, &[]);
        if fresh {
            self.stage.insert(Table::States, keys::run(run), value);
        } else {
            self.stage.put(Table::States, keys::run(run), value);
        }
    }

    /// Writes the state of a run that has ended, with its output if that stands there.
    pub(super) fn put_ended(&mut self, run: RunId, state: &StateRecord, output: &[u8]) {
        self.stage.put(Table::States, keys::run(run), codec::seal(state, output));
    }

    /// Adds an event of this commit.
    pub(super) fn tell(&mut self, subject: &Arc<Subject>, what: What) {
        self.events.push(Told {
            sequence: self.next_sequence + self.events.len() as u64,
            committed: true,
            timestamp: self.now,
            subject: subject.clone(),
            what,
        });
    }

    /// Adds an event of this commit about a run that does not execute.
    pub(super) fn event(&mut self, run: RunId, job_name: &Arc<str>, record: &RunRecord, kind: EventKind) {
        self.tell(&subject(run, job_name, record), What::Kind(Box::new(kind)));
    }
}

/// Whom the events of a run are about.
pub(super) fn subject(run: RunId, job_name: &Arc<str>, record: &RunRecord) -> Arc<Subject> {
    Subject::new(run, job_name.clone(), &record.labels)
}
