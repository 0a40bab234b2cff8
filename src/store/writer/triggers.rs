//! Creating runs: idempotency first, then the concurrency key, then the rows.
//!
//! Every item of a trigger is decided before any of them is written, so that a batch is created whole or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::turn::{Loaded, Turn};
use super::{Fault, Writer};
use crate::codec::records::{JobRecord, LineRecord, RunRecord, StateRecord};
use crate::codec::{self, keys};
use crate::engine::{Event as EngineEvent, JobNumber, Keys, Place, Queued, Throttled};
use crate::error::Error;
use crate::event::{EventKind, Payload};
use crate::hooks::Bug;
use crate::id::RunId;
use crate::run::RunStatus;
use crate::store::op::{Forked, Idempotency, JobSpec, NewRun, Terms, Triggered};
use crate::store::steps::Change;
use crate::store::tables::Table;
use crate::time::Timestamp;
use crate::trigger::{Disposition, OnConflict};

/// What is to become of an item.
pub(super) enum Decision {
    /// This run has the idempotency key.
    Repeat {
        run: RunId,
        status: RunStatus,
        input_differs: bool,
    },
    /// An earlier item of the same batch has it.
    RepeatOfItem {
        item: usize,
        input_differs: bool,
    },
    /// This run waits for the concurrency key.
    Coalesce {
        waiting: Box<(RunId, Loaded)>,
    },
    /// An earlier item of the same batch does.
    CoalesceWithItem {
        item: usize,
    },
    Create {
        replaces: Option<Replaced>,
    },
}

pub(super) enum Replaced {
    Run(Box<(RunId, Place, Loaded)>),
    Item(usize),
}

impl Replaced {
    fn keys<'a>(&'a self, items: &'a [NewRun]) -> &'a [(String, u32)] {
        match self {
            Replaced::Run(run) => &run.2.record.keys,
            Replaced::Item(at) => items[*at].keys(),
        }
    }
}

/// Where an item that creates is to stand, and which item it is. A ticket that is not given yet comes after all that are; of
/// several such, that of the earlier item first.
type Standing = ((Place, usize), usize);

/// What the items of a batch that are decided already come to, for those after them.
#[derive(Default)]
struct Earlier<'a> {
    /// The newest item that creates, by its idempotency key.
    by_key: BTreeMap<(JobNumber, &'a str), usize>,
    /// Those that create and are not replaced, by their concurrency keys, in the order of their places.
    waiting: BTreeMap<(JobNumber, &'a str), BTreeSet<Standing>>,
    /// The places of all that create and have concurrency keys.
    places: BTreeMap<usize, (Place, usize)>,
    /// By how many runs they change what waits for a key, where an item has a bound on that.
    backlog: Option<BTreeMap<String, isize>>,
    replaced_runs: BTreeSet<RunId>,
    /// By key, a place from which on all are replaced.
    replaced_from: BTreeMap<(JobNumber, &'a str), Place>,
    replaced_items: BTreeSet<usize>,
}

impl<'a> Earlier<'a> {
    fn of(items: &[NewRun]) -> Self {
        let bounded = items.iter().filter_map(|item| item.concurrency.as_ref()).any(|other| other.max_queued.is_some());
        Earlier { backlog: bounded.then(BTreeMap::new), ..Earlier::default() }
    }

    /// An item creates a run, and that takes the place of one which stands in line, or of one which does not.
    fn creates(
        &mut self,
        items: &'a [NewRun],
        (at, job): (usize, JobNumber),
        replaces: Option<&Replaced>,
        in_line: (bool, bool),
    ) {
        let item = &items[at];
        if let Some(backlog) = &mut self.backlog {
            let mut add = |keys: &[(String, u32)], by| {
                keys.iter().for_each(|(key, _)| *backlog.entry(key.clone()).or_default() += by);
            };
            add(item.keys(), isize::from(in_line.0));
            add(replaces.map_or(&[], |replaced| replaced.keys(items)), -isize::from(in_line.1));
        }
        if let Some(idempotency) = &item.idempotency {
            self.by_key.insert((job, &idempotency.key), at);
        }
        let (ticket, order) = match replaces {
            Some(Replaced::Run(run)) => {
                self.replaced_runs.insert(run.0);
                // It was the last of all that wait for any of these.
                for (key, _) in item.keys() {
                    let from = self.replaced_from.entry((job, key)).or_insert(run.1);
                    *from = run.1.min(*from);
                }
                (run.1.ticket(), 0)
            }
            Some(Replaced::Item(other)) => {
                self.replaced_items.insert(*other);
                self.leaves(items, *other, job)
            }
            None => (RunId::MAX, at),
        };
        let place = (Place::new(false, ticket).with(item.priority), order);
        if !item.keys().is_empty() {
            self.places.insert(at, place);
        }
        for (key, _) in item.keys() {
            self.waiting.entry((job, key)).or_default().insert((place, at));
        }
    }

    /// An item is replaced by one of the same job; gives its ticket.
    fn leaves(&mut self, items: &'a [NewRun], at: usize, job: JobNumber) -> (RunId, usize) {
        let place = self.places.get(&at).copied().unwrap_or((Place::new(false, RunId::MAX), at));
        for (key, _) in items[at].keys() {
            if let Some(waiting) = self.waiting.get_mut(&(job, key.as_str())) {
                waiting.remove(&(place, at));
            }
        }
        (place.0.ticket(), place.1)
    }
}

impl Writer {
    /// Gives every job its number and the engine its terms.
    pub(super) fn register(&mut self, turn: &mut Turn<'_>, specs: &[JobSpec]) {
        for spec in specs {
            let number = self.job_number(turn, &spec.name);
            self.jobs.registered.insert(number, spec.terms);
            self.tell_terms(turn, number, spec.terms);
        }
    }

    pub(super) fn tell_terms(&mut self, turn: &mut Turn<'_>, job: JobNumber, terms: Terms) {
        let Terms { limit, rate, fair } = terms;
        // Held back before it is let go.
        self.tell_engine(turn, EngineEvent::Rated(Throttled::Job(job), rate));
        self.tell_engine(turn, EngineEvent::TakesTurns { job, fair });
        self.tell_engine(turn, EngineEvent::Registered { job, limit });
    }

    /// The number of a job's name, given now if it has none.
    pub(super) fn job_number(&mut self, turn: &mut Turn<'_>, name: &Arc<str>) -> JobNumber {
        if let Some(number) = self.jobs.numbers.get(name) {
            return *number;
        }
        let last = self.jobs.names.last_key_value().map_or(0, |(last, _)| *last);
        let number = last.max(self.jobs.nameless) + 1;
        let record = codec::seal(&JobRecord { number }, &[]);
        turn.stage.insert(Table::Jobs, name.as_bytes(), record);
        self.jobs.add(name.clone(), number);
        number
    }

    pub(super) fn trigger(
        &mut self,
        turn: &mut Turn<'_>,
        items: &[NewRun],
    ) -> Result<Result<Vec<Triggered>, Error>, Fault> {
        let jobs: Vec<JobNumber> = items.iter().map(|item| self.job_number(turn, &item.job)).collect();
        let decisions = match self.decide_all(turn, items, &jobs)? {
            Ok(decisions) => decisions,
            Err(error) => return Ok(Err(error)),
        };
        for table in [Table::Runs, Table::ByJob, Table::ByStatus] {
            turn.stage.reserve(table, items.len());
        }
        let mut answers: Vec<Triggered> = Vec::with_capacity(items.len());
        let mut replaced = BTreeSet::new();
        for ((item, job), decision) in items.iter().zip(jobs).zip(decisions) {
            if let Decision::Create { replaces: Some(other) } = &decision {
                replaced.insert(match other {
                    Replaced::Run(run) => run.0,
                    Replaced::Item(at) => answers[*at].run,
                });
            }
            let answer = self.carry_out(turn, item, job, decision, &answers)?;
            answers.push(answer);
        }
        // The claims of this transaction come after all its items were decided. They count for the answers, as does what
        // one item did to another's run.
        self.claim(turn)?;
        for answer in &mut answers {
            if self.bodies.contains_key(&answer.run) {
                answer.status = RunStatus::Leased;
            } else if replaced.contains(&answer.run) {
                answer.status = RunStatus::Cancelled;
            }
        }
        Ok(Ok(answers))
    }

    pub(super) fn decide_all(
        &self,
        turn: &Turn<'_>,
        items: &[NewRun],
        jobs: &[JobNumber],
    ) -> Result<Result<Vec<Decision>, Error>, Fault> {
        let mut decisions = Vec::with_capacity(items.len());
        let mut earlier = Earlier::of(items);
        for (at, (item, job)) in items.iter().zip(jobs).enumerate() {
            let decided = self.decide(turn, items, (item, *job), &earlier)?;
            let decided = decided.and_then(|decision| self.within_backlog(turn, items, at, decision, &earlier));
            let decision = match decided {
                Ok(decision) => decision,
                Err(error) if items.len() > 1 => return Ok(Err(error.at_index(at))),
                Err(error) => return Ok(Err(error)),
            };
            if items.len() > 1
                && let Decision::Create { replaces } = &decision
            {
                let in_line =
                    (!item.is_delayed(turn.now), replaces.as_ref().is_some_and(|run| self.stands(turn, run, items)));
                earlier.creates(items, (at, *job), replaces.as_ref(), in_line);
            }
            decisions.push(decision);
        }
        Ok(Ok(decisions))
    }

    fn decide(
        &self,
        turn: &Turn<'_>,
        items: &[NewRun],
        (item, job): (&NewRun, JobNumber),
        earlier: &Earlier<'_>,
    ) -> Result<Result<Decision, Error>, Fault> {
        if let Some(idempotency) = &item.idempotency {
            let mismatch = |run| Ok(Err(Error::IdempotencyMismatch { key: idempotency.key.clone(), run }));
            if let Some(at) = earlier.by_key.get(&(job, idempotency.key.as_str())).copied() {
                // Of a new run that another item has replaced, only a time of nothing is over.
                let over =
                    items[at].idempotency.as_ref().and_then(|held| held.ttl).is_some_and(|ttl| ttl.as_millis() == 0);
                let status =
                    if earlier.replaced_items.contains(&at) { RunStatus::Cancelled } else { RunStatus::Pending };
                if in_force(idempotency, status, over) {
                    let input_differs = items[at].fingerprint != item.fingerprint;
                    if input_differs && idempotency.reject_changed_input {
                        return mismatch(None);
                    }
                    return Ok(Ok(Decision::RepeatOfItem { item: at, input_differs }));
                }
            } else if let Some(run) = turn.holder(job, &idempotency.key)?
                && !(self.config.hooks.plants(Bug::IdempotencyFromStaleRead) && turn.creates(run))
                && let Some(held) = turn.load(run)?
            {
                if held.record.job != job || held.record.idempotency_key.as_ref() != Some(&idempotency.key) {
                    let key = keys::idempotency(job, &idempotency.key);
                    return Err(codec::Corrupted::new(Table::Idempotency, &key, "its run has another key").into());
                }
                let status = if earlier.replaced_runs.contains(&run) { RunStatus::Cancelled } else { held.status() };
                if in_force(idempotency, status, expired(&held.record, turn.now)) {
                    let input_differs = held.record.fingerprint != item.fingerprint;
                    if input_differs && idempotency.reject_changed_input {
                        return mismatch(Some(run));
                    }
                    return Ok(Ok(Decision::Repeat { run, status, input_differs }));
                }
            }
        }
        let Some(concurrency) = &item.concurrency else { return Ok(Ok(Decision::Create { replaces: None })) };
        if concurrency.on_conflict == OnConflict::Skip && self.config.hooks.plants(Bug::SkipGivesStarted) {
            let shares = |body: &super::Body| concurrency.keys.iter().any(|(key, _)| body.record.has_key(key));
            if let Some((run, _)) =
                self.bodies.iter().filter(|(_, body)| body.job == job && shares(body)).min_by_key(|(run, _)| **run)
            {
                return Ok(Ok(Decision::Coalesce { waiting: Box::new((*run, self.loaded(turn, *run)?)) }));
            }
        }
        if concurrency.on_conflict == OnConflict::Queue {
            return Ok(Ok(Decision::Create { replaces: None }));
        }
        // The last in line of any of its keys, among those that wait and those that earlier items of the batch create.
        let keys = || concurrency.keys.iter().map(|(key, _)| key);
        let waiting = |key: &String| {
            let before = earlier.replaced_from.get(&(job, key.as_str())).copied();
            self.engine.waiting(job, key, &earlier.replaced_runs, before)
        };
        let in_line = keys().filter_map(|key| Some((waiting(key)?, key)));
        let in_line = in_line.max_by_key(|((_, place), _)| *place);
        let of_batch = |key: &String| earlier.waiting.get(&(job, key.as_str()))?.last().copied();
        let in_batch = keys().filter_map(|key| Some((of_batch(key)?, key))).max();
        let is_last = |place: Place| in_line.is_none_or(|((_, other), _)| other < place);
        let in_batch = in_batch.filter(|(((place, _), _), _)| is_last(*place)).map(|((_, item), key)| (item, key));
        Ok(match (concurrency.on_conflict, in_batch, in_line) {
            (OnConflict::Queue, ..) | (_, None, None) => Ok(Decision::Create { replaces: None }),
            (OnConflict::Reject, Some((_, key)), _) => Err(Error::KeyConflict { run: None, key: key.clone() }),
            (OnConflict::Reject, None, Some(((run, _), key))) => {
                Err(Error::KeyConflict { run: Some(run), key: key.clone() })
            }
            (OnConflict::Skip, Some((item, _)), _) => Ok(Decision::CoalesceWithItem { item }),
            (OnConflict::Replace, Some((item, _)), _) => Ok(Decision::Create { replaces: Some(Replaced::Item(item)) }),
            (OnConflict::Skip, None, Some(((run, _), _))) => {
                Ok(Decision::Coalesce { waiting: Box::new((run, self.loaded(turn, run)?)) })
            }
            (OnConflict::Replace, None, Some(((run, place), _))) => {
                let loaded = self.loaded(turn, run)?;
                Ok(Decision::Create { replaces: Some(Replaced::Run(Box::new((run, place, loaded)))) })
            }
        })
    }

    /// Refuses a run that would leave more waiting for one of its keys than it allows.
    fn within_backlog(
        &self,
        turn: &Turn<'_>,
        items: &[NewRun],
        at: usize,
        decision: Decision,
        earlier: &Earlier<'_>,
    ) -> Result<Decision, Error> {
        let Some(concurrency) = &items[at].concurrency else { return Ok(decision) };
        let (Decision::Create { replaces }, Some(queued_max)) = (&decision, concurrency.max_queued) else {
            return Ok(decision);
        };
        for (key, limit) in &concurrency.keys {
            let more = earlier.backlog.as_ref().and_then(|backlog| backlog.get(key)).copied().unwrap_or_default();
            let leaves = replaces
                .iter()
                .filter(|run| self.stands(turn, run, items))
                .flat_map(|run| run.keys(items))
                .any(|(other, _)| other == key);
            let queued = self.engine.backlog(key, *limit, more - isize::from(leaves));
            if let Some(queued) = queued.filter(|queued| *queued >= queued_max as usize) {
                return Err(Error::QueueFull { key: key.clone(), queued, queued_max: queued_max as usize });
            }
        }
        Ok(decision)
    }

    /// Whether a run that is to be replaced stands in line: one that is delayed does not.
    fn stands(&self, turn: &Turn<'_>, replaced: &Replaced, items: &[NewRun]) -> bool {
        match replaced {
            Replaced::Run(run) => !self.engine.is_delayed(run.0),
            Replaced::Item(at) => !items[*at].is_delayed(turn.now),
        }
    }

    /// A run that the engine has in line, which therefore has its rows.
    fn loaded(&self, turn: &Turn<'_>, run: RunId) -> Result<Loaded, Fault> {
        turn.load(run)?.ok_or_else(|| codec::Corrupted::new(Table::Runs, run.as_bytes(), "row is missing").into())
    }

    pub(super) fn carry_out(
        &mut self,
        turn: &mut Turn<'_>,
        item: &NewRun,
        job: JobNumber,
        decision: Decision,
        earlier: &[Triggered],
    ) -> Result<Triggered, Fault> {
        Ok(match decision {
            Decision::Repeat { run, status, input_differs } => {
                Triggered { run, status, input_differs, disposition: Disposition::Idempotent }
            }
            Decision::RepeatOfItem { item, input_differs } => {
                Triggered { input_differs, disposition: Disposition::Idempotent, ..earlier[item] }
            }
            Decision::Coalesce { waiting } => {
                let (run, loaded) = *waiting;
                self.coalesced(turn, run, &loaded, item);
                let status = loaded.status();
                Triggered { run, status, input_differs: false, disposition: Disposition::Coalesced }
            }
            Decision::CoalesceWithItem { item: at } => {
                let run = earlier[at].run;
                let loaded = self.loaded(turn, run)?;
                self.coalesced(turn, run, &loaded, item);
                Triggered { input_differs: false, disposition: Disposition::Coalesced, ..earlier[at] }
            }
            Decision::Create { replaces } => {
                let run = self.ids.next(turn.now);
                let ticket = match replaces {
                    None => None,
                    Some(Replaced::Run(replaced)) => {
                        let (old, place, loaded) = *replaced;
                        self.replaced(turn, old, &loaded, run)?;
                        Some(place.ticket())
                    }
                    Some(Replaced::Item(at)) => {
                        let old = earlier[at].run;
                        let loaded = self.loaded(turn, old)?;
                        let ticket = loaded.record.ticket.unwrap_or(old);
                        self.replaced(turn, old, &loaded, run)?;
                        Some(ticket)
                    }
                };
                self.create(turn, run, item, job, ticket);
                Triggered { run, status: RunStatus::Pending, input_differs: false, disposition: Disposition::Created }
            }
        })
    }

    fn create(&mut self, turn: &mut Turn<'_>, run: RunId, item: &NewRun, job: JobNumber, ticket: Option<RunId>) {
        let keys = item.keys().to_vec();
        let record = RunRecord {
            job,
            created_at: turn.now,
            idempotency_key: item.idempotency.as_ref().map(|idempotency| idempotency.key.clone()),
            idempotency_ttl_ms: item
                .idempotency
                .as_ref()
                .and_then(|idempotency| idempotency.ttl)
                .map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
            keys,
            priority: item.priority,
            labels: item.labels.clone(),
            fingerprint: item.fingerprint,
            retriggered_from: item.retriggered_from,
            forked_from: item.forked.as_ref().map(|forked| forked.from),
            continued_from: None,
            version: item.version,
            parent: item.parent.map(|parent| parent.run),
            not_before: item.not_before.and_then(|at| at.moment(turn.now)),
            deadline: item.deadline.map(|deadline| turn.now.saturating_add(deadline)),
            ticket,
            schedule: item.schedule.as_ref().map(|(name, due)| (name.to_string(), *due)),
        };
        let front = self.config.hooks.plants(Bug::OrderLost) && run.as_bytes()[15].is_multiple_of(2);
        let line = LineRecord {
            job,
            keys: record.keys.clone(),
            priority: record.priority,
            generation: 0,
            crashes: 0,
            front,
            ticket,
            blocked: false,
            touched: item.forked.is_some(),
            holds: false,
            not_before: record.not_before,
            deadline: record.deadline,
        };
        if let Some(parent) = item.parent {
            turn.stage.insert(Table::Children, keys::child(parent.run, run), vec![u8::from(parent.detached)]);
        }
        self.write_run(turn, run, &record, &item.input, &line);
        if let Some(forked) = &item.forked {
            begin_with(turn, run, forked);
        }
        self.tell_engine(turn, EngineEvent::Queued(queued(run, &line)));
        self.arm(turn, run, line.deadline);
    }

    /// The rows that every new run has, and what is told of it.
    pub(super) fn write_run(
        &mut self,
        turn: &mut Turn<'_>,
        run: RunId,
        record: &RunRecord,
        input: &Bytes,
        line: &LineRecord,
    ) {
        turn.stage.insert(Table::Runs, keys::run(run), codec::seal(record, input));
        turn.stage.insert(Table::ByJob, keys::by_job(record.job, run), Vec::new());
        for (key, value) in &record.labels {
            turn.stage.insert(Table::ByLabel, keys::by_label(key, value, run), Vec::new());
        }
        if let Some(key) = &record.idempotency_key {
            turn.stage.put(Table::Idempotency, keys::idempotency(record.job, key), run.as_bytes().to_vec());
        }
        turn.stage.insert(Table::ByStatus, keys::by_status(RunStatus::Pending, run), codec::seal(line, &[]));
        if let Some(name) = self.jobs.names.get(&record.job).cloned() {
            turn.event(run, &name, record, EventKind::RunTriggered { input: Payload::new(input) });
        }
    }

    fn coalesced(&mut self, turn: &mut Turn<'_>, run: RunId, loaded: &Loaded, item: &NewRun) {
        if let Some(name) = self.jobs.names.get(&loaded.record.job).cloned() {
            let kind = EventKind::RunCoalesced {
                skipped_input: Payload::new(&item.input),
                skipped_labels: item.labels.iter().cloned().collect(),
            };
            turn.event(run, &name, &loaded.record, kind);
        }
    }

    /// Ends a waiting run whose place a newer one takes.
    fn replaced(&mut self, turn: &mut Turn<'_>, old: RunId, loaded: &Loaded, by: RunId) -> Result<(), Fault> {
        if self.config.hooks.plants(Bug::ReplacedStaysInLine) {
            return Ok(());
        }
        let mut state = StateRecord { replaced_by: Some(by), ..loaded.state.clone() };
        self.end_pending(turn, old, loaded, &mut state)
    }
}

impl super::Jobs {
    pub(super) fn add(&mut self, name: Arc<str>, number: JobNumber) {
        self.names.insert(number, name.clone());
        self.numbers.insert(name, number);
    }
}

/// A pending run's place, from its index row.
pub(super) fn queued(run: RunId, line: &LineRecord) -> Queued {
    Queued {
        run,
        job: line.job,
        keys: Keys::of(&line.keys),
        place: Place::new(line.front, line.ticket.unwrap_or(run)).with(line.priority),
        generation: line.generation,
        crashes: line.crashes,
        touched: line.touched,
        holds: line.holds,
        not_before: line.not_before,
    }
}

/// The checkpoints that a forked run has from the start.
fn begin_with(turn: &mut Turn<'_>, run: RunId, forked: &Forked) {
    for (index, record) in &forked.steps {
        turn.stage.change_steps(run, Change::Put(*index, record.clone()));
    }
    let state = StateRecord {
        updated_at: Some(turn.now),
        steps_completed: forked.completed,
        step_index: forked.step_index,
        steps_bytes: forked.bytes as u64,
        ..StateRecord::default()
    };
    turn.put_state(run, &state, true);
}

/// Whether an idempotency key still stands for its run, which is this far and whose time for it is over or not.
fn in_force(asked: &Idempotency, status: RunStatus, over: bool) -> bool {
    if asked.reuse_after_failure && matches!(status, RunStatus::Failed | RunStatus::Cancelled) {
        return false;
    }
    !status.is_terminal() || !over
}

/// Whether an idempotency key's time is over. One without a time lives as long as its run.
pub(super) fn expired(record: &RunRecord, now: Timestamp) -> bool {
    record
        .idempotency_ttl_ms
        .is_some_and(|ttl| record.created_at.saturating_add(std::time::Duration::from_millis(ttl)) <= now)
}
