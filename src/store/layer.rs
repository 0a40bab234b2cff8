//! The rows of one table that the tail has, in the order of their keys.
//!
//! A sorted list in chunks. Every row that is written is looked for here, in lists of some ten thousand that are not in a core's
//! own cache; so keys lie next to each other, apart from what stands at them, and so do the least keys of the chunks, and rows that
//! come in order fill their chunks. To take rows up was 8 % of all CPU of short runs with `BTreeMap`s, and is 5 % (samples).
//!
//! Invariant: no chunk is empty, and the keys of a chunk lie between its bound and the next one's.

use std::ops::Bound;

use crate::codec::keys::Key;

/// Rows in a chunk, at most: 2 KiB of keys.
const CHUNK_ROWS: usize = 64;
/// Chunks whose memory is kept, at most.
const SPARE_CHUNKS: usize = 64;

#[derive(Debug)]
pub(crate) struct Layer<V> {
    /// Of each chunk, a key up to its first and after all keys of the chunk before.
    bounds: Vec<Key>,
    chunks: Vec<Chunk<V>>,
    /// Memory of chunks that are gone: rows come and go at the same rate.
    spare: Vec<Chunk<V>>,
}

#[derive(Debug)]
struct Chunk<V> {
    keys: Vec<Key>,
    values: Vec<V>,
}

/// Where a row stands, or would, until something changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    chunk: usize,
    row: usize,
}

impl<V> Default for Layer<V> {
    fn default() -> Self {
        Layer { bounds: Vec::new(), chunks: Vec::new(), spare: Vec::new() }
    }
}

impl<V> Layer<V> {
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&V> {
        let at = self.find(&key.into()).ok()?;
        Some(&self.chunks[at.chunk].values[at.row])
    }

    /// Where a key stands; if it does not, where it would.
    pub(crate) fn find(&self, key: &Key) -> Result<At, At> {
        let chunk = match self.bounds.last() {
            None => return Err(At { chunk: 0, row: 0 }),
            // Most new keys are the greatest.
            Some(last) if last <= key => self.chunks.len() - 1,
            Some(_) => self.bounds.partition_point(|bound| bound <= key).saturating_sub(1),
        };
        match self.chunks[chunk].keys.binary_search(key) {
            Ok(row) => Ok(At { chunk, row }),
            Err(row) => Err(At { chunk, row }),
        }
    }

    /// What stands at a place that was found.
    pub(crate) fn at_mut(&mut self, at: At) -> &mut V {
        &mut self.chunks[at.chunk].values[at.row]
    }

    /// Puts a row where [`Layer::find`] said that it would stand.
    pub(crate) fn insert(&mut self, mut at: At, key: Key, value: V) {
        if at.chunk == self.chunks.len() {
            return self.push(key, value);
        }
        if self.chunks[at.chunk].keys.len() >= CHUNK_ROWS {
            if at.row == CHUNK_ROWS && at.chunk + 1 == self.chunks.len() {
                return self.push(key, value);
            }
            self.split(at.chunk);
            let left = self.chunks[at.chunk].keys.len();
            if at.row > left {
                at = At { chunk: at.chunk + 1, row: at.row - left };
            }
        }
        if key < self.bounds[at.chunk] {
            self.bounds[at.chunk] = key.clone();
        }
        let chunk = &mut self.chunks[at.chunk];
        chunk.keys.insert(at.row, key);
        chunk.values.insert(at.row, value);
    }

    /// A chunk of its own for a key after all others.
    fn push(&mut self, key: Key, value: V) {
        let mut chunk = self.new_chunk();
        self.bounds.push(key.clone());
        chunk.keys.push(key);
        chunk.values.push(value);
        self.chunks.push(chunk);
    }

    fn split(&mut self, at: usize) {
        let mut right = self.new_chunk();
        let Chunk { keys, values } = &mut self.chunks[at];
        let half = keys.len() / 2;
        right.keys.extend(keys.drain(half..));
        right.values.extend(values.drain(half..));
        self.bounds.insert(at + 1, right.keys[0].clone());
        self.chunks.insert(at + 1, right);
    }

    fn new_chunk(&mut self) -> Chunk<V> {
        self.spare.pop().unwrap_or_else(|| {
            // The first one grows as it must: many a table has a row or two.
            let room = if self.chunks.is_empty() { 1 } else { CHUNK_ROWS };
            Chunk { keys: Vec::with_capacity(room), values: Vec::with_capacity(room) }
        })
    }

    fn keep(&mut self, mut chunk: Chunk<V>) {
        if self.spare.len() < SPARE_CHUNKS {
            chunk.keys.clear();
            chunk.values.clear();
            self.spare.push(chunk);
        }
    }

    pub(crate) fn remove(&mut self, at: At) {
        let chunk = &mut self.chunks[at.chunk];
        chunk.keys.remove(at.row);
        chunk.values.remove(at.row);
        if chunk.keys.is_empty() {
            let emptied = self.chunks.remove(at.chunk);
            self.bounds.remove(at.chunk);
            self.keep(emptied);
        }
    }

    /// Removes keys that ascend; some may not be there.
    pub(crate) fn remove_ascending(&mut self, keys: &[Key]) {
        let mut keys = keys.iter().peekable();
        let mut sparse = false;
        while let Some(key) = keys.peek().copied() {
            let at = match self.find(key) {
                Ok(at) => at,
                Err(_) => {
                    keys.next();
                    continue;
                }
            };
            let chunk = &mut self.chunks[at.chunk];
            let mut kept = at.row;
            for row in at.row..chunk.keys.len() {
                if keys.next_if(|key| **key == chunk.keys[row]).is_none() {
                    chunk.keys.swap(kept, row);
                    chunk.values.swap(kept, row);
                    kept += 1;
                }
            }
            chunk.keys.truncate(kept);
            chunk.values.truncate(kept);
            sparse |= kept < CHUNK_ROWS / 4;
        }
        if sparse {
            self.close_up();
        }
    }

    /// Drops chunks that are empty, and joins those that have room for each other.
    fn close_up(&mut self) {
        let mut kept = 0usize;
        for at in 0..self.chunks.len() {
            let (before, from) = self.chunks.split_at_mut(at);
            let chunk = &mut from[0];
            if chunk.keys.is_empty() {
                continue;
            }
            if let Some(last) = kept.checked_sub(1).map(|last| &mut before[last])
                && last.keys.len() + chunk.keys.len() <= CHUNK_ROWS / 2
            {
                last.keys.append(&mut chunk.keys);
                last.values.append(&mut chunk.values);
                continue;
            }
            self.chunks.swap(kept, at);
            self.bounds.swap(kept, at);
            kept += 1;
        }
        self.bounds.truncate(kept);
        while self.chunks.len() > kept {
            let emptied = self.chunks.pop();
            emptied.into_iter().for_each(|chunk| self.keep(chunk));
        }
    }

    pub(crate) fn iter(&self) -> Rows<'_, V> {
        self.range((Bound::Unbounded, Bound::Unbounded))
    }

    /// The rows of a range, from either end.
    pub(crate) fn range(&self, (lower, upper): (Bound<&[u8]>, Bound<&[u8]>)) -> Rows<'_, V> {
        let end = At { chunk: self.chunks.len(), row: 0 };
        let next = match lower {
            Bound::Unbounded => At { chunk: 0, row: 0 },
            Bound::Included(key) => self.edge(key, false),
            Bound::Excluded(key) => self.edge(key, true),
        };
        let end = match upper {
            Bound::Unbounded => end,
            Bound::Included(key) => self.edge(key, true),
            Bound::Excluded(key) => self.edge(key, false),
        };
        Rows { layer: self, next, end }
    }

    /// The place of the first row from a key on, or after it.
    fn edge(&self, key: &[u8], after: bool) -> At {
        match self.find(&key.into()) {
            Ok(at) => self.settled(At { row: at.row + usize::from(after), ..at }),
            Err(at) => self.settled(at),
        }
    }

    /// The end of a chunk is the beginning of the next one.
    fn settled(&self, at: At) -> At {
        match self.chunks.get(at.chunk) {
            Some(chunk) if at.row >= chunk.keys.len() => At { chunk: at.chunk + 1, row: 0 },
            _ => at,
        }
    }
}

/// Rows in the order of their keys. Each place is that of a row, or the end of all.
#[derive(Debug)]
pub(crate) struct Rows<'l, V> {
    layer: &'l Layer<V>,
    next: At,
    end: At,
}

impl<'l, V> Rows<'l, V> {
    fn row(&self, at: At) -> Option<(&'l Key, &'l V)> {
        let chunk = self.layer.chunks.get(at.chunk)?;
        Some((chunk.keys.get(at.row)?, chunk.values.get(at.row)?))
    }
}

impl<'l, V> Iterator for Rows<'l, V> {
    type Item = (&'l Key, &'l V);

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let row = self.row(self.next);
        self.next = self.layer.settled(At { row: self.next.row + 1, ..self.next });
        row
    }
}

impl<V> DoubleEndedIterator for Rows<'_, V> {
    fn next_back(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        self.end = match self.end {
            At { chunk, row: 0 } => At { chunk: chunk - 1, row: self.layer.chunks[chunk - 1].keys.len() - 1 },
            At { chunk, row } => At { chunk, row: row - 1 },
        };
        self.row(self.end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn key(number: u16) -> Key {
        Key::from(&number.to_be_bytes()[..])
    }

    /// What is done to a layer, and to a map beside it.
    #[derive(Debug, Clone)]
    enum Change {
        Put(u16, u32),
        /// As many in order.
        PutMany(u16, u16),
        Remove(u16),
        RemoveAll(BTreeSet<u16>),
        /// As many in order.
        RemoveMany(u16, u16),
    }

    fn change() -> impl Strategy<Value = Change> {
        let number = || 0u16..700;
        prop_oneof![
            4 => (number(), any::<u32>()).prop_map(|(key, value)| Change::Put(key, value)),
            2 => (number(), 0u16..300).prop_map(|(from, count)| Change::PutMany(from, count)),
            2 => number().prop_map(Change::Remove),
            1 => proptest::collection::btree_set(number(), 0..200).prop_map(Change::RemoveAll),
            1 => (number(), 0u16..300).prop_map(|(from, count)| Change::RemoveMany(from, count)),
        ]
    }

    fn put(layer: &mut Layer<u32>, number: u16, value: u32) {
        match layer.find(&key(number)) {
            Ok(at) => *layer.at_mut(at) = value,
            Err(at) => layer.insert(at, key(number), value),
        }
    }

    fn apply(layer: &mut Layer<u32>, model: &mut BTreeMap<Key, u32>, change: Change) {
        match change {
            Change::Put(number, value) => {
                put(layer, number, value);
                model.insert(key(number), value);
            }
            Change::PutMany(from, count) => {
                for number in from..from + count {
                    put(layer, number, u32::from(count));
                    model.insert(key(number), u32::from(count));
                }
            }
            Change::Remove(number) => {
                let found = layer.find(&key(number));
                assert_eq!(found.is_ok(), model.remove(&key(number)).is_some());
                found.into_iter().for_each(|at| layer.remove(at));
            }
            Change::RemoveAll(numbers) => {
                let keys: Vec<Key> = numbers.into_iter().map(key).collect();
                layer.remove_ascending(&keys);
                model.retain(|key, _| !keys.contains(key));
            }
            Change::RemoveMany(from, count) => {
                let keys: Vec<Key> = (from..from + count).map(key).collect();
                layer.remove_ascending(&keys);
                model.retain(|key, _| !keys.contains(key));
            }
        }
    }

    fn validate(layer: &Layer<u32>) {
        assert_eq!(layer.bounds.len(), layer.chunks.len());
        for (at, chunk) in layer.chunks.iter().enumerate() {
            assert_eq!(chunk.keys.len(), chunk.values.len());
            assert!((1..=CHUNK_ROWS).contains(&chunk.keys.len()));
            assert!(chunk.keys.is_sorted_by(|a, b| a < b));
            assert!(layer.bounds[at] <= chunk.keys[0]);
            assert!(layer.bounds.get(at + 1).is_none_or(|next| chunk.keys.last() < Some(next)));
        }
    }

    fn bound(number: u16, kind: u8) -> Bound<Vec<u8>> {
        match kind {
            0 => Bound::Unbounded,
            1 => Bound::Included(number.to_be_bytes().to_vec()),
            _ => Bound::Excluded(number.to_be_bytes().to_vec()),
        }
    }

    proptest! {
        #[test]
        fn a_layer_reads_as_a_map_does(
            changes in proptest::collection::vec(change(), 0..40),
            (low, high) in (0u16..1_000, 0u16..1_000),
            kinds in (0u8..3, 0u8..3),
            turns in proptest::collection::vec(any::<bool>(), 0..1_000),
        ) {
            let (mut layer, mut model) = (Layer::default(), BTreeMap::new());
            for change in changes {
                apply(&mut layer, &mut model, change);
                validate(&layer);
                prop_assert_eq!(layer.is_empty(), model.is_empty());
            }
            for number in 0..1_000 {
                prop_assert_eq!(layer.get(&key(number)), model.get(&key(number)));
            }
            prop_assert!(layer.iter().eq(model.iter()));
            prop_assert!(layer.iter().rev().eq(model.iter().rev()));
            // From both ends at once.
            let (lower, upper) = (bound(low, kinds.0), bound(high, kinds.1));
            let within = |key: &Key| {
                (match &lower {
                    Bound::Unbounded => true,
                    Bound::Included(lower) => **key >= lower[..],
                    Bound::Excluded(lower) => **key > lower[..],
                }) && (match &upper {
                    Bound::Unbounded => true,
                    Bound::Included(upper) => **key <= upper[..],
                    Bound::Excluded(upper) => **key < upper[..],
                })
            };
            let mut expected = model.iter().filter(|(key, _)| within(key));
            let mut rows = layer.range((lower.as_ref().map(Vec::as_slice), upper.as_ref().map(Vec::as_slice)));
            for back in turns.into_iter().chain(std::iter::repeat_n(false, 1_000)) {
                if back {
                    prop_assert_eq!(rows.next_back(), expected.next_back());
                } else {
                    prop_assert_eq!(rows.next(), expected.next());
                }
            }
        }
    }
}
