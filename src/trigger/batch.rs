//! Many triggers in one transaction.

use super::Trigger;
use super::call::{build, send};
use crate::error::Error;
use crate::job::{JobHandle, Payload};
use crate::limits::{BATCH_BYTES_MAX, BATCH_ITEMS_MAX};
use crate::run::RunHandle;
use crate::store::op::NewRun;

/// Checks every item, then creates all their runs or none.
pub(crate) async fn trigger<I: Payload, O: Payload>(
    handle: &JobHandle<I, O>,
    items: impl Iterator<Item = Trigger<I>>,
) -> Result<Vec<RunHandle<O>>, Error> {
    let runs = gather(items, |item| build(handle, item))?;
    if runs.is_empty() {
        return Ok(Vec::new());
    }
    let triggered = send(&handle.core, runs, true).await.map_err(named)?;
    Ok(triggered.into_iter().map(|triggered| RunHandle::new(handle.core.clone(), triggered)).collect())
}

/// Checks every item, and that there are no more than a batch may have.
pub(crate) fn gather<T>(
    items: impl Iterator<Item = T>,
    check: impl Fn(T) -> Result<NewRun, Error>,
) -> Result<Vec<NewRun>, Error> {
    let (mut runs, mut bytes) = (Vec::new(), 0);
    for (at, item) in items.enumerate() {
        if at == BATCH_ITEMS_MAX {
            return Err(Error::TooMany { what: "items of a batch", count: at + 1, count_max: BATCH_ITEMS_MAX });
        }
        let run = check(item).map_err(|error| error.at_index(at))?;
        bytes += run.bytes();
        super::labels::within("batch", bytes, BATCH_BYTES_MAX)?;
        runs.push(run);
    }
    Ok(runs)
}

/// What the writer refuses an item with, naming the item. It does so itself only where there are several: a trigger by itself is
/// one item as well.
pub(crate) fn named(error: Error) -> Error {
    match error {
        Error::KeyConflict { .. } | Error::QueueFull { .. } | Error::IdempotencyMismatch { .. } => error.at_index(0),
        of_all => of_all,
    }
}
