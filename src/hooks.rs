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
}

/// What a harness wants of a runtime.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    #[cfg(feature = "testing")]
    at_failpoint: Option<Arc<dyn Fn(Failpoint) + Send + Sync>>,
    #[cfg(feature = "testing")]
    bug: Option<Bug>,
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

    pub(crate) fn set_at_failpoint(&mut self, at: Arc<dyn Fn(Failpoint) + Send + Sync>) {
        self.at_failpoint = Some(at);
    }
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks").finish_non_exhaustive()
    }
}
