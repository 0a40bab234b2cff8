use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;
use redb::{Database, ReadableDatabase};

use super::*;

/// A table of blocks in memory, beside what should be in it.
struct Pair {
    db: Database,
    model: BTreeMap<At, Vec<u8>>,
    /// The greatest run there is.
    newest: u128,
}

/// What a slice of folding does to a run: whether it is cleared first, and its records.
type Run = (u128, bool, BTreeMap<u32, Option<Vec<u8>>>);

impl Pair {
    fn new() -> Pair {
        let memory = redb::backends::InMemoryBackend::new();
        Pair { db: Database::builder().create_with_backend(memory).unwrap(), model: BTreeMap::new(), newest: 12 }
    }

    /// Folds a slice; gives the blobs that it freed.
    fn fold(&mut self, runs: &[Run]) -> Vec<u64> {
        let (mut folder, mut freed) = (Folder::new(RunId::numbered(self.newest)), Vec::new());
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

    /// A run's steps as a reader finds them; `None` where they can't be read.
    fn read(&self, run: u128) -> Option<BTreeMap<At, Vec<u8>>> {
        let txn = self.db.begin_read().unwrap();
        let table = txn.open_table(Table::Steps.definition()).unwrap();
        let run = RunId::numbered(run);
        let steps = match steps_of(&table, run) {
            Ok(steps) => steps,
            Err(Fault::Corrupted(_)) => return None,
            Err(fault) => panic!("{fault}"),
        };
        assert!(steps.is_sorted_by(|(a, _), (b, _)| a < b), "in order, each once");
        for (index, record) in &steps {
            assert_eq!(step(&table, (run, *index)).unwrap().as_ref(), Some(record));
        }
        Some(steps.into_iter().map(|(index, record)| ((run, index), record.to_vec())).collect())
    }

    /// A run's steps as they should be.
    fn expected(&self, run: u128) -> BTreeMap<At, Vec<u8>> {
        let run = RunId::numbered(run);
        self.model.range((run, 0)..=(run, RUN)).map(|(at, record)| (*at, record.clone())).collect()
    }

    fn check(&self) {
        let blocks = self.blocks();
        let mut found = BTreeMap::new();
        for (at, (start, block)) in blocks.iter().enumerate() {
            let key = keys::of_run(start.0, start.1);
            let steps = read(&key, block).expect("a block");
            assert!(!steps.is_empty(), "a block of nothing");
            let end = blocks.get(at + 1).map(|(next, _)| *next);
            assert!(steps.iter().all(|(at, _)| start <= at && end.is_none_or(|end| *at < end)), "out of its block");
            assert!(block.len() <= BLOCK_BYTES || steps.len() == 1, "{} bytes", block.len());
            found.extend(steps.into_iter().map(|(at, place)| (at, block[place].to_vec())));
        }
        assert!(found == self.model, "other steps than were folded");
        for run in 0..=self.newest {
            assert!(self.read(run).expect("reads") == self.expected(run), "read otherwise");
        }
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
        for runs in slices {
            let runs = sorted(runs);
            pair.fold(&runs);
            pair.check();
            // A crash before the journal's rows are removed has the same folded again.
            pair.fold(&runs);
            pair.check();
        }
    }

    #[test]
    fn beside_a_damaged_block_what_is_read_is_right_or_refused(
        before in proptest::collection::vec(run(), 1..8),
        (which, kind, bit) in (any::<Index>(), any::<Index>(), 0u32..8),
        after in proptest::collection::vec(proptest::collection::vec(run(), 0..8), 1..5),
    ) {
        let mut pair = Pair::new();
        pair.fold(&sorted(before));
        let blocks = pair.blocks();
        prop_assume!(!blocks.is_empty());
        let at = which.index(blocks.len());
        let (start, block) = &blocks[at];
        let until = blocks.get(at + 1).map(|(next, _)| *next);
        pair.put(*start, &damaged(*start, block, kind, bit));
        let is_beside = |run: u128| {
            let run = RunId::numbered(run);
            start.0 <= run && until.is_none_or(|until| run <= until.0)
        };
        let lost = pair.expected(u128::from_be_bytes(*start.0.as_bytes()));
        let check = |pair: &Pair| {
            for run in 0..=pair.newest {
                match pair.read(run) {
                    Some(steps) => assert!(steps == pair.expected(run), "run {run} is read otherwise"),
                    None => assert!(is_beside(run), "run {run} lies elsewhere"),
                }
            }
        };
        check(&pair);
        prop_assert!(lost.is_empty() || pair.read(u128::from_be_bytes(*start.0.as_bytes())).is_none());
        for runs in after {
            let runs = sorted(runs);
            pair.fold(&runs);
            pair.fold(&runs);
            check(&pair);
        }
        // With the first that is folded behind the damage it is known how far that can reach.
        pair.newest = 13;
        pair.fold(&[(13, false, records(0..3, 20))]);
        check(&pair);
        pair.newest = 40;
        for run in (14..40).rev().step_by(5) {
            pair.fold(&[(run, false, records(0..5, 300)), (run + 1, run % 2 == 0, records(0..60, 300))]);
        }
        check(&pair);
        for run in 14..40 {
            prop_assert!(pair.read(run).is_some(), "run {} came after the damage", run);
        }
    }

    #[test]
    fn a_block_with_a_bit_flipped_outside_of_its_records_is_refused(bit in 0u32..8, which: Index) {
        let mut pair = Pair::new();
        pair.fold(&[(3, false, records(0..4, 5)), (5, false, records(2..3, 4)), (6, false, records(0..9, 4))]);
        let (start, block) = pair.blocks().remove(0);
        let key = keys::of_run(start.0, start.1);
        prop_assert_eq!(read(&key, &block).unwrap().len(), 14);
        prop_assert!(read(&key, &flipped(&key, &block, which, bit)).is_err());
    }

    #[test]
    fn reading_any_bytes_never_panics(mut block in proptest::collection::vec(any::<u8>(), 0..100), marks: bool) {
        if marks && block.len() > 8 {
            block[..4].copy_from_slice(&RUN.to_le_bytes());
            block[4..8].copy_from_slice(&16u32.to_le_bytes());
        }
        let _ = read(&keys::of_run(RunId::numbered(1), 0), &block);
        let _ = read(&block, &block);
        let _ = place_of(&block);
    }
}

fn sorted(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_by_key(|(run, _, _)| *run);
    runs.dedup_by_key(|(run, _, _)| *run);
    runs
}

/// A block that can't be read any more: cut, or with a bit flipped outside of its records.
fn damaged(start: At, block: &[u8], kind: Index, bit: u32) -> Vec<u8> {
    match kind.index(4) {
        0 => block[..block.len() - 1].to_vec(),
        _ => flipped(&keys::of_run(start.0, start.1), block, kind, bit),
    }
}

/// The block with a bit flipped outside of the steps' records.
fn flipped(key: &[u8], block: &[u8], which: Index, bit: u32) -> Vec<u8> {
    let records = read(key, block).unwrap();
    let outside: Vec<usize> =
        (0..block.len()).filter(|at| !records.iter().any(|(_, place)| place.contains(at))).collect();
    let mut block = block.to_vec();
    block[outside[which.index(outside.len())]] ^= 1 << (bit % 8);
    block
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
fn clearing_goes_past_a_key_that_is_too_long() {
    let mut pair = Pair::new();
    pair.fold(&[(1, false, records(0..150, 300)), (2, false, records(0..150, 300))]);
    let (start, _) = pair.blocks().remove(1);
    assert_eq!(start.0, RunId::numbered(1), "a block that is cleared, with others before and behind");
    let txn = pair.db.begin_write().unwrap();
    let key = [&keys::of_run(start.0, start.1)[..], &[0]].concat();
    txn.open_table(Table::Steps.definition()).unwrap().insert(&key[..], &b"damaged"[..]).unwrap();
    txn.commit().unwrap();

    pair.fold(&[(1, true, BTreeMap::new())]);
    let txn = pair.db.begin_read().unwrap();
    for row in txn.open_table(Table::Steps.definition()).unwrap().iter().unwrap() {
        let (key, block) = row.unwrap();
        let steps = read(key.value(), block.value()).unwrap_or_default();
        assert!(steps.iter().all(|((run, _), _)| *run != RunId::numbered(1)));
    }
    assert!(pair.read(2).unwrap() == pair.expected(2));
}

#[test]
fn a_block_of_before_there_were_checksums_is_read_and_appended_to() {
    let mut pair = Pair::new();
    let old: Vec<u8> =
        (0..3u32).flat_map(|index| [&index.to_le_bytes()[..], &2u32.to_le_bytes(), b"ab"].concat()).collect();
    pair.put((RunId::numbered(1), 0), &old);
    pair.model.extend((0..3).map(|index| ((RunId::numbered(1), index), b"ab".to_vec())));
    pair.check();
    pair.fold(&[(1, false, records(3..5, 9))]);
    pair.check();
    assert_eq!(pair.blocks().len(), 1);
}

#[test]
fn a_gap_is_no_larger_for_each_run_that_is_folded_into_it() {
    let mut pair = Pair::new();
    pair.fold(&[(1, false, records(0..50, 300))]);
    let (start, block) = pair.blocks().remove(0);
    pair.put(start, &block[..block.len() - 1]);
    let stored = |pair: &Pair| pair.blocks().iter().map(|(_, block)| block.len()).sum::<usize>();
    let before = stored(&pair);
    for run in 2..10 {
        pair.fold(&[(run, false, records(0..5, 20))]);
    }
    let folded = 8 * (HEAD + 5 * (STEP_HEADER + 20) + GAP.len());
    assert!(stored(&pair) <= before + folded + HEAD, "{} bytes more", stored(&pair) - before);
}

#[test]
fn a_damaged_block_that_is_written_over_is_kept_in_the_gap_behind() {
    let mut pair = Pair::new();
    pair.fold(&[(1, false, records(0..3, 20)), (2, false, records(0..3, 20))]);
    let (start, mut block) = pair.blocks().remove(0);
    block[HEAD] ^= 1;
    pair.put(start, &block);
    for round in 0..3 {
        pair.fold(&[(1, false, records(round..round + 1, 20))]);
        let kept = pair.blocks().iter().filter(|(_, stored)| stored.ends_with(&block)).count();
        assert_eq!(kept, 1, "in round {round}");
    }
    assert!(pair.read(1).is_none() && pair.read(2).is_none());
}
