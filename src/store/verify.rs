//! Whether a file is sound: every page, every record, and every row that another one implies.
//!
//! Nothing is written, whatever the file needs: repairs happen in memory and go with the handle (see [`held`](super::held)).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use redb::ReadableTable;
use serde::de::DeserializeOwned;

use super::disk::Disk;
use super::file::{IntegrityCheck, Medium, OpenError, OpenOptions};
use super::tables::{BLOBS, JOURNAL, META, Table, meta};
use super::view::{Rows, View};
use super::{Fault, Store, blocks, journal};
use crate::codec::records::{
    JobRecord, LineRecord, LogRecord, RunRecord, ScheduleRecord, SleepRecord, StandingRecord, StateRecord, StepRecord,
    TallyRecord, ThrottleRecord,
};
use crate::codec::segment::{MapHeader, Segment, SegmentHead};
use crate::codec::{self, BlobRef, keys};
use crate::error::Error;
use crate::id::RunId;
use crate::run::{RunStatus, StepKind};
use crate::time::{SystemClock, Timestamp};

/// Problems that are listed; more are counted only.
const LISTED_MAX: usize = 1_000;

/// What a file was found to hold, and what is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verification {
    /// Runs in the file.
    pub runs: u64,
    /// Checkpoints in the file.
    pub steps: u64,
    /// Log lines in the file.
    pub log_lines: u64,
    /// Values that have a row of their own for their size.
    pub blobs: u64,
    /// What is wrong, at most 1,000 of it.
    pub problems: Vec<Problem>,
    /// How much is wrong, listed or not.
    pub problem_count: u64,
}

impl Verification {
    /// Nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problem_count == 0
    }
}

/// A row that is wrong, or missing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The table.
    pub table: &'static str,
    /// The key, in hex.
    pub key: String,
    /// What is wrong with it.
    pub what: &'static str,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {} of table {}: {}", self.key, self.table, self.what)
    }
}

/// Reads a whole file that no runtime has open and says whether it is sound. Not a byte of it is changed, also where it was not
/// closed cleanly: what opening it would repair is repaired in memory, and looked at in that form.
///
/// Checked are the checksums of all pages and records, that every record can be decoded, and that the tables agree: every run
/// is in the indexes that it belongs in, and every row of an index, every checkpoint, log line, key and large value belongs to
/// a run that says so too. Takes the time that reading the file takes, and blocks no async thread.
///
/// ```
/// # async fn example() -> Result<(), durably::Error> {
/// let found = durably::verify("backup.redb").await?;
/// for problem in &found.problems {
///     eprintln!("{problem}");
/// }
/// assert!(found.is_sound());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Damaged`] and [`Error::Corrupted`] where the file can't be read to its end, [`Error::AlreadyOpen`],
/// [`Error::NotADatabase`], [`Error::NewerFormat`], [`Error::Open`].
///
/// # Cancel safety
/// Dropped, it reads on to the end and changes nothing.
pub async fn verify(path: impl AsRef<Path>) -> Result<Verification, Error> {
    let path = path.as_ref().to_owned();
    tokio::runtime::Handle::try_current().map_err(|_| Error::NoRuntime)?;
    tokio::task::spawn_blocking(move || medium(&Medium::File(path))).await.map_err(|_| Error::ShutDown)?
}

/// As [`verify`], wherever it is.
pub(crate) fn medium(medium: &Medium) -> Result<Verification, Error> {
    Ok(of_file(medium)?)
}

pub(super) fn of_file(medium: &Medium) -> Result<Verification, Fault> {
    let options = OpenOptions {
        cache_bytes: 8 << 20,
        check_integrity: IntegrityCheck::Always,
        read_only: true,
        ..OpenOptions::default()
    };
    let looked = catch_unwind(AssertUnwindSafe(|| {
        let disk = Disk::open(medium.clone(), options, Arc::new(SystemClock::default()), false)?;
        audit(&disk.shared().clone().view()?)
    }));
    looked.unwrap_or_else(|_| {
        let message = "the storage engine panicked".to_owned();
        Err(OpenError::Damaged { path: medium.name().to_path_buf(), message }.into())
    })
}

impl Store {
    /// What [`verify`] finds, as of now.
    #[cfg(feature = "testing")]
    pub(crate) async fn audit(&self) -> Result<Verification, Error> {
        self.read(audit).await
    }
}

/// What other rows have to agree with, of each run.
struct Known {
    job: u32,
    status: RunStatus,
    labels: Vec<(String, String)>,
    /// The one that counts.
    deadline: Option<Timestamp>,
    completed_at: Option<Timestamp>,
}

struct Audit<'v, 'a> {
    view: &'v View<'a>,
    found: Verification,
    jobs: BTreeSet<u32>,
    tallies: BTreeMap<u32, TallyRecord>,
    /// Blobs that rows refer to.
    blobs: BTreeSet<u64>,
}

pub(super) fn audit(view: &View<'_>) -> Result<Verification, Fault> {
    let mut audit = Audit {
        view,
        found: Verification::default(),
        jobs: BTreeSet::new(),
        tallies: BTreeMap::new(),
        blobs: BTreeSet::new(),
    };
    audit.jobs()?;
    audit.runs()?;
    audit.parts()?;
    audit.steps()?;
    audit.indexes()?;
    audit.throttles()?;
    audit.schedules()?;
    audit.counts()?;
    audit.stored_once()?;
    Ok(audit.found)
}

impl Audit<'_, '_> {
    fn problem(&mut self, table: &'static str, key: &[u8], what: &'static str) {
        self.list(|| Problem { table, key: keys::show(key), what });
    }

    fn list(&mut self, problem: impl FnOnce() -> Problem) {
        self.found.problem_count += 1;
        if self.found.problems.len() < LISTED_MAX {
            self.found.problems.push(problem());
        }
    }

    /// Visits every row of a table; one whose value can't be found is a problem and is passed over.
    fn each(
        &mut self,
        table: Table,
        mut visit: impl FnMut(&mut Self, &[u8], Bytes) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let view = self.view;
        view.stored(table, &mut |key, value| {
            if let Some(value) = self.resolved(table, key, value)? {
                visit(self, key, value)?;
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    /// The value that a row has, or refers to. `None` where it can't be found, which is a problem.
    fn resolved(&mut self, table: Table, key: &[u8], value: Bytes) -> Result<Option<Bytes>, Fault> {
        if let Some(blob) = BlobRef::of(&value)
            && !self.blobs.insert(blob.id)
        {
            self.problem(table.name(), key, "its blob belongs to another row too");
        }
        match self.view.resolved(table, key, value) {
            Ok(value) => Ok(Some(value)),
            Err(Fault::Corrupted(row)) => {
                self.problem(table.name(), key, row.reason);
                Ok(None)
            }
            Err(fault) => Err(fault),
        }
    }

    fn decoded<H: DeserializeOwned>(&mut self, table: Table, key: &[u8], value: &Bytes) -> Option<H> {
        match codec::open::<H>(table, key, value) {
            Ok((header, _)) => Some(header),
            Err(row) => {
                self.problem(table.name(), key, row.reason);
                None
            }
        }
    }

    fn has(&mut self, table: Table, key: &[u8], what: &'static str) -> Result<(), Fault> {
        // A value that can't be read is found where its table is read.
        match self.view.get(table, key) {
            Ok(Some(_)) | Err(Fault::Corrupted(_)) => {}
            Ok(None) => self.problem(table.name(), key, what),
            Err(fault) => return Err(fault),
        }
        Ok(())
    }

    /// A run as other rows see it. `None` if there is none; one that can't be read is nobody else's problem.
    fn known(&self, run: RunId) -> Result<Option<Result<Known, ()>>, Fault> {
        let unreadable_is_known = |fault| match fault {
            Fault::Corrupted(_) => Ok(Some(Err(()))),
            fault => Err(fault),
        };
        let key = run.as_bytes();
        let row = match self.view.get(Table::Runs, key) {
            Ok(Some(row)) => row,
            Ok(None) => return Ok(None),
            Err(fault) => return unreadable_is_known(fault),
        };
        let state = match self.view.get(Table::States, key) {
            Ok(Some(row)) => codec::open::<StateRecord>(Table::States, key, &row).map(|(state, _)| state),
            Ok(None) => Ok(StateRecord::default()),
            Err(fault) => return unreadable_is_known(fault),
        };
        let record = codec::open::<RunRecord>(Table::Runs, key, &row);
        let (Ok((record, _)), Ok(state)) = (record, state) else { return Ok(Some(Err(()))) };
        let Some(status) = RunStatus::from_byte(state.status) else { return Ok(Some(Err(()))) };
        let deadline = record.deadline.filter(|_| !state.resumed);
        let completed_at = state.completed_at;
        Ok(Some(Ok(Known { job: record.job, status, labels: record.labels, deadline, completed_at })))
    }

    fn jobs(&mut self) -> Result<(), Fault> {
        self.each(Table::Jobs, |audit, key, row| {
            if let Some(JobRecord { number }) = audit.decoded(Table::Jobs, key, &row)
                && !audit.jobs.insert(number)
            {
                audit.problem("jobs", key, "another job has its number");
            }
            Ok(())
        })
    }

    fn runs(&mut self) -> Result<(), Fault> {
        self.each(Table::Runs, |audit, key, row| {
            audit.found.runs += 1;
            let Some(run) = RunId::from_slice(key) else {
                audit.problem("runs", key, "not a run id");
                return Ok(());
            };
            let Some(record) = audit.decoded::<RunRecord>(Table::Runs, key, &row) else { return Ok(()) };
            if !audit.jobs.contains(&record.job) {
                audit.problem("runs", key, "its job has no name");
            }
            audit.has(Table::ByJob, &keys::by_job(record.job, run), "a run is not in it")?;
            for (label, value) in &record.labels {
                audit.has(Table::ByLabel, &keys::by_label(label, value, run), "a run is not in it")?;
            }
            let state = match audit.view.get(Table::States, key) {
                Ok(Some(row)) => codec::open::<StateRecord>(Table::States, key, &row).ok(),
                Ok(None) => Some(Default::default()),
                Err(Fault::Corrupted(_)) => None,
                Err(fault) => return Err(fault),
            };
            let Some((state, output)) = state else { return Ok(()) };
            let Some(status) = RunStatus::from_byte(state.status) else {
                audit.problem("states", key, "unknown status");
                return Ok(());
            };
            audit.has(Table::ByStatus, &keys::by_status(status, run), "a run is not in it")?;
            match state.completed_at {
                Some(at) => audit.has(Table::Ended, &keys::ended(at, run), "a run is not in it")?,
                None if status.is_terminal() => audit.problem("states", key, "ended at no time"),
                None => {}
            }
            if status == RunStatus::Completed && output.is_empty() {
                audit.has(Table::Outputs, key, "a completed run is not in it")?;
            }
            audit.links(run, &record, &state, status)?;
            let tally = audit.tallies.entry(record.job).or_default();
            match status {
                RunStatus::Completed => tally.completed += 1,
                RunStatus::Failed => tally.failed += 1,
                RunStatus::Cancelled => tally.cancelled += 1,
                RunStatus::Pending | RunStatus::Leased | RunStatus::Suspended => {}
            }
            Ok(())
        })
    }

    /// A run that goes on for another, and that other, name each other for as long as both are there.
    fn links(&mut self, run: RunId, record: &RunRecord, state: &StateRecord, status: RunStatus) -> Result<(), Fault> {
        let readable = |found: Result<Option<Bytes>, Fault>| match found {
            Ok(row) => Ok(row),
            Err(Fault::Corrupted(_)) => Ok(None),
            Err(fault) => Err(fault),
        };
        let key = run.as_bytes();
        if let Some(next) = state.continued_as {
            if status != RunStatus::Completed {
                self.problem("states", key, "another run goes on for it and it has not completed");
            }
            let row = readable(self.view.get(Table::Runs, next.as_bytes()))?;
            let other = row.and_then(|row| codec::open::<RunRecord>(Table::Runs, next.as_bytes(), &row).ok());
            if other.is_some_and(|(other, _)| other.continued_from != Some(run)) {
                self.problem("states", key, "the run that goes on for it says otherwise");
            }
        }
        if let Some(old) = record.continued_from
            && self.view.get(Table::Runs, old.as_bytes()).is_ok_and(|row| row.is_some())
        {
            let row = readable(self.view.get(Table::States, old.as_bytes()))?;
            let other = row.and_then(|row| codec::open::<StateRecord>(Table::States, old.as_bytes(), &row).ok());
            if other.is_some_and(|(other, _)| other.continued_as != Some(run)) {
                self.problem("runs", key, "the run that it goes on for says otherwise");
            }
        }
        Ok(())
    }

    /// What belongs to a run.
    fn parts(&mut self) -> Result<(), Fault> {
        for table in [Table::States, Table::Outputs, Table::Logs] {
            let mut last = None;
            self.each(table, |audit, key, row| {
                let owner = match table {
                    Table::Logs => keys::read_step(key).map(|(run, _)| run),
                    _ => RunId::from_slice(key),
                };
                let Some(run) = owner else {
                    audit.problem(table.name(), key, "not of a run");
                    return Ok(());
                };
                if last != Some(run) {
                    last = Some(run);
                    if audit.known(run)?.is_none() {
                        audit.problem(table.name(), key, "its run is missing");
                    }
                }
                match table {
                    Table::States => drop(audit.decoded::<StateRecord>(table, key, &row)),
                    Table::Outputs => drop(audit.decoded::<()>(table, key, &row)),
                    _ => {
                        audit.found.log_lines += 1;
                        drop(audit.decoded::<LogRecord>(table, key, &row));
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Checkpoints: blocks in their table and lists in the tail, read as one.
    fn steps(&mut self) -> Result<(), Fault> {
        let view = self.view;
        let mut runs: BTreeSet<RunId> = view.tail().steps_from(RunId::MIN).map(|(run, _)| run).collect();
        // Blocks that can't be read, and the last step of the one before.
        let (mut damaged, mut last) = (BTreeSet::new(), None);
        view.stored(Table::Steps, &mut |key, block| {
            if keys::read_step(key).is_some_and(|start| last.is_some_and(|last| last >= start)) {
                self.problem("steps", key, "the block before it goes further");
            }
            match blocks::read(key, &block) {
                Ok(steps) => {
                    last = steps.last().map(|(at, _)| *at).or(last);
                    runs.extend(steps.into_iter().map(|((run, _), _)| run));
                }
                Err(row) => {
                    self.problem("steps", key, row.reason);
                    damaged.insert(row.key);
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        for run in runs {
            let steps = match view.stored_steps(run) {
                Ok(steps) => steps,
                Err(Fault::Corrupted(row)) if damaged.contains(&row.key) => continue,
                Err(Fault::Corrupted(row)) => {
                    self.list(|| Problem { table: row.table, key: row.key, what: row.reason });
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            let (count, mut maps) = (steps.len() as u64, BTreeMap::new());
            for (index, record) in steps {
                let key = keys::of_run(run, index);
                let Some(record) = self.resolved(Table::Steps, &key, record)? else { continue };
                let wrong = match codec::open::<StepRecord>(Table::Steps, &key, &record) {
                    Ok((step, payload)) => wrong_with_items(&mut maps, index, &step, &payload),
                    Err(row) => Some(row.reason),
                };
                wrong.into_iter().for_each(|what| self.problem("steps", &key, what));
            }
            if count > 0 && self.known(run)?.is_none() {
                self.problem("steps", run.as_bytes(), "its run is missing");
            }
            self.found.steps += count;
        }
        Ok(())
    }

    /// Rows that lead to a run.
    fn indexes(&mut self) -> Result<(), Fault> {
        for table in [Table::ByStatus, Table::ByJob, Table::ByLabel, Table::Ended] {
            self.each(table, |audit, key, row| {
                let Some(run) = keys::read_run(key) else {
                    audit.problem(table.name(), key, "not of a run");
                    return Ok(());
                };
                let known = match audit.known(run)? {
                    Some(Ok(known)) => known,
                    Some(Err(())) => return Ok(()),
                    None => {
                        audit.problem(table.name(), key, "its run is missing");
                        return Ok(());
                    }
                };
                let agrees = match table {
                    Table::ByStatus => *key == *keys::by_status(known.status, run),
                    Table::ByJob => *key == *keys::by_job(known.job, run),
                    Table::ByLabel => {
                        known.labels.iter().any(|(label, value)| *key == *keys::by_label(label, value, run))
                    }
                    _ => known.completed_at.is_some_and(|at| *key == *keys::ended(at, run)),
                };
                if !agrees {
                    audit.problem(table.name(), key, "its run says otherwise");
                    return Ok(());
                }
                let deadline = match known.status {
                    _ if table != Table::ByStatus => None,
                    RunStatus::Pending => audit.decoded::<LineRecord>(table, key, &row).map(|line| line.deadline),
                    RunStatus::Suspended => audit.decoded::<SleepRecord>(table, key, &row).map(|sleep| sleep.deadline),
                    RunStatus::Leased => {
                        drop(audit.decoded::<LineRecord>(table, key, &row));
                        None
                    }
                    _ => None,
                };
                if deadline.is_some_and(|deadline| deadline != known.deadline) {
                    audit.problem(table.name(), key, "its run has another deadline");
                }
                Ok(())
            })?;
        }
        for table in [Table::Signals, Table::Children] {
            self.each(table, |audit, key, row| {
                let owner = key.get(..RunId::BYTES).and_then(RunId::from_slice);
                match owner.map(|run| audit.known(run)).transpose()? {
                    None => audit.problem(table.name(), key, "not of a run"),
                    Some(None) => audit.problem(table.name(), key, "its run is missing"),
                    Some(Some(_)) if table == Table::Signals => drop(audit.decoded::<()>(table, key, &row)),
                    Some(Some(_)) => {
                        if let Some(child) = keys::read_run(key)
                            && audit.known(child)?.is_none()
                        {
                            audit.problem(table.name(), key, "the child is missing");
                        }
                    }
                }
                Ok(())
            })?;
        }
        self.each(Table::Awaiters, |audit, key, _| {
            match keys::read_awaiter(key) {
                None => audit.problem("awaiters", key, "not of a step"),
                Some((awaited, ..)) => match audit.known(awaited)? {
                    Some(Ok(Known { status, .. })) if status.is_terminal() => {
                        audit.problem("awaiters", key, "what it waits for has ended");
                    }
                    None => audit.problem("awaiters", key, "what it waits for is missing"),
                    Some(_) => {}
                },
            }
            Ok(())
        })?;
        self.each(Table::Idempotency, |audit, key, row| {
            let Some(run) = RunId::from_slice(&row) else {
                audit.problem("idempotency", key, "not a run id");
                return Ok(());
            };
            let record = match audit.view.get(Table::Runs, run.as_bytes()) {
                Ok(Some(row)) => codec::open::<RunRecord>(Table::Runs, run.as_bytes(), &row).ok(),
                Ok(None) => {
                    audit.problem("idempotency", key, "its run is missing");
                    None
                }
                Err(Fault::Corrupted(_)) => None,
                Err(fault) => return Err(fault),
            };
            if let Some((record, _)) = record
                && record.idempotency_key.is_none_or(|text| *keys::idempotency(record.job, &text) != *key)
            {
                audit.problem("idempotency", key, "its run has another key");
            }
            Ok(())
        })
    }

    fn throttles(&mut self) -> Result<(), Fault> {
        self.each(Table::Throttles, |audit, key, row| {
            match keys::read_throttle(key) {
                None => audit.problem("throttles", key, "neither of a job nor of a key"),
                Some(Ok(job)) if !audit.jobs.contains(&job) => audit.problem("throttles", key, "its job has no name"),
                Some(_) => {}
            }
            let _: Option<ThrottleRecord> = audit.decoded(Table::Throttles, key, &row);
            Ok(())
        })
    }

    /// Schedules: a definition and a standing each, of a job that has a name.
    fn schedules(&mut self) -> Result<(), Fault> {
        self.each(Table::Schedules, |audit, key, row| {
            audit.has(Table::Standings, key, "a schedule is not in it")?;
            if let Some(record) = audit.decoded::<ScheduleRecord>(Table::Schedules, key, &row)
                && !audit.jobs.contains(&record.job)
            {
                audit.problem("schedules", key, "its job has no name");
            }
            Ok(())
        })?;
        self.each(Table::Standings, |audit, key, row| {
            audit.has(Table::Schedules, key, "a standing is of no schedule in it")?;
            if let Some(standing) = audit.decoded::<StandingRecord>(Table::Standings, key, &row)
                && standing.paused
                && standing.next.is_some()
            {
                audit.problem("standings", key, "paused, and due");
            }
            Ok(())
        })
    }

    fn counts(&mut self) -> Result<(), Fault> {
        let mut expected = std::mem::take(&mut self.tallies);
        self.each(Table::Tallies, |audit, key, row| {
            let Some(tally) = audit.decoded::<TallyRecord>(Table::Tallies, key, &row) else { return Ok(()) };
            let job = key.try_into().map(u32::from_be_bytes).ok();
            // Runs that can't be read are not counted, so only a file without such has something to compare.
            if job.and_then(|job| expected.remove(&job)).unwrap_or_default() != tally && audit.found.is_sound() {
                audit.problem("tallies", key, "the runs of the job are others");
            }
            Ok(())
        })?;
        for (job, tally) in expected {
            if tally != TallyRecord::default() && self.found.is_sound() {
                self.problem("tallies", &job.to_be_bytes(), "row is missing");
            }
        }
        Ok(())
    }

    /// The journal without gaps; every blob referred to, by a row or by one that a fold has yet to replace.
    fn stored_once(&mut self) -> Result<(), Fault> {
        let snapshot = self.view.snapshot()?;
        let mut last = None;
        for piece in snapshot.open_table(JOURNAL)?.iter()? {
            let group = journal::group_of(piece?.0.value());
            if last.is_some_and(|last| group > last + 1) {
                self.problem("journal", &group.to_be_bytes(), "the group before it is missing");
            }
            last = Some(group);
        }
        let mut referred = std::mem::take(&mut self.blobs);
        let tail = self.view.tail();
        referred.extend(tail.orphans(u64::MAX));
        for table in Table::ALL {
            let raw = snapshot.open_table(table.definition())?;
            // Rows that the tail stands over count while they are there.
            for (key, _) in tail.layer(table).iter() {
                referred.extend(raw.get(&key[..])?.and_then(|row| BlobRef::of(row.value())).map(|blob| blob.id));
            }
        }
        for row in snapshot.open_table(Table::Steps.definition())?.iter()? {
            let (key, block) = row?;
            // One that can't be read was found where steps are read.
            let (key, block) = (key.value(), block.value());
            let steps = blocks::read(key, block).unwrap_or_default();
            referred.extend(steps.into_iter().filter_map(|(_, place)| BlobRef::of(&block[place])).map(|blob| blob.id));
        }
        for (_, steps) in tail.steps_from(RunId::MIN) {
            for slot in steps.slots() {
                referred.extend(tail.record(slot.group, slot.place)?.and_then(BlobRef::of).map(|blob| blob.id));
            }
        }
        let numbered = snapshot.open_table(META)?.get(meta::BLOB)?.map_or(0, |row| row.value());
        let numbered = referred.last().map_or(numbered, |last| numbered.max(last.saturating_add(1)));
        for row in snapshot.open_table(BLOBS)?.iter()? {
            let blob = row?.0.value();
            self.found.blobs += 1;
            if !referred.contains(&blob) {
                self.problem("blobs", &blob.to_be_bytes(), "nothing refers to it");
            }
            if blob >= numbered {
                self.problem("blobs", &blob.to_be_bytes(), "its number may be given out again");
            }
        }
        Ok(())
    }
}

/// What is wrong with a record of a map or of its items, which come after it; `maps` has the items of those seen.
fn wrong_with_items(
    maps: &mut BTreeMap<u32, u64>,
    index: u32,
    step: &StepRecord,
    payload: &[u8],
) -> Option<&'static str> {
    if step.kind == StepKind::Map.to_byte() {
        return match serde_json::from_slice::<MapHeader>(payload) {
            Ok(header) => maps.insert(index, header.items).map(|_| "a map that was there already"),
            // One whose items could not be told has failed before anything of them.
            Err(_) if payload.is_empty() && step.error.is_some() => None,
            Err(_) => Some("what its items are can't be read"),
        };
    }
    if step.kind != StepKind::SEGMENT {
        return None;
    }
    let Some(items) = SegmentHead::of(payload).and_then(|head| maps.get(&head.map)) else {
        return Some("a segment without its map");
    };
    Segment::decode(payload, *items, &mut |_| {}).err()
}
