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
use super::bulk::{Raw, insert_ascending};
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
    /// Blocks of runs that come after all that the table had.
    new: Vec<Written>,
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
            if !self.new.last().is_some_and(|block| block.has_room(at, record)) {
                self.new.push(Written::from(at));
            }
            if let Some(block) = self.new.last_mut() {
                block.push(at, record);
            }
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
        insert_ascending(table, self.new.iter().map(|block| (&block.key[..], &block.bytes[..])), |_, _| {})
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
                table.insert(&block.key[..], &block.bytes[..])?;
                block = Written::from(*at);
            }
            block.push(*at, record);
        }
        if !block.bytes.is_empty() {
            table.insert(&block.key[..], &block.bytes[..])?;
        } else if stored {
            table.remove(&block.key[..])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use redb::{Database, ReadableDatabase};

    use super::*;

    /// A table of blocks in memory, beside what should be in it.
    struct Pair {
        db: Database,
        model: BTreeMap<At, Vec<u8>>,
    }

    /// What a slice of folding does to a run: whether it is cleared first, and its records.
    type Run = (u128, bool, BTreeMap<u32, Option<Vec<u8>>>);

    impl Pair {
        fn new() -> Pair {
            let memory = redb::backends::InMemoryBackend::new();
            Pair { db: Database::builder().create_with_backend(memory).unwrap(), model: BTreeMap::new() }
        }

        /// Folds a slice; gives the blobs that it freed.
        fn fold(&mut self, runs: &[Run]) -> Vec<u64> {
            let (mut folder, mut freed) = (Folder::default(), Vec::new());
            let txn = self.db.begin_write().unwrap();
            let mut table = txn.open_table(Table::Steps.definition()).unwrap();
            for (run, cleared, records) in runs {
                let run = RunId::numbered(*run);
                let list: Vec<_> = records.iter().map(|(index, record)| (*index, record.as_deref())).collect();
                if *cleared {
                    let kept: Vec<_> = list.iter().map(|(_, record)| *record).collect();
                    folder.clear(&mut table, run, &kept, &mut freed).unwrap();
                    self.model.retain(|(of, _), _| *of != run);
                }
                folder.fold(&mut table, run, &list, &mut freed).unwrap();
                for (index, record) in records {
                    match record {
                        Some(record) => drop(self.model.insert((run, *index), record.clone())),
                        None => drop(self.model.remove(&(run, *index))),
                    }
                }
            }
            folder.finish(&mut table).unwrap();
            drop(table);
            txn.commit().unwrap();
            freed
        }

        /// The blocks as they are stored.
        fn blocks(&self) -> Vec<(At, Vec<u8>)> {
            let txn = self.db.begin_read().unwrap();
            let Ok(table) = txn.open_table(Table::Steps.definition()) else { return Vec::new() };
            let rows = table.iter().unwrap().map(Result::unwrap);
            rows.map(|(key, block)| (keys::read_step(key.value()).unwrap(), block.value().to_vec())).collect()
        }

        fn put(&self, at: At, block: &[u8]) {
            let txn = self.db.begin_write().unwrap();
            let key = keys::of_run(at.0, at.1);
            txn.open_table(Table::Steps.definition()).unwrap().insert(&key[..], block).unwrap();
            txn.commit().unwrap();
        }

        fn check(&self) {
            let blocks = self.blocks();
            let mut found = BTreeMap::new();
            for (at, (start, block)) in blocks.iter().enumerate() {
                let key = keys::of_run(start.0, start.1);
                let steps: Vec<_> = read(&key, block).map(|step| step.expect("a block")).collect();
                assert!(!steps.is_empty(), "a block of nothing");
                let end = blocks.get(at + 1).map(|(next, _)| *next);
                assert!(steps.iter().all(|(at, _)| start <= at && end.is_none_or(|end| *at < end)), "out of its block");
                assert!(block.len() <= BLOCK_BYTES || steps.len() == 1, "{} bytes", block.len());
                found.extend(steps.into_iter().map(|(at, place)| (at, block[place].to_vec())));
            }
            assert!(found == self.model, "other steps than were folded");
        }
    }

    fn run() -> impl Strategy<Value = Run> {
        let record = prop_oneof![
            1 => Just(None),
            4 => (1usize..300).prop_map(|length| Some(vec![7; length])),
            2 => (1usize..6_000).prop_map(|length| Some(vec![7; length])),
            1 => (1u64..9).prop_map(|id| Some(BlobRef { id, bytes: 20_000 }.to_value().to_vec())),
        ];
        (0u128..12, proptest::bool::weighted(0.2), proptest::collection::btree_map(0u32..40, record, 0..25))
    }

    proptest! {
        #[test]
        fn blocks_hold_what_was_folded_each_step_once_and_in_its_place(
            slices in proptest::collection::vec(proptest::collection::vec(run(), 0..8), 1..8),
        ) {
            let mut pair = Pair::new();
            for mut runs in slices {
                runs.sort_by_key(|(run, _, _)| *run);
                runs.dedup_by_key(|(run, _, _)| *run);
                pair.fold(&runs);
                pair.check();
                // A crash before the journal's rows are removed has the same folded again.
                pair.fold(&runs);
                pair.check();
            }
        }

        #[test]
        fn reading_any_bytes_never_panics(mut block in proptest::collection::vec(any::<u8>(), 0..100), marks: bool) {
            if marks && block.len() > 8 {
                block[..4].copy_from_slice(&RUN.to_le_bytes());
                block[4..8].copy_from_slice(&16u32.to_le_bytes());
            }
            let key = keys::of_run(RunId::numbered(1), 0);
            let _ = read(&key, &block).count();
            let _ = read(&block, &block).count();
            let _ = read_run(&key, &block, RunId::numbered(1), &mut Vec::new());
            let _ = read_one(&key, &block, (RunId::numbered(1), 3));
        }
    }

    fn records(range: Range<u32>, length: usize) -> BTreeMap<u32, Option<Vec<u8>>> {
        range.map(|index| (index, Some(vec![7; length]))).collect()
    }

    #[test]
    fn runs_share_blocks_that_are_nearly_full() {
        let mut pair = Pair::new();
        let runs: Vec<Run> = (1..=60).map(|run| (run, false, records(0..10, 262))).collect();
        pair.fold(&runs);
        pair.check();
        let blocks = pair.blocks();
        assert_eq!(blocks.len(), (60 * 10 * 270usize).div_ceil(BLOCK_BYTES - 270));
    }

    #[test]
    fn a_run_that_grows_among_others_gets_blocks_of_its_own() {
        let mut pair = Pair::new();
        let runs: Vec<Run> = (1..=3).map(|run| (run, false, records(0..10, 262))).collect();
        pair.fold(&runs);
        for round in 0..30 {
            let before = pair.blocks();
            pair.fold(&[(1, false, records(10 + round * 7..17 + round * 7, 262))]);
            pair.check();
            let after = pair.blocks();
            let gone: Vec<_> = before.iter().filter(|block| !after.contains(block)).collect();
            assert!(gone.len() <= 1, "{} blocks are rewritten in round {round}", gone.len());
            if round > 9 {
                assert_eq!(before.last(), after.last(), "the other runs are left alone");
                assert!(gone.iter().all(|(_, block)| block.len() < APPEND_BYTES), "more is rewritten than is brought");
            }
        }
    }

    #[test]
    fn clearing_takes_a_run_out_of_blocks_that_others_share() {
        let mut pair = Pair::new();
        let blob = |id| Some(BlobRef { id, bytes: 20_000 }.to_value().to_vec());
        let runs: Vec<Run> =
            (1..=3).map(|run| (run, false, [(0, blob(run as u64)), (1, Some(vec![7; 9_000]))].into())).collect();
        assert!(pair.fold(&runs).is_empty());
        assert_eq!(pair.fold(&[(2, true, [(1, blob(9))].into())]), [2]);
        pair.check();
        assert_eq!(pair.fold(&[(1, true, BTreeMap::new()), (2, true, [(1, blob(9))].into())]), [1]);
        pair.check();
        assert_eq!(pair.fold(&[(2, true, BTreeMap::new()), (3, true, BTreeMap::new())]), [9, 3]);
        assert!(pair.blocks().is_empty());
    }

    #[test]
    fn what_is_folded_beside_a_block_that_cannot_be_read_is_found_and_the_rest_stays_unreadable() {
        let mut pair = Pair::new();
        let at = |run, index| (RunId::numbered(run), index);
        pair.put(at(1, 0), b"damaged");
        pair.put(at(9, 0), b"damaged too");
        pair.fold(&[(1, false, records(4..6, 3)), (3, false, records(0..1, 3)), (7, true, records(0..1, 3))]);
        let blocks = pair.blocks();
        let block_of = |at: At| blocks.iter().rev().find(|(start, _)| *start <= at).expect("a block");
        let found = |place: At| {
            let (start, block) = block_of(place);
            read_one(&keys::of_run(start.0, start.1), block, place).map(|record| record.map(|record| record.len()))
        };
        for (run, index) in [(1, 4), (1, 5), (3, 0), (7, 0)] {
            assert_eq!(found(at(run, index)), Ok(Some(3)), "step {index} of run {run}");
        }
        for (run, index) in [(1, 0), (1, 3), (1, 6), (2, 0), (3, 1), (6, 5), (7, 1), (8, 0), (9, 0), (10, 3)] {
            assert!(found(at(run, index)).is_err(), "step {index} of run {run} can't be known not to be there");
        }
    }
}
