//! Reading runs and what belongs to them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::blocks::Indexed;
use super::tables::Table;
use super::view::{Rows, View};
use super::{Fault, Store};
use crate::codec::records::{ErrorRecord, JobRecord, LogRecord, RunRecord, StateRecord, StepRecord};
use crate::codec::segment::{MapHeader, SegmentHead};
use crate::codec::{self, Corrupted, keys};
use crate::engine::JobNumber;
use crate::error::Error;
use crate::id::RunId;
use crate::limits::{REPLAY_BYTES_MAX, REPLAY_INLINE_BYTES_MAX};
use crate::run::{
    ItemCounts, LogLevel, LogLine, OpenStep, Progress, Run, RunStatus, StepInfo, StepKind, StepStatus, Try, WaitingFor,
};
use crate::schedule::Scheduled;

/// The names of jobs by number; they never change, so readers keep them.
pub(super) type Names = BTreeMap<JobNumber, Arc<str>>;

/// A run's rows as they are, payloads undecoded.
#[derive(Debug, Clone)]
pub(crate) struct Rowset {
    pub(crate) record: RunRecord,
    pub(crate) state: StateRecord,
    pub(crate) input: Bytes,
    pub(crate) output: Option<Bytes>,
    /// Of all rows that were read.
    pub(super) bytes: usize,
}

/// A checkpoint as a replaying run keeps it.
#[derive(Debug)]
pub(crate) struct ReplayStep {
    pub(crate) key: String,
    pub(crate) index: u32,
    pub(crate) kind: StepKind,
    pub(crate) version: u32,
    /// Of all of its records.
    pub(crate) bytes: usize,
    /// Itself, and its parts.
    pub(crate) records: u32,
    /// Of its own record, or of its last part.
    pub(crate) last_index: u32,
    pub(crate) outcome: ReplayOutcome,
}

#[derive(Debug, Clone)]
pub(crate) enum ReplayOutcome {
    Output(Bytes),
    /// Too large to be kept: it is read when asked for.
    Stored,
    Failed(ErrorRecord),
    /// It waits for what this says.
    Open(Box<StepRecord>),
    /// A map, decided or not.
    Items(Box<StoredItems>),
}

/// What is stored of a map.
#[derive(Debug, Clone)]
pub(crate) struct StoredItems {
    /// A [`MapHeader`].
    pub(crate) header: Bytes,
    /// The indexes of its segments.
    pub(crate) segments: Vec<u32>,
    /// `None`: not all of its items are done.
    pub(crate) outcome: Option<Result<(), ErrorRecord>>,
    /// All of it is on disk.
    pub(crate) settled: bool,
}

/// The steps of a run that has not ended, at one moment.
#[derive(Debug)]
pub(crate) struct StepsAtPresent {
    pub(crate) status: RunStatus,
    /// Those that wait.
    pub(crate) open: Vec<OpenStep>,
    /// Keys of all that are recorded.
    pub(crate) stored: BTreeSet<String>,
}

impl Store {
    /// Which steps of a run wait, and which have their outcome.
    pub(crate) async fn open_steps(&self, run: RunId) -> Result<StepsAtPresent, Error> {
        let found = self.read(move |view| {
            let Some(rows) = rowset(view, run, false)? else { return Ok(None) };
            let status = RunStatus::from_byte(rows.state.status).unwrap_or(RunStatus::Suspended);
            let mut steps = StepsAtPresent { status, open: Vec::new(), stored: BTreeSet::new() };
            view.steps(run, &mut |index, row| {
                let key = keys::of_run(run, index);
                let (record, _) = codec::open::<StepRecord>(Table::Steps, &key, &row)?;
                if record.kind == StepKind::SEGMENT {
                    return Ok(ControlFlow::Continue(()));
                }
                // The items of a map are at work, and wait for nothing.
                if let Some(open) = record.open.as_ref().filter(|_| record.kind != StepKind::Map.to_byte()) {
                    let waiting_for = WaitingFor { until: open.due, signal: open.signal.clone(), run: open.run };
                    steps.open.push(OpenStep { name: record.key.clone(), kind: kind(&record, &key)?, waiting_for });
                }
                steps.stored.insert(record.key);
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(Some(steps))
        });
        found.await?.ok_or(Error::RunNotFound { run })
    }

    /// A run as it is now.
    pub(crate) async fn get_run(&self, run: RunId) -> Result<Option<Run>, Error> {
        let owner = self.owner().clone();
        self.read(move |view| {
            let Some(rows) = rowset(view, run, true)? else { return Ok(None) };
            let names = names(view)?;
            assemble(run, rows, &names, &owner).map(Some)
        })
        .await
    }

    /// A run's rows, or that there is no such run.
    pub(crate) async fn rowset(&self, run: RunId) -> Result<Rowset, Error> {
        self.read_recent(move |view| rowset(view, run, true)).await?.ok_or(Error::RunNotFound { run })
    }

    /// A run's rows, with the sequence of the last event that they hold the effect of and the job's name.
    pub(crate) async fn snapshot(&self, run: RunId) -> Result<(Rowset, u64, Arc<str>), Error> {
        let found = self.read(move |view| {
            let Some(rows) = rowset(view, run, true)? else { return Ok(None) };
            let name = names(view)?.remove(&rows.record.job).unwrap_or_else(|| "".into());
            Ok(Some((rows, view.sequence(), name)))
        });
        found.await?.ok_or(Error::RunNotFound { run })
    }

    /// The steps of a run by index.
    pub(crate) async fn get_steps(&self, run: RunId) -> Result<Vec<StepInfo>, Error> {
        self.read_then(
            move |view| {
                let unused = match view.get(Table::States, run.as_bytes())? {
                    Some(row) => codec::open::<StateRecord>(Table::States, run.as_bytes(), &row)?.0.unused,
                    None => Vec::new(),
                };
                let mut rows = Vec::new();
                view.steps(run, &mut |index, row| {
                    rows.push((index, row));
                    Ok(ControlFlow::Continue(()))
                })?;
                Ok((rows, unused))
            },
            move |(rows, unused): (Vec<Indexed>, Vec<u32>)| {
                let mut steps = Vec::new();
                for (index, row) in rows {
                    let (record, output) = codec::open::<StepRecord>(Table::Steps, &keys::of_run(run, index), &row)?;
                    if record.kind == StepKind::SEGMENT {
                        count_items(&mut steps, &output);
                    } else {
                        steps.push(step_info(run, index, record, &output, &unused)?);
                    }
                }
                Ok(steps)
            },
        )
        .await
    }

    /// The log lines of a run in order.
    pub(crate) async fn get_logs(&self, run: RunId) -> Result<Vec<LogLine>, Error> {
        self.read(move |view| {
            let mut lines = Vec::new();
            view.scan_prefix(Table::Logs, run.as_bytes(), &mut |key, row| {
                lines.push(log_line(run, key, &row)?);
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(lines)
        })
        .await
    }

    /// A run's checkpoints, for its next execution.
    pub(crate) async fn replay(&self, run: RunId) -> Result<Vec<ReplayStep>, Error> {
        let _turn = self.replaying().await;
        self.read(move |view| {
            let mut steps: Vec<ReplayStep> = Vec::new();
            let mut kept = 0;
            view.steps(run, &mut |index, row| {
                let key = keys::of_run(run, index);
                let (record, output) = codec::open::<StepRecord>(Table::Steps, &key, &row)?;
                if record.kind == StepKind::SEGMENT {
                    take_up(&mut steps, index, &output, row.len());
                    return Ok(ControlFlow::Continue(()));
                }
                let (kind, version, key) = (kind(&record, &key)?, record.version, record.key.clone());
                let outcome = match record.error {
                    error if kind == StepKind::Map => {
                        let outcome = match error {
                            Some(error) => Some(Err(error)),
                            None => record.open.is_none().then_some(Ok(())),
                        };
                        ReplayOutcome::Items(Box::new(StoredItems {
                            header: output,
                            segments: Vec::new(),
                            outcome,
                            settled: true,
                        }))
                    }
                    _ if record.open.is_some() => ReplayOutcome::Open(Box::new(record)),
                    Some(error) => ReplayOutcome::Failed(error),
                    None if output.len() <= REPLAY_INLINE_BYTES_MAX && kept + output.len() <= REPLAY_BYTES_MAX => {
                        kept += output.len();
                        // It may be a part of its group's row, which is as large as a group.
                        ReplayOutcome::Output(Bytes::copy_from_slice(&output))
                    }
                    None => ReplayOutcome::Stored,
                };
                let (records, last_index, bytes) = (1, index, row.len());
                steps.push(ReplayStep { key, index, kind, version, bytes, records, last_index, outcome });
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(steps)
        })
        .await
    }

    /// The segments of these indexes.
    pub(crate) async fn segments(&self, run: RunId, indexes: Vec<u32>) -> Result<Vec<Bytes>, Error> {
        self.read(move |view| {
            let mut segments = Vec::with_capacity(indexes.len());
            for index in &indexes {
                let key = keys::of_run(run, *index);
                let row =
                    view.step(run, *index)?.ok_or_else(|| Corrupted::new(Table::Steps, &key, "row is missing"))?;
                segments.push(codec::open::<StepRecord>(Table::Steps, &key, &row)?.1);
            }
            Ok(segments)
        })
        .await
    }

    /// The indexes of the segments that a map has.
    pub(crate) async fn segments_of(&self, run: RunId, map: u32) -> Result<Vec<u32>, Error> {
        self.read(move |view| {
            let mut found = Vec::new();
            view.steps(run, &mut |index, row| {
                let (record, payload) = codec::open::<StepRecord>(Table::Steps, &keys::of_run(run, index), &row)?;
                let head = SegmentHead::of(&payload).filter(|_| record.kind == StepKind::SEGMENT);
                found.extend(head.filter(|head| head.map == map).map(|_| index));
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(found)
        })
        .await
    }

    /// The output of one checkpoint.
    pub(crate) async fn step_output(&self, run: RunId, index: u32) -> Result<Bytes, Error> {
        self.read(move |view| {
            let key = keys::of_run(run, index);
            let row = view.step(run, index)?.ok_or_else(|| Corrupted::new(Table::Steps, &key, "row is missing"))?;
            Ok(codec::open::<StepRecord>(Table::Steps, &key, &row)?.1)
        })
        .await
    }
}

pub(super) fn names(view: &View<'_>) -> Result<Names, Fault> {
    let mut names = Names::new();
    view.scan_prefix(Table::Jobs, &[], &mut |key, row| {
        // One that can't be read is missing for the runs of that job, and for no others.
        if let Ok((record, _)) = codec::open::<JobRecord>(Table::Jobs, key, &row) {
            names.insert(record.number, String::from_utf8_lossy(key).into());
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(names)
}

pub(super) fn rowset(view: &View<'_>, run: RunId, payloads: bool) -> Result<Option<Rowset>, Fault> {
    let key = run.as_bytes();
    let Some(row) = view.get(Table::Runs, key)? else { return Ok(None) };
    let mut bytes = row.len();
    let (record, input) = codec::open::<RunRecord>(Table::Runs, key, &row)?;
    let (mut state, with_state) = match view.get(Table::States, key)? {
        Some(row) => {
            bytes += row.len();
            codec::open::<StateRecord>(Table::States, key, &row)?
        }
        None => Default::default(),
    };
    if let Some(live) = view.live(run) {
        state.steps_completed = live.steps_completed;
        state.step_index = live.step_index;
        state.updated_at = Some(live.updated_at);
    }
    let output = if !payloads || state.status != RunStatus::Completed.to_byte() {
        None
    } else if !with_state.is_empty() {
        Some(with_state)
    } else {
        let row = view.get(Table::Outputs, key)?;
        bytes += row.as_ref().map_or(0, Bytes::len);
        row.map(|row| codec::open::<()>(Table::Outputs, key, &row)).transpose()?.map(|(_, output)| output)
    };
    Ok(Some(Rowset { record, state, input, output, bytes }))
}

/// A public run from its rows.
pub(super) fn assemble(run: RunId, rows: Rowset, names: &Names, owner: &Arc<str>) -> Result<Run, Fault> {
    let key = run.as_bytes();
    let Rowset { record, state, input, output, .. } = rows;
    let status =
        RunStatus::from_byte(state.status).ok_or_else(|| Corrupted::new(Table::States, key, "unknown status"))?;
    // Empty where the row with the name can't be read.
    let job_name = names.get(&record.job).cloned().unwrap_or_default();
    Ok(Run {
        id: run,
        job_name: job_name.to_string(),
        input: Some(json(Table::Runs, key, &input)?),
        status,
        idempotency_key: record.idempotency_key,
        concurrency_key: record.keys.first().map(|(key, _)| key.clone()),
        concurrency_keys: record.keys.into_iter().map(|(key, _)| key).collect(),
        priority: record.priority,
        current_step_index: state.step_index,
        completed_step_count: state.steps_completed,
        progress: state.progress.map(|progress| Progress {
            current: progress.current,
            total: progress.total,
            message: progress.message,
        }),
        output: output.map(|output| json(Table::Outputs, key, &output)).transpose()?,
        error: state.error.map(Into::into),
        labels: record.labels.into_iter().collect(),
        lease_owner: (status == RunStatus::Leased).then(|| owner.to_string()),
        lease_expires_at: None,
        lease_generation: state.generation,
        started_at: state.started_at,
        completed_at: state.completed_at,
        created_at: record.created_at,
        updated_at: state.updated_at.unwrap_or(record.created_at),
        recoveries: state.recoveries,
        parent: record.parent,
        not_before: record.not_before.filter(|_| !state.resumed),
        deadline: record.deadline.filter(|_| !state.resumed),
        schedule: record.schedule.map(|(name, due)| Scheduled { name, due }),
        retriggered_from: record.retriggered_from,
        forked_from: record.forked_from,
        continued_from: record.continued_from,
        continued_as: state.continued_as,
        version: record.version,
        replaced_by: state.replaced_by,
        blocked: state.blocked,
    })
}

/// Adds a segment's items to its map, which has a smaller index and so was read before.
fn count_items(steps: &mut [StepInfo], payload: &[u8]) {
    let Some(head) = SegmentHead::of(payload) else { return };
    let Ok(at) = steps.binary_search_by_key(&head.map, |step| step.index) else { return };
    if let Some(items) = &mut steps[at].items {
        items.completed += u64::from(head.completed);
        items.failed += u64::from(head.failed);
    }
}

/// The same for the next execution.
fn take_up(steps: &mut [ReplayStep], index: u32, payload: &Bytes, bytes: usize) {
    let Some(head) = SegmentHead::of(payload) else { return };
    let Ok(at) = steps.binary_search_by_key(&head.map, |step| step.index) else { return };
    let step = &mut steps[at];
    (step.bytes, step.records, step.last_index) = (step.bytes + bytes, step.records + 1, index);
    if let ReplayOutcome::Items(items) = &mut step.outcome {
        items.segments.push(index);
    }
}

fn step_info(run: RunId, index: u32, record: StepRecord, output: &Bytes, unused: &[u32]) -> Result<StepInfo, Fault> {
    let key = &keys::of_run(run, index)[..];
    let kind = kind(&record, key)?;
    let items = (kind == StepKind::Map).then(|| {
        let header: Option<MapHeader> = serde_json::from_slice(output).ok();
        ItemCounts { total: header.map_or(0, |header| header.items), ..ItemCounts::default() }
    });
    let status = match (&record.open, &record.error) {
        (Some(_), _) if items.is_some() => StepStatus::Running,
        (Some(_), _) => StepStatus::Waiting,
        (None, Some(_)) => StepStatus::Failed,
        (None, None) => StepStatus::Completed,
    };
    let tries = tries(&record, kind);
    Ok(StepInfo {
        run_id: run,
        name: record.key,
        index,
        kind,
        version: record.version,
        unused: unused.contains(&index),
        status,
        waiting_for: record.open.filter(|_| items.is_none()).map(|open| WaitingFor {
            until: open.due,
            signal: open.signal,
            run: open.run,
        }),
        items,
        output: if status == StepStatus::Completed { Some(json(Table::Steps, key, output)?) } else { None },
        error: record.error.map(Into::into),
        attempts: record.attempts,
        tries,
        started_at: record.started_at,
        completed_at: record.completed_at,
    })
}

/// The failed attempts of a step. What made its outcome is not stored twice where it is the only one.
fn tries(record: &StepRecord, kind: StepKind) -> Vec<Try> {
    let stored = record.tries.iter().map(|tried| Try {
        number: tried.number,
        error: tried.error.clone().into(),
        started_at: tried.started_at,
        failed_at: tried.failed_at,
    });
    let only = record.error.as_ref().filter(|_| kind == StepKind::Run && record.tries.is_empty()).map(|error| Try {
        number: record.attempts,
        error: error.clone().into(),
        started_at: record.started_at,
        failed_at: record.completed_at,
    });
    stored.chain(only).collect()
}

fn kind(record: &StepRecord, key: &[u8]) -> Result<StepKind, Corrupted> {
    StepKind::from_byte(record.kind).ok_or_else(|| Corrupted::new(Table::Steps, key, "unknown kind"))
}

fn log_line(run: RunId, key: &[u8], row: &Bytes) -> Result<LogLine, Fault> {
    let (record, fields) = codec::open::<LogRecord>(Table::Logs, key, row)?;
    let (_, number) = keys::read_step(key).ok_or_else(|| Corrupted::new(Table::Logs, key, "not a log line"))?;
    Ok(LogLine {
        run_id: run,
        number,
        level: LogLevel::from_byte(record.level),
        step_name: record.step,
        message: record.message,
        data: json(Table::Logs, key, &fields)?,
        created_at: record.at,
    })
}

/// A stored payload. An empty one is null.
pub(super) fn json(table: Table, key: &[u8], bytes: &[u8]) -> Result<Value, Fault> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(bytes).map_err(|_| Corrupted::new(table, key, "payload is not JSON").into())
}
