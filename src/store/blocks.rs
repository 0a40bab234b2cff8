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
//!
//! First stands, under [`RUN`] too, a CRC-32C of everything but the records, which have their own: where it is wrong nothing of
//! the block is believed. Blocks of before there were checksums are read without.
//!
//! What a block can't tell is never taken for absent. A step that is folded into its place gets a block of its own, and behind
//! that one a *gap*: a block of which nothing can be read either, up to where the next one begins.

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

/// In the place of an index: the record is the run of the steps behind it, a checksum, or the mark of a gap. No step has this index.
const RUN: u32 = u32::MAX;

/// No step has an index from here on: a run has far fewer, and [`RUN`] with a bit flipped is none.
const INDEX_END: u32 = 1 << 30;

/// Bytes before each record.
const STEP_HEADER: usize = 8;

/// What a block begins with: its checksum, in the form of a record.
const HEAD: usize = STEP_HEADER + 4;

/// A gap: a run without a name. What stood in its place may follow.
const GAP: [u8; STEP_HEADER] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// A step's place among all: its run and index.
pub(crate) type At = (RunId, u32);

/// A step by its index, and its record.
pub(crate) type Indexed = (u32, Bytes);

/// The steps of a block in order, each with where its record lies.
///
/// # Errors
/// Where anything of it is wrong, since then the rest may be as well.
pub(crate) fn read(key: &[u8], block: &[u8]) -> Result<Vec<(At, Range<usize>)>, Corrupted> {
    steps_in(key, block).map_err(|reason| Corrupted::new(Table::Steps, key, reason))
}

fn steps_in(key: &[u8], block: &[u8]) -> Result<Vec<(At, Range<usize>)>, &'static str> {
    let start = keys::read_step(key).ok_or("not of a step")?;
    let (mut run, mut at, mut expected, mut crc) = (start.0, 0, None, 0);
    let mut steps: Vec<(At, Range<usize>)> = Vec::new();
    while at < block.len() {
        let (header, rest) = block[at..].split_first_chunk::<STEP_HEADER>().ok_or("block is cut")?;
        let [i0, i1, i2, i3, l0, l1, l2, l3] = *header;
        let (index, length) = (u32::from_le_bytes([i0, i1, i2, i3]), u32::from_le_bytes([l0, l1, l2, l3]));
        let record = rest.get(..length as usize).ok_or("block is cut")?;
        let place = at + STEP_HEADER..at + STEP_HEADER + record.len();
        let is_first = at == 0;
        at = place.end;
        match <[u8; 4]>::try_from(record) {
            Ok(checksum) if is_first && index == RUN => {
                expected = Some(u32::from_le_bytes(checksum));
                continue;
            }
            _ => crc = crc32c::crc32c_append(crc, header),
        }
        if index == RUN {
            if record.is_empty() {
                return Err("what belongs here was in a block that can't be read");
            }
            crc = crc32c::crc32c_append(crc, record);
            run = RunId::from_slice(record).ok_or("block names no run")?;
            continue;
        }
        if index >= INDEX_END {
            return Err("no step has this index");
        }
        let step = (run, index);
        if steps.last().map_or(step < start, |(last, _)| *last >= step) {
            return Err("block is out of order");
        }
        steps.push((step, place));
    }
    if expected.is_some_and(|expected| expected != crc) {
        return Err("checksum differs");
    }
    Ok(steps)
}

/// A run's steps, in order.
pub(crate) fn steps_of(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    run: RunId,
) -> Result<Vec<Indexed>, Fault> {
    let (first, last) = (keys::of_run(run, 0), keys::of_run(run, u32::MAX));
    // The block in which its first step has its place may begin with other runs.
    let floor = table.range::<&[u8]>(..=&first[..])?.next_back();
    let after = table.range::<&[u8]>((Bound::Excluded(&first[..]), Bound::Included(&last[..])))?;
    let mut steps = Vec::new();
    for row in floor.into_iter().chain(after) {
        let (key, block) = row?;
        let block = block.value();
        let found = read(key.value(), block)?;
        let from = found.partition_point(|((of, _), _)| *of < run);
        let found = &found[from..found.partition_point(|((of, _), _)| *of <= run)];
        if let ([(_, first), ..], [.., (_, last)]) = (found, found) {
            // They lie together: one piece of memory for all.
            let start = first.start;
            let records = Bytes::copy_from_slice(&block[start..last.end]);
            steps
                .extend(found.iter().map(|((_, index), at)| (*index, records.slice(at.start - start..at.end - start))));
        }
    }
    Ok(steps)
}

/// The record of one step.
pub(crate) fn step(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    (run, index): At,
) -> Result<Option<Bytes>, Fault> {
    let Some(floor) = table.range::<&[u8]>(..=&keys::of_run(run, index)[..])?.next_back() else { return Ok(None) };
    let (key, block) = floor?;
    let steps = read(key.value(), block.value())?;
    let found = steps.binary_search_by_key(&(run, index), |(at, _)| *at).ok();
    Ok(found.map(|found| Bytes::copy_from_slice(&block.value()[steps[found].1.clone()])))
}

/// The place that a key stands for; of one that is of no step, the next there is.
fn place_of(key: &[u8]) -> At {
    let mut place = [0; RunId::BYTES + 4];
    let length = key.len().min(place.len());
    place[..length].copy_from_slice(&key[..length]);
    keys::read_step(&place).unwrap_or((RunId::MAX, RUN))
}

/// A block as it is written.
struct Written {
    key: Key,
    run: RunId,
    bytes: Vec<u8>,
    /// Of what is there so far.
    crc: u32,
}

impl Written {
    fn from(start: At) -> Written {
        let mut block =
            Written { key: keys::run(start.0), run: start.0, bytes: Vec::with_capacity(BLOCK_BYTES), crc: 0 };
        block.begin(start);
        block
    }

    /// The next one, in the same memory.
    fn begin(&mut self, start: At) {
        (self.key, self.run, self.crc) = (keys::of_run(start.0, start.1), start.0, 0);
        self.bytes.clear();
        self.bytes.extend_from_slice(&RUN.to_le_bytes());
        self.bytes.extend_from_slice(&((HEAD - STEP_HEADER) as u32).to_le_bytes());
        self.bytes.resize(HEAD, 0);
    }

    /// Blocks fill pages of their own, so each goes by itself: redb puts it beside the others without touching them.
    fn write(&mut self, table: &mut Raw<'_>) -> Result<(), Fault> {
        self.bytes[STEP_HEADER..HEAD].copy_from_slice(&self.crc.to_le_bytes());
        table.insert(&self.key[..], &self.bytes[..])?;
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.bytes.len() == HEAD
    }

    /// Whether a step has room at its end.
    fn has_room(&self, (run, _): At, record: &[u8]) -> bool {
        self.is_empty() || self.bytes.len() + size_of(self.run, run, record) <= BLOCK_BYTES
    }

    fn push(&mut self, (run, index): At, record: &[u8]) {
        if run != self.run {
            self.put(RUN, run.as_bytes());
            self.crc = crc32c::crc32c_append(self.crc, run.as_bytes());
            self.run = run;
        }
        self.put(index, record);
    }

    fn put(&mut self, index: u32, record: &[u8]) {
        let from = self.bytes.len();
        self.bytes.extend_from_slice(&index.to_le_bytes());
        // Limits keep records far below 4 GiB.
        self.bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
        self.crc = crc32c::crc32c_append(self.crc, &self.bytes[from..]);
        self.bytes.extend_from_slice(record);
    }
}

/// What a step adds to a block, behind one of the run `before`.
fn size_of(before: RunId, run: RunId, record: &[u8]) -> usize {
    let named = if run == before { 0 } else { STEP_HEADER + RunId::BYTES };
    named + STEP_HEADER + record.len()
}

/// Folds steps into blocks, run by run in ascending order.
pub(crate) struct Folder {
    /// The greatest run there is: no block has steps of one after it.
    newest: RunId,
    /// The last run that the table had before; `None` until it was looked for.
    last: Option<Option<RunId>>,
    /// The block that is being changed.
    open: Option<Block>,
    /// The last of the blocks of runs that come after all that the table had.
    new: Option<Written>,
}

impl Folder {
    pub(crate) fn new(newest: RunId) -> Folder {
        Folder { newest, last: None, open: None, new: None }
    }

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
            block.write(table, self.newest)?;
        }
        self.new.map_or(Ok(()), |mut block| block.write(table))
    }

    /// Whether the table had no step of this run, nor of any after it.
    fn comes_last(&mut self, table: &Raw<'_>, run: RunId) -> Result<bool, Fault> {
        let last = match self.last {
            Some(last) => last,
            None => table.last()?.map(|(key, block)| match read(key.value(), block.value()) {
                Ok(steps) => steps.last().map_or(place_of(key.value()).0, |((run, _), _)| *run),
                // Nothing is known about what it has.
                Err(_) => RunId::MAX,
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
                    block.write(table, self.newest)?;
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
    /// What stands in its place can't be read, so it has only what is folded now, up to its end, and this gap behind it.
    gap: Option<Vec<u8>>,
}

impl Block {
    fn at(table: &Raw<'_>, at: At, record: Option<&[u8]>) -> Result<Block, Fault> {
        let here = keys::of_run(at.0, at.1);
        let mut until = None;
        for row in table.range::<&[u8]>((Bound::Excluded(&here[..]), Bound::Unbounded))? {
            // A key that is too long may stand for this very place, and who goes on from there would never get further.
            let place = place_of(row?.0.value());
            if place > at {
                until = Some(place);
                break;
            }
        }
        let empty =
            |start, stored| Block { start, end: until, until, stored, changed: false, steps: Vec::new(), gap: None };
        let Some((key, value)) = table.range::<&[u8]>(..=&here[..])?.next_back().transpose()? else {
            return Ok(empty(at, false));
        };
        let (key, block) = (key.value(), value.value());
        match read(key, block) {
            Ok(found) => {
                let copy = Bytes::copy_from_slice(block);
                let steps = found.into_iter().map(|(at, place)| (at, copy.slice(place))).collect();
                let found = Block { steps, ..empty(place_of(key), true) };
                Ok(if found.takes(at, record) { found } else { empty(at, false) })
            }
            Err(row) => {
                // Runs in it can't be replayed any more. What is folded now must not be lost with it, nor stop the others; and
                // whoever looks for what else it may have must go on finding that it can't be read.
                let is_gap = block.starts_with(&GAP);
                if !is_gap {
                    tracing::error!(error = %row, "steps are folded beside a block that can't be read");
                }
                let mut gap = if is_gap { Vec::new() } else { GAP.to_vec() };
                // What is written over is kept in the gap behind, for whoever can make something of it.
                gap.extend_from_slice(if *key == *here {
                    block
                } else if is_gap {
                    &GAP
                } else {
                    &[]
                });
                Ok(Block { end: Some(at), gap: Some(gap), ..empty(at, false) })
            }
        }
    }

    /// Whether a step has its place here; there is an end to what is put behind all others.
    fn takes(&self, at: At, record: Option<&[u8]>) -> bool {
        let is_last = self.steps.last().is_some_and(|(last, _)| *last < at);
        if is_last && record.is_some_and(|record| self.bytes() + STEP_HEADER + record.len() > APPEND_BYTES) {
            return false;
        }
        if self.gap.is_some() {
            // Nothing is known of a step that is passed over.
            return self.end == Some(at) && self.until.is_none_or(|until| at < until);
        }
        self.start <= at && self.end.is_none_or(|end| at < end)
    }

    fn bytes(&self) -> usize {
        let mut before = self.start.0;
        let sizes = self.steps.iter().map(|((run, _), record)| {
            let size = size_of(before, *run, record);
            before = *run;
            size
        });
        HEAD + sizes.sum::<usize>()
    }

    fn set(&mut self, at: At, value: Option<Bytes>, freed: &mut Vec<u64>) {
        let found = self.steps.binary_search_by_key(&at, |(at, _)| *at);
        self.changed |= found.is_ok() || value.is_some();
        if self.gap.is_some() {
            self.end = Some((at.0, at.1.saturating_add(1)));
        }
        if let Ok(at) = found {
            let (_, old) = self.steps.remove(at);
            let kept = value.as_deref().and_then(BlobRef::of).map(|blob| blob.id);
            freed.extend(BlobRef::of(&old).map(|blob| blob.id).filter(|blob| kept != Some(*blob)));
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
    fn write(self, table: &mut Raw<'_>, newest: RunId) -> Result<(), Fault> {
        if !self.changed {
            return Ok(());
        }
        let is_large = self.bytes() > BLOCK_BYTES;
        let Block { start, end, until, stored, steps, gap, .. } = self;
        if let Some(gap) = gap {
            if let Some(end) = end.filter(|end| Some(*end) != until) {
                table.insert(&keys::of_run(end.0, end.1)[..], &gap[..])?;
            }
            if until.is_none() {
                // The gap ends behind all runs there are: those that are still to come had nothing in it.
                Written::from((newest.max(start.0), RUN)).write(table)?;
            }
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
        if !block.is_empty() || (stored && follows_gap(table, &block.key)?) {
            block.write(table)?;
        } else if stored {
            table.remove(&block.key[..])?;
        }
        Ok(())
    }
}

/// Whether what stands before a block can't be read: without the block that would go on in its place.
fn follows_gap(table: &Raw<'_>, key: &[u8]) -> Result<bool, Fault> {
    let before = table.range::<&[u8]>(..key)?.next_back().transpose()?;
    Ok(before.is_some_and(|(key, block)| read(key.value(), block.value()).is_err()))
}

#[cfg(test)]
mod tests;
