//! Disk, tail and folding against a model: a map for each table.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use proptest::prelude::*;
use redb::ReadableTableMetadata;

use super::*;
use crate::store::backend::SharedMemory;
use crate::store::blocks;
use crate::store::steps::Change;
use crate::store::view::{Direction, Rows};
use crate::time::SystemClock;

const TABLES: [Table; 3] = [Table::States, Table::Outputs, Table::Tallies];
/// Few, so that they collide; of several lengths, so that ranges cut between them.
const KEYS: [&[u8]; 6] = [b"", b"a", b"ab", b"b", b"b\xff", b"\xff\xff"];

type Model = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// What a step of a random script does.
#[derive(Debug, Clone)]
enum Act {
    /// One commit of these changes: table, key, and a value's length or a deletion.
    Commit(Vec<(usize, usize, Option<usize>)>),
    /// One commit of these changes to steps: run, index, and a record's length or a removal; index 9 stands for all of them.
    Steps(Vec<(u128, u32, Option<usize>)>),
    /// A round over all that the tail holds begins, if none is under way.
    BeginRound,
    /// The same over the older half of it.
    BeginHalfRound,
    /// Empty commits, each a slice.
    Slices(usize),
    FoldAll,
    /// As after a commit that failed.
    Reopen,
    /// Another process over the same bytes, after a kill or a clean end.
    Restart {
        clean: bool,
    },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    // A blob, a value just at the border, and a small one.
    let length = prop_oneof![4 => 0..40usize, 1 => Just(INLINE_BYTES_MAX), 3 => INLINE_BYTES_MAX + 1..40 << 10];
    let step = (0..2u128, prop_oneof![9 => 0..6u32, 1 => Just(9)], proptest::option::weighted(0.8, length.clone()));
    let change = (0..TABLES.len(), 0..KEYS.len(), proptest::option::weighted(0.6, length));
    let act = prop_oneof![
        8 => proptest::collection::vec(change, 1..6).prop_map(Act::Commit),
        8 => proptest::collection::vec(step, 1..8).prop_map(Act::Steps),
        2 => Just(Act::BeginRound),
        2 => Just(Act::BeginHalfRound),
        5 => (1..4usize).prop_map(Act::Slices),
        1 => Just(Act::FoldAll),
        1 => Just(Act::Reopen),
        2 => any::<bool>().prop_map(|clean| Act::Restart { clean }),
    ];
    proptest::collection::vec(act, 1..40)
}

struct Pair {
    memory: SharedMemory,
    disk: Option<Disk>,
    model: Model,
    steps: BTreeMap<(RunId, u32), Vec<u8>>,
    slice: Size,
    sequence: u64,
    id: u128,
    writes: u8,
    looks: usize,
}

impl Pair {
    fn new(rows: usize) -> Self {
        let memory = SharedMemory::default();
        let slice = Size { rows, bytes: 30 << 10 };
        let disk = open(&memory, slice);
        Pair {
            memory,
            disk: Some(disk),
            model: Model::new(),
            steps: BTreeMap::new(),
            slice,
            sequence: 1,
            id: 0,
            writes: 0,
            looks: 0,
        }
    }

    fn disk(&mut self) -> &mut Disk {
        self.disk.as_mut().expect("open")
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Commit(changes) => self.commit(changes, changes.len() as u64 % 3),
            Act::Steps(changes) => self.change_steps(changes),
            Act::BeginRound | Act::BeginHalfRound => {
                let disk = self.disk();
                if disk.fold.is_none() {
                    let over = if let Act::BeginRound = act { Round::over } else { Round::over_older_half };
                    disk.fold = disk.shared.read_tail(over);
                }
            }
            Act::Slices(count) => (0..*count).for_each(|_| self.commit(&[], 0)),
            Act::FoldAll => self.disk().fold_all().expect("folds"),
            Act::Reopen => self.disk().reopen().expect("reopens"),
            Act::Restart { clean } => {
                let disk = self.disk.take().expect("open");
                if *clean {
                    disk.close().expect("closes");
                } else {
                    drop(disk);
                }
                self.disk = Some(open(&self.memory, self.slice));
            }
        }
        self.check();
    }

    fn commit(&mut self, changes: &[(usize, usize, Option<usize>)], events: u64) {
        let mut stage = Stage::default();
        for (table, key, length) in changes {
            let (table, key) = (TABLES[*table], KEYS[*key].to_vec());
            match length {
                None => {
                    self.model.remove(&(table, key.clone()));
                    stage.delete(table, &key[..]);
                }
                Some(length) => {
                    // Values begin with a version, as records do, and no two are equal.
                    self.writes = self.writes.wrapping_add(1);
                    let value = [&[1, self.writes][..], &vec![7; *length]].concat();
                    let old = self.model.insert((table, key.clone()), value.clone());
                    match old {
                        Some(_) => stage.put(table, &key[..], value),
                        None => stage.insert(table, &key[..], value),
                    }
                }
            }
        }
        self.write(&stage, events, !changes.is_empty());
    }

    fn change_steps(&mut self, changes: &[(u128, u32, Option<usize>)]) {
        let mut stage = Stage::default();
        for (run, index, length) in changes {
            let (run, index) = (RunId::numbered(*run), *index);
            match length {
                _ if index == 9 => {
                    self.steps.retain(|(of, _), _| *of != run);
                    stage.change_steps(run, Change::Clear);
                }
                None => {
                    self.steps.remove(&(run, index));
                    stage.change_steps(run, Change::Remove(index));
                }
                Some(length) => {
                    self.writes = self.writes.wrapping_add(1);
                    let value = [&[1, self.writes][..], &vec![7; *length]].concat();
                    self.steps.insert((run, index), value.clone());
                    stage.change_steps(run, Change::Put(index, value.into()));
                }
            }
        }
        let shared = self.disk().shared().clone();
        let view = shared.view().expect("a view");
        for (run, index, _) in changes {
            let found = view.with(&stage).step(RunId::numbered(*run), *index).expect("reads");
            assert_eq!(found.as_deref(), self.steps.get(&(RunId::numbered(*run), *index)).map(|value| &value[..]));
        }
        drop(view);
        self.write(&stage, 0, true);
    }

    fn write(&mut self, stage: &Stage, events: u64, changed: bool) {
        self.id += u128::from(changed);
        // Changes that undo one another leave nothing to write, and then no numbers are used.
        let events = if stage.is_empty() { 0 } else { events };
        self.sequence += events;
        let id = RunId::numbered(self.id);
        let group = self.disk().next_group();
        self.disk().commit(stage, events, id, &mut Vec::new(), |_| ()).expect("commits");
        assert_eq!(self.disk().has_group(group), !stage.is_empty());
    }

    /// Every read gives what the model has.
    fn check(&mut self) {
        let (sequence, id) = (self.sequence, RunId::numbered(self.id));
        let disk = self.disk.as_ref().expect("open");
        assert_eq!((disk.next_sequence(), disk.last_id().max(id)), (sequence, id));
        let view = disk.shared.view().expect("view");
        assert_eq!(view.sequence(), sequence - 1);
        for run in [0, 1].map(RunId::numbered) {
            let mut found = Vec::new();
            view.steps(run, &mut |index, record| {
                found.push(((run, index), record.to_vec()));
                Ok(ControlFlow::Continue(()))
            })
            .expect("reads");
            let expected = self.steps.iter().filter(|((of, _), _)| *of == run);
            assert!(found.iter().map(|(at, record)| (at, record)).eq(expected), "steps of {run}");
            for index in 0..6 {
                let expected = self.steps.get(&(run, index)).map(|record| &record[..]);
                assert!(view.step(run, index).expect("reads").as_deref() == expected, "step {index} of {run}");
            }
        }
        for table in TABLES {
            let rows = self.model.iter().filter(|((of, _), _)| *of == table);
            let rows: Vec<(&[u8], &[u8])> = rows.map(|((_, key), value)| (&key[..], &value[..])).collect();
            let keys = view.keys(table, b"b").expect("reads");
            let expected: Vec<_> =
                rows.iter().filter(|(key, _)| key.starts_with(b"b")).map(|(key, _)| key.to_vec()).collect();
            assert_eq!(keys, expected);
            for key in KEYS {
                let expected = rows.iter().find(|(of, _)| *of == key).map(|(_, value)| *value);
                assert!(view.get(table, key).expect("reads").as_deref() == expected, "{table:?} {key:?}");
            }
            let bounds = KEYS.into_iter().flat_map(|key| [Bound::Included(key), Bound::Excluded(key)]);
            let bounds: Vec<Bound<&[u8]>> = bounds.chain([Bound::Unbounded]).collect();
            // Another few of the ranges each time: all of them every time take minutes.
            self.looks += 7;
            let ranges = bounds.iter().flat_map(|low| bounds.iter().map(move |high| (*low, *high)));
            for (low, high) in ranges.skip(self.looks % 23).step_by(23) {
                let mut expected: Vec<&(&[u8], &[u8])> =
                    rows.iter().filter(|(key, _)| within(key, low, high)).collect();
                for direction in [Direction::Forward, Direction::Backward] {
                    let found = scan(&view, table, (low, high), direction);
                    let found: Vec<(&[u8], &[u8])> = found.iter().map(|(key, value)| (&key[..], &value[..])).collect();
                    assert!(found.iter().eq(expected.iter().copied()), "{table:?} {low:?} {high:?} {direction:?}");
                    expected.reverse();
                }
            }
        }
    }

    /// Once all is folded, the tables hold the model's rows and nothing else, and every blob has its one row.
    fn check_folded(&mut self) {
        self.disk().fold_all().expect("folds");
        self.check();
        let values = || self.model.values().chain(self.steps.values());
        let large = values().filter(|value| value.len() > INLINE_BYTES_MAX).count() as u64;
        let rows = self.model.len() as u64;
        let txn = self.disk().shared.handle().expect("open").db.begin_read().expect("begins");
        assert_eq!(txn.open_table(BLOBS).expect("there").len().expect("counts"), large, "blobs");
        assert_eq!(txn.open_table(JOURNAL).expect("there").len().expect("counts"), 0, "journal rows");
        let stored: u64 =
            TABLES.map(|table| txn.open_table(table.definition()).expect("there").len().expect("counts")).iter().sum();
        assert_eq!(stored, rows, "rows");
        let blocks = txn.open_table(Table::Steps.definition()).expect("there");
        let blocks = blocks.iter().expect("reads").map(|row| row.expect("reads"));
        let steps = blocks.flat_map(|(key, block)| {
            let steps = blocks::read(key.value(), block.value()).expect("a block").into_iter().map(|(at, _)| at);
            steps.collect::<Vec<_>>()
        });
        assert!(steps.eq(self.steps.keys().copied()), "each step is in one block, in order");
        let disk = self.disk();
        assert!(
            disk.shared.read_tail(|tail| tail.bytes() == 0 && TABLES.iter().all(|table| tail.layer(*table).is_empty()))
        );
    }
}

fn open(memory: &SharedMemory, slice: Size) -> Disk {
    let medium = Medium::Memory(memory.clone());
    let mut disk = Disk::open(medium, OpenOptions::default(), Arc::new(SystemClock::default()), false).expect("opens");
    disk.slice = slice;
    disk
}

fn within(key: &[u8], low: Bound<&[u8]>, high: Bound<&[u8]>) -> bool {
    let above = match low {
        Bound::Included(low) => key >= low,
        Bound::Excluded(low) => key > low,
        Bound::Unbounded => true,
    };
    let below = match high {
        Bound::Included(high) => key <= high,
        Bound::Excluded(high) => key < high,
        Bound::Unbounded => true,
    };
    above && below
}

fn scan(
    rows: &dyn Rows,
    table: Table,
    range: (Bound<&[u8]>, Bound<&[u8]>),
    direction: Direction,
) -> Vec<(Vec<u8>, bytes::Bytes)> {
    let mut found = Vec::new();
    rows.scan(table, range, direction, &mut |key, value| {
        found.push((key.to_vec(), value));
        Ok(ControlFlow::Continue(()))
    })
    .expect("scans");
    found
}

/// Plays a script, then again with everything folded at the end.
fn play(rows: usize, acts: &[Act]) {
    let mut pair = Pair::new(rows);
    for act in acts {
        pair.act(act);
    }
    pair.check_folded();
    pair.act(&Act::Restart { clean: false });
    pair.check_folded();
}

/// Each case opens several files, so there are fewer than usual.
fn cases() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { cases: usual.cases / 4, ..usual }
}

proptest! {
    #![proptest_config(cases())]
    #[test]
    fn reads_are_those_of_a_map_whatever_is_folded_and_whenever_it_stops(rows in 1..4usize, acts in acts()) {
        play(rows, &acts);
    }
}

const BLOB: usize = 20 << 10;

/// One change of table and key 0.
fn set(length: impl Into<Option<usize>>) -> Act {
    Act::Commit(vec![(0, 0, length.into())])
}

/// Changes of another key, which keep a round of single rows busy before it gets to table 2.
fn other(key: usize) -> Act {
    Act::Commit(vec![(0, key, Some(3))])
}

#[test]
fn a_key_that_comes_and_goes_while_it_is_folded_is_never_wrong() {
    let restart = || Act::Restart { clean: false };
    for length in [3, BLOB] {
        for (name, acts) in [
            (
                "deleted after its row was folded",
                vec![set(length), other(1), Act::BeginRound, Act::Slices(1), set(None)],
            ),
            (
                "deleted after a new value of a folded row",
                vec![set(length), other(1), Act::BeginRound, Act::Slices(1), set(length), set(None)],
            ),
            (
                "there again after its tombstone was folded",
                vec![set(length), Act::FoldAll, set(None), Act::BeginRound, Act::Slices(1), set(length), set(None)],
            ),
            (
                "there again before its tombstone was folded",
                vec![set(length), Act::FoldAll, set(None), set(length), set(None)],
            ),
            (
                "deleted before a kill that finds its row folded",
                vec![set(length), Act::BeginRound, Act::Slices(1), restart(), set(None)],
            ),
            (
                "all of it in one commit",
                vec![Act::Commit(vec![(0, 0, Some(length)), (0, 0, None), (0, 0, Some(length))]), set(None)],
            ),
        ] {
            eprintln!("{name}, {length} bytes");
            play(1, &acts);
            // And with a kill after every number of acts.
            for at in 0..acts.len() {
                let mut acts = acts.clone();
                acts.insert(at, restart());
                play(1, &acts);
            }
        }
    }
}

#[test]
fn a_blob_superseded_during_a_round_goes_before_the_row_that_names_it() {
    let large = Act::Commit(vec![(2, 0, Some(BLOB))]);
    for after in [Act::Commit(vec![(2, 0, None)]), Act::Commit(vec![(2, 0, Some(BLOB))])] {
        for slices in 0..8 {
            let superseded = [large.clone(), other(1), other(2), Act::BeginRound, Act::Slices(1), after.clone()];
            let acts = superseded.into_iter().chain([Act::Slices(slices), Act::Restart { clean: false }]);
            play(1, &acts.collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_number_of_a_blob_is_never_used_again() {
    // The newest blob is freed and the round cut off; what is written next must not be freed in its stead.
    for slices in 1..6 {
        let acts = [set(BLOB), set(None), Act::BeginRound, Act::Slices(slices), Act::Restart { clean: false }];
        let acts = acts.into_iter().chain([Act::Commit(vec![(1, 1, Some(BLOB))])]);
        play(1, &acts.collect::<Vec<_>>());
    }
}

#[test]
fn a_blob_that_two_checkpoints_name_is_a_problem_in_the_tail_and_in_blocks() {
    let mut disk = open(&SharedMemory::default(), Size::default());
    let (mut stage, run) = (Stage::default(), RunId::numbered(1));
    stage.change_steps(run, Change::Put(0, vec![7; INLINE_BYTES_MAX + 1].into()));
    stage.change_steps(run, Change::Put(1, BlobRef { id: 1, bytes: INLINE_BYTES_MAX as u32 + 1 }.to_value().into()));
    disk.commit(&stage, 0, run, &mut Vec::new(), |_| ()).expect("commits");
    for _ in 0..2 {
        let found = crate::store::verify::audit(&disk.shared().view().expect("a view")).expect("reads");
        let shared = found.problems.iter().filter(|problem| problem.what == "its blob belongs to another row too");
        let keys: Vec<_> = shared.map(|problem| (problem.table, problem.key.clone())).collect();
        assert_eq!(keys, [("steps", crate::codec::keys::show(&crate::codec::keys::of_run(run, 1)))]);
        disk.fold_all().expect("folds");
    }
}

#[test]
fn a_reference_to_a_blob_of_another_length_is_a_row_that_cannot_be_read() {
    let mut disk = open(&SharedMemory::default(), Size::default());
    let mut stage = Stage::default();
    stage.put(Table::Outputs, &b"large"[..], vec![7; INLINE_BYTES_MAX + 1]);
    stage.put(Table::Outputs, &b"other"[..], BlobRef { id: 1, bytes: INLINE_BYTES_MAX as u32 + 2 }.to_value());
    disk.commit(&stage, 0, RunId::MIN, &mut Vec::new(), |_| ()).expect("commits");
    let view = disk.shared().view().expect("a view");
    let large = view.get(Table::Outputs, b"large").expect("reads").expect("is there");
    assert_eq!(large.len(), INLINE_BYTES_MAX + 1);
    let other = view.get(Table::Outputs, b"other");
    assert!(matches!(other, Err(Fault::Corrupted(Corrupted { table: "outputs", .. }))), "{other:?}");
}

#[test]
fn the_number_of_a_blob_that_is_there_is_not_given_out() {
    let memory = SharedMemory::default();
    let disk = open(&memory, Size::default());
    let handle = disk.shared.handle().expect("open");
    let txn = handle.db.begin_write().expect("begins");
    txn.open_table(BLOBS).expect("there").insert(7u64, &b"of nobody"[..]).expect("inserts");
    txn.commit().expect("commits");
    drop((handle, disk));
    assert_eq!(open(&memory, Size::default()).next_blob, 8);
}

#[test]
fn folding_begins_with_age_and_with_size() {
    #[derive(Debug)]
    struct Still(std::sync::atomic::AtomicU64);
    impl Clock for Still {
        fn now(&self) -> crate::time::Timestamp {
            crate::time::Timestamp::from_millis(0)
        }
        fn monotonic(&self) -> std::time::Duration {
            std::time::Duration::from_secs(self.0.load(Ordering::Relaxed))
        }
    }
    let clock = Arc::new(Still(0.into()));
    let medium = Medium::Memory(SharedMemory::default());
    let mut disk = Disk::open(medium, OpenOptions::default(), clock.clone(), false).expect("opens");
    let mut stage = Stage::default();
    stage.put(Table::Runs, &[1][..], vec![1; 10]);
    disk.commit(&stage, 0, RunId::MIN, &mut Vec::new(), |_| ()).expect("commits");
    assert!(disk.has_tail() && !disk.wants_folding());
    clock.0.store(TAIL_AGE_FOLD.as_secs(), Ordering::Relaxed);
    assert!(disk.wants_folding());
    while disk.wants_folding() {
        disk.commit(&Stage::default(), 0, RunId::MIN, &mut Vec::new(), |_| ()).expect("commits");
    }
    assert!(!disk.has_tail());

    let mut stage = Stage::default();
    for key in 0..=(TAIL_BYTES_FOLD / INLINE_BYTES_MAX) as u32 {
        stage.insert(Table::Runs, &key.to_be_bytes()[..], vec![1; INLINE_BYTES_MAX]);
    }
    disk.commit(&stage, 0, RunId::MIN, &mut Vec::new(), |_| ()).expect("commits");
    assert!(disk.wants_folding() && !disk.must_fold());
}

#[test]
fn a_blob_recorded_after_all_steps_went_outlives_folding_both_again() {
    for slices in 1..8 {
        let acts = [
            Act::Steps(vec![(0, 0, Some(3)), (0, 1, Some(BLOB))]),
            Act::FoldAll,
            Act::Steps(vec![(0, 9, None)]),
            Act::Steps(vec![(0, 0, Some(BLOB)), (0, 1, Some(3)), (1, 0, Some(3))]),
            Act::BeginRound,
            Act::Slices(slices),
            Act::Restart { clean: false },
        ];
        play(1, &acts);
    }
}

#[test]
fn steps_that_come_late_or_twice_have_one_place() {
    let step = |index, length: usize| Act::Steps(vec![(0, index, Some(length))]);
    for (name, acts) in [
        ("between two blocks", vec![step(0, 9 << 10), Act::FoldAll, step(5, 3), Act::FoldAll, step(2, 3)]),
        ("before the first", vec![step(4, 3), Act::FoldAll, step(1, 3), Act::FoldAll, step(0, 3)]),
        ("again after its removal", vec![step(3, 3), Act::FoldAll, Act::Steps(vec![(0, 3, None), (0, 3, Some(4))])]),
        ("the last of its block goes", vec![step(3, 3), Act::FoldAll, Act::Steps(vec![(0, 3, None)]), Act::FoldAll]),
    ] {
        eprintln!("{name}");
        play(1, &acts);
        for at in 0..acts.len() {
            let mut acts = acts.clone();
            acts.insert(at, Act::Restart { clean: false });
            play(1, &acts);
        }
    }
}

/// Blocks of steps that the table has.
fn blocks(disk: &Disk) -> u64 {
    let view = disk.shared().view().expect("a view");
    let table = view.snapshot().expect("a snapshot").open_table(Table::Steps.definition()).expect("opens");
    table.len().expect("counts")
}

#[test]
fn a_round_takes_all_that_a_run_has_once_it_takes_some_of_it() {
    let medium = Medium::Memory(SharedMemory::default());
    let mut disk = Disk::open(medium, OpenOptions::default(), Arc::new(SystemClock::default()), false).expect("opens");
    let record: Arc<[u8]> = vec![1; 100].into();
    // The second run begins in the younger half.
    for (run, index) in [(1, 0), (1, 1), (1, 2), (2, 0)] {
        let mut stage = Stage::default();
        stage.change_steps(RunId::numbered(run), Change::Put(index, record.clone()));
        disk.commit(&stage, 0, RunId::MIN, &mut Vec::new(), |_| ()).expect("commits");
    }
    disk.fold = disk.shared.read_tail(Round::over_older_half);
    while disk.fold.is_some() {
        disk.commit(&Stage::default(), 0, RunId::MIN, &mut Vec::new(), |_| ()).expect("commits");
    }
    disk.shared.read_tail(|tail| {
        assert!(tail.steps_of(RunId::numbered(1)).is_none());
        assert_eq!(tail.steps_of(RunId::numbered(2)).map(|steps| steps.slots().len()), Some(1));
        assert_eq!(tail.oldest_group(), Some(3), "the younger half stays in the journal");
    });
    assert_eq!(blocks(&disk), 1);
}

#[test]
fn a_file_stays_locked_while_it_is_reopened() {
    let dir = tempfile::tempdir().unwrap();
    let medium = Medium::File(dir.path().join("file.redb"));
    let options = || OpenOptions { lock_wait: std::time::Duration::ZERO, ..OpenOptions::default() };
    let mut disk = Disk::open(medium.clone(), options(), Arc::new(SystemClock::default()), false).unwrap();
    let other = || Disk::open(medium.clone(), options(), Arc::new(SystemClock::default()), false).map(drop);
    let is_locked = || matches!(other(), Err(Fault::Open(OpenError::AlreadyOpen { .. })));
    assert!(is_locked());
    for _ in 0..2 {
        disk.release();
        assert!(is_locked());
        disk.reopen().unwrap();
        assert!(is_locked());
    }
    // A read that goes on does not keep it.
    let _read = disk.shared().snapshot().unwrap();
    disk.close().unwrap();
    other().unwrap();
}

#[test]
fn a_reopening_takes_neither_nothing_nor_an_older_state_for_the_file() {
    use redb::StorageBackend;
    let memory = SharedMemory::default();
    let mut disk = open(&memory, Size::default());
    let commit = |disk: &mut Disk| {
        let mut stage = Stage::default();
        stage.put(Table::States, &b"key"[..], vec![disk.next_group() as u8]);
        disk.commit(&stage, 0, RunId::MIN, &mut Vec::new(), |_| ()).unwrap();
    };
    let bytes = || {
        let backend = memory.backend();
        let mut bytes = vec![0; backend.len().unwrap() as usize];
        backend.read(0, &mut bytes).unwrap();
        bytes
    };
    let put = |bytes: &[u8]| {
        memory.backend().set_len(bytes.len() as u64).unwrap();
        memory.backend().write(0, bytes).unwrap();
    };
    commit(&mut disk);
    disk.release();
    let older = bytes();
    disk.reopen().unwrap();
    commit(&mut disk);
    disk.release();
    let newer = bytes();
    put(&[]);
    assert!(matches!(disk.reopen(), Err(Fault::Open(OpenError::NotADatabase { .. }))));
    assert!(bytes().is_empty());
    put(&older);
    assert!(matches!(disk.reopen(), Err(Fault::Other)));
    put(&newer);
    disk.reopen().unwrap();
    let view = disk.shared().view().unwrap();
    assert_eq!(view.get(Table::States, b"key").unwrap().as_deref(), Some(&[2][..]));
}
