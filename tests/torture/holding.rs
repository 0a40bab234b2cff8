//! P14: one holder of a file at a time, under whatever name, and a lock that nobody holds is none.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use durably::testing::suites::Failpoint;
use durably::{Durably, Error};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open};

use crate::suites::process::{Process, Role, on_threads};

/// Opens the file, waiting for another holder for so long.
fn open(path: &Path, wait: Duration) -> Result<(), Error> {
    on_threads(2).block_on(async {
        let durably = Durably::builder().lock_wait(wait).open(path).await?;
        durably.shutdown().await
    })
}

fn refused(path: &Path) {
    match open(path, Duration::ZERO) {
        Err(error @ Error::AlreadyOpen { .. }) => {
            let said = error.to_string();
            assert!(said.contains(&*path.to_string_lossy()), "the error does not name {}: {said}", path.display());
        }
        other => panic!("P14: {} was opened twice: {other:?}", path.display()),
    }
}

/// A process that holds the file.
fn holder(path: &Path, directory: &Path) -> Process {
    let mut holder = Process::start(&Role::Hold(path.to_owned()), directory);
    let held = holder.next::<String>(far());
    assert!(matches!(held, crate::suites::process::Next::Report(_)), "{}", holder.last_words());
    holder
}

#[expect(clippy::disallowed_methods, reason = "an end to waiting for what has failed")]
fn far() -> std::time::Instant {
    std::time::Instant::now() + Duration::from_secs(60)
}

/// The file under its own name and others.
fn names(directory: &Path) -> [PathBuf; 3] {
    let [own, symbolic, hard] = ["jobs.redb", "symbolic.redb", "hard.redb"].map(|name| directory.join(name));
    open(&own, Duration::ZERO).expect("the first open makes it");
    std::os::unix::fs::symlink(&own, &symbolic).expect("a symbolic link");
    fs::hard_link(&own, &hard).expect("a hard link");
    [own, symbolic, hard]
}

#[test]
fn p14_a_file_is_private_and_held_once_in_a_process() {
    let directory = tempfile::tempdir().expect("a directory");
    let names = names(directory.path());
    assert_eq!(fs::metadata(&names[0]).expect("the file").permissions().mode() & 0o777, 0o600);
    let runtime = on_threads(2);
    let held = runtime.block_on(Durably::open(&names[0])).expect("the holder");
    names.iter().for_each(|name| refused(name));
    runtime.block_on(held.shutdown()).expect("a clean end");
    for name in &names {
        open(name, Duration::ZERO).expect("nobody holds it");
    }
}

#[test]
fn p14_another_process_is_kept_out_under_any_name_and_a_killed_holder_keeps_nobody_out() {
    let directory = tempfile::tempdir().expect("a directory");
    let names = names(directory.path());
    for held_as in &names {
        let mut holder = holder(held_as, directory.path());
        names.iter().for_each(|name| refused(name));
        holder.signal(Signal::KILL);
        holder.status();
        open(&names[0], Duration::ZERO).expect("P14: the lock of a dead holder is none");
    }
}

#[test]
fn p14_a_holder_that_lets_go_is_waited_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("jobs.redb");
    let mut holder = holder(&path, directory.path());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| open(&path, Duration::from_secs(60)));
        refused(&path);
        holder.signal(Signal::KILL);
        holder.status();
        waiting.join().expect("no panic").expect("P14: it is there once the holder is gone");
    });
}

#[test]
fn a_holder_gives_its_reserve_up_before_it_lets_go() {
    let directory = tempfile::tempdir().expect("a directory");
    let (path, reserve) = (directory.path().join("jobs.redb"), directory.path().join("jobs.redb.reserve"));
    let (saw, seen) = std::sync::mpsc::channel();
    let at_close = reserve.clone();
    let builder = Durably::builder().at_failpoint(move |point| {
        if point == Failpoint::FoldedAtClose {
            saw.send(at_close.exists()).expect("the test is there");
        }
    });
    on_threads(2).block_on(async {
        let durably = builder.open(&path).await.expect("opens");
        assert!(reserve.exists());
        durably.shutdown().await.expect("a clean end");
    });
    assert_eq!(seen.try_recv(), Ok(false), "after this the file, and what lies beside it, may be another's");
}

/// The open file of a holder, shared as a child shares it that was forked and runs no other program.
fn shared_with(holder: &Process, path: &Path) -> Option<Vec<OwnedFd>> {
    let of_holder = pidfd_open(holder.id(), PidfdFlags::empty()).ok()?;
    let descriptors = fs::read_dir(format!("/proc/{}/fd", holder.id().as_raw_nonzero())).ok()?;
    let numbers = descriptors.flatten().filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path));
    let numbers: Vec<i32> = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    assert!(!numbers.is_empty(), "the holder has no descriptor of {}", path.display());
    numbers.iter().map(|number| pidfd_getfd(&of_holder, *number, PidfdGetfdFlags::empty()).ok()).collect()
}

/// A fork without exec can't be had without `unsafe`, which is in no crate of ours. The lock is one of the open file description,
/// and all that a fork does to that is to have it shared by another process, in which it lives on when its opener is dead. Here
/// that process is this one.
#[test]
fn p14_a_forked_child_of_a_dead_holder_is_told_of_and_waited_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = fs::canonicalize(directory.path()).expect("the directory").join("jobs.redb");
    let mut holder = holder(&path, directory.path());
    let Some(shared) = shared_with(&holder, &path) else {
        eprintln!("skipped: this system does not let a parent share the descriptors of its child");
        return;
    };
    holder.signal(Signal::KILL);
    holder.status();
    refused(&path);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| open(&path, Duration::from_secs(60)));
        refused(&path);
        drop(shared);
        waiting.join().expect("no panic").expect("P14: it is there once the child is gone");
    });
}
