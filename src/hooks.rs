//! Where a test takes hold of the runtime: crash points that are passed, and defects planted on purpose.
//!
//! Without the feature `testing` a [`Hooks`] is empty, and asking it costs nothing.

#[cfg(feature = "testing")]
use std::sync::Arc;

/// A named point at which a harness may end the process, or a simulation the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(not(feature = "testing"), expect(unreachable_pub, reason = "public with the feature `testing`"))]
#[non_exhaustive]
pub enum Failpoint {
    /// A group is applied to the engine; its commit has not begun.
    BeforeCommit,
    /// A group is on disk; nobody has been told.
    AfterCommit,
}

/// A defect planted on purpose: a harness that does not find it proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(not(feature = "testing"), expect(unreachable_pub, reason = "public with the feature `testing`"))]
#[non_exhaustive]
pub enum Bug {
    /// Callers are answered before the commit that carries what they asked for.
    AckBeforeCommit,
    /// Every fiftieth commit is not flushed.
    CommitNotFlushed,
    /// A commit that failed is taken for not done, and done again.
    CommitErrorIsNo,
    /// After a failed flush the cached pages are believed, and commits stay one-phase.
    PagesKeptAfterFailedFlush,
    /// The journal's rows go with the first slice of a fold, before the rest is in its tables.
    JournalBeforeRows,
    /// A fold does not take deleted rows out of their tables.
    TombstonesForgotten,
    /// Blobs that nothing refers to stay for ever.
    BlobsKept,
    /// A fold that is done again after a crash frees the blob that the row refers to.
    BlobFreedOnReplay,
    /// A file that is opened again gives out the numbers of blobs from 1.
    BlobNumberReused,
    /// A file that is opened again numbers events from 1 where its journal is empty.
    SequenceReset,
    /// The checksum of a journal row is not looked at.
    JournalUnchecked,
    /// A file of a newer format, or of another program, is opened like one of ours.
    FormatIgnored,
    /// A deleted run leaves its idempotency key behind.
    IdempotencyKept,
}

/// What a harness wants of a runtime.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    #[cfg(feature = "testing")]
    at_failpoint: Option<Arc<dyn Fn(Failpoint) + Send + Sync>>,
    #[cfg(feature = "testing")]
    bug: Option<Bug>,
    #[cfg(feature = "testing")]
    fold: Option<(usize, usize)>,
}

impl Hooks {
    /// A crash point is passed.
    #[inline]
    pub(crate) fn pass(&self, point: Failpoint) {
        #[cfg(feature = "testing")]
        if let Some(at) = &self.at_failpoint {
            at(point);
        }
        #[cfg(not(feature = "testing"))]
        let _ = point;
    }

    /// Folding begins at this many bytes of tail, where a test wants it to begin early.
    #[inline]
    pub(crate) fn fold_bytes(&self) -> Option<usize> {
        #[cfg(feature = "testing")]
        return self.fold.map(|(bytes, _)| bytes);
        #[cfg(not(feature = "testing"))]
        None
    }

    /// Rows in a slice of folding, where a test wants many slices.
    #[inline]
    pub(crate) fn fold_rows(&self) -> Option<usize> {
        #[cfg(feature = "testing")]
        return self.fold.map(|(_, rows)| rows);
        #[cfg(not(feature = "testing"))]
        None
    }

    /// Whether a defect is planted.
    #[inline]
    pub(crate) fn plants(&self, bug: Bug) -> bool {
        #[cfg(feature = "testing")]
        return self.bug == Some(bug);
        #[cfg(not(feature = "testing"))]
        {
            let _ = bug;
            false
        }
    }
}

#[cfg(feature = "testing")]
impl Hooks {
    pub(crate) fn set_bug(&mut self, bug: Bug) {
        self.bug = Some(bug);
    }

    pub(crate) fn set_fold(&mut self, bytes: usize, rows: usize) {
        self.fold = Some((bytes, rows));
    }

    pub(crate) fn set_at_failpoint(&mut self, at: Arc<dyn Fn(Failpoint) + Send + Sync>) {
        self.at_failpoint = Some(at);
    }
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks").finish_non_exhaustive()
    }
}
