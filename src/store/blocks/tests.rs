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
