//! The checkpoints that a fork takes over, prepared where reads are: the writer only writes them.
//!
//! A checkpoint never changes, so what one view gives is right whatever happens to the old run before the fork's commit.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::op::Forked;
use super::read::rowset;
use super::tables::Table;
use super::view::{Rows, View};
use super::{Fault, Store};
use crate::codec::records::{StepRecord, WaitRecord};
use crate::codec::segment::SegmentHead;
use crate::codec::{self, keys};
use crate::error::Error;
use crate::id::RunId;
use crate::limits::STEPS_BYTES_MAX;
use crate::run::{RunStatus, StepKind};
use crate::time::Timestamp;

/// What a fork takes over, and what it changes of that.
#[derive(Debug, Clone, Default)]
pub(crate) struct Edits {
    /// This step and those above it are left behind.
    pub(crate) from_step: Option<String>,
    /// Outputs as they are to be, by step.
    pub(crate) outputs: BTreeMap<String, Bytes>,
}

impl Edits {
    pub(crate) fn bytes(&self) -> usize {
        self.outputs.iter().map(|(key, output)| key.len() + output.len() + 64).sum()
    }
}

impl Store {
    /// What a fork of a run begins with.
    pub(crate) async fn checkpoints(&self, run: RunId, edits: Edits, now: Timestamp) -> Result<Forked, Error> {
        self.read(move |view| checkpoints(view, run, &edits, now)).await?
    }
}

impl Forked {
    fn put(&mut self, index: u32, mut record: StepRecord, output: &[u8]) {
        record.generation = 0;
        if record.is_completed() {
            self.completed += 1;
            self.step_index = index + 1;
        }
        let sealed: Arc<[u8]> = codec::seal(&record, output).into();
        self.bytes += sealed.len();
        self.steps.push((index, sealed));
    }
}

fn checkpoints(view: &View<'_>, run: RunId, edits: &Edits, now: Timestamp) -> Result<Result<Forked, Error>, Fault> {
    let Some(rows) = rowset(view, run, false)? else { return Ok(Err(Error::RunNotFound { run })) };
    let failed = rows.state.status == RunStatus::Failed.to_byte();
    let culprit = rows.state.error.and_then(|error| error.step).filter(|_| failed);
    let mut wanted: BTreeSet<&str> = edits.outputs.keys().map(String::as_str).collect();
    let mut forked = Forked { from: run, steps: Vec::new(), completed: 0, step_index: 0, bytes: 0 };
    let mut upto = None;
    // Maps that are taken over: their segments are, wherever they stand.
    let mut maps = BTreeSet::new();
    let mut refused = None;
    // The steps come by index, so those behind the first that is left behind are left behind too.
    view.steps(run, &mut |index, row| {
        let key = keys::of_run(run, index);
        let (mut record, mut output) = codec::open::<StepRecord>(Table::Steps, &key, &row)?;
        if record.kind == StepKind::SEGMENT {
            if SegmentHead::of(&output).is_some_and(|head| maps.contains(&head.map)) {
                forked.put(index, record, &output);
            }
            return Ok(ControlFlow::Continue(()));
        }
        wanted.remove(&*record.key);
        if edits.from_step.as_deref() == Some(&*record.key) {
            upto = Some(index);
        }
        let is_map = record.kind == StepKind::Map.to_byte();
        if let Some(given) = edits.outputs.get(&record.key) {
            if is_map {
                refused = Some(record.key.clone());
            }
            record.error = None;
            record.open = None;
            record.completed_at = now;
            output = given.clone();
        } else if is_map && upto.is_none() && !output.is_empty() {
            maps.insert(index);
            if record.error.is_some() && culprit.as_deref() == Some(&*record.key) {
                // Its items that are done stay done, as over a resume.
                (record.error, record.open) = (None, Some(WaitRecord::default()));
            }
        } else if upto.is_some()
            || record.open.is_some()
            || (record.error.is_some() && culprit.as_deref() == Some(&*record.key))
        {
            return Ok(ControlFlow::Continue(()));
        }
        forked.put(index, record, &output);
        Ok(ControlFlow::Continue(()))
    })?;
    let missing = wanted.first().copied().or(edits.from_step.as_deref().filter(|_| upto.is_none()));
    if let Some(step) = missing {
        return Ok(Err(Error::StepNotFound { run, step: step.to_owned() }));
    }
    if let Some(step) = refused {
        let message = format!("step {step:?} is a map: what its items gave can't be replaced");
        return Ok(Err(Error::InvalidInput { path: String::new(), rule: "type".into(), message }));
    }
    if forked.bytes > STEPS_BYTES_MAX {
        let (bytes, bytes_max) = (forked.bytes, STEPS_BYTES_MAX);
        return Ok(Err(Error::TooLarge { what: "checkpoints", bytes, bytes_max }));
    }
    Ok(Ok(forked))
}
