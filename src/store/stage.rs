//! The group being built: rows that the next commit will write.

use std::collections::btree_map::Entry;
use std::sync::Arc;

use bytes::Bytes;

use super::steps::Change;
use super::tables::Table;
use super::tail::{Layer, Slot};
use crate::codec::keys::{self, Key};
use crate::id::RunId;

#[derive(Debug, Default)]
pub(crate) struct Stage {
    layers: [Layer; Table::ALL.len()],
    /// In the order in which they were made.
    steps: Vec<(RunId, Change<Arc<[u8]>>)>,
    rows: usize,
    bytes: usize,
}

impl Stage {
    pub(crate) fn layer(&self, table: Table) -> &Layer {
        &self.layers[table as usize]
    }

    /// A row whose key was never used before, in this file's whole life.
    pub(crate) fn insert(&mut self, table: Table, key: impl Into<Key>, value: impl Into<Bytes>) {
        self.set(table, key.into(), Slot { group: 0, value: Some(value.into()), fresh: true });
    }

    /// A row whose key may have been used.
    pub(crate) fn put(&mut self, table: Table, key: impl Into<Key>, value: impl Into<Bytes>) {
        self.set(table, key.into(), Slot { group: 0, value: Some(value.into()), fresh: false });
    }

    pub(crate) fn delete(&mut self, table: Table, key: impl Into<Key>) {
        self.set(table, key.into(), Slot { group: 0, value: None, fresh: false });
    }

    /// Changes the steps of a run.
    pub(crate) fn change_steps(&mut self, run: RunId, change: Change<Arc<[u8]>>) {
        self.rows += 1;
        self.bytes += RunId::BYTES + 4 + if let Change::Put(_, value) = &change { value.len() } else { 0 };
        self.steps.push((run, change));
    }

    fn set(&mut self, table: Table, key: Key, mut slot: Slot) {
        debug_assert!(table != Table::Steps, "steps are changed by change_steps");
        let layer = &mut self.layers[table as usize];
        self.rows += 1;
        self.bytes += key.len() + slot.value.as_ref().map_or(0, Bytes::len);
        match layer.entry(key) {
            Entry::Vacant(place) => {
                place.insert(slot);
            }
            Entry::Occupied(mut place) => {
                slot.fresh = place.get().fresh;
                if slot.fresh && slot.value.is_none() {
                    place.remove();
                } else {
                    place.insert(slot);
                }
            }
        }
    }

    /// Forgets everything but the memory it took.
    pub(crate) fn clear(&mut self) {
        self.layers.iter_mut().for_each(Layer::clear);
        self.steps.clear();
        (self.rows, self.bytes) = (0, 0);
    }

    /// About how much the commit will write.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.layers.iter().all(Layer::is_empty)
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// What the group does to the steps of a run.
    pub(crate) fn steps_of(&self, run: RunId) -> impl Iterator<Item = &Change<Arc<[u8]>>> {
        self.steps.iter().filter(move |(of, _)| *of == run).map(|(_, change)| change)
    }

    pub(crate) fn steps(&self) -> impl Iterator<Item = (Key, Option<&[u8]>)> {
        self.steps.iter().map(|(run, change)| match change {
            Change::Put(index, value) => (keys::of_run(*run, *index), Some(&value[..])),
            Change::Remove(index) => (keys::of_run(*run, *index), None),
            Change::Clear => (keys::run(*run), None),
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Table, &Key, &Slot)> {
        Table::ALL.into_iter().flat_map(|table| self.layer(table).iter().map(move |(key, slot)| (table, key, slot)))
    }
}
