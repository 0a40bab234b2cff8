//! The file and what of it is in memory: one handle that writes, any number of views that read.
//!
//! [`Shared`] is what readers hold; the [`Disk`] is the writer's own. A commit writes one journal row, so a group is in the
//! file as a whole or not at all, and the row's presence answers for a commit whose outcome was unknown.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, TableError, TransactionError, WriteTransaction,
};

use super::Fault;
use super::backend::IoCounters;
use super::file::{Medium, OpenError, OpenOptions, Opened};
use super::fold::{Round, Size, Watermark};
use super::journal::{self, Row, RowBuilder};
use super::pace::Pace;
use super::stage::Stage;
use super::tables::{BLOBS, FORMAT_VERSION, JOURNAL, META, Table, meta};
use super::tail::{LiveChange, Tail};
use super::view::View;
use crate::codec::{BlobRef, Corrupted};
use crate::hooks::{Bug, Failpoint};
use crate::id::RunId;
use crate::limits::{INLINE_BYTES_MAX, TAIL_AGE_FOLD, TAIL_BYTES_FOLD, TAIL_BYTES_MAX};
use crate::time::Clock;

/// Numbers of events and ids of runs beyond these are none that a file has come to: they leave room to count on from, so that
/// none is given out twice. At a million events a second the first takes 290,000 years.
const SEQUENCE_MAX: u64 = u64::MAX >> 1;
const LAST_ID_HIGH_MAX: u64 = u64::MAX - 1;

/// What readers and the writer have in common. The database is swapped when the file is reopened.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    db: Mutex<Option<Arc<Handle>>>,
    tail: RwLock<Tail>,
    ended: AtomicBool,
    /// A read has failed: redb gives nothing any more before the file is opened again.
    suspect: AtomicBool,
}

/// An open database. Whoever has it last closes it, which may write.
#[derive(Debug)]
struct Handle {
    db: Database,
    /// Goes after the database is closed: fields are dropped in this order.
    open: Arc<()>,
}

impl Shared {
    /// A view of everything acknowledged so far.
    pub(crate) fn view(&self) -> Result<View<'_>, Fault> {
        let tail = self.tail.read().unwrap_or_else(PoisonError::into_inner);
        let handle = self.handle()?;
        Ok(View::new(tail, handle.db.begin_read()?))
    }

    /// A view of what of that is in memory, if nobody changes it just now.
    pub(crate) fn view_of_tail(&self) -> Option<View<'_>> {
        self.tail.try_read().ok().map(View::of_tail)
    }

    /// The tables as of the last commit, journal included: all that was acknowledged. The tail is not held by it.
    pub(super) fn snapshot(&self) -> Result<ReadTransaction, Fault> {
        // Waits, as every reader does, while the writer has the file for itself.
        let _tail = self.tail.read().unwrap_or_else(PoisonError::into_inner);
        Ok(self.handle()?.db.begin_read()?)
    }

    /// Does something with the database that nobody else may use meanwhile: readers that come wait. `None` where one has it.
    pub(super) fn alone<T>(&self, work: impl FnOnce(&mut Database) -> T) -> Result<Option<T>, Fault> {
        let _tail = self.tail.write().unwrap_or_else(PoisonError::into_inner);
        let mut held = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::get_mut(held.as_mut().ok_or(Fault::Closed)?).map(|handle| work(&mut handle.db)))
    }

    /// Whether the file was closed for good.
    pub(crate) fn is_closed(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Whether a read has failed since the file was opened.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    /// A read has failed; says whether that is news.
    pub(super) fn suspect(&self) -> bool {
        !self.suspect.swap(true, Ordering::Relaxed)
    }

    fn handle(&self) -> Result<Arc<Handle>, Fault> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Fault::Closed)
    }

    fn swap(&self, db: Option<Database>) -> Option<Arc<Handle>> {
        let handle = db.map(|db| Arc::new(Handle { db, open: Arc::default() }));
        std::mem::replace(&mut *self.db.lock().unwrap_or_else(PoisonError::into_inner), handle)
    }

    /// As between a failure and the reopening.
    #[cfg(test)]
    pub(super) fn take_away(&self) {
        self.swap(None);
    }

    fn write_tail<T>(&self, change: impl FnOnce(&mut Tail) -> T) -> T {
        change(&mut self.tail.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn read_tail<T>(&self, read: impl FnOnce(&Tail) -> T) -> T {
        read(&self.tail.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The writing side. Only one exists for a file.
pub(crate) struct Disk {
    shared: Arc<Shared>,
    medium: Medium,
    options: OpenOptions,
    clock: Arc<dyn Clock>,
    two_phase: bool,
    next_group: u64,
    next_sequence: u64,
    last_id: RunId,
    next_blob: u64,
    fold: Option<Round>,
    /// What a slice of folding may do at most.
    slice: Size,
    pace: Pace,
    pub(crate) io: Arc<IoCounters>,
    pub(crate) commits: u64,
}

impl Disk {
    /// Opens or creates the file and reads its tail.
    pub(crate) fn open(
        medium: Medium,
        options: OpenOptions,
        clock: Arc<dyn Clock>,
        two_phase: bool,
    ) -> Result<Disk, Fault> {
        let slice = options.hooks.fold_rows().map_or_else(Size::default, |rows| Size { rows, ..Size::default() });
        let mut disk = Disk {
            shared: Arc::default(),
            medium,
            options,
            clock,
            two_phase,
            next_group: 1,
            next_sequence: 1,
            last_id: RunId::MIN,
            next_blob: 1,
            fold: None,
            slice,
            pace: Pace::default(),
            io: Arc::default(),
            commits: 0,
        };
        disk.load(disk.next_group)?;
        Ok(disk)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn next_group(&self) -> u64 {
        self.next_group
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    pub(crate) fn last_id(&self) -> RunId {
        self.last_id
    }

    /// Closes what is open and opens it again, checked: after an error nothing in memory is believed.
    ///
    /// The cached pages go first, since a failed flush leaves pages that look written and are not; from then on commits are
    /// two-phase. The file is the one that was open before, still locked: bodies are alive, and nobody else may take up their runs.
    /// Only where it can't be read, and its name has become another file's, as where a volume has gone and come back, that one is
    /// opened. It must be there, and have all that was acknowledged.
    pub(crate) fn reopen(&mut self) -> Result<(), Fault> {
        self.fold = None;
        self.release();
        self.options.hooks.pass(Failpoint::Released);
        self.two_phase = true;
        self.medium.distrust_cache(&self.options);
        self.options.check_integrity = super::file::IntegrityCheck::Always;
        self.options.must_exist = true;
        let known = self.next_group;
        if let Err(fault) = self.load(known) {
            self.next_group = known;
            self.options.again.take_if(|file| self.medium.names_another(file));
            return Err(fault);
        }
        self.options.hooks.pass(Failpoint::Reopened);
        Ok(())
    }

    /// Opens the file and reads its tail, if it has every group before `known`.
    fn load(&mut self, known: u64) -> Result<(), Fault> {
        let Opened { db, io, file, .. } = self.medium.open_if(&self.options, &create_tables, &|db, path| {
            if self.options.hooks.plants(Bug::FormatIgnored) { Ok(()) } else { accept(db, path) }
        })?;
        self.io = io;
        self.options.again = file;
        let snapshot = db.begin_read()?;
        let numbers = snapshot.open_table(META)?;
        let number = |name| -> Result<u64, Fault> { Ok(numbers.get(name)?.map_or(0, |row| row.value())) };
        let number_up_to = |name, max, reason| match number(name)? {
            found if found > max => Err(Fault::from(Corrupted { table: "meta", key: String::from(name), reason })),
            found => Ok(found),
        };
        self.next_group = number_up_to(meta::GROUP, journal::GROUP_MAX - 1, "no group has this number")?.max(1);
        self.next_sequence = number_up_to(meta::SEQUENCE, SEQUENCE_MAX, "no event has this number")?.max(1);
        if self.options.hooks.plants(Bug::SequenceReset) {
            self.next_sequence = 1;
        }
        let id_high = number_up_to(meta::LAST_ID_HIGH, LAST_ID_HIGH_MAX, "no run has this id")?;
        let id = (u128::from(id_high) << 64) | u128::from(number(meta::LAST_ID_LOW)?);
        self.last_id = RunId::from_bytes(id.to_be_bytes());
        let now = self.clock.monotonic();
        // No number is given out twice, also where its blob is gone: a fold that was cut off may free it again.
        let last_blob = snapshot.open_table(BLOBS)?.last()?.map_or(0, |(id, _)| id.value());
        self.next_blob = self.next_blob.max(number(meta::BLOB)?).max(last_blob.saturating_add(1));
        if self.options.hooks.plants(Bug::BlobNumberReused) {
            self.next_blob = 1;
        }
        let mut tail = Tail::default();
        let rows = snapshot.open_table(JOURNAL)?;
        let mut pieces = rows.iter()?.peekable();
        while let Some(piece) = pieces.next() {
            let (key, piece) = piece?;
            let (group, mut bytes) = (journal::group_of(key.value()), piece.value().to_vec());
            while let Some(piece) =
                pieces.next_if(|piece| piece.as_ref().map_or(true, |(key, _)| journal::group_of(key.value()) == group))
            {
                bytes.extend_from_slice(piece?.1.value());
            }
            let row = journal::read(bytes, &self.options.hooks).map_err(|reason| Corrupted {
                table: "journal",
                key: group.to_string(),
                reason,
            })?;
            self.next_group = self.next_group.max(group + 1);
            self.next_sequence = self.next_sequence.max(row.next_sequence);
            self.last_id = self.last_id.max(row.last_id);
            let blobs = row.values().filter_map(|value| BlobRef::of(&value));
            self.next_blob = blobs.fold(self.next_blob, |next, blob| next.max(blob.id.saturating_add(1)));
            tail.add(group, &row, now);
        }
        tail.set_sequence(self.next_sequence - 1);
        drop(numbers);
        drop(snapshot);
        if self.next_group < known {
            return Err(Fault::Other);
        }
        self.shared.write_tail(|held| {
            tail.keep_live(held);
            *held = tail;
        });
        self.shared.suspect.store(false, Ordering::Relaxed);
        self.shared.swap(Some(db));
        Ok(())
    }

    /// Whether the file holds this group: the answer for a commit whose outcome was unknown.
    pub(crate) fn has_group(&self, group: u64) -> bool {
        self.next_group > group
    }

    /// Commits the group: one journal row, the blobs it refers to, and a slice of folding if one is due.
    ///
    /// Once it is on disk, and before readers can see it, `committed` is told of the row that was written, if there was anything
    /// to write. An error means that the outcome is unknown; nothing may be written before [`Disk::reopen`].
    pub(crate) fn commit(
        &mut self,
        stage: &Stage,
        events: u64,
        last_id: RunId,
        live: &mut Vec<(RunId, LiveChange)>,
        committed: impl FnOnce(Option<&Row>),
    ) -> Result<(), Fault> {
        debug_assert!(events == 0 || !stage.is_empty(), "numbers that no row would keep");
        let group = self.next_group;
        let handle = self.shared.handle()?;
        let mut txn = handle.db.begin_write()?;
        txn.set_two_phase_commit(self.two_phase);
        if self.options.hooks.plants(Bug::CommitNotFlushed) && self.commits % 50 == 49 {
            txn.set_durability(redb::Durability::None).map_err(redb::Error::from)?;
        }
        let next_sequence = self.next_sequence + events;
        let mut row = None;
        let mut next_blob = self.next_blob;
        if !stage.is_empty() {
            let mut builder = RowBuilder::with_capacity(stage.bytes() + stage.rows() * 7, stage.rows());
            let mut push = |table, key: &[u8], value: Option<&[u8]>, fresh| -> Result<(), Fault> {
                match value {
                    Some(value) if value.len() > INLINE_BYTES_MAX => {
                        let reference = BlobRef { id: next_blob, bytes: value.len() as u32 };
                        next_blob += 1;
                        txn.open_table(BLOBS)?.insert(reference.id, value)?;
                        builder.push(table, key, Some(&reference.to_value()), fresh);
                    }
                    value => builder.push(table, key, value, fresh),
                }
                Ok(())
            };
            for (table, key, slot) in stage.iter() {
                push(table, key, slot.value.as_deref(), slot.fresh)?;
            }
            for (key, value) in stage.steps() {
                push(Table::Steps, &key, value, false)?;
            }
            let built = builder.finish(next_sequence, last_id);
            let mut table = txn.open_table(JOURNAL)?;
            for (key, piece) in journal::pieces(group, &built.bytes) {
                table.insert(key, piece)?;
            }
            drop(table);
            row = Some(built);
        }
        let slice = self.fold_slice(&txn, stage.rows())?;
        let hooks = &self.options.hooks;
        if slice.is_some() {
            hooks.pass(Failpoint::SliceFolded);
        }
        txn.commit()?;
        match &slice {
            Some(slice) if slice.removes_rows() => hooks.pass(Failpoint::JournalRemoved),
            Some(_) => hooks.pass(Failpoint::SliceCommitted),
            None => {}
        }
        self.commits += 1;
        self.next_blob = next_blob;
        self.next_sequence = next_sequence;
        self.last_id = self.last_id.max(last_id);
        let now = self.clock.monotonic();
        self.fold = self.shared.write_tail(|tail| {
            committed(row.as_ref());
            // The slice first: a row that the group deletes may be one that the slice has just put into its table.
            let round = slice.map(|slice| slice.committed(tail)).filter(|round| !round.is_done());
            if let Some(row) = &row {
                tail.add(group, row, now);
            }
            tail.set_sequence(next_sequence - 1);
            live.drain(..).for_each(|(run, live)| tail.set_live(run, live));
            round
        });
        if row.is_some() {
            self.next_group = group + 1;
        }
        Ok(())
    }

    /// One slice of the round under way, or of a new one if the tail is long or old enough.
    fn fold_slice(&mut self, txn: &WriteTransaction, group_rows: usize) -> Result<Option<super::fold::Slice>, Fault> {
        let watermark = Watermark {
            group: self.next_group,
            sequence: self.next_sequence,
            blob: self.next_blob,
            last_id: self.last_id,
        };
        let now = self.clock.monotonic();
        let shared = self.shared.clone();
        shared.read_tail(|tail| {
            if self.fold.is_none() && self.is_long(tail) {
                self.fold = Round::over_older_half(tail);
            } else if self.fold.is_none() && self.is_old(tail, now) {
                self.fold = Round::over(tail);
            }
            let Some(round) = &self.fold else { return Ok(None) };
            // More at a time where folding has fallen behind.
            let behind = tail.bytes() / TAIL_BYTES_FOLD;
            let size = self.pace.next(group_rows, behind, self.slice * (1 + behind).min(8));
            let slice = round.slice(txn, tail, watermark, size, &self.options.hooks)?;
            self.pace.took(self.clock.monotonic().saturating_sub(now), slice.work());
            Ok(Some(slice))
        })
    }

    fn is_long(&self, tail: &Tail) -> bool {
        tail.bytes() >= self.options.hooks.fold_bytes().unwrap_or(TAIL_BYTES_FOLD)
    }

    fn is_old(&self, tail: &Tail, now: std::time::Duration) -> bool {
        tail.oldest().is_some_and(|at| now.saturating_sub(at) >= TAIL_AGE_FOLD)
    }

    /// Brings the counters of executing runs up to date where no commit carries them.
    pub(crate) fn set_live(&self, live: Vec<(RunId, LiveChange)>) {
        self.shared.write_tail(|tail| live.into_iter().for_each(|(run, live)| tail.set_live(run, live)));
    }

    /// Whether a commit should come even if there is nothing to write, to get on with folding.
    pub(crate) fn wants_folding(&self) -> bool {
        self.fold.is_some()
            || self.shared.read_tail(|tail| self.is_long(tail) || self.is_old(tail, self.clock.monotonic()))
    }

    /// Whether the file has failed and could not be reopened.
    pub(crate) fn is_away(&self) -> bool {
        self.shared.handle().is_err()
    }

    pub(super) fn sleep(&self, time: std::time::Duration) {
        self.options.hooks.sleep(time);
    }

    /// Whether anything is left to fold.
    pub(crate) fn has_tail(&self) -> bool {
        self.shared.read_tail(|tail| !tail.is_empty())
    }

    /// Whether folding must go before anything else is taken up.
    pub(crate) fn must_fold(&self) -> bool {
        self.shared.read_tail(|tail| tail.bytes() >= TAIL_BYTES_MAX)
    }

    /// Folds everything, in as many commits as it takes.
    pub(crate) fn fold_all(&mut self) -> Result<(), Fault> {
        while self.has_tail() {
            if self.fold.is_none() {
                self.fold = self.shared.read_tail(Round::over);
            }
            self.commit(&Stage::default(), 0, RunId::MIN, &mut Vec::new(), |_| ())?;
        }
        Ok(())
    }

    /// Folds the rest and closes the file, so that the next start need not repair or replay.
    pub(crate) fn close(mut self) -> Result<(), Fault> {
        let folded = self.fold_all();
        self.options.hooks.pass(Failpoint::FoldedAtClose);
        self.release();
        folded
    }

    /// Closes the database. Views that are open keep their snapshot a moment longer and then fail by themselves; one that is being
    /// opened just now is waited for, since it may be what closes the database, and that must not write to what is opened next.
    fn release(&self) {
        let Some(handle) = self.shared.swap(None) else { return };
        let open = Arc::downgrade(&handle.open);
        if let Some(Handle { db, open: _open }) = Arc::into_inner(handle)
            && let Err(error) = db.close()
        {
            tracing::warn!(%error, "the file was not closed cleanly");
            self.medium.distrust_cache(&self.options);
        }
        while open.strong_count() > 0 {
            std::thread::yield_now();
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.release();
        self.options.again.take().into_iter().for_each(|file| file.unlock());
    }
}

/// Whether a database is one of ours, in a format that this build reads.
fn accept(db: &Database, path: &Path) -> Result<(), OpenError> {
    let not_ours =
        || OpenError::NotADatabase { path: path.to_path_buf(), reason: "a redb database of another program" };
    let failed = |error: redb::StorageError| OpenError::redb(path, error.into());
    let snapshot = db.begin_read().map_err(|error| match error {
        TransactionError::Storage(error) => failed(error),
        error => OpenError::Io { path: path.to_path_buf(), action: "read", source: std::io::Error::other(error) },
    })?;
    let numbers = snapshot.open_table(META).map_err(|error| match error {
        TableError::Storage(error) => failed(error),
        _ => not_ours(),
    })?;
    match numbers.get(meta::FORMAT).map_err(failed)?.map_or(0, |row| row.value()) {
        FORMAT_VERSION => Ok(()),
        0 => Err(not_ours()),
        found => Err(OpenError::NewerFormat { path: path.to_path_buf(), found, supported: FORMAT_VERSION }),
    }
}

/// Makes all tables of a new file and writes its format version.
fn create_tables(db: &Database) -> Result<(), redb::Error> {
    let txn = db.begin_write()?;
    txn.open_table(META)?.insert(meta::FORMAT, FORMAT_VERSION)?;
    txn.open_table(JOURNAL)?;
    txn.open_table(BLOBS)?;
    for table in Table::ALL {
        txn.open_table(table.definition())?;
    }
    txn.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests;
