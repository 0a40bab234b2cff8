//! Where a test takes hold of the runtime: crash points that are passed, and defects planted on purpose.
//!
//! Without the feature `testing` a [`Hooks`] is empty, and asking it costs nothing.

#[cfg(feature = "testing")]
use std::sync::Arc;
use std::time::Duration;

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
    /// A cancel is told to the body and not to the file.
    CancelOnlyTold,
    /// A cancelled run's key and slot are free before its body has stopped.
    KeyFreedAtCancel,
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
    /// A handed back run counts as crashed.
    HandBackCounts,
    /// Fields of a log line are stored though they are nested too deep to be read back.
    DeepFieldsStored,
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
    folding: Option<(usize, usize)>,
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

    /// The writer has nothing to do but wait: in a simulation that moves its clock and takes no time.
    pub(crate) fn sleep(&self, pause: Duration) {
        #[cfg(feature = "testing")]
        if let Some(sleep) = &self.sleep {
            return sleep(pause);
        }
        std::thread::sleep(pause);
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

    pub(crate) fn set_folding(&mut self, from_bytes: usize, rows: usize) {
        self.folding = Some((from_bytes, rows));
    }

    pub(crate) fn folding(&self) -> Option<(usize, usize)> {
        self.folding
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
