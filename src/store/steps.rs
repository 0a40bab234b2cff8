//! The checkpoints of a run: in the tail, and as blocks in their table.
//!
//! Most writes are checkpoints, so they have a form of their own. In the tail a run's steps stand in one list by index;
//! folding puts neighbours into one *block*, a row of the table. A row's key is the run and the lowest index that the block
//! may hold: a block goes up to the next one of its run, so an index has one place whatever was folded before, and folding
//! the same step again finds it there.
//!
//! A block is `index u32, length u32, record` for each step, ascending; numbers are little endian. A record is a sealed
//! `StepRecord`, or the reference of one that lies in the blob table.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::ops::Range;

use bytes::{Buf, Bytes};
use redb::ReadableTable;

use super::Fault;
use super::bulk::{Raw, insert_ascending};
use super::tables::Table;
use crate::codec::{BlobRef, Corrupted, keys};
use crate::id::RunId;

/// A block of about this many bytes takes no more steps at its end; the next begins a new one.
const BLOCK_BYTES: usize = 1 << 10;

/// A run with one step in the tail is likely to get more: room for so many costs less than to grow twice.
const SLOTS_MIN: usize = 16;

/// A step by its index, and its record.
pub(crate) type Indexed = (u32, Bytes);

/// What a group does to the steps of a run.
#[derive(Debug, Clone)]
pub(crate) enum Change<V> {
    Put(u32, V),
    Remove(u32),
    /// All of them go.
    Clear,
}

/// What of a run's steps is in the tail.
#[derive(Debug, Default)]
pub(crate) struct TailSteps {
    /// The group that removed everything recorded before it.
    cleared: Option<u64>,
    slots: Vec<StepSlot>,
}

/// The newest record of a step. It says where that is and does not hold it: most are never looked at before they are folded,
/// and to count who holds a row is dear where many threads do.
#[derive(Debug)]
pub(crate) struct StepSlot {
    pub(crate) index: u32,
    pub(crate) group: u64,
    /// `None` is a tombstone.
    pub(crate) place: Option<Place>,
}

/// Where a record lies in its group's row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Never 0, where the row's header is.
    at: NonZeroU32,
    bytes: u32,
}

impl Place {
    pub(crate) fn new(range: &Range<usize>) -> Option<Place> {
        Some(Place { at: NonZeroU32::new(range.start.try_into().ok()?)?, bytes: range.len().try_into().ok()? })
    }

    pub(crate) fn range(self) -> Range<usize> {
        let at = self.at.get() as usize;
        at..at + self.bytes as usize
    }
}

impl TailSteps {
    pub(crate) fn is_empty(&self) -> bool {
        self.cleared.is_none() && self.slots.is_empty()
    }

    /// Nothing that the table has of the run counts any more.
    pub(crate) fn hides_table(&self) -> bool {
        self.cleared.is_some()
    }

    pub(crate) fn cleared(&self) -> Option<u64> {
        self.cleared
    }

    pub(crate) fn slots(&self) -> &[StepSlot] {
        &self.slots
    }

    /// Takes up a change. Of a record that it supersedes, `orphan` is told.
    pub(crate) fn apply(&mut self, group: u64, change: Change<Place>, mut orphan: impl FnMut(&StepSlot)) {
        let (index, place) = match change {
            Change::Put(index, place) => (index, Some(place)),
            Change::Remove(index) => (index, None),
            Change::Clear => {
                self.slots.drain(..).for_each(|slot| orphan(&slot));
                self.cleared = Some(group);
                return;
            }
        };
        let slot = StepSlot { index, group, place };
        if self.slots.last().is_none_or(|last| last.index < index) {
            if self.slots.capacity() == 0 {
                self.slots.reserve(SLOTS_MIN);
            }
            return self.slots.push(slot);
        }
        match self.slots.binary_search_by_key(&index, |slot| slot.index) {
            Ok(at) => {
                orphan(&self.slots[at]);
                self.slots[at] = slot;
            }
            Err(at) => self.slots.insert(at, slot),
        }
    }

    /// These steps are in the table now; so is the clearing, if it was among what was folded.
    pub(crate) fn folded(&mut self, done: &Folded) {
        if done.cleared {
            self.cleared = self.cleared.filter(|group| *group > done.upto);
        }
        self.slots.retain(|slot| slot.group > done.upto || !done.covers(slot.index));
    }
}

/// What one slice of folding did to a run.
#[derive(Debug)]
pub(crate) struct Folded {
    pub(crate) run: RunId,
    pub(crate) cleared: bool,
    /// From the first index to the last, where there were any.
    pub(crate) range: Option<(u32, u32)>,
    /// Those recorded up to this group.
    pub(crate) upto: u64,
}

impl Folded {
    fn covers(&self, index: u32) -> bool {
        self.range.is_some_and(|(first, last)| (first..=last).contains(&index))
    }
}

/// Reads a block.
pub(crate) fn read_block(key: &[u8], block: &Bytes) -> Result<Vec<Indexed>, Corrupted> {
    let cut = || Corrupted::new(Table::Steps, key, "block is cut");
    let (mut rest, mut steps) = (block.clone(), Vec::new());
    while !rest.is_empty() {
        if rest.len() < 8 {
            return Err(cut());
        }
        let (index, length) = (rest.get_u32_le(), rest.get_u32_le() as usize);
        if rest.len() < length {
            return Err(cut());
        }
        steps.push((index, rest.split_to(length)));
    }
    Ok(steps)
}

fn write_block(steps: &[Indexed]) -> Vec<u8> {
    let mut block = Vec::with_capacity(size_of_block(steps));
    for (index, record) in steps {
        push_step(&mut block, *index, record);
    }
    block
}

/// Bytes of a step in a block, beside its record.
const STEP_HEADER: usize = 8;

fn push_step(block: &mut Vec<u8>, index: u32, record: &[u8]) {
    block.extend_from_slice(&index.to_le_bytes());
    // Limits keep records far below 4 GiB.
    block.extend_from_slice(&(record.len() as u32).to_le_bytes());
    block.extend_from_slice(record);
}

fn size_of_block(steps: &[Indexed]) -> usize {
    steps.iter().map(|(_, record)| STEP_HEADER + record.len()).sum()
}

/// Removes every block of a run. Blobs that they refer to go to `freed`, but for those that `kept` refers to: where a crash
/// makes this happen again, blocks hold steps that were recorded after the clearing.
pub(crate) fn clear_blocks(
    table: &mut Raw<'_>,
    run: RunId,
    kept: &[Option<&[u8]>],
    freed: &mut Vec<u64>,
) -> Result<(), Fault> {
    let (first, last) = (keys::of_run(run, 0), keys::of_run(run, u32::MAX));
    let mut found = Vec::new();
    table.retain_in::<&[u8], _>(&first[..]..=&last[..], |key, block| {
        match read_block(key, &Bytes::copy_from_slice(block)) {
            Ok(steps) => found.extend(steps.iter().filter_map(|(_, record)| BlobRef::of(record)).map(|blob| blob.id)),
            Err(row) => tracing::error!(error = %row, "a block of steps is removed unread; its blobs stay behind"),
        }
        false
    })?;
    if !found.is_empty() {
        let kept = kept.iter().flatten().filter_map(|record| BlobRef::of(record)).map(|blob| blob.id);
        let kept: BTreeSet<u64> = kept.collect();
        freed.extend(found.into_iter().filter(|blob| !kept.contains(blob)));
    }
    Ok(())
}

/// Folds steps into blocks, run by run in ascending order.
#[derive(Default)]
pub(crate) struct Folder {
    /// The last run that the table had before; `None` until it was looked for.
    last: Option<Option<RunId>>,
    /// Blocks of runs that the table has nothing of.
    new: Vec<(keys::Key, Vec<u8>)>,
}

impl Folder {
    /// Folds steps of one run, ascending; those without a record are deleted. Blobs that superseded records refer to go to `freed`.
    pub(crate) fn fold(
        &mut self,
        table: &mut Raw<'_>,
        run: RunId,
        records: &[(u32, Option<&[u8]>)],
        freed: &mut Vec<u64>,
    ) -> Result<(), Fault> {
        let last = match self.last {
            Some(last) => last,
            None => table.last()?.and_then(|(key, _)| keys::read_step(key.value())).map(|(run, _)| run),
        };
        self.last = Some(last);
        if last.is_none_or(|last| run > last) {
            self.begin(run, records);
            return Ok(());
        }
        let mut records = records.iter().peekable();
        while let Some((index, _)) = records.peek() {
            let mut block = Block::at(table, run, *index)?;
            // As many as have their place in this block.
            while let Some((index, record)) = records.next_if(|(index, _)| block.takes(*index)) {
                block.set(*index, record.map(Bytes::copy_from_slice), freed);
            }
            block.write(table)?;
        }
        Ok(())
    }

    /// The first blocks of a run.
    fn begin(&mut self, run: RunId, records: &[(u32, Option<&[u8]>)]) {
        let mut steps = records.iter().filter_map(|(index, record)| Some((*index, (*record)?))).peekable();
        while let Some((first, _)) = steps.peek() {
            let key = keys::of_run(run, *first);
            let mut size = 0;
            // Its size is known before it is written: memory that grows is copied.
            for (_, value) in steps.clone() {
                size += STEP_HEADER + value.len();
                if size >= BLOCK_BYTES {
                    break;
                }
            }
            let mut block = Vec::with_capacity(size);
            while let Some((index, value)) = steps.next_if(|_| block.len() < size) {
                push_step(&mut block, index, value);
            }
            self.new.push((key, block));
        }
    }

    /// Writes what is left. Without it nothing is lost but what was to be folded.
    pub(crate) fn finish(self, table: &mut Raw<'_>) -> Result<(), Fault> {
        insert_ascending(table, self.new.iter().map(|(key, block)| (&key[..], &block[..])), |_, _| {})
    }
}

/// A block while it is changed.
struct Block {
    key: keys::Key,
    stored: bool,
    /// The first index that is none of its business.
    end: Option<u32>,
    steps: Vec<Indexed>,
    bytes: usize,
}

impl Block {
    /// The block that has, or is to have, an index.
    fn at(table: &Raw<'_>, run: RunId, index: u32) -> Result<Block, Fault> {
        let (first, here, last) = (keys::of_run(run, 0), keys::of_run(run, index), keys::of_run(run, u32::MAX));
        let new = |end| Block { key: here.clone(), stored: false, end, steps: Vec::new(), bytes: 0 };
        let mut around = table.range::<&[u8]>(&first[..]..=&last[..])?;
        if around.next().is_none() {
            return Ok(new(None));
        }
        let after =
            table.range::<&[u8]>((std::ops::Bound::Excluded(&here[..]), std::ops::Bound::Included(&last[..])))?.next();
        let end = after.transpose()?.and_then(|(key, _)| keys::read_step(key.value())).map(|(_, end)| end);
        let Some(floor) = table.range::<&[u8]>(&first[..]..=&here[..])?.next_back().transpose()? else {
            return Ok(new(end));
        };
        let key = keys::Key::from(floor.0.value());
        let steps = match read_block(&key, &Bytes::copy_from_slice(floor.1.value())) {
            Ok(steps) => steps,
            Err(row) => {
                // Its run can't be replayed any more. What is folded now must not be lost with it, nor stop the others.
                tracing::error!(error = %row, "steps are folded beside a block that can't be read");
                return Ok(new(end));
            }
        };
        let bytes = size_of_block(&steps);
        let is_at_end = end.is_none() && steps.last().is_none_or(|(last, _)| *last < index);
        if is_at_end && bytes >= BLOCK_BYTES {
            return Ok(new(None));
        }
        Ok(Block { key, stored: true, end, steps, bytes })
    }

    fn takes(&self, index: u32) -> bool {
        let is_append = self.end.is_none() && self.steps.last().is_some_and(|(last, _)| *last < index);
        self.end.is_none_or(|end| index < end) && !(is_append && self.bytes >= BLOCK_BYTES)
    }

    fn set(&mut self, index: u32, value: Option<Bytes>, freed: &mut Vec<u64>) {
        let found = self.steps.binary_search_by_key(&index, |(index, _)| *index);
        if let Ok(at) = found {
            let (_, old) = self.steps.remove(at);
            self.bytes -= STEP_HEADER + old.len();
            let blob = BlobRef::of(&old);
            freed.extend(blob.filter(|blob| value.as_deref().and_then(BlobRef::of) != Some(*blob)).map(|blob| blob.id));
        }
        if let Some(value) = value {
            let (Ok(at) | Err(at)) = found;
            self.bytes += STEP_HEADER + value.len();
            self.steps.insert(at, (index, value));
        }
    }

    fn write(self, table: &mut Raw<'_>) -> Result<(), Fault> {
        if !self.steps.is_empty() {
            table.insert(&self.key[..], &write_block(&self.steps)[..])?;
        } else if self.stored {
            table.remove(&self.key[..])?;
        }
        Ok(())
    }
}
