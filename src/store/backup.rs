//! A copy of the file while it is written to.
//!
//! One read transaction sees the tables and the journal as of one commit, so what it copies is a prefix of history. The tail is
//! not needed, being in the journal, and its lock is not held: the writer goes on. The copy is made as a new file is: under a
//! temporary name, flushed, looked at, and only then named.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redb::{Database, Key, ReadTransaction, ReadableTable, TableDefinition, Value, WriteTransaction};

use super::disk::Shared;
use super::file::{self, OpenError, OpenOptions};
use super::tables::{BLOBS, JOURNAL, META, Table};
use super::verify::{self, Verification};
use super::{Fault, is_swapped};
use crate::error::Error;

/// Copies the file to `path`, where nothing is yet. Blocks, until it is done or abandoned. Says by `failed` that a read has failed.
pub(super) fn copy(
    shared: &Shared,
    path: &Path,
    abandoned: &AtomicBool,
    failed: &dyn Fn(),
) -> Result<Verification, Error> {
    let mut tries = 0;
    loop {
        let copied = copy_once(shared, path, abandoned);
        // What is written to would say what has failed, and not that something had before.
        if matches!(&copied, Err(Fault::Open(OpenError::Init { source: redb::Error::PreviousIo, .. })))
            || copied.as_ref().is_err_and(Fault::is_io)
        {
            failed();
        }
        match copied {
            // The file is being reopened: the snapshot is gone, and the next is of the new handle.
            Err(fault) if was_swapped(&fault) && tries < 100 && !shared.is_closed() && !is_set(abandoned) => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(Fault::Closed) if !shared.is_closed() && !is_set(abandoned) => {
                return Err(Error::Storage(Box::new(Fault::Away)));
            }
            copied => return Ok(copied?),
        }
    }
}

fn copy_once(shared: &Shared, path: &Path, abandoned: &AtomicBool) -> Result<Verification, Fault> {
    let snapshot = shared.snapshot()?;
    let fill = |db: &Database| fill(db, &snapshot, abandoned);
    let options = OpenOptions { cache_bytes: 8 << 20, ..OpenOptions::default() };
    let verified = std::cell::RefCell::new(Verification::default());
    file::create_checked(path, &options, &fill, &|medium| {
        *verified.borrow_mut() = verify::of_file(medium).map_err(|fault| of_copy(path, fault))?;
        if is_set(abandoned) { Err(Fault::Closed) } else { Ok(()) }
    })?;
    Ok(verified.into_inner())
}

fn fill(db: &Database, snapshot: &ReadTransaction, abandoned: &AtomicBool) -> Result<(), redb::Error> {
    let txn = db.begin_write()?;
    copy_table(snapshot, &txn, META, abandoned)?;
    copy_table(snapshot, &txn, JOURNAL, abandoned)?;
    copy_table(snapshot, &txn, BLOBS, abandoned)?;
    for table in Table::ALL {
        copy_table(snapshot, &txn, table.definition(), abandoned)?;
    }
    txn.commit()?;
    Ok(())
}

fn copy_table<K: Key + 'static, V: Value + 'static>(
    from: &ReadTransaction,
    to: &WriteTransaction,
    table: TableDefinition<'static, K, V>,
    abandoned: &AtomicBool,
) -> Result<(), redb::Error> {
    let mut target = to.open_table(table)?;
    for row in from.open_table(table)?.iter()? {
        let (key, value) = row?;
        target.insert(key.value(), value.value())?;
        if is_set(abandoned) {
            return Err(redb::Error::Io(std::io::Error::other("nobody waits for the copy any more")));
        }
    }
    Ok(())
}

/// What fails where the copy is read back is the copy's: the file itself may be well.
fn of_copy(path: &Path, fault: Fault) -> Fault {
    let source = match fault {
        Fault::Redb(redb::Error::Io(source)) => source,
        Fault::Redb(error) => std::io::Error::other(error),
        fault => return fault,
    };
    OpenError::Io { path: path.to_path_buf(), action: "read back", source }.into()
}

fn was_swapped(fault: &Fault) -> bool {
    match fault {
        Fault::Open(OpenError::Init { source, .. }) => is_swapped(source),
        fault => fault.is_swapped(),
    }
}

fn is_set(flag: &AtomicBool) -> bool {
    flag.load(Ordering::Relaxed)
}

/// Abandons a copy that nobody waits for any more.
#[derive(Debug, Default)]
pub(super) struct Abandon(pub(super) std::sync::Arc<AtomicBool>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_cannot_be_read_back_says_nothing_of_the_file() {
        let failed = redb::Error::Io(std::io::Error::other("injected"));
        for error in [failed, redb::Error::PreviousIo, redb::Error::DatabaseClosed] {
            let fault = of_copy(Path::new("copy"), Fault::Redb(error));
            assert!(matches!(&fault, Fault::Open(OpenError::Io { action: "read back", .. })), "{fault:?}");
            assert!(!fault.is_io() && !was_swapped(&fault), "{fault:?}");
        }
    }
}
