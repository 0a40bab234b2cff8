//! Rows in key order into a table, and out of it.
//!
//! redb splits a full leaf in the middle, so rows that are inserted one by one in ascending order leave every page half empty, and
//! each insertion copies its page. A cursor fills pages as they come, for as long as nothing of the table lies between.

use std::ops::Bound;

use redb::{CursorError, ReadableTable};

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

/// Keys that are removed in one pass, if they are most of what the table has between the first and the last of them.
const PASS_KEYS: usize = 64;

/// Removes rows whose keys ascend; some may not be there. Tells `removed` of their values.
pub(super) fn remove_ascending(
    table: &mut Raw<'_>,
    keys: &[&[u8]],
    mut removed: impl FnMut(&[u8]),
) -> Result<(), Fault> {
    for keys in keys.chunks(PASS_KEYS) {
        if let [first, .., last] = *keys
            && keys.len() >= RUN_MIN
            && table.range::<&[u8]>(first..=last)?.take(2 * keys.len() + 1).count() <= 2 * keys.len()
        {
            let mut keys = keys.iter().peekable();
            table.retain_in::<&[u8], _>(first..=last, |key, value| {
                while keys.next_if(|other| **other < key).is_some() {}
                let stays = keys.next_if(|other| **other == key).is_none();
                if !stays {
                    removed(value);
                }
                stays
            })?;
            continue;
        }
        for key in keys {
            if let Some(old) = table.remove(*key)? {
                removed(old.value());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::store::tables::Table;

    proptest! {
        #[test]
        fn rows_are_put_and_removed_whether_they_lie_together_or_apart(
            there in proptest::collection::btree_set(0u16..600, 0..300),
            put in proptest::collection::btree_set(0u16..600, 0..300),
            gone in prop_oneof![
                proptest::collection::btree_set(0u16..600, 0..300),
                (0u16..600, 0u16..300).prop_map(|(from, count)| (from..from + count).collect::<BTreeSet<u16>>()),
            ],
        ) {
            let db = redb::Database::builder().create_with_backend(redb::backends::InMemoryBackend::new()).unwrap();
            let txn = db.begin_write().unwrap();
            let mut table = txn.open_table(Table::Runs.definition()).unwrap();
            let mut model: BTreeMap<[u8; 2], u8> = BTreeMap::new();
            for (rows, value) in [(&there, [1]), (&put, [2])] {
                let rows: Vec<[u8; 2]> = rows.iter().map(|n| n.to_be_bytes()).collect();
                let mut replaced = 0;
                insert_ascending(&mut table, rows.iter().map(|key| (&key[..], &value[..])), |_, _| replaced += 1).unwrap();
                prop_assert_eq!(replaced, rows.iter().filter(|key| model.insert(**key, value[0]).is_some()).count());
            }
            let gone: Vec<[u8; 2]> = gone.iter().map(|n| n.to_be_bytes()).collect();
            let keys: Vec<&[u8]> = gone.iter().map(|key| &key[..]).collect();
            let mut removed = Vec::new();
            remove_ascending(&mut table, &keys, |value| removed.push(value[0])).unwrap();
            let expected: Vec<u8> = gone.iter().filter_map(|key| model.remove(key)).collect();
            prop_assert_eq!(removed, expected);
            let left = table.range::<&[u8]>(..).unwrap().map(|row| row.map(|(key, value)| (key.value().to_vec(), value.value()[0])));
            let left: Vec<_> = left.collect::<Result<_, _>>().unwrap();
            let expected: Vec<_> = model.into_iter().map(|(key, value)| (key.to_vec(), value)).collect();
            prop_assert_eq!(left, expected);
        }
    }
}
