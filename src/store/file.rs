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
use redb::{BackendError, Database, DatabaseError, StorageBackend, StorageError};
use rustix::fs::OFlags;

use super::Fault;
use super::backend::{BackendFactory, Counting, IoCounters, SharedMemory, lock_inner};
use super::held::Held;
use crate::hooks::{Bug, Failpoint, Hooks};

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
    /// Only looked at: nothing is created and no byte is changed, whatever is done to the database.
    pub(crate) read_only: bool,
    /// The file as it was opened before, still locked: it is opened again, and not what has its name by now.
    pub(crate) again: Option<Arc<LockedFile>>,
    /// What is not there is not created.
    pub(crate) must_exist: bool,
    pub(crate) hooks: Hooks,
}

/// A file that stays locked for as long as anything refers to it: a database over it, or who will open it again.
#[derive(Debug)]
pub(crate) struct LockedFile {
    inner: FileBackend,
    /// The same, for what redb does not ask of it.
    file: File,
    /// Its device and inode.
    id: (u64, u64),
}

impl LockedFile {
    /// Unlocks it: for whoever has closed the database over it. Explicitly, because a read that goes on, or a forked child, would
    /// keep the lock that closing the file merely drops.
    pub(super) fn unlock(&self) {
        let _ = self.inner.close();
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        self.unlock();
    }
}

impl StorageBackend for LockedFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        Ok(())
    }

    lock_inner!();
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            check_integrity: IntegrityCheck::default(),
            lock_wait: Duration::from_secs(1),
            read_only: false,
            again: None,
            must_exist: false,
            hooks: Hooks::default(),
        }
    }
}

/// Makes the tables of a new database.
pub(crate) type Init<'a> = &'a dyn Fn(&Database) -> Result<(), redb::Error>;
/// Looks at a database before anything is written to it; the error is why it is refused.
pub(crate) type Accept<'a> = &'a dyn Fn(&Database, &Path) -> Result<(), OpenError>;

#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) db: Database,
    /// Made by this call, `init` included. False also where another holder came and went before this call got the lock.
    #[cfg_attr(not(test), expect(dead_code, reason = "what the tests of this module look at"))]
    pub(crate) created: bool,
    #[cfg_attr(not(test), expect(dead_code, reason = "what the tests of this module look at"))]
    pub(crate) integrity_checked: bool,
    pub(crate) io: Arc<IoCounters>,
    /// To be opened again.
    pub(crate) file: Option<Arc<LockedFile>>,
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
    #[error("{} has format {found}, this version reads up to {supported}: open it with a newer version", path.display())]
    NewerFormat { path: PathBuf, found: u64, supported: u64 },
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

    pub(super) fn redb(path: &Path, error: DatabaseError) -> Self {
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
    #[cfg(test)]
    pub(crate) fn open(&self, options: &OpenOptions, init: Init<'_>) -> Result<Opened, OpenError> {
        self.open_if(options, init, &|_, _| Ok(()))
    }

    /// As `open`, if `accept` finds what is there to be ours. Until then not a byte is written.
    pub(crate) fn open_if(
        &self,
        options: &OpenOptions,
        init: Init<'_>,
        accept: Accept<'_>,
    ) -> Result<Opened, OpenError> {
        let mut left = options.lock_wait;
        let mut pause = LOCK_RETRY_MIN;
        loop {
            let attempt = match self {
                Self::File(path) => open_file(self, path, options, init, accept),
                Self::Memory(memory) => open_in_place(Box::new(memory.backend()), self, options, init, accept),
                Self::Custom(factory) => factory
                    .backend()
                    .map_err(OpenError::io(self.name(), "open"))
                    .and_then(|backend| open_in_place(backend, self, options, init, accept)),
            };
            match attempt {
                Err(OpenError::AlreadyOpen { .. }) if !left.is_zero() => {
                    pause = pause.min(left);
                    thread::sleep(pause);
                    left -= pause;
                    pause = (pause * 2).min(LOCK_RETRY_MAX);
                }
                // A flush of what opening it writes may be what failed.
                Err(error @ (OpenError::Io { .. } | OpenError::Init { .. })) if !options.read_only => {
                    self.distrust_cache(options);
                    return Err(error);
                }
                outcome => return outcome,
            }
        }
    }

    /// [`Medium::drop_page_cache`], where nothing more can be done if that fails.
    pub(super) fn distrust_cache(&self, options: &OpenOptions) {
        if options.hooks.plants(Bug::PagesKeptAfterFailedFlush) {
            return;
        }
        if let Err(error) = self.drop_page_cache(options.again.as_deref()) {
            tracing::warn!(%error, "cached pages of the file can't be dropped");
        }
    }

    /// Makes the next reads come from the disk: of the file that is to be opened again, else of what has its name. Call it after a failed fsync, between closing and opening again.
    ///
    /// Linux marks pages that it failed to write as clean, so the cache shows a commit that the disk does not have; building on it
    /// loses the whole file at the next power loss.
    pub(crate) fn drop_page_cache(&self, again: Option<&LockedFile>) -> io::Result<()> {
        let file = match (self, again) {
            (_, Some(again)) => again.file.try_clone()?,
            (Self::File(path), None) => File::open(path)?,
            (Self::Memory(_), None) => return Ok(()),
            (Self::Custom(factory), None) => return factory.drop_cache(),
        };
        // Only pages that are clean and not being written can be dropped. That this may fail again changes nothing.
        let _ = file.sync_data();
        #[cfg(target_os = "linux")]
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        Ok(())
    }

    /// Whether there is a file of this name, and not this one.
    pub(super) fn names_another(&self, file: &LockedFile) -> bool {
        fs::metadata(self.name()).is_ok_and(|found| (found.dev(), found.ino()) != file.id)
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
    medium: &Medium,
    path: &Path,
    options: &OpenOptions,
    init: Init<'_>,
    accept: Accept<'_>,
) -> Result<Opened, OpenError> {
    let mut created = false;
    for _ in 0..CREATE_ROUNDS_MAX {
        if let Some(opened) = open_existing(medium, path, options, accept)? {
            return Ok(Opened { created, ..opened });
        }
        if options.read_only || options.must_exist {
            return Err(OpenError::io(path, "open")(ErrorKind::NotFound.into()));
        }
        created = create(path, options, init)?;
    }
    let source = io::Error::new(ErrorKind::NotFound, "it was removed again and again while being created");
    Err(OpenError::Io { path: path.to_path_buf(), action: "create", source })
}

fn open_existing(
    medium: &Medium,
    path: &Path,
    options: &OpenOptions,
    accept: Accept<'_>,
) -> Result<Option<Opened>, OpenError> {
    if let Some(file) = &options.again {
        let found = lock_and_inspect(&**file, medium, options, Absent::IsAnError)?;
        let opened = start(file.clone(), path, options, found, accept)?;
        options.hooks.pass(Failpoint::Opened);
        return Ok(Some(Opened { file: Some(file.clone()), ..opened }));
    }
    let file = match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(OpenError::io(path, "open"))?,
    };
    let metadata = file.metadata().map_err(OpenError::io(path, "open"))?;
    if !metadata.is_file() {
        return Err(OpenError::NotADatabase { path: path.to_path_buf(), reason: "not a regular file" });
    }
    let on_nfs = is_on_nfs(&file);
    let twin = file.try_clone().map_err(OpenError::io(path, "open"))?;
    let inner = FileBackend::new(file).map_err(|error| OpenError::redb(path, error))?;
    let file = Arc::new(LockedFile { inner, file: twin, id: (metadata.dev(), metadata.ino()) });
    let found = lock_and_inspect(&*file, medium, options, Absent::IsAnError)?;
    let opened = Opened { file: Some(file.clone()), ..start(file, path, options, found, accept)? };
    options.hooks.pass(Failpoint::Opened);
    if options.read_only {
        return Ok(Some(opened));
    }

    // By every opener, not only the creator: that one may have been killed between linking the name and getting here, and then
    // commits would be acknowledged into a file whose name a power loss takes away.
    sync_directory_of(path).map_err(OpenError::io(path, "sync the directory of"))?;
    options.hooks.pass(Failpoint::DirectorySynced);
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
    medium: &Medium,
    options: &OpenOptions,
    init: Init<'_>,
    accept: Accept<'_>,
) -> Result<Opened, OpenError> {
    let (backend, name): (Arc<dyn StorageBackend>, _) = (Arc::from(backend), medium.name());
    let absent = if options.read_only || options.must_exist { Absent::IsAnError } else { Absent::IsNew };
    let found = lock_and_inspect(&*backend, medium, options, absent)?;
    let created = found.bytes == 0;
    let opened = start(backend, name, options, found, if created { &|_, _| Ok(()) } else { accept })?;
    if created {
        init(&opened.db).map_err(|source| OpenError::Init { path: name.to_path_buf(), source })?;
    }
    Ok(Opened { created, ..opened })
}

/// Builds a database under a temporary name and links it to `path`. False where another starter was first, or took ours away.
fn create(path: &Path, options: &OpenOptions, init: Init<'_>) -> Result<bool, OpenError> {
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

    if options.hooks.plants(Bug::CreatedInPlace) {
        return create_in_place(path, options, init);
    }

    let Some(temporary) = Temporary::create(path).map_err(io)? else { return Ok(false) };
    options.hooks.pass(Failpoint::TemporaryMade);
    temporary.fill(path, options, init)?;
    options.hooks.pass(Failpoint::TemporaryFilled);
    match publish(&temporary.path, path) {
        Ok(()) => {
            options.hooks.pass(Failpoint::Linked);
            Ok(true)
        }
        Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => Ok(false),
        Err(error) => Err(io(error)),
    }
}

/// What [`Bug::CreatedInPlace`] does instead.
fn create_in_place(
    path: &Path,
    options: &OpenOptions,
    init: &dyn Fn(&Database) -> Result<(), redb::Error>,
) -> Result<bool, OpenError> {
    let db = Database::builder().create(path).map_err(|error| OpenError::redb(path, error))?;
    options.hooks.pass(Failpoint::TemporaryMade);
    init(&db).map_err(|source| OpenError::Init { path: path.to_path_buf(), source })?;
    Ok(true)
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

/// Builds a new database under a temporary name, lets `check` look at it, and names it `path`, replacing nothing.
pub(super) fn create_checked(
    path: &Path,
    options: &OpenOptions,
    init: Init<'_>,
    check: &dyn Fn(&Medium) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let io = |source| OpenError::Io { path: path.to_path_buf(), action: "create", source };
    let taken = || io(ErrorKind::AlreadyExists.into());
    if path.symlink_metadata().is_ok() {
        return Err(taken().into());
    }
    let temporary = Temporary::create(path).map_err(io)?.ok_or_else(taken)?;
    temporary.fill(path, options, init)?;
    check(&Medium::Custom(Arc::new(Unpublished(temporary.backend.clone()))))?;
    publish(&temporary.path, path).map_err(io)?;
    Ok(sync_directory_of(path).map_err(OpenError::io(path, "sync the directory of"))?)
}

/// A temporary file whose lock outlives those who look at it.
#[derive(Debug)]
struct Unpublished(Arc<FileBackend>);

impl BackendFactory for Unpublished {
    fn backend(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(Counting { closes: false, ..Counting::new(self.0.clone()) }))
    }
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
    fn fill(&self, path: &Path, options: &OpenOptions, init: Init<'_>) -> Result<(), OpenError> {
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
fn lock_and_inspect(
    backend: &dyn StorageBackend,
    medium: &Medium,
    options: &OpenOptions,
    absent: Absent,
) -> Result<Found, OpenError> {
    let path = medium.name();
    let locked = match lock_whole(backend) {
        Ok(true) => Ok(()),
        Ok(false) => Err(OpenError::AlreadyOpen { path: path.to_path_buf() }),
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
        Err(error) => Err(OpenError::io(path, "lock")(error)),
    };
    let mut found = locked.and_then(|()| inspect(backend, path, absent));
    // Whoever left it so may have ended because a flush failed: then the cache shows what the disk does not have.
    if found.as_ref().is_ok_and(|found| found.unclean) && !options.read_only {
        medium.distrust_cache(options);
        found = inspect(backend, path, absent);
    }
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

fn start(
    backend: Arc<dyn StorageBackend>,
    path: &Path,
    options: &OpenOptions,
    found: Found,
    accept: Accept<'_>,
) -> Result<Opened, OpenError> {
    let integrity_checked = match options.check_integrity {
        IntegrityCheck::Always => true,
        IntegrityCheck::AfterUncleanStop { always_bytes_max } => found.unclean || found.bytes <= always_bytes_max,
    };
    let held = match Held::over(backend.clone()) {
        Ok(held) => Arc::new(held),
        Err(error) => {
            let _ = backend.close();
            return Err(OpenError::io(path, "read")(error));
        }
    };
    let counting = Counting::new(held.clone());
    let io = counting.io.clone();
    let mut builder = Database::builder();
    builder.set_cache_size(options.cache_bytes).set_check_integrity_on_open(integrity_checked);
    // Damage that redb does not expect makes it panic, more so where the integrity check is off.
    let db = catch_unwind(AssertUnwindSafe(|| {
        let db = builder.create_with_backend(counting).map_err(|error| OpenError::redb(path, error))?;
        accept(&db, path)?;
        Ok(db)
    }))
    .map_err(|panic| OpenError::Damaged { path: path.to_path_buf(), message: panic_message(&*panic) })??;
    if !options.read_only {
        held.release().map_err(OpenError::io(path, "open"))?;
    }
    Ok(Opened { db, created: false, integrity_checked, io, file: None })
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
mod tests;
