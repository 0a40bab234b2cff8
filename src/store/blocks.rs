//! The checkpoints on disk: blocks that runs share.
//!
//! Folding puts steps that follow each other, those of one run after those of another, into one *block*, a row of the table that
//! fills its pages: of small rows redb keeps a few in a page, and handles and writes each page by itself. A row's key is the run
//! and index of the first step that the block may hold. A block goes up to the next one, so a step has one place whatever was
//! folded before, and folding the same step again finds it there.
//!
//! A block is `index u32, length u32, record` for each step, ascending by run and index; numbers are little endian. They are of
//! the key's run, until a record under the index [`RUN`] names another. A record is a sealed `StepRecord`, or the reference of
//! one that lies in the blob table.

use std::collections::BTreeSet;
use std::ops::{Bound, Range};

use bytes::Bytes;
use redb::ReadableTable;

use super::Fault;
use super::bulk::Raw;
use super::tables::Table;
use crate::codec::keys::{self, Key};
use crate::codec::{BlobRef, Corrupted};
use crate::id::RunId;

/// A block takes no more steps at its end than make so many bytes, with its key a little less than the pages that it is given;
/// but one step it always takes.
const BLOCK_BYTES: usize = (16 << 10) - 128;

/// A block that is stored takes no more at its end than make so many: a run that grows has its last block written again for each
/// round of folding, and that is to be little beside what the round brings.
const APPEND_BYTES: usize = (8 << 10) - 128;

/// In the place of an index: the record is the run of the steps behind it. No step has this index.
const RUN: u32 = u32::MAX;

/// Bytes before each record.
const STEP_HEADER: usize = 8;

/// A step's place among all: its run and index.
pub(crate) type At = (RunId, u32);

/// A step by its index, and its record.
pub(crate) type Indexed = (u32, Bytes);

/// The steps of a block in order, each with where its record lies.
pub(crate) fn read<'b>(key: &'b [u8], block: &'b [u8]) -> Steps<'b> {
    Steps { key, block, at: 0, run: keys::read_step(key).map(|(run, _)| run), last: None }
}

pub(crate) struct Steps<'b> {
    key: &'b [u8],
    block: &'b [u8],
    at: usize,
    run: Option<RunId>,
    last: Option<At>,
}

impl Steps<'_> {
    fn step(&mut self) -> Result<Option<(At, Range<usize>)>, &'static str> {
        loop {
            let rest = self.block.get(self.at..).filter(|rest| !rest.is_empty());
            let Some(rest) = rest else { return Ok(None) };
            let mut run = self.run.ok_or("not of a step")?;
            let (header, rest) = rest.split_first_chunk::<STEP_HEADER>().ok_or("block is cut")?;
            let [i0, i1, i2, i3, l0, l1, l2, l3] = *header;
            let (index, length) = (u32::from_le_bytes([i0, i1, i2, i3]), u32::from_le_bytes([l0, l1, l2, l3]));
            let record = rest.get(..length as usize).ok_or("block is cut")?;
            let start = self.at + STEP_HEADER;
            self.at = start + record.len();
            if index == RUN {
                run = RunId::from_slice(record).ok_or("block names no run")?;
                self.run = Some(run);
                continue;
            }
            if self.last.is_some_and(|last| last >= (run, index)) {
                return Err("block is out of order");
            }
            self.last = Some((run, index));
            return Ok(Some(((run, index), start..self.at)));
        }
    }
}

impl Iterator for Steps<'_> {
    type Item = Result<(At, Range<usize>), Corrupted>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            // What follows can't be told apart from what is wrong.
            self.at = self.block.len();
        }
        step.map_err(|reason| Corrupted::new(Table::Steps, self.key, reason)).transpose()
    }
}

/// Adds what a block has of a run to its steps.
pub(crate) fn read_run(key: &[u8], block: &[u8], run: RunId, steps: &mut Vec<Indexed>) -> Result<(), Corrupted> {
    let mut found: Vec<(u32, Range<usize>)> = Vec::new();
    for step in read(key, block) {
        let ((of, index), place) = step?;
        if of > run {
            break;
        }
        if of == run {
            found.push((index, place));
        }
    }
    if let (Some((_, first)), Some((_, last))) = (found.first(), found.last()) {
        // They lie together: one piece of memory for all.
        let start = first.start;
        let records = Bytes::copy_from_slice(&block[start..last.end]);
        steps.extend(found.into_iter().map(|(index, at)| (index, records.slice(at.start - start..at.end - start))));
    }
    Ok(())
}

/// The record that a block has of a step.
pub(crate) fn read_one(key: &[u8], block: &[u8], at: At) -> Result<Option<Bytes>, Corrupted> {
    for step in read(key, block) {
        let (found, place) = step?;
        if found >= at {
            return Ok((found == at).then(|| Bytes::copy_from_slice(&block[place])));
        }
    }
    Ok(None)
}

/// A block as it is written.
struct Written {
    key: Key,
    run: RunId,
    bytes: Vec<u8>,
}

impl Written {
    fn from(start: At) -> Written {
        Written { key: keys::of_run(start.0, start.1), run: start.0, bytes: Vec::with_capacity(BLOCK_BYTES) }
    }

    /// The next one, in the same memory.
    fn begin(&mut self, start: At) {
        (self.key, self.run) = (keys::of_run(start.0, start.1), start.0);
        self.bytes.clear();
    }

    /// Blocks fill pages of their own, so each goes by itself: redb puts it beside the others without touching them.
    fn write(&self, table: &mut Raw<'_>) -> Result<(), Fault> {
        table.insert(&self.key[..], &self.bytes[..])?;
        Ok(())
    }

    /// Whether a step has room at its end.
    fn has_room(&self, (run, _): At, record: &[u8]) -> bool {
        self.bytes.is_empty() || self.bytes.len() + size_of(self.run, run, record) <= BLOCK_BYTES
    }

    fn push(&mut self, (run, index): At, record: &[u8]) {
        if run != self.run {
            self.put(RUN, run.as_bytes());
            self.run = run;
        }
        self.put(index, record);
    }

    fn put(&mut self, index: u32, record: &[u8]) {
        self.bytes.extend_from_slice(&index.to_le_bytes());
        // Limits keep records far below 4 GiB.
        self.bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(record);
    }
}

/// What a step adds to a block, behind one of the run `before`.
fn size_of(before: RunId, run: RunId, record: &[u8]) -> usize {
    let named = if run == before { 0 } else { STEP_HEADER + RunId::BYTES };
    named + STEP_HEADER + record.len()
}

/// Folds steps into blocks, run by run in ascending order.
#[derive(Default)]
pub(crate) struct Folder {
    /// The last run that the table had before; `None` until it was looked for.
    last: Option<Option<RunId>>,
    /// The block that is being changed.
    open: Option<Block>,
    /// The last of the blocks of runs that come after all that the table had.
    new: Option<Written>,
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
        if !self.comes_last(table, run)? {
            for (index, record) in records {
                let block = self.open(table, (run, *index), *record)?;
                block.set((run, *index), record.map(Bytes::copy_from_slice), freed);
            }
            return Ok(());
        }
        for (index, record) in records {
            let (at, Some(record)) = ((run, *index), record) else { continue };
            let block = self.new.get_or_insert_with(|| Written::from(at));
            if !block.has_room(at, record) {
                block.write(table)?;
                block.begin(at);
            }
            block.push(at, record);
        }
        Ok(())
    }

    /// Removes all steps of a run. Blobs that they refer to go to `freed`, but for those that `kept` refers to: where a crash makes
    /// this happen again, blocks hold steps that were recorded after the clearing.
    pub(crate) fn clear(
        &mut self,
        table: &mut Raw<'_>,
        run: RunId,
        kept: &[Option<&[u8]>],
        freed: &mut Vec<u64>,
    ) -> Result<(), Fault> {
        if self.comes_last(table, run)? {
            return Ok(());
        }
        let (mut at, mut found) = ((run, 0), Vec::new());
        loop {
            let block = self.open(table, at, None)?;
            block.remove_run(run, &mut found);
            match block.until {
                Some(next) if next <= (run, u32::MAX) => at = next,
                _ => break,
            }
        }
        if !found.is_empty() {
            let kept = kept.iter().flatten().filter_map(|record| BlobRef::of(record)).map(|blob| blob.id);
            let kept: BTreeSet<u64> = kept.collect();
            freed.extend(found.into_iter().filter(|blob| !kept.contains(blob)));
        }
        Ok(())
    }

    /// Writes what is left. Without it nothing is lost but what was to be folded.
    pub(crate) fn finish(self, table: &mut Raw<'_>) -> Result<(), Fault> {
        if let Some(block) = self.open {
            block.write(table)?;
        }
        self.new.map_or(Ok(()), |block| block.write(table))
    }

    /// Whether the table had no step of this run, nor of any after it.
    fn comes_last(&mut self, table: &Raw<'_>, run: RunId) -> Result<bool, Fault> {
        let last = match self.last {
            Some(last) => last,
            None => table.last()?.map(|(key, block)| match read(key.value(), block.value()).last() {
                Some(Ok(((run, _), _))) => run,
                // Of one that can't be read, nothing is known about what it has.
                _ => RunId::MAX,
            }),
        };
        self.last = Some(last);
        Ok(last.is_none_or(|last| run > last))
    }

    /// The block in which a step has its place, or will have: `record` is what is to be put there.
    fn open(&mut self, table: &mut Raw<'_>, at: At, record: Option<&[u8]>) -> Result<&mut Block, Fault> {
        let block = match self.open.take() {
            Some(block) if block.takes(at, record) => block,
            other => {
                if let Some(block) = other {
                    block.write(table)?;
                }
                Block::at(table, at, record)?
            }
        };
        Ok(self.open.insert(block))
    }
}

/// A block while it is changed.
struct Block {
    /// What its key says.
    start: At,
    /// The first step that it may not take.
    end: Option<At>,
    /// Where the next block begins, which is its end where it can be read.
    until: Option<At>,
    stored: bool,
    changed: bool,
    steps: Vec<(At, Bytes)>,
    /// What stands in its place, and can't be read.
    damaged: Option<Bytes>,
}

impl Block {
    fn at(table: &Raw<'_>, at: At, record: Option<&[u8]>) -> Result<Block, Fault> {
        let here = keys::of_run(at.0, at.1);
        let after = table.range::<&[u8]>((Bound::Excluded(&here[..]), Bound::Unbounded))?.next().transpose()?;
        let until = after.and_then(|(key, _)| keys::read_step(key.value()));
        let empty = |start, stored| Block {
            start,
            end: until,
            until,
            stored,
            changed: false,
            steps: Vec::new(),
            damaged: None,
        };
        let Some((key, value)) = table.range::<&[u8]>(..=&here[..])?.next_back().transpose()? else {
            return Ok(empty(at, false));
        };
        let (key, copy) = (key.value(), Bytes::copy_from_slice(value.value()));
        let steps = read(key, &copy).map(|step| step.map(|(at, place)| (at, copy.slice(place))));
        match (keys::read_step(key), steps.collect::<Result<Vec<_>, _>>()) {
            (Some(start), Ok(steps)) => {
                let found = Block { steps, ..empty(start, true) };
                Ok(if found.takes(at, record) { found } else { empty(at, false) })
            }
            (_, Err(row)) => {
                // Runs in it can't be replayed any more. What is folded now must not be lost with it, nor stop the others; and
                // whoever looks for what else it may have must go on finding that it can't be read.
                tracing::error!(error = %row, "steps are folded beside a block that can't be read");
                let end = Some((at.0, at.1.saturating_add(1)));
                Ok(Block { end, damaged: Some(copy), ..empty(at, false) })
            }
            // A key that is of no step reads as an error.
            (None, Ok(_)) => Ok(empty(at, false)),
        }
    }

    /// Whether a step has its place here; there is an end to what is put behind all others.
    fn takes(&self, at: At, record: Option<&[u8]>) -> bool {
        let within = self.start <= at && self.end.is_none_or(|end| at < end);
        let is_last = self.steps.last().is_some_and(|(last, _)| *last < at);
        within && !(is_last && record.is_some_and(|record| self.bytes() + STEP_HEADER + record.len() > APPEND_BYTES))
    }

    fn bytes(&self) -> usize {
        let mut before = self.start.0;
        let sizes = self.steps.iter().map(|((run, _), record)| {
            let size = size_of(before, *run, record);
            before = *run;
            size
        });
        sizes.sum()
    }

    fn set(&mut self, at: At, value: Option<Bytes>, freed: &mut Vec<u64>) {
        let found = self.steps.binary_search_by_key(&at, |(at, _)| *at);
        self.changed |= found.is_ok() || value.is_some();
        if let Ok(at) = found {
            let (_, old) = self.steps.remove(at);
            let blob = BlobRef::of(&old);
            freed.extend(blob.filter(|blob| value.as_deref().and_then(BlobRef::of) != Some(*blob)).map(|blob| blob.id));
        }
        if let Some(value) = value {
            let (Ok(place) | Err(place)) = found;
            self.steps.insert(place, (at, value));
        }
    }

    /// Removes a run's steps; tells of the blobs that they refer to.
    fn remove_run(&mut self, run: RunId, blobs: &mut Vec<u64>) {
        let first = self.steps.partition_point(|((of, _), _)| *of < run);
        let last = self.steps.partition_point(|((of, _), _)| *of <= run);
        for (_, record) in self.steps.drain(first..last) {
            self.changed = true;
            blobs.extend(BlobRef::of(&record).map(|blob| blob.id));
        }
    }

    /// Writes it, as several where it has become too large.
    fn write(self, table: &mut Raw<'_>) -> Result<(), Fault> {
        if !self.changed {
            return Ok(());
        }
        let is_large = self.bytes() > BLOCK_BYTES;
        let Block { start, end, until, stored, steps, damaged, .. } = self;
        if let (Some(damaged), Some(end)) = (damaged, end.filter(|end| Some(*end) != until)) {
            table.insert(&keys::of_run(end.0, end.1)[..], &damaged[..])?;
        }
        let mut block = Written::from(start);
        for (at, record) in &steps {
            // A run that grows is to have the end of a block, so that what it gets next is put behind it.
            let is_boundary = is_large && at.0 != block.run && block.bytes.len() > BLOCK_BYTES / 2;
            if is_boundary || !block.has_room(*at, record) {
                block.write(table)?;
                block.begin(*at);
            }
            block.push(*at, record);
        }
        if !block.bytes.is_empty() {
            block.write(table)?;
        } else if stored {
            table.remove(&block.key[..])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
