//! The database file: created whole or not at all, opened by one holder at a time, checked before it is trusted.
//!
//! Gets a [`Medium`] and gives an open [`redb::Database`]. redb alone initialises whatever empty file it is handed, in place and in
//! several writes, so a kill in between leaves a file nobody can open. Here a new database is built under a temporary name and
//! appears under its own name complete, and redb is handed only what already is a database.
//!
//! Invariant: the final name is absent, or names a database whose `init` has committed. Nothing is written to a file that is not one.

use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind};
use std::ops::Bound;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use redb::backends::FileBackend;
use redb::{Database, DatabaseError, StorageBackend, StorageError};
use rustix::fs::OFlags;

use super::backend::{BackendFactory, Counting, IoCounters, SharedMemory};

/// The first bytes of every redb file (redb `docs/design.md`, "Super-header"), followed by one byte of flags.
const MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";
/// Flags that a clean close clears: recovery required, primary unflushed.
const UNCLEAN_FLAGS: u8 = 2 | 8;
/// Magic and geometry (64 bytes) and two commit slots of 128; redb panics or misreads below that.
const HEADER_BYTES: u64 = 320;
/// A full check reads the file at about 500 MiB/s, so this keeps an ordinary start under about half a second.
const CHECK_BYTES_MAX: u64 = 256 << 20;
const LOCK_RETRY_MIN: Duration = Duration::from_millis(1);
const LOCK_RETRY_MAX: Duration = Duration::from_millis(50);
/// Each round lost means that somebody else just created or removed the file, so more than a few is not a race.
const CREATE_ROUNDS_MAX: u32 = 32;

/// Where the store lives.
#[derive(Debug, Clone)]
pub(crate) enum Medium {
    File(PathBuf),
    Memory(SharedMemory),
    #[cfg_attr(not(test), expect(dead_code, reason = "a simulation brings its own storage"))]
    Custom(Arc<dyn BackendFactory>),
}

/// When a file's every page is verified before it is used: redb trusts a cleanly closed file, and a damaged one then gives wrong data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IntegrityCheck {
    Always,
    /// After an unclean stop, and always for files of at most `always_bytes_max`.
    AfterUncleanStop {
        always_bytes_max: u64,
    },
}

impl Default for IntegrityCheck {
    fn default() -> Self {
        Self::AfterUncleanStop { always_bytes_max: CHECK_BYTES_MAX }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct OpenOptions {
    pub(crate) cache_bytes: usize,
    pub(crate) check_integrity: IntegrityCheck,
    /// How long to wait for another holder: a predecessor that is stopping, or a child it forked.
    pub(crate) lock_wait: Duration,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { cache_bytes: 64 << 20, check_integrity: IntegrityCheck::default(), lock_wait: Duration::from_secs(1) }
    }
}

#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) db: Database,
    /// Made by this call, `init` included. False also where another holder came and went before this call got the lock.
    #[cfg_attr(not(test), expect(dead_code, reason = "what the tests of this module look at"))]
    pub(crate) created: bool,
    #[cfg_attr(not(test), expect(dead_code, reason = "what the tests of this module look at"))]
    pub(crate) integrity_checked: bool,
    pub(crate) io: Arc<IoCounters>,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum OpenError {
    #[error("{} is already open: stop the process that has it, or a child it forked, and open again", path.display())]
    AlreadyOpen { path: PathBuf },
    #[error("{} is not a database ({reason}): nothing was written to it; choose another path or move the file away", path.display())]
    NotADatabase { path: PathBuf, reason: &'static str },
    #[error("{} has redb file format {version}, which this version cannot read: upgrade it with redb 2.6 or choose another path", path.display())]
    OldFormat { path: PathBuf, version: u8 },
    #[error("{} is damaged ({message}): restore a backup, or move the file away to start empty", path.display())]
    Damaged { path: PathBuf, message: String },
    #[error("cannot {action} {}", path.display())]
    Io { path: PathBuf, action: &'static str, source: io::Error },
    #[error("cannot set up the tables of {}", path.display())]
    Init { path: PathBuf, source: redb::Error },
}

impl OpenError {
    fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, action, source }
    }

    fn redb(path: &Path, error: DatabaseError) -> Self {
        let path = path.to_path_buf();
        match error {
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => Self::AlreadyOpen { path },
            DatabaseError::UpgradeRequired(version) => Self::OldFormat { path, version },
            DatabaseError::Storage(StorageError::Corrupted(message)) => Self::Damaged { path, message },
            // A pointer out of the file reads as an I/O error of the file, though the disk is well.
            DatabaseError::Storage(StorageError::Io(source))
                if matches!(
                    source.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::InvalidData | ErrorKind::InvalidInput
                ) =>
            {
                Self::Damaged { path, message: source.to_string() }
            }
            DatabaseError::Storage(StorageError::Io(source)) => Self::Io { path, action: "open", source },
            other => Self::Io { path, action: "open", source: io::Error::other(other) },
        }
    }
}

impl Medium {
    /// Opens the database, creating it with `init` run in it where there is none.
    ///
    /// Waits up to [`OpenOptions::lock_wait`], blocking the thread, while somebody else has it open.
    pub(crate) fn open(
        &self,
        options: &OpenOptions,
        init: &dyn Fn(&Database) -> Result<(), redb::Error>,
    ) -> Result<Opened, OpenError> {
        let mut left = options.lock_wait;
        let mut pause = LOCK_RETRY_MIN;
        loop {
            let attempt = match self {
                Self::File(path) => open_file(path, options, init),
                Self::Memory(memory) => open_in_place(Box::new(memory.backend()), self.name(), options, init),
                Self::Custom(factory) => factory
                    .backend()
                    .map_err(OpenError::io(self.name(), "open"))
                    .and_then(|backend| open_in_place(backend, self.name(), options, init)),
            };
            match attempt {
                Err(OpenError::AlreadyOpen { .. }) if !left.is_zero() => {
                    pause = pause.min(left);
                    thread::sleep(pause);
                    left -= pause;
                    pause = (pause * 2).min(LOCK_RETRY_MAX);
                }
                outcome => return outcome,
            }
        }
    }

    /// Makes the next reads come from the disk. Call it after a failed fsync, between closing and opening again.
    ///
    /// Linux marks pages that it failed to write as clean, so the cache shows a commit that the disk does not have; building on it
    /// loses the whole file at the next power loss.
    pub(crate) fn drop_page_cache(&self) -> io::Result<()> {
        let Self::File(path) = self else { return Ok(()) };
        let file = File::open(path)?;
        // Only pages that are clean and not being written can be dropped. That this may fail again changes nothing.
        let _ = file.sync_data();
        #[cfg(target_os = "linux")]
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        Ok(())
    }

    pub(super) fn name(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Memory(_) => Path::new("<memory>"),
            Self::Custom(_) => Path::new("<custom storage>"),
        }
    }
}

fn open_file(
    path: &Path,
    options: &OpenOptions,
    init: &dyn Fn(&Database) -> Result<(), redb::Error>,
) -> Result<Opened, OpenError> {
    let mut created = false;
    for _ in 0..CREATE_ROUNDS_MAX {
        if let Some(opened) = open_existing(path, options)? {
            return Ok(Opened { created, ..opened });
        }
        created = create(path, options, init)?;
    }
    let source = io::Error::new(ErrorKind::NotFound, "it was removed again and again while being created");
    Err(OpenError::Io { path: path.to_path_buf(), action: "create", source })
}

fn open_existing(path: &Path, options: &OpenOptions) -> Result<Option<Opened>, OpenError> {
    let file = match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(OpenError::io(path, "open"))?,
    };
    let metadata = file.metadata().map_err(OpenError::io(path, "open"))?;
    if !metadata.is_file() {
        return Err(OpenError::NotADatabase { path: path.to_path_buf(), reason: "not a regular file" });
    }
    let on_nfs = is_on_nfs(&file);
    let backend: Arc<dyn StorageBackend> =
        Arc::new(FileBackend::new(file).map_err(|error| OpenError::redb(path, error))?);
    let found = lock_and_inspect(&*backend, path, Absent::IsAnError)?;
    let opened = start(Counting::new(backend), path, options, found)?;

    // By every opener, not only the creator: that one may have been killed between linking the name and getting here, and then
    // commits would be acknowledged into a file whose name a power loss takes away.
    sync_directory_of(path).map_err(OpenError::io(path, "sync the directory of"))?;
    remove_stale_temporaries(path, (metadata.dev(), metadata.ino()));

    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), mode = format_args!("{mode:03o}"), "database file is open to other users");
    }
    if on_nfs {
        tracing::warn!(path = %path.display(), "database file is on NFS, where locks and flushes are not tested");
    }
    Ok(Some(opened))
}

/// Empty storage becomes a database where it is: for media that do not outlive a kill, or simulate one.
fn open_in_place(
    backend: Box<dyn StorageBackend>,
    name: &Path,
    options: &OpenOptions,
    init: &dyn Fn(&Database) -> Result<(), redb::Error>,
) -> Result<Opened, OpenError> {
    let backend: Arc<dyn StorageBackend> = Arc::from(backend);
    let found = lock_and_inspect(&*backend, name, Absent::IsNew)?;
    let created = found.bytes == 0;
    let opened = start(Counting::new(backend), name, options, found)?;
    if created {
        init(&opened.db).map_err(|source| OpenError::Init { path: name.to_path_buf(), source })?;
    }
    Ok(Opened { created, ..opened })
}

/// Builds a database under a temporary name and links it to `path`. False where another starter was first, or took ours away.
fn create(
    path: &Path,
    options: &OpenOptions,
    init: &dyn Fn(&Database) -> Result<(), redb::Error>,
) -> Result<bool, OpenError> {
    let io = |source| OpenError::Io { path: path.to_path_buf(), action: "create", source };
    let refused = |kind, reason: &'static str| Err(io(io::Error::new(kind, reason)));
    if path.is_symlink() && !path.exists() {
        return refused(ErrorKind::NotFound, "it is a symbolic link to a file that does not exist");
    }
    if path.file_name().is_none() {
        return refused(ErrorKind::InvalidInput, "the path has no file name");
    }
    if !directory_of(path).is_dir() {
        return refused(ErrorKind::NotFound, "its directory does not exist");
    }

    let Some(temporary) = Temporary::create(path).map_err(io)? else { return Ok(false) };
    temporary.fill(path, options, init)?;
    match publish(&temporary.path, path) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => Ok(false),
        Err(error) => Err(io(error)),
    }
}

/// Names a finished file, never replacing one.
fn publish(temporary: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(temporary, path) {
        // File systems without hard links say so in several ways.
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
            rename_without_replacing(temporary, path)
        }
        linked => linked,
    }
}

#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn rename_without_replacing(temporary: &Path, path: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, temporary, CWD, path, RenameFlags::NOREPLACE)?)
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn rename_without_replacing(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::Error::new(ErrorKind::Unsupported, "the file system has no hard links"))
}

/// A database file in the making. Its lock, held from creation until its name is gone, tells other starters that it is not stale.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    backend: Arc<FileBackend>,
}

impl Temporary {
    /// None where another starter locked it first, to remove it as stale.
    fn create(path: &Path) -> io::Result<Option<Self>> {
        let random = RandomState::new().build_hasher().finish();
        let mut name = temporary_prefix(path);
        name.push(format!("{}-{random:016x}", std::process::id()));
        let path = path.with_file_name(name);
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let backend = Arc::new(FileBackend::new(file).map_err(io::Error::other)?);
        let temporary = Self { path, backend };
        Ok(lock_whole(&*temporary.backend)?.then_some(temporary))
    }

    /// Makes it a database that is whole and on disk, and still locked.
    fn fill(
        &self,
        path: &Path,
        options: &OpenOptions,
        init: &dyn Fn(&Database) -> Result<(), redb::Error>,
    ) -> Result<(), OpenError> {
        let failed = |error| match OpenError::redb(path, error) {
            // Not worth waiting for, the file being ours.
            OpenError::AlreadyOpen { path } => {
                let source = io::Error::other("its temporary file was locked by somebody else");
                OpenError::Io { path, action: "create", source }
            }
            error => error,
        };
        let backend = Counting { closes: false, ..Counting::new(self.backend.clone()) };
        let mut builder = Database::builder();
        let db = builder.set_cache_size(options.cache_bytes).create_with_backend(backend).map_err(failed)?;
        init(&db).map_err(|source| OpenError::Init { path: path.to_path_buf(), source })?;
        db.close().map_err(failed)?;
        // Another starter may have taken it for stale before it was locked; linking it notices.
        let synced = File::open(&self.path).and_then(|file| file.sync_all()).or_else(gone_is_ok);
        synced.map_err(OpenError::io(path, "create"))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Also after publishing: the database has its own name by then. Unlocked last, and explicitly, because a forked child
        // would keep the lock that closing the file merely drops.
        let _ = fs::remove_file(&self.path);
        let _ = self.backend.close();
    }
}

fn temporary_prefix(path: &Path) -> OsString {
    let mut prefix = path.file_name().unwrap_or_default().to_os_string();
    prefix.push(".tmp-");
    prefix
}

/// Removes what killed starters left. Called with `path` open and locked, so whoever is still creating it can only lose the race.
fn remove_stale_temporaries(path: &Path, opened: (u64, u64)) {
    let prefix = temporary_prefix(path);
    let Ok(entries) = fs::read_dir(directory_of(path)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(suffix) = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes()) else { continue };
        if is_temporary_suffix(suffix) {
            let removed = remove_if_stale(&entry.path(), opened);
            tracing::debug!(path = %entry.path().display(), ?removed, "temporary file of another start");
        }
    }
}

/// `<pid>-<16 hex digits>`, so that no file a user put beside the database is mistaken for ours.
fn is_temporary_suffix(suffix: &[u8]) -> bool {
    let mut parts = suffix.splitn(2, |byte| *byte == b'-');
    let (pid, random) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    !pid.is_empty()
        && pid.iter().all(u8::is_ascii_digit)
        && random.len() == 16
        && random.iter().all(u8::is_ascii_hexdigit)
}

fn remove_if_stale(temporary: &Path, opened: (u64, u64)) -> io::Result<bool> {
    let file = File::options().read(true).write(true).custom_flags(nofollow()).open(temporary)?;
    let metadata = file.metadata()?;
    // A starter was killed between linking the database and removing this name of it; the lock on it is ours.
    let is_opened = (metadata.dev(), metadata.ino()) == opened;
    let backend = FileBackend::new(file).map_err(io::Error::other)?;
    let stale = is_opened || lock_whole(&backend)?;
    if stale {
        fs::remove_file(temporary)?;
    }
    Ok(stale)
}

/// What a storage is, found out under its lock.
#[derive(Debug, Clone, Copy)]
struct Found {
    bytes: u64,
    unclean: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Absent {
    IsAnError,
    IsNew,
}

/// Locks the storage and looks at its header; on an error the storage is closed, and nothing was written to it.
fn lock_and_inspect(backend: &dyn StorageBackend, path: &Path, absent: Absent) -> Result<Found, OpenError> {
    let locked = match lock_whole(backend) {
        Ok(true) => Ok(()),
        Ok(false) => Err(OpenError::AlreadyOpen { path: path.to_path_buf() }),
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
        Err(error) => Err(OpenError::io(path, "lock")(error)),
    };
    let found = locked.and_then(|()| inspect(backend, path, absent));
    if found.is_err() {
        let _ = backend.close();
    }
    found
}

/// redb takes its own locks, byte ranges and flock, inside this one: a file description never conflicts with itself.
fn lock_whole(backend: &dyn StorageBackend) -> io::Result<bool> {
    Ok(backend.try_lock_range(Bound::Unbounded, Bound::Unbounded)?)
}

fn inspect(backend: &dyn StorageBackend, path: &Path, absent: Absent) -> Result<Found, OpenError> {
    let not_a_database = |reason| Err(OpenError::NotADatabase { path: path.to_path_buf(), reason });
    let bytes = backend.len().map_err(OpenError::io(path, "read"))?;
    if bytes == 0 && absent == Absent::IsNew {
        return Ok(Found { bytes, unclean: false });
    }
    if bytes == 0 {
        return not_a_database("empty file");
    }
    if bytes < HEADER_BYTES {
        return not_a_database("shorter than a database header");
    }
    let mut start = [0; MAGIC.len() + 1];
    backend.read(0, &mut start).map_err(OpenError::io(path, "read"))?;
    let Some(&[flags]) = start.strip_prefix(&MAGIC) else { return not_a_database("no redb signature") };
    Ok(Found { bytes, unclean: flags & UNCLEAN_FLAGS != 0 })
}

fn start(backend: Counting, path: &Path, options: &OpenOptions, found: Found) -> Result<Opened, OpenError> {
    let integrity_checked = match options.check_integrity {
        IntegrityCheck::Always => true,
        IntegrityCheck::AfterUncleanStop { always_bytes_max } => found.unclean || found.bytes <= always_bytes_max,
    };
    let io = backend.io.clone();
    let mut builder = Database::builder();
    builder.set_cache_size(options.cache_bytes).set_check_integrity_on_open(integrity_checked);
    // Damage that redb does not expect makes it panic, more so where the integrity check is off.
    let db = catch_unwind(AssertUnwindSafe(|| builder.create_with_backend(backend)))
        .map_err(|panic| OpenError::Damaged { path: path.to_path_buf(), message: panic_message(&*panic) })?
        .map_err(|error| OpenError::redb(path, error))?;
    Ok(Opened { db, created: false, integrity_checked, io })
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("redb panicked").to_owned()
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the name durable: of the file itself, where `path` is a symbolic link.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    match File::open(directory_of(&path))?.sync_all() {
        // File systems whose directories cannot be synced.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        synced => synced,
    }
}

pub(super) fn gone_is_ok(error: io::Error) -> io::Result<()> {
    if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

pub(super) fn nofollow() -> i32 {
    OFlags::NOFOLLOW.bits().cast_signed()
}

#[cfg(target_os = "linux")]
fn is_on_nfs(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type == rustix::fs::NFS_SUPER_MAGIC)
}

#[cfg(not(target_os = "linux"))]
fn is_on_nfs(_: &File) -> bool {
    false
}

#[cfg(test)]
mod tests {
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
        opened.db.close().unwrap();
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
        opened.db.close().unwrap();
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
        opened.db.close().unwrap();
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
        use rustix::io::{Errno, ReadWriteFlags, preadv2};
        let (_dir, path) = directory();
        let content = vec![7; 1 << 20];
        fs::write(&path, &content).unwrap();
        // A read that must not wait for the disk says whether the page is cached.
        let cached = || {
            let mut page = [0; 4096];
            let file = File::open(&path).unwrap();
            preadv2(&file, &mut [io::IoSliceMut::new(&mut page)], 512 << 10, ReadWriteFlags::NOWAIT)
        };
        assert!(matches!(cached(), Ok(4096) | Err(Errno::OPNOTSUPP)));
        Medium::File(path.clone()).drop_page_cache().unwrap();
        match cached() {
            Err(Errno::AGAIN) => {}
            Err(Errno::OPNOTSUPP) => eprintln!("skipped: this file system cannot say what is cached"),
            other => assert!(is_tmpfs(&path), "{other:?}"),
        }
        assert_eq!(fs::read(&path).unwrap(), content);
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
}
