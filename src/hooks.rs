//! Where a test takes hold of the runtime: crash points that are passed, and defects planted on purpose.
//!
//! Without the feature `testing` a [`Hooks`] is empty, and asking it costs nothing.

#[cfg(feature = "testing")]
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "testing")]
use crate::testing::Rig;

/// Declares an enum of plain names together with the list of all of them, so that a harness can't pass over one.
macro_rules! listed {
    ($(#[$attribute:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident,)+ }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(not(feature = "testing"), expect(unreachable_pub, reason = "public with the feature `testing`"))]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        #[cfg(feature = "testing")]
        impl $name {
            /// All there are.
            pub const ALL: &[$name] = &[$($name::$variant),+];
        }
    };
}

listed! {
    /// A named point at which a harness may end the process, or a simulation the world.
    Failpoint {
        /// A new file has its temporary name, is locked, and is empty.
        TemporaryMade,
        /// A new file is whole and on disk, under its temporary name.
        TemporaryFilled,
        /// A new file has its final name; the temporary one is still there.
        Linked,
        /// The file is open and checked; nothing of it has been read.
        Opened,
        /// The directory of the opened file is on disk.
        DirectorySynced,
        /// Engine and bodies are rebuilt from the file; what that changed is not committed.
        Rebuilt,
        /// What crashed with the last process is pending again, on disk; the journal is not folded.
        Recovered,
        /// A group is applied to the engine; its commit has not begun.
        BeforeCommit,
        /// A slice of the journal is in its tables, by a transaction that is not committed.
        SliceFolded,
        /// A slice of the journal is in its tables, on disk.
        SliceCommitted,
        /// Rows of the journal whose records are in their tables are removed, on disk.
        JournalRemoved,
        /// A group is on disk; nobody has been told.
        AfterCommit,
        /// The events of a group are told; its leases have not begun, and nobody has been answered.
        PublishedHalf,
        /// A group is told and its leases have begun; its callers have not been answered.
        Published,
        /// A commit has failed, and the file is let go of.
        Released,
        /// After a commit that failed, the file is open again; the engine is not rebuilt.
        Reopened,
        /// A body is about to begin; its lease is on disk.
        BodyBegins,
        /// A step's outcome is handed to the writer.
        CheckpointHandedOver,
        /// A step's outcome is on disk; the body has not seen it.
        CheckpointRecorded,
        /// A body has ended; its outcome has not been handed to the writer.
        BodyEnded,
        /// A shutdown has told the bodies to drain.
        Draining,
        /// A shutdown has waited for the bodies; what still has a lease is not handed back.
        Drained,
        /// A shutdown has handed back what still had a lease.
        HandedBack,
        /// A shutdown has folded the journal; the file is still open.
        FoldedAtClose,
        /// A shutdown has closed the file; whoever asked for it has not been told.
        Closed,
    }
}

listed! {
    /// A defect planted on purpose: a harness that does not find it proves nothing.
    Bug {
        /// Callers are answered before the commit that carries what they asked for.
        AckBeforeCommit,
        /// A step's value is given to the body before the commit that carries its checkpoint.
        CheckpointBeforeCommit,
        /// A cancelled run lets go of its key and its slot while its body is still alive.
        KeyFreeBeforeStop,
        /// Whether an idempotency key is taken is read from what was committed before the group.
        IdempotencyFromStaleRead,
        /// Some runs that are triggered go before those that wait.
        OrderLost,
        /// A run that is taken up again gets two bodies.
        RecoveredTwice,
        /// A start is not counted as the crash that it may become.
        CrashUncounted,
        /// A checkpoint does not set the count of crashes to zero.
        CrashesNeverForgotten,
        /// A new file is made under its final name.
        CreatedInPlace,
        /// A run that is handed back keeps the crash that its lease counted in advance.
        HandBackCountsCrash,
        /// The cancel of an executing run is told and not written.
        CancelInMemory,
        /// A body that fails because it was told to stop has failed.
        DrainedFails,
        /// A shutdown waits for bodies without end.
        ShutdownWaits,
        /// A shutdown closes the file before what is waiting for the disk is on it.
        ClosedBeforeFlush,
        /// Calls are let in whatever is waiting.
        AdmissionUnbounded,
        /// Recovered runs wait behind those that never started.
        RecoveredGoLast,
        /// A resumed run goes to the front of its line.
        ResumedGoFirst,
        /// After a restart, a key takes one run more than its limit.
        LimitGrowsOnRestart,
        /// After a restart, the newest pending run is in no line: nothing ever starts it.
        WakeUpLostOnRestart,
        /// A replaced run is not ended: it and its successor both stand in line.
        ReplacedStaysInLine,
        /// A skipped trigger is answered with a run that executes already.
        SkipGivesStarted,
        /// A failed run's idempotency key is free.
        KeyFreedAtFailure,
        /// A purge does not wait for the time of an idempotency key.
        PurgeIgnoresTtl,
        /// Of a filter's labels only the first counts.
        OneLabelOfMany,
        /// A step whose failure is stored runs again on replay.
        FailedStepRunsAgain,
        /// On replay, steps are matched in the order of their calls.
        ReplayByPosition,
        /// A new execution numbers its steps from zero again.
        StepIndexReused,
        /// The events of a commit take no sequence numbers.
        SequenceGivenTwice,
        /// A body may wait for what can never come.
        DeadlocksAllowed,
        /// Fields of a log line are stored though they are nested too deep to be read back.
        DeepFieldsStored,
        /// Every fiftieth commit is not flushed.
        CommitNotFlushed,
        /// A commit that failed is taken for not done, and done again.
        CommitErrorIsNo,
        /// After a failed flush the cached pages are believed.
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
        /// A signal that a step has taken is there for the next.
        SignalKept,
        /// A run is suspended whatever has come for it meanwhile.
        NewsForgotten,
        /// A pause begins anew with every execution.
        PauseBegunAnew,
        /// A child is on disk before the step that triggered it is.
        ChildUnrecorded,
        /// The end of a run is not recorded in the steps that wait for it.
        EndUntold,
        /// A new execution counts the tries of a step from one again.
        TriesForgotten,
        /// A new execution of a map knows of no item that is done.
        ItemsForgotten,
    }
}

/// What a harness wants of a runtime.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    #[cfg(feature = "testing")]
    at_failpoint: Option<Arc<dyn Fn(Failpoint) + Send + Sync>>,
    #[cfg(feature = "testing")]
    bug: Option<Bug>,
    #[cfg(feature = "testing")]
    sleep: Option<Arc<dyn Fn(Duration) + Send + Sync>>,
    #[cfg(feature = "testing")]
    fold: Option<(usize, usize)>,
    #[cfg(feature = "testing")]
    rig: Option<Arc<Rig>>,
}

impl Hooks {
    /// A crash point is passed.
    #[inline]
    pub(crate) fn pass(&self, point: Failpoint) {
        #[cfg(feature = "testing")]
        {
            self.at_failpoint.iter().for_each(|at| at(point));
            self.rig.iter().for_each(|rig| rig.pass(point));
        }
        #[cfg(not(feature = "testing"))]
        let _ = point;
    }

    /// The writer has nothing to do but wait: in a simulation that moves its clock and takes no time.
    pub(crate) fn sleep(&self, pause: Duration) {
        #[cfg(feature = "testing")]
        if let Some(sleep) = &self.sleep {
            return sleep(pause);
        }
        std::thread::sleep(pause);
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

    /// Whether the world has ended, and nothing that happens counts any more.
    #[inline]
    pub(crate) fn is_dead(&self) -> bool {
        #[cfg(feature = "testing")]
        return self.rig.as_ref().is_some_and(|rig| rig.is_dead());
        #[cfg(not(feature = "testing"))]
        false
    }

    /// Whether a test brings about what is due.
    #[inline]
    pub(crate) fn drives_time(&self) -> bool {
        #[cfg(feature = "testing")]
        return self.rig.is_some();
        #[cfg(not(feature = "testing"))]
        false
    }

    /// How soon what a body waits for must be due for it to stay in memory: never, where a test moves time.
    #[inline]
    pub(crate) fn suspend_after(&self, otherwise: Duration) -> Duration {
        if self.drives_time() { Duration::ZERO } else { otherwise }
    }

    /// A step is called that has not been replayed.
    #[inline]
    pub(crate) fn step_begins(&self, job: &str, step: &str) {
        #[cfg(feature = "testing")]
        self.rig.iter().for_each(|rig| rig.step_begins(job, step));
        #[cfg(not(feature = "testing"))]
        let _ = (job, step);
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
    pub(crate) fn set_rig(&mut self, rig: Arc<Rig>) {
        self.rig = Some(rig);
    }

    pub(crate) fn rig(&self) -> Option<&Arc<Rig>> {
        self.rig.as_ref()
    }

    pub(crate) fn set_bug(&mut self, bug: Bug) {
        self.bug = Some(bug);
    }

    pub(crate) fn set_fold(&mut self, bytes: usize, rows: usize) {
        self.fold = Some((bytes, rows));
    }

    pub(crate) fn set_sleep(&mut self, sleep: Arc<dyn Fn(Duration) + Send + Sync>) {
        self.sleep = Some(sleep);
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
