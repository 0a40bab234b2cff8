//! The group being built: rows that the next commit will write.

use std::collections::hash_map::Entry;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::steps::Change;
use super::tables::Table;
use crate::codec::keys::{self, Key};
use crate::hash::SeededMap;
use crate::id::RunId;

/// What the group makes of a row.
#[derive(Debug)]
pub(crate) struct Slot {
    /// `None` is a tombstone.
    pub(crate) value: Option<Bytes>,
    /// Nothing of this key is in the table, nor in the tail.
    pub(crate) fresh: bool,
}

/// The group's rows of a table: in the order in which they came, found by their keys. Most are looked for once and never in
/// order.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    /// `None` where a row came and went.
    rows: Vec<Option<(Key, Slot)>>,
    places: SeededMap<Key, usize>,
}

/// Memory for more rows than this is given back after the group.
const ROWS_KEPT_MAX: usize = 4_096;

impl Staged {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Slot> {
        let (_, slot) = self.rows.get(*self.places.get(key)?)?.as_ref()?;
        Some(slot)
    }

    /// The rows of a range in order of their keys.
    pub(crate) fn sorted(&self, (lower, upper): (Bound<&[u8]>, Bound<&[u8]>)) -> Vec<(&Key, &Slot)> {
        let is_after = |key: &[u8]| match lower {
            Bound::Included(lower) => key >= lower,
            Bound::Excluded(lower) => key > lower,
            Bound::Unbounded => true,
        };
        let is_before = |key: &[u8]| match upper {
            Bound::Included(upper) => key <= upper,
            Bound::Excluded(upper) => key < upper,
            Bound::Unbounded => true,
        };
        let within = self.rows.iter().flatten().filter(|(key, _)| is_after(key) && is_before(key));
        let mut sorted: Vec<_> = within.map(|(key, slot)| (key, slot)).collect();
        sorted.sort_unstable_by_key(|(key, _)| *key);
        sorted
    }

    fn set(&mut self, key: Key, mut slot: Slot) {
        match self.places.entry(key) {
            Entry::Vacant(place) => {
                let key = place.key().clone();
                place.insert(self.rows.len());
                self.rows.push(Some((key, slot)));
            }
            Entry::Occupied(place) => {
                let row = &mut self.rows[*place.get()];
                slot.fresh = row.as_ref().is_none_or(|(_, old)| old.fresh);
                *row = if slot.fresh && slot.value.is_none() { None } else { Some((place.key().clone(), slot)) };
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.rows.iter().all(Option::is_none)
    }

    fn clear(&mut self) {
        if self.rows.len() > ROWS_KEPT_MAX {
            *self = Staged::default();
        } else {
            self.rows.clear();
            self.places.clear();
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Stage {
    tables: [Staged; Table::ALL.len()],
    /// In the order in which they were made.
    steps: Vec<(RunId, Change<Arc<[u8]>>)>,
    rows: usize,
    bytes: usize,
}

impl Stage {
    pub(crate) fn of(&self, table: Table) -> &Staged {
        &self.tables[table as usize]
    }

    /// A row whose key was never used before, in this file's whole life.
    pub(crate) fn insert(&mut self, table: Table, key: impl Into<Key>, value: impl Into<Bytes>) {
        self.set(table, key.into(), Slot { value: Some(value.into()), fresh: true });
    }

    /// A row whose key may have been used.
    pub(crate) fn put(&mut self, table: Table, key: impl Into<Key>, value: impl Into<Bytes>) {
        self.set(table, key.into(), Slot { value: Some(value.into()), fresh: false });
    }

    pub(crate) fn delete(&mut self, table: Table, key: impl Into<Key>) {
        self.set(table, key.into(), Slot { value: None, fresh: false });
    }

    /// Makes room for so many more rows of a table.
    pub(crate) fn reserve(&mut self, table: Table, rows: usize) {
        let table = &mut self.tables[table as usize];
        table.rows.reserve(rows);
        table.places.reserve(rows);
    }

    /// Changes the steps of a run. Gives the change's number among those of the group.
    pub(crate) fn change_steps(&mut self, run: RunId, change: Change<Arc<[u8]>>) -> usize {
        self.rows += 1;
        self.bytes += RunId::BYTES + 4 + if let Change::Put(_, value) = &change { value.len() } else { 0 };
        self.steps.push((run, change));
        self.steps.len() - 1
    }

    fn set(&mut self, table: Table, key: Key, slot: Slot) {
        debug_assert!(table != Table::Steps, "steps are changed by change_steps");
        self.rows += 1;
        self.bytes += key.len() + slot.value.as_ref().map_or(0, Bytes::len);
        self.tables[table as usize].set(key, slot);
    }

    /// Forgets everything but the memory it took.
    pub(crate) fn clear(&mut self) {
        self.tables.iter_mut().for_each(Staged::clear);
        self.steps.clear();
        (self.rows, self.bytes) = (0, 0);
    }

    /// About how much the commit will write.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.tables.iter().all(Staged::is_empty)
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The record that a change to steps puts; empty for others.
    pub(crate) fn record(&self, at: usize) -> &[u8] {
        match self.steps.get(at) {
            Some((_, Change::Put(_, record))) => record,
            _ => &[],
        }
    }

    /// What the group does to the steps of a run.
    pub(crate) fn steps_of(&self, run: RunId) -> impl DoubleEndedIterator<Item = &Change<Arc<[u8]>>> {
        self.steps.iter().filter(move |(of, _)| *of == run).map(|(_, change)| change)
    }

    pub(crate) fn steps(&self) -> impl ExactSizeIterator<Item = (Key, Option<&[u8]>)> {
        self.steps.iter().map(|(run, change)| match change {
            Change::Put(index, value) => (keys::of_run(*run, *index), Some(&value[..])),
            Change::Remove(index) => (keys::of_run(*run, *index), None),
            Change::Clear => (keys::run(*run), None),
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Table, &Key, &Slot)> {
        Table::ALL
            .into_iter()
            .flat_map(|table| self.of(table).rows.iter().flatten().map(move |(key, slot)| (table, key, slot)))
    }
}
