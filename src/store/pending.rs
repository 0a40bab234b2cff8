//! Runs in flight, and outputs of their steps, in slices: no view is held over more than one.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

use super::read::names;
use super::tables::Table;
use super::view::{Direction, Rows};
use super::{Fault, Store};
use crate::codec::records::{RunRecord, StepRecord};
use crate::codec::{self, keys};
use crate::error::Error;
use crate::id::RunId;
use crate::limits::{SLICE_BYTES, SLICE_RUNS};
use crate::run::RunStatus;

/// Where the next slice begins: the runs of a status from this one on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    status: RunStatus,
    from: RunId,
}

impl Place {
    /// Pending and leased runs stand together.
    pub(crate) const START: Place = Place { status: RunStatus::Pending, from: RunId::MIN };
}

/// A run that has not ended.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) run: RunId,
    pub(crate) job: Arc<str>,
    pub(crate) version: u32,
    pub(crate) input: Bytes,
}

/// A completed step.
#[derive(Debug)]
pub(crate) struct Completed {
    pub(crate) key: String,
    pub(crate) version: u32,
    pub(crate) output: Bytes,
}

impl Store {
    /// Some runs in flight, and where to go on.
    pub(crate) async fn in_flight(&self, place: Place) -> Result<(Vec<InFlight>, Option<Place>), Error> {
        let Place { status, from } = place;
        self.read(move |view| {
            let names = names(view)?;
            let (mut runs, mut bytes, mut next) = (Vec::new(), 0, None);
            let (first, prefix) = (keys::by_status(status, from), keys::by_status_prefix(status));
            let end = keys::after_prefix(&prefix);
            let range = (Bound::Included(&first[..]), end.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
            view.scan(Table::ByStatus, range, Direction::Forward, &mut |key, _| {
                // One that is longer or shorter might lead back to where the slice began.
                let run = key.strip_prefix(&prefix[..]).and_then(RunId::from_slice);
                let Some(run) = run else { return Ok(ControlFlow::Continue(())) };
                if runs.len() >= SLICE_RUNS || bytes >= SLICE_BYTES {
                    next = Some(run);
                    return Ok(ControlFlow::Break(()));
                }
                let row = match view.get(Table::Runs, run.as_bytes()) {
                    Ok(Some(row)) => row,
                    // That is for `verify` to tell.
                    Ok(None) | Err(Fault::Corrupted(_)) => return Ok(ControlFlow::Continue(())),
                    Err(fault) => return Err(fault),
                };
                if let Ok((record, input)) = codec::open::<RunRecord>(Table::Runs, run.as_bytes(), &row) {
                    bytes += input.len();
                    let job = names.get(&record.job).cloned().unwrap_or_else(|| "".into());
                    runs.push(InFlight { run, job, version: record.version, input });
                }
                Ok(ControlFlow::Continue(()))
            })?;
            let next = match next {
                Some(from) => Some(Place { status, from }),
                None if status == RunStatus::Pending => Some(Place { status: RunStatus::Suspended, from: RunId::MIN }),
                None => None,
            };
            Ok((runs, next))
        })
        .await
    }

    /// Some outputs of a run's steps from an index on, of those keys that are wanted, and where to go on.
    pub(crate) async fn outputs(
        &self,
        run: RunId,
        from: u32,
        wanted: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<(Vec<Completed>, Option<u32>), Error> {
        self.read(move |view| {
            let (mut steps, mut bytes, mut next) = (Vec::new(), 0, None);
            view.steps(run, &mut |index, row| {
                if index < from {
                    return Ok(ControlFlow::Continue(()));
                }
                if bytes >= SLICE_BYTES {
                    next = Some(index);
                    return Ok(ControlFlow::Break(()));
                }
                // One that can't be read ends its run by itself, when that asks for it.
                let opened = codec::open::<StepRecord>(Table::Steps, &keys::of_run(run, index), &row);
                if let Ok((record, output)) = opened
                    && record.is_completed()
                    && wanted(&record.key)
                {
                    bytes += output.len() + record.key.len();
                    steps.push(Completed { key: record.key, version: record.version, output });
                }
                Ok(ControlFlow::Continue(()))
            })?;
            Ok((steps, next))
        })
        .await
    }
}
