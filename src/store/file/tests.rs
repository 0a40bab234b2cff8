//! Creating, opening and refusing files, also from several processes at once.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Barrier, mpsc};

use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use tempfile::TempDir;

use super::*;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const ROWS: TableDefinition<u64, &[u8]> = TableDefinition::new("rows");
const CHILD: &str = "DURABLY_FILE_CHILD";

fn init(db: &Database) -> Result<(), redb::Error> {
    let txn = db.begin_write()?;
    txn.open_table(META)?.insert("format", 1)?;
    Ok(txn.commit()?)
}

fn format(db: &Database) -> u64 {
    db.begin_read().unwrap().open_table(META).unwrap().get("format").unwrap().unwrap().value()
}

fn put_rows(db: &Database, rows: u64) {
    let txn = db.begin_write().unwrap();
    for row in 0..rows {
        txn.open_table(ROWS).unwrap().insert(row, row_value(row).as_slice()).unwrap();
    }
    txn.commit().unwrap();
}

fn row_value(row: u64) -> Vec<u8> {
    row.to_le_bytes().repeat(40)
}

fn assert_rows(db: &Database, rows: u64) {
    let table = db.begin_read().unwrap().open_table(ROWS).unwrap();
    let found: Vec<_> =
        table.iter().unwrap().map(|row| row.unwrap()).map(|(k, v)| (k.value(), v.value().to_vec())).collect();
    assert_eq!(found, (0..rows).map(|row| (row, row_value(row))).collect::<Vec<_>>());
}

fn at_once() -> OpenOptions {
    OpenOptions { lock_wait: Duration::ZERO, ..OpenOptions::default() }
}

fn open(path: &Path) -> Result<Opened, OpenError> {
    Medium::File(path.to_path_buf()).open(&at_once(), &init)
}

fn close(opened: Opened) {
    opened.db.close().unwrap();
}

fn names(dir: &TempDir) -> HashSet<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn directory() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.redb");
    (dir, path)
}

#[test]
fn a_fresh_file_is_created_then_reopened() {
    let (dir, path) = directory();
    let opened = open(&path).unwrap();
    assert!(opened.created);
    assert_eq!(format(&opened.db), 1);
    close(opened);
    assert_eq!(names(&dir), HashSet::from(["jobs.redb".to_owned()]));

    let opened = open(&path).unwrap();
    assert!(!opened.created);
    assert_eq!(format(&opened.db), 1);
}

#[test]
fn a_relative_path_has_a_directory() {
    assert_eq!(directory_of(Path::new("jobs.redb")), Path::new("."));
    assert_eq!(directory_of(Path::new("/jobs.redb")), Path::new("/"));
}

#[test]
fn a_failed_init_leaves_nothing() {
    let (dir, path) = directory();
    let failed = Medium::File(path).open(&at_once(), &|_| Err(redb::Error::Corrupted("no".into())));
    assert!(matches!(failed, Err(OpenError::Init { .. })), "{failed:?}");
    assert_eq!(names(&dir), HashSet::new());
}

#[test]
fn a_second_open_is_refused_by_any_name() {
    let (dir, path) = directory();
    let holder = open(&path).unwrap();
    let (symlink, hard_link) = (dir.path().join("symlink"), dir.path().join("hard"));
    std::os::unix::fs::symlink(&path, &symlink).unwrap();
    fs::hard_link(&path, &hard_link).unwrap();
    for name in [&path, &symlink, &hard_link] {
        let refused = open(name).unwrap_err();
        assert!(matches!(&refused, OpenError::AlreadyOpen { path } if path == name), "{refused:?}");
        assert!(refused.to_string().contains(name.to_str().unwrap()));
        assert!(matches!(Database::open(name), Err(DatabaseError::DatabaseAlreadyOpen)), "plain redb got in");
    }
    let redb_before_4_3 = File::options().read(true).write(true).open(&path).unwrap();
    assert!(matches!(redb_before_4_3.try_lock(), Err(fs::TryLockError::WouldBlock)));
    drop(holder);
    redb_before_4_3.try_lock().unwrap();
    assert!(matches!(open(&path), Err(OpenError::AlreadyOpen { .. })), "got in beside redb before 4.3");
    drop(redb_before_4_3);
    open(&symlink).unwrap();

    let holder = Database::open(&path).unwrap();
    assert!(matches!(open(&path), Err(OpenError::AlreadyOpen { .. })), "got in beside plain redb");
    drop(holder);
    open(&hard_link).unwrap();
}

#[test]
fn what_is_not_a_database_is_refused_and_unchanged() {
    let (_dir, path) = directory();
    let mut truncated = [0; HEADER_BYTES as usize - 1];
    truncated[..MAGIC.len()].copy_from_slice(&MAGIC);
    let cases: [(&[u8], &str); 5] = [
        (b"", "empty file"),
        (b"short", "shorter than a database header"),
        (&truncated, "shorter than a database header"),
        (&[0; 8192], "no redb signature"),
        (&[b'x'; 8192], "no redb signature"),
    ];
    for (content, expected) in cases {
        fs::write(&path, content).unwrap();
        let refused = open(&path).unwrap_err();
        assert!(
            matches!(&refused, OpenError::NotADatabase { reason, .. } if *reason == expected),
            "{refused:?} for {expected}"
        );
        assert_eq!(fs::read(&path).unwrap(), content);
    }
    let refused = open(path.parent().unwrap()).unwrap_err();
    assert!(matches!(refused, OpenError::Io { .. }), "{refused:?}");
    let refused = open(Path::new("/dev/null")).unwrap_err();
    assert!(matches!(refused, OpenError::NotADatabase { reason: "not a regular file", .. }), "{refused:?}");
}

#[test]
fn a_truncated_file_is_damaged_and_unchanged() {
    let (_dir, path) = directory();
    let opened = open(&path).unwrap();
    put_rows(&opened.db, 500);
    close(opened);
    let whole = fs::read(&path).unwrap();
    for bytes in [HEADER_BYTES as usize, 4096, 4097, 8192, whole.len() / 2, whole.len() - 4096, whole.len() - 1] {
        for check_integrity in [IntegrityCheck::Always, IntegrityCheck::AfterUncleanStop { always_bytes_max: 0 }] {
            fs::write(&path, &whole[..bytes]).unwrap();
            let refused = Medium::File(path.clone()).open(&OpenOptions { check_integrity, ..at_once() }, &init);
            assert!(matches!(refused, Err(OpenError::Damaged { .. })), "{refused:?} at {bytes}");
            assert_eq!(fs::read(&path).unwrap(), whole[..bytes]);
        }
    }
}

#[test]
fn a_path_that_cannot_be_is_an_io_error() {
    let (dir, path) = directory();
    let refused = |path: &Path| match open(path) {
        Err(OpenError::Io { source, .. }) => source,
        other => panic!("{other:?}"),
    };
    let missing = dir.path().join("missing/jobs.redb");
    assert_eq!(refused(&missing).to_string(), "its directory does not exist");
    assert!(!dir.path().join("missing").exists());

    std::os::unix::fs::symlink(dir.path().join("nowhere"), &path).unwrap();
    assert!(refused(&path).to_string().contains("symbolic link"));
    assert_eq!(refused(Path::new("")).kind(), ErrorKind::InvalidInput);
    assert_eq!(names(&dir), HashSet::from(["jobs.redb".to_owned()]));
}

#[test]
fn new_files_are_private_and_old_ones_keep_their_mode() {
    let (_dir, path) = directory();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    drop(open(&path).unwrap());
    assert_eq!(mode(&path), 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    drop(open(&path).unwrap());
    assert_eq!(mode(&path), 0o644);
}

#[test]
fn stale_temporaries_go_and_living_ones_stay() {
    let (dir, path) = directory();
    let beside = |name: &str| dir.path().join(name);
    let stale = beside("jobs.redb.tmp-1-0123456789abcdef");
    let second_name = beside("jobs.redb.tmp-2-0123456789abcdef");
    fs::write(&stale, b"half a database").unwrap();
    let not_ours = [
        "jobs.redb.tmp-1-backup",
        "jobs.redb.tmp-",
        "jobs.redb.tmp-x-0123456789abcdef",
        "other.redb.tmp-1-0123456789abcdef",
    ];
    for name in not_ours {
        fs::write(beside(name), b"").unwrap();
    }
    let living = Temporary::create(&path).unwrap().unwrap();
    drop(open(&path).unwrap());
    fs::hard_link(&path, &second_name).unwrap();
    drop(open(&path).unwrap());

    assert!(!stale.exists());
    assert!(!second_name.exists());
    assert!(living.path.exists());
    assert!(not_ours.iter().all(|name| beside(name).exists()));
    let abandoned = living.path.clone();
    living.backend.close().unwrap();
    drop(open(&path).unwrap());
    assert!(!abandoned.exists());
}

#[test]
fn a_temporary_taken_away_is_a_lost_round() {
    let (dir, path) = directory();
    let taken = |_: &Database| {
        for name in names(&dir) {
            fs::remove_file(dir.path().join(name)).unwrap();
        }
        Ok(())
    };
    assert!(!create(&path, &at_once(), &taken).unwrap());
    let endless = Medium::File(path).open(&at_once(), &taken);
    assert!(matches!(endless, Err(OpenError::Io { .. })), "{endless:?}");
}

#[test]
fn a_temporary_stays_locked_until_it_has_its_name() {
    let (dir, path) = directory();
    let temporary = Temporary::create(&path).unwrap().unwrap();
    temporary.fill(&path, &at_once(), &init).unwrap();
    assert!(matches!(remove_if_stale(&temporary.path, (0, 0)), Ok(false)));
    drop(temporary);
    assert_eq!(names(&dir), HashSet::new());
}

#[test]
fn only_an_error_of_the_disk_is_an_io_error() {
    let opened =
        |kind| OpenError::redb(Path::new("x"), DatabaseError::Storage(StorageError::Io(io::Error::from(kind))));
    assert!(matches!(opened(ErrorKind::UnexpectedEof), OpenError::Damaged { .. }));
    assert!(matches!(opened(ErrorKind::StorageFull), OpenError::Io { .. }));
    assert_eq!(std::error::Error::source(&opened(ErrorKind::StorageFull)).unwrap().to_string(), "no storage space");
}

#[test]
fn publishing_never_replaces() {
    let (dir, path) = directory();
    for publish in [publish, rename_without_replacing] {
        let temporary = dir.path().join("temporary");
        fs::write(&temporary, b"ours").unwrap();
        fs::write(&path, b"theirs").unwrap();
        assert_eq!(publish(&temporary, &path).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        fs::remove_file(&path).unwrap();
        publish(&temporary, &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"ours");
        let _ = fs::remove_file(&temporary);
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn of_eight_starters_one_holds_the_file() {
    for round in 0..30 {
        let (dir, path) = directory();
        let barrier = Barrier::new(8);
        let outcomes: Vec<_> = thread::scope(|scope| {
            let start = || {
                barrier.wait();
                let opened = open(&path);
                barrier.wait();
                opened
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let holders: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
        assert_eq!(holders.len(), 1, "round {round}: {outcomes:?}");
        assert_eq!(format(&holders[0].db), 1);
        for outcome in &outcomes {
            assert!(matches!(outcome, Ok(_) | Err(OpenError::AlreadyOpen { .. })), "round {round}: {outcome:?}");
        }
        drop(outcomes);
        drop(open(&path).unwrap());
        assert_eq!(names(&dir), HashSet::from(["jobs.redb".to_owned()]));
    }
}

/// Tells of every attempt, so that a test knows when an opener has been refused.
#[derive(Debug)]
struct AnnouncingFile(PathBuf, mpsc::Sender<()>);

impl BackendFactory for AnnouncingFile {
    fn backend(&self) -> io::Result<Box<dyn StorageBackend>> {
        let _ = self.1.send(());
        let file = File::options().read(true).write(true).open(&self.0)?;
        Ok(Box::new(FileBackend::new(file).map_err(io::Error::other)?))
    }
}

#[test]
fn an_open_waits_for_a_holder_that_lets_go() {
    let (_dir, path) = directory();
    let holder = open(&path).unwrap();
    let (attempts, attempted) = mpsc::channel();
    let medium = Medium::Custom(Arc::new(AnnouncingFile(path, attempts)));
    let options = OpenOptions { lock_wait: Duration::from_secs(60), ..at_once() };
    thread::scope(|scope| {
        let waiting = scope.spawn(|| medium.open(&options, &init));
        // A second attempt says that the first was refused.
        attempted.recv().unwrap();
        attempted.recv().unwrap();
        drop(holder);
        assert_eq!(format(&waiting.join().unwrap().unwrap().db), 1);
    });
}

#[test]
fn waiting_for_a_holder_ends() {
    let (_dir, path) = directory();
    let _holder = open(&path).unwrap();
    let (attempts, attempted) = mpsc::channel();
    let options = OpenOptions { lock_wait: Duration::from_millis(20), ..at_once() };
    let refused = Medium::Custom(Arc::new(AnnouncingFile(path, attempts))).open(&options, &init);
    assert!(matches!(refused, Err(OpenError::AlreadyOpen { .. })), "{refused:?}");
    // Pauses of 1, 2, 4, 8 and the remaining 5 ms.
    assert_eq!(attempted.iter().count(), 6);
}

#[test]
fn a_file_is_checked_when_small_or_unclean() {
    let (dir, path) = directory();
    let open = |path: &Path, always_bytes_max| {
        let check_integrity = IntegrityCheck::AfterUncleanStop { always_bytes_max };
        Medium::File(path.to_path_buf()).open(&OpenOptions { check_integrity, ..at_once() }, &init).unwrap()
    };
    let opened = open(&path, 0);
    assert!(!opened.integrity_checked);
    put_rows(&opened.db, 10);
    let killed = dir.path().join("killed.redb");
    fs::copy(&path, &killed).unwrap();
    drop(opened);

    assert!(!open(&path, 0).integrity_checked);
    assert!(open(&path, CHECK_BYTES_MAX).integrity_checked);
    let opened = open(&killed, 0);
    assert!(opened.integrity_checked);
    assert_rows(&opened.db, 10);
}

/// splitmix64
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[test]
fn a_damaged_file_is_refused_or_right_and_never_panics() {
    let (_dir, path) = directory();
    let opened = open(&path).unwrap();
    put_rows(&opened.db, 400);
    close(opened);
    let whole = fs::read(&path).unwrap();
    // Most of a small file is free space; aim at what is in use.
    let used: Vec<_> =
        (0..whole.len() / 4096).filter(|page| whole[page * 4096..][..4096].iter().any(|b| *b != 0)).collect();
    let (mut right, mut refused) = (0, 0);
    for check_integrity in [IntegrityCheck::Always, IntegrityCheck::AfterUncleanStop { always_bytes_max: 0 }] {
        for seed in 0..200 {
            let mut state = seed;
            let page = used[random(&mut state) as usize % used.len()] * 4096;
            let mut damaged = whole.clone();
            match random(&mut state) % 3 {
                0 => damaged[page..page + 4096].fill(0),
                1 => damaged[page + random(&mut state) as usize % 4096] ^= 1 << (random(&mut state) % 8),
                _ => damaged[random(&mut state) as usize % HEADER_BYTES as usize] ^= 1 << (random(&mut state) % 8),
            }
            fs::write(&path, damaged).unwrap();
            match Medium::File(path.clone()).open(&OpenOptions { check_integrity, ..at_once() }, &init) {
                // Without the check, opening promises nothing about the rows.
                Ok(opened) if opened.integrity_checked => {
                    assert_rows(&opened.db, 400);
                    right += 1;
                }
                Ok(opened) => std::mem::drop(catch_unwind(AssertUnwindSafe(|| drop(opened)))),
                Err(OpenError::Damaged { .. } | OpenError::NotADatabase { .. } | OpenError::OldFormat { .. }) => {
                    refused += 1
                }
                Err(error) => panic!("seed {seed}: {error:?}"),
            }
            let again = open(&path);
            assert!(!matches!(again, Err(OpenError::AlreadyOpen { .. })), "seed {seed}: still locked");
        }
    }
    assert!(right > 20 && refused > 100, "{right} right, {refused} refused: the damage misses its aim");
}

#[test]
fn shared_memory_keeps_its_bytes_and_one_holder() {
    let medium = Medium::Memory(SharedMemory::default());
    let opened = medium.open(&at_once(), &init).unwrap();
    assert!(opened.created);
    assert_eq!(format(&opened.db), 1);
    put_rows(&opened.db, 50);
    assert!(matches!(medium.open(&at_once(), &init), Err(OpenError::AlreadyOpen { .. })));
    drop(opened);
    let opened = medium.open(&at_once(), &init).unwrap();
    assert!(!opened.created);
    assert_rows(&opened.db, 50);
}

#[test]
fn counters_count() {
    let opened = Medium::Memory(SharedMemory::default()).open(&at_once(), &init).unwrap();
    let count = || {
        let io = &opened.io;
        [&io.flushes, &io.writes, &io.bytes_written, &io.reads].map(|counter| counter.load(Ordering::Relaxed))
    };
    let before = count();
    put_rows(&opened.db, 100);
    let after = count();
    assert_eq!(after[0] - before[0], 1, "a one-phase commit is one flush");
    assert!(after[1] > before[1]);
    assert!(after[2] - before[2] > 100 * 320);
    assert!(after[3] > 0);
}

#[cfg(target_os = "linux")]
#[test]
fn the_page_cache_is_dropped() {
    let (_dir, path) = directory();
    let content = vec![7; 1 << 20];
    fs::write(&path, &content).unwrap();
    // What this thread had the disk read. To ask for a page without waiting for it has it read too, and it may be there in time.
    let fetched = || {
        let io = fs::read_to_string("/proc/thread-self/io").unwrap_or_default();
        io.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.parse::<usize>().ok())
    };
    let read = || {
        let before = fetched()?;
        assert_eq!(fs::read(&path).unwrap(), content);
        Some(fetched()? - before)
    };
    let Some(cached) = read() else { return eprintln!("skipped: this system does not say what a thread reads") };
    assert_eq!(cached, 0, "what has just been written is in the cache");
    Medium::File(path.clone()).drop_page_cache(None).unwrap();
    let least = if is_tmpfs(&path) { 0 } else { content.len() };
    assert!(read().is_some_and(|fetched| fetched >= least), "it comes from the disk again");
}

#[cfg(target_os = "linux")]
fn is_tmpfs(path: &Path) -> bool {
    rustix::fs::statfs(path).unwrap().f_type == 0x0102_1994
}

/// Not a test of its own: the other process of the tests below. Opens the file, says so and holds it until killed.
#[test]
fn child() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let _opened = open(Path::new(&path)).unwrap();
    println!("\nopened");
    loop {
        thread::park();
    }
}

fn spawn_child(path: &Path) -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", &format!("{}::child", module_path!().split_once("::").unwrap().1)]);
    command.env(CHILD, path).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn another_process_is_kept_out_until_it_is_killed() {
    let (_dir, path) = directory();
    let mut child = spawn_child(&path);
    let said = BufReader::new(child.stdout.take().unwrap()).lines().any(|line| line.unwrap() == "opened");
    assert!(said);
    assert!(matches!(open(&path), Err(OpenError::AlreadyOpen { .. })));
    assert!(matches!(Database::open(&path), Err(DatabaseError::DatabaseAlreadyOpen)));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(format(&open(&path).unwrap().db), 1);
}

#[test]
fn a_kill_during_the_first_start_leaves_no_file_or_a_good_one() {
    let (mut absent, mut good) = (0, 0);
    for round in 0..120_u64 {
        let (dir, path) = directory();
        let mut child = spawn_child(&path);
        // No event to wait for: the point is to hit any moment.
        thread::sleep(Duration::from_micros(round * 250));
        child.kill().unwrap();
        child.wait().unwrap();
        if path.exists() {
            good += 1
        } else {
            absent += 1
        }
        let opened = open(&path).unwrap_or_else(|error| panic!("round {round}: {error:?}"));
        assert_eq!(format(&opened.db), 1);
        assert_eq!(names(&dir), HashSet::from(["jobs.redb".to_owned()]));
    }
    eprintln!("killed before the file existed {absent}, after {good}");
}
