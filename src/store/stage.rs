//! The group being built: rows that the next commit will write.

use bytes::Bytes;

use super::tables::Table;
use super::tail::{Layer, Slot};

#[derive(Debug, Default)]
pub(crate) struct Stage {
    layers: [Layer; Table::ALL.len()],
    rows: usize,
    bytes: usize,
}

impl Stage {
    pub(crate) fn layer(&self, table: Table) -> &Layer {
        &self.layers[table as usize]
    }

    /// A row whose key was never used before, in this file's whole life.
    pub(crate) fn insert(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.set(table, key, Slot { group: 0, value: Some(value.into()), fresh: true });
    }

    /// A row whose key may have been used.
    pub(crate) fn put(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.set(table, key, Slot { group: 0, value: Some(value.into()), fresh: false });
    }

    pub(crate) fn delete(&mut self, table: Table, key: Vec<u8>) {
        self.set(table, key, Slot { group: 0, value: None, fresh: false });
    }

    fn set(&mut self, table: Table, key: Vec<u8>, mut slot: Slot) {
        let key = Bytes::from(key);
        let layer = &mut self.layers[table as usize];
        self.rows += 1;
        self.bytes += key.len() + slot.value.as_ref().map_or(0, Bytes::len);
        if let Some(old) = layer.get_mut(&key) {
            slot.fresh = old.fresh;
            if slot.fresh && slot.value.is_none() {
                layer.remove(&key);
            } else {
                *old = slot;
            }
        } else {
            layer.insert(key, slot);
        }
    }

    /// About how much the commit will write.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.layers.iter().all(Layer::is_empty)
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Table, &Bytes, &Slot)> {
        Table::ALL.into_iter().flat_map(|table| self.layer(table).iter().map(move |(key, slot)| (table, key, slot)))
    }
}
