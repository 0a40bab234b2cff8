//! For this library's own suites: a disk of one's own, crash points, and defects planted on purpose.
//!
//! What is here may change with any version.

use std::fmt::Debug;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use redb::{BackendError, StorageBackend};

use crate::durably::{Builder, Durably};
use crate::error::Error;
pub use crate::hooks::{Bug, Failpoint};
use crate::store::Placement;
use crate::store::backend::BackendFactory;
use crate::store::file::Medium;
use crate::store::verify::Verification;

/// A disk in place of a file: every call to it is what a file would get. It outlives the runtimes that are opened over it, and
/// knows nothing of names.
pub trait Disk: Debug + Send + Sync + 'static {
    /// A runtime opens the disk; all calls up to the next one are that runtime's.
    fn open(&self) -> io::Result<()> {
        Ok(())
    }
    /// Bytes that it has.
    fn len(&self) -> io::Result<u64>;
    /// Whether it has none.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Fills `out` from `offset` on.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Cuts it, or lengthens it with zeros.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Everything written so far is to survive a loss of power.
    fn sync(&self) -> io::Result<()>;
    /// Writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// The next reads are of what the disk itself has, not of a cache that a failed sync has left behind. No runtime has it open.
    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }
}

pub mod fuzz;

#[derive(Debug)]
struct Factory(Arc<dyn Disk>);

impl BackendFactory for Factory {
    fn backend(&self) -> io::Result<Box<dyn StorageBackend>> {
        self.0.open()?;
        Ok(Box::new(Backend(self.0.clone())))
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.0.drop_cache()
    }
}

#[derive(Debug)]
struct Backend(Arc<dyn Disk>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Err(BackendError::Unsupported)
    }
}

impl Builder {
    /// Opens a runtime over a disk of one's own.
    ///
    /// # Errors
    /// Those of [`Builder::open`].
    pub async fn open_on(self, disk: Arc<dyn Disk>) -> Result<Durably, Error> {
        self.open_medium(Medium::Custom(Arc::new(Factory(disk))), Placement::Threads).await
    }

    /// Opens a runtime over a disk of one's own that has no thread but the caller's: on a current-thread tokio runtime with a
    /// paused clock, the same seed gives the same history.
    ///
    /// # Errors
    /// Those of [`Builder::open`].
    pub async fn open_simulated(self, disk: Arc<dyn Disk>) -> Result<Durably, Error> {
        self.open_medium(Medium::Custom(Arc::new(Factory(disk))), Placement::Inline).await
    }

    /// Folds the journal once it has so many bytes, in slices of so many rows: what takes minutes otherwise happens all the time.
    pub fn fold_at(mut self, bytes: usize, rows: usize) -> Self {
        self.config.hooks.set_fold(bytes, rows);
        self
    }

    /// Plants a defect.
    pub fn plant(mut self, bug: Bug) -> Self {
        self.config.hooks.set_bug(bug);
        self
    }

    /// Calls `sleep` instead of sleeping where the writer waits for the disk to come back.
    pub fn sleeping_by(mut self, sleep: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        self.config.hooks.set_sleep(Arc::new(sleep));
        self
    }

    /// Calls `at` whenever a crash point is passed, on whatever thread passes it.
    pub fn at_failpoint(mut self, at: impl Fn(Failpoint) + Send + Sync + 'static) -> Self {
        self.config.hooks.set_at_failpoint(Arc::new(at));
        self
    }
}

impl Durably {
    /// What [`verify`](crate::verify) finds, while the runtime goes on.
    ///
    /// # Errors
    /// As [`Durably::get_runs`].
    pub async fn audit(&self) -> Result<Verification, Error> {
        self.core().store.audit().await
    }
}

/// [`verify`](crate::verify) for a disk of one's own. Blocks.
///
/// # Errors
/// As [`verify`](crate::verify).
pub fn verify_on(disk: Arc<dyn Disk>) -> Result<Verification, Error> {
    crate::store::verify::medium(&Medium::Custom(Arc::new(Factory(disk))))
}
