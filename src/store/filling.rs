//! A file that is written before it is used.
//!
//! Blocks that a file system has promised and not written cost a commit of its journal with the flush that first writes them, on
//! top of the data's own. So the first write to a piece of a file that has grown is preceded by zeros over the whole piece, and
//! the flushes of the many writes that follow in it carry data alone. What was never written reads as zeros before and after, so
//! no crash can tell.

use std::collections::BTreeSet;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{BackendError, StorageBackend};

/// Written ahead at a time, bytes. More would make the commit that does it wait longer than it saves.
const PIECE: u64 = 1 << 20;

/// The layer over a file.
#[derive(Debug)]
pub(super) struct Filling {
    inner: Arc<dyn StorageBackend>,
    /// Pieces, by number, that the file has grown by since it was opened and that nothing was written to.
    untouched: Mutex<BTreeSet<u64>>,
}

impl Filling {
    pub(super) fn new(inner: Arc<dyn StorageBackend>) -> Self {
        Filling { inner, untouched: Mutex::default() }
    }

    fn untouched(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.untouched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageBackend for Filling {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let before = self.inner.len()?;
        self.inner.set_len(len)?;
        // Whole pieces only: what lies beside others' data is left as it is.
        let mut untouched = self.untouched();
        untouched.extend(before.div_ceil(PIECE)..len / PIECE);
        untouched.retain(|piece| *piece < len / PIECE);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut untouched = self.untouched();
        if !untouched.is_empty() {
            for piece in offset / PIECE..(offset + data.len() as u64).div_ceil(PIECE) {
                if untouched.remove(&piece) {
                    // It is an offer: on a disk that is nearly full the write itself may still fit.
                    let _ = self.inner.write(piece * PIECE, &vec![0; PIECE as usize]);
                }
            }
        }
        drop(untouched);
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::backend::SharedMemory;

    #[test]
    fn only_what_was_never_written_is_filled_and_once() {
        let memory = SharedMemory::default();
        let inner: Arc<dyn StorageBackend> = Arc::new(memory.backend());
        inner.set_len(PIECE + 10).expect("grows");
        inner.write(0, &[1; 20]).expect("writes");
        let file = Filling::new(inner.clone());
        file.set_len(4 * PIECE).expect("grows");
        assert_eq!(*file.untouched(), BTreeSet::from([2, 3]), "piece 1 has others' data");
        // Something that went past this layer would be lost if a piece were filled twice.
        file.write(2 * PIECE + 5, &[7; 3]).expect("writes");
        inner.write(2 * PIECE + 100, &[8]).expect("writes");
        file.write(2 * PIECE + 50, &[9]).expect("writes");
        let mut out = [0; 101];
        file.read(2 * PIECE, &mut out).expect("reads");
        assert_eq!((out[5], out[50], out[100]), (7, 9, 8));
        file.set_len(2 * PIECE).expect("shrinks");
        assert!(file.untouched().is_empty());
        file.set_len(3 * PIECE).expect("grows");
        file.write(3 * PIECE - 1, &[1]).expect("writes");
        file.read(0, &mut out).expect("reads");
        assert_eq!(out[..20], [1; 20]);
    }
}
