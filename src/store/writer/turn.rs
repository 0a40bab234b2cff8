//! One group while it is being built.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Start;
use crate::codec::records::{RunRecord, StateRecord};
use crate::codec::{self, Corrupted, keys};
use crate::engine::{Generation, JobNumber};
use crate::event::{Ended, EventKind, Subject, Told, What};
use crate::id::RunId;
use crate::run::RunStatus;
use crate::store::Fault;
use crate::store::journal::Row;
use crate::store::op::News;
use crate::store::stage::Stage;
use crate::store::tables::Table;
use crate::store::tail::Live;
use crate::store::view::{Rows, Staged, View};
use crate::time::Timestamp;

/// What is done once the group is on disk.
#[derive(Debug)]
pub(super) enum Effect {
    Start(Box<Start>),
    Cancel(RunId, Generation),
    News(RunId, Generation, News),
    /// A body is known to be gone.
    Stopped(RunId, Generation),
}

pub(super) struct Turn<'v> {
    view: &'v View<'v>,
    pub(super) stage: Stage,
    pub(super) now: Timestamp,
    pub(super) monotonic: Duration,
    pub(super) effects: Vec<Effect>,
    pub(super) live: Vec<(RunId, Option<Live>)>,
    pub(super) tallied: BTreeSet<JobNumber>,
    pub(super) ends: Vec<(RunId, Ended)>,
    events: Vec<Told>,
    next_sequence: u64,
}

/// A group that is built: what to commit and what to publish then.
pub(super) struct Done {
    pub(super) stage: Stage,
    pub(super) events: Vec<Told>,
    pub(super) effects: Vec<Effect>,
    pub(super) live: Vec<(RunId, Option<Live>)>,
    pub(super) ends: Vec<(RunId, Ended)>,
}

/// Memory that groups use one after the other. Large pieces that come and go make allocators walk their heaps.
#[derive(Debug, Default)]
pub(super) struct Spare {
    stage: Stage,
    events: Vec<Told>,
    effects: Vec<Effect>,
}

impl Done {
    /// What is left once everything is published.
    pub(super) fn into_spare(self) -> Spare {
        let Done { mut stage, mut events, mut effects, .. } = self;
        stage.clear();
        events.clear();
        effects.clear();
        Spare { stage, events, effects }
    }

    /// The group is on disk as this row: what its steps tell is told from there.
    pub(super) fn recorded(&mut self, row: &Row) {
        let puts = row.steps().flatten().count();
        let held = row.bytes.len() / puts.max(1);
        let mut records = row.steps().flatten();
        for event in &mut self.events {
            if let What::Checkpoint(told) = &event.what
                // One that is too large for a row of the journal stands there as a reference.
                && let Some(record) = records.next().filter(|record| record[..] == told.record[..])
            {
                event.what = What::Recorded { index: told.index, duration: told.duration, record, held };
            }
        }
    }

    /// How many sequence numbers the group takes.
    pub(super) fn sequences(&self) -> u64 {
        if self.stage.is_empty() { 0 } else { self.events.len() as u64 }
    }
}

/// A run's rows.
#[derive(Debug, Clone)]
pub(super) struct Loaded {
    pub(super) record: Arc<RunRecord>,
    pub(super) input: Bytes,
    pub(super) state: StateRecord,
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
        let Spare { stage, events, effects } = spare;
        Turn {
            view,
            stage,
            now,
            monotonic,
            effects,
            live: Vec::new(),
            tallied: BTreeSet::new(),
            ends: Vec::new(),
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
        Done { stage, events, effects, live, ends }
    }

    /// The file as it will be with this group.
    pub(super) fn rows(&self) -> Staged<'_, 'v> {
        self.view.with(&self.stage)
    }

    pub(super) fn load(&self, run: RunId) -> Result<Option<Loaded>, Fault> {
        let key = run.as_bytes();
        let Some(bytes) = self.rows().get(Table::Runs, key)? else { return Ok(None) };
        let (record, input) = codec::open(Table::Runs, key, &bytes)?;
        Ok(Some(Loaded { record: Arc::new(record), input, state: self.state(run)? }))
    }

    pub(super) fn state(&self, run: RunId) -> Result<StateRecord, Fault> {
        match self.rows().get(Table::States, run.as_bytes())? {
            Some(bytes) => Ok(codec::open::<StateRecord>(Table::States, run.as_bytes(), &bytes)?.0),
            None => Ok(StateRecord::default()),
        }
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
    Subject::new(run, job_name.clone(), Arc::new(record.labels.iter().cloned().collect()))
}
