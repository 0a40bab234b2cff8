//! Giving space back: redb moves the pages at the end of the file to where there is room, and cuts the file.
//!
//! Done by the writer between two groups, so nobody writes meanwhile. Readers wait at the tail's lock; those that have a snapshot
//! already are waited for. A crash in the middle leaves the file as long as it was, or somewhat shorter, with everything in it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use redb::{CompactionError, Database};

use super::Fault;
use super::disk::Disk;

/// What a compaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compaction {
    /// The file's length before, bytes.
    pub bytes_before: u64,
    /// Its length now, bytes.
    pub bytes_after: u64,
}

/// How long reads that have begun are waited for, and how often they are looked at.
pub(crate) const READS_WAIT: Duration = Duration::from_secs(1);
const READS_PAUSE: Duration = Duration::from_millis(5);

impl Disk {
    /// Folds the journal and compacts the file. `Ok(None)`: a long read, such as a backup, is under way. After an error nothing may
    /// be written before [`Disk::reopen`].
    pub(crate) fn compact(&mut self) -> Result<Option<Compaction>, Fault> {
        // Folding may make it longer, which is a part of what the compaction does.
        let length = self.io.length.load(Ordering::Relaxed);
        self.fold_all()?;
        let mut waited = Duration::ZERO;
        loop {
            match self.shared().clone().alone(Database::compact)? {
                Some(Ok(_)) => break,
                Some(Err(CompactionError::Storage(error))) => return Err(error.into()),
                // A reader has the database or a snapshot of it.
                None | Some(Err(_)) if waited >= READS_WAIT => return Ok(None),
                None | Some(Err(_)) => {
                    self.sleep(READS_PAUSE);
                    waited += READS_PAUSE;
                }
            }
        }
        Ok(Some(Compaction { bytes_before: length, bytes_after: self.io.length.load(Ordering::Relaxed) }))
    }
}
