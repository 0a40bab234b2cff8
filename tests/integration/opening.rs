//! Opening files: ours, others', and those that are open already.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use durably::{Builder, Durably, Error, Health, RunFilter};
use redb::ReadableDatabase;

use super::support::{TempFile, echo, run_of, within};

/// Does not wait for another holder.
fn at_once() -> Builder {
    Durably::builder().lock_wait(Duration::ZERO).paused(true)
}

#[tokio::test]
async fn p_init_01_a_file_is_made_whole_and_opens_again() {
    let file = TempFile::new();
    let durably = file.open().await;
    assert_eq!(durably.health(), Health::Ok);
    let run = durably.register(echo("job")).expect("registers").trigger(1).await.expect("triggers").id();
    durably.shutdown().await.expect("closes");
    assert_eq!(durably.health(), Health::Closed);
    let durably = file.open_paused().await;
    run_of(&durably, run).await;
    let names: Vec<_> =
        fs::read_dir(file.beside(".")).expect("reads").map(|entry| entry.expect("reads").file_name()).collect();
    assert!(names.iter().all(|name| name.to_string_lossy().starts_with("jobs.redb")), "{names:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p_init_01_of_many_opens_at_once_one_has_the_file() {
    let file = TempFile::new();
    let opens: Vec<_> = (0..8).map(|_| tokio::spawn(at_once().open(file.path()))).collect();
    let mut opened = Vec::new();
    for open in opens {
        match within(open).await.expect("joins") {
            Ok(durably) => opened.push(durably),
            Err(error) => assert!(matches!(error, Error::AlreadyOpen { .. }), "{error:?}"),
        }
    }
    assert_eq!(opened.len(), 1);
}

#[tokio::test]
async fn a_file_that_is_open_is_refused_by_whatever_name() {
    let file = TempFile::new();
    let durably = file.open().await;
    let (symbolic, hard) = (file.beside("symbolic"), file.beside("hard"));
    symlink(file.path(), &symbolic).expect("links");
    fs::hard_link(file.path(), &hard).expect("links");
    for path in [file.path(), symbolic.clone(), hard] {
        let refused = at_once().open(&path).await;
        assert!(matches!(&refused, Err(Error::AlreadyOpen { path: named }) if *named == path), "{refused:?}");
    }
    durably.register(echo("job")).expect("registers").trigger(1).await.expect("the holder is not disturbed");
    durably.shutdown().await.expect("closes");
    at_once().open(symbolic).await.expect("is free after a shutdown");
}

/// After a crash-stop, a reopen waits for the writer to have let go of the file.
#[tokio::test]
async fn a_dropped_runtime_lets_go_of_the_file() {
    let file = TempFile::new();
    for n in 0..5 {
        let durably = file.open_paused().await;
        let job = durably.register(echo("job")).expect("registers");
        assert_eq!(job.get_runs(RunFilter::new()).await.expect("reads").len(), n);
        job.trigger(1).await.expect("triggers");
    }
}

#[tokio::test]
async fn a_new_file_is_its_owners_alone_and_an_old_one_keeps_its_mode() {
    let file = TempFile::new();
    let mode = |path: &Path| fs::metadata(path).expect("is there").mode() & 0o777;
    file.open().await.shutdown().await.expect("closes");
    assert_eq!(mode(&file.path()), 0o600);
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o640)).expect("sets");
    file.open().await.shutdown().await.expect("closes");
    assert_eq!(mode(&file.path()), 0o640);
}

const META: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");

/// Writes a format version as another build would.
fn set_format(path: &Path, version: u64) {
    set_number(path, "format", version);
}

/// Gives the number that was there.
fn set_number(path: &Path, name: &str, number: u64) -> u64 {
    let db = redb::Database::open(path).expect("opens");
    let txn = db.begin_write().expect("begins");
    let before = txn.open_table(META).expect("opens").insert(name, number).expect("writes").map(|row| row.value());
    txn.commit().expect("commits");
    before.unwrap_or(0)
}

#[tokio::test]
async fn a_newer_format_is_refused_and_nothing_of_it_is_lost() {
    let file = TempFile::new();
    let durably = file.open_paused().await;
    let run = durably.register(echo("job")).expect("registers").trigger(1).await.expect("triggers").id();
    durably.shutdown().await.expect("closes");
    set_format(&file.path(), 2);
    let before = fs::read(file.path()).expect("reads");
    for _ in 0..2 {
        let refused = at_once().open(file.path()).await;
        assert!(matches!(refused, Err(Error::NewerFormat { found: 2, supported: 1, .. })), "{refused:?}");
        assert!(fs::read(file.path()).expect("reads") == before, "the file was changed");
    }
    set_format(&file.path(), 1);
    run_of(&file.open_paused().await, run).await;
}

#[tokio::test]
async fn a_file_that_can_not_be_counted_on_from_is_refused() {
    let file = TempFile::new();
    file.open_paused().await.shutdown().await.expect("closes");
    // The next group without a place in the journal, events and runs without a number for the next one.
    let numbers = [("group", 1 << 56), ("sequence", 1 << 63), ("last_id_high", u64::MAX)];
    for (name, number) in numbers.into_iter().flat_map(|(name, least)| [(name, least), (name, u64::MAX)]) {
        let before = set_number(&file.path(), name, number);
        let refused = at_once().open(file.path()).await;
        assert!(matches!(&refused, Err(Error::Corrupted { table, .. }) if *table == "meta"), "{name}: {refused:?}");
        set_number(&file.path(), name, before);
    }
    file.open_paused().await.shutdown().await.expect("closes");
}

#[tokio::test]
async fn what_is_not_ours_is_refused_and_left_as_it_is() {
    let file = TempFile::new();
    let mut text = b"a text that is longer than the header of a database".to_vec();
    text.resize(4_096, b'.');
    for (name, bytes) in [("empty", Vec::new()), ("short", b"short".to_vec()), ("text", text)] {
        let path = file.beside(name);
        fs::write(&path, &bytes).expect("writes");
        let refused = at_once().open(&path).await;
        assert!(matches!(&refused, Err(Error::NotADatabase { path: named, .. }) if *named == path), "{refused:?}");
        assert_eq!(fs::read(&path).expect("reads"), bytes, "{name} was changed");
    }
    let refused = at_once().open(file.beside(".")).await;
    assert!(matches!(refused, Err(Error::Open { .. })), "{refused:?}");
}

#[tokio::test]
async fn another_programs_database_is_refused_and_its_tables_are_left_as_they_are() {
    const THEIRS: redb::TableDefinition<'_, u64, u64> = redb::TableDefinition::new("theirs");
    const THEIR_META: redb::TableDefinition<'_, &str, &str> = redb::TableDefinition::new("meta");
    for has_meta in [false, true] {
        let file = TempFile::new();
        let db = redb::Database::create(file.path()).expect("creates");
        let txn = db.begin_write().expect("begins");
        txn.open_table(THEIRS).expect("opens").insert(1, 2).expect("writes");
        if has_meta {
            txn.open_table(THEIR_META).expect("opens").insert("version", "7").expect("writes");
        }
        txn.commit().expect("commits");
        drop(db);
        let refused = at_once().open(file.path()).await;
        assert!(matches!(&refused, Err(Error::NotADatabase { path, .. }) if *path == file.path()), "{refused:?}");
        let db = redb::Database::open(file.path()).expect("opens");
        let txn = db.begin_read().expect("begins");
        assert_eq!(txn.list_tables().expect("reads").count(), 1 + usize::from(has_meta));
        assert_eq!(txn.open_table(THEIRS).expect("opens").get(1).expect("reads").expect("is there").value(), 2);
    }
}

#[tokio::test]
async fn a_truncated_file_is_damaged_and_left_as_it_is() {
    let file = TempFile::new();
    file.open().await.shutdown().await.expect("closes");
    let mut bytes = fs::read(file.path()).expect("reads");
    bytes.truncate(bytes.len() / 2);
    fs::write(file.path(), &bytes).expect("writes");
    let refused = at_once().open(file.path()).await;
    assert!(matches!(&refused, Err(Error::Damaged { path, .. }) if *path == file.path()), "{refused:?}");
    assert!(fs::read(file.path()).expect("reads") == bytes, "the file was changed");
}

#[tokio::test]
async fn a_missing_directory_is_an_error_of_the_system_with_its_source() {
    let file = TempFile::new();
    let path = file.beside("nowhere/jobs.redb");
    let refused = at_once().open(&path).await;
    let Err(Error::Open { path: named, source, .. }) = &refused else { panic!("{refused:?}") };
    assert_eq!((named, source.kind()), (&path, std::io::ErrorKind::NotFound));
    assert!(!file.beside("nowhere").exists());
}

#[test]
fn an_open_outside_a_runtime_is_a_typed_error() {
    let file = TempFile::new();
    let refused = futures::executor::block_on(Durably::open(file.path()));
    assert!(matches!(refused, Err(Error::NoRuntime)), "{refused:?}");
    assert!(!file.path().exists());
    let refused = futures::executor::block_on(Durably::in_memory());
    assert!(matches!(refused, Err(Error::NoRuntime)), "{refused:?}");
}

/// `open` starts working at once, unless it is told to wait.
#[tokio::test]
async fn p_init_02_an_open_starts_working_and_start_can_be_repeated() {
    let file = TempFile::new();
    let durably = file.open().await;
    durably.start().await.expect("does nothing");
    let job = durably.register(echo("job")).expect("registers");
    assert_eq!(within(job.trigger_and_wait(1)).await.expect("completes").output, 1);
    durably.start().await.expect("does nothing");
}

/// P-INIT-05: one process holds the file, and any number of clones share it.
#[tokio::test]
async fn p_init_05_clones_share_the_file() {
    let file = TempFile::new();
    let durably = file.open().await;
    let job = durably.register(echo("job")).expect("registers");
    let other = durably.clone();
    drop(durably);
    let run = job.trigger(1).await.expect("the runtime is there while a clone is");
    within(other.wait_for_run(run.id())).await.expect("completes");
    drop(other);
    let gone = job.trigger(1).await;
    assert!(matches!(gone, Err(Error::ShutDown)), "{gone:?}");
}
