//! Rows in key order into a table.
//!
//! redb splits a full leaf in the middle, so rows that are inserted one by one in ascending order leave every page half empty, and
//! each insertion copies its page. A cursor fills pages as they come, for as long as nothing of the table lies between.

use std::ops::Bound;

use redb::CursorError;

use super::Fault;

pub(super) type Raw<'txn> = redb::Table<'txn, &'static [u8], &'static [u8]>;

/// A run of rows shorter than this is not worth its cursor.
const RUN_MIN: usize = 4;
/// So many short runs mean that the keys are scattered.
const SHORT_RUNS_MAX: usize = 8;

/// Inserts rows, whose keys ascend. Tells `replaced` of values that were there before, with the new ones.
pub(super) fn insert_ascending<'a>(
    table: &mut Raw<'_>,
    rows: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    mut replaced: impl FnMut(&[u8], &[u8]),
) -> Result<(), Fault> {
    let mut rows = rows.into_iter();
    let mut next = rows.next();
    let mut short_runs = 0;
    while let Some((key, value)) = next {
        let mut length = 0;
        if short_runs < SHORT_RUNS_MAX {
            let mut cursor = table.lower_bound_mut(Bound::Included(key))?;
            while let Some((key, value)) = next {
                match cursor.insert_before(key, value) {
                    Ok(()) => (length, next) = (length + 1, rows.next()),
                    Err(CursorError::UnorderedKey) => break,
                    Err(CursorError::Storage(error)) => return Err(error.into()),
                    Err(_) => break,
                }
            }
            cursor.close()?;
            short_runs += usize::from(length < RUN_MIN && next.is_some());
        }
        if length == 0 {
            if let Some(old) = table.insert(key, value)? {
                replaced(old.value(), value);
            }
            next = rows.next();
        }
    }
    Ok(())
}
