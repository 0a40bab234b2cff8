//! The storage under redb: what a simulation brings, what memory keeps, and the counting layer over any of them.

use std::fmt::{self, Debug};
use std::io::{self, ErrorKind};
use std::ops::{Bound, Range};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{BackendError, StorageBackend};

/// A simulation's own storage, reopened by asking for another backend over the same bytes.
///
/// Where the backend has locks, the whole storage is locked first and redb's ranges within it. Empty storage is initialised in
/// place: a simulated crash during that is not covered by the promise that files have.
pub(crate) trait BackendFactory: Send + Sync + Debug {
    fn backend(&self) -> io::Result<Box<dyn StorageBackend>>;

    /// What the next backend reads is what the storage has, not what a cache above it still shows.
    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What redb asked of the storage since it was opened.
#[derive(Debug, Default)]
pub(crate) struct IoCounters {
    pub(crate) flushes: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) reads: AtomicU64,
    /// The storage's length as redb last saw or set it.
    pub(crate) length: AtomicU64,
}

/// redb's locks, taken on the storage beneath a layer.
macro_rules! lock_inner {
    () => {
        fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
            self.inner.try_lock_range(start, end)
        }

        fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
            self.inner.try_lock_shared_range(start, end)
        }

        fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
            self.inner.lock_range(start, end)
        }

        fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
            self.inner.lock_shared_range(start, end)
        }

        fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
            self.inner.unlock_range(start, end)
        }

        fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
            self.inner.query_lock_range(start, end)
        }
    };
}
pub(super) use lock_inner;

/// Counts what passes and forwards everything, redb's locking included.
#[derive(Debug)]
pub(super) struct Counting {
    pub(super) inner: Arc<dyn StorageBackend>,
    pub(super) io: Arc<IoCounters>,
    /// False where the locks have to outlive redb's close.
    pub(super) closes: bool,
}

impl Counting {
    pub(super) fn new(inner: Arc<dyn StorageBackend>) -> Self {
        Self { inner, io: Arc::default(), closes: true }
    }
}

impl StorageBackend for Counting {
    fn len(&self) -> io::Result<u64> {
        self.inner.len().inspect(|len| self.io.length.store(*len, Ordering::Relaxed))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.io.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)?;
        self.io.length.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.io.flushes.fetch_add(1, Ordering::Relaxed);
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.io.writes.fetch_add(1, Ordering::Relaxed);
        self.io.bytes_written.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        if self.closes { self.inner.close() } else { Ok(()) }
    }

    lock_inner!();
}

/// Storage in memory that outlives the database over it, so that reopening after a failed commit finds the same bytes.
#[derive(Clone, Default)]
pub(crate) struct SharedMemory(Arc<MemoryState>);

#[derive(Default)]
struct MemoryState {
    bytes: RwLock<Vec<u8>>,
    held: AtomicBool,
}

impl SharedMemory {
    pub(super) fn backend(&self) -> MemoryBackend {
        MemoryBackend { shared: self.clone(), holds: AtomicBool::new(false) }
    }
}

impl Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory").finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(super) struct MemoryBackend {
    shared: SharedMemory,
    holds: AtomicBool,
}

impl MemoryBackend {
    /// The part of the bytes that `range` names. Poison is ignored: a panic while copying leaves what a torn write would.
    fn span(len: usize, offset: u64, wanted: usize) -> io::Result<Range<usize>> {
        let start = usize::try_from(offset).ok();
        let span = start.and_then(|start| Some(start..start.checked_add(wanted)?)).filter(|span| span.end <= len);
        span.ok_or_else(|| io::Error::from(ErrorKind::UnexpectedEof))
    }
}

impl StorageBackend for MemoryBackend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.shared.0.bytes.read().unwrap_or_else(PoisonError::into_inner).len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.shared.0.bytes.read().unwrap_or_else(PoisonError::into_inner);
        let span = Self::span(bytes.len(), offset, out.len())?;
        out.copy_from_slice(&bytes[span]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(ErrorKind::OutOfMemory))?;
        self.shared.0.bytes.write().unwrap_or_else(PoisonError::into_inner).resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.shared.0.bytes.write().unwrap_or_else(PoisonError::into_inner);
        let span = Self::span(bytes.len(), offset, data.len())?;
        bytes[span].copy_from_slice(data);
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        if self.holds.swap(false, Ordering::AcqRel) {
            self.shared.0.held.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// The whole storage is the one range that can be locked, which redb falls back to.
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        if (start, end) != (Bound::Unbounded, Bound::Unbounded) {
            return Err(BackendError::Unsupported);
        }
        if !self.holds.load(Ordering::Acquire) && !self.shared.0.held.swap(true, Ordering::AcqRel) {
            self.holds.store(true, Ordering::Release);
        }
        Ok(self.holds.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_refuses_what_is_out_of_range() {
        let backend = SharedMemory::default().backend();
        backend.set_len(10).unwrap();
        assert!(backend.write(8, b"abc").is_err());
        assert!(backend.read(u64::MAX, &mut [0; 2]).is_err());
        backend.write(8, b"ab").unwrap();
        let mut out = [0; 2];
        backend.read(8, &mut out).unwrap();
        assert_eq!(&out, b"ab");
    }
}
