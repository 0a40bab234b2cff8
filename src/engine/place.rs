//! Where a run stands in line.

use crate::id::RunId;

/// A place in line: recovered and woken runs first, then by priority, then by ticket, which is the run's own id unless it
/// took over another's place or went to the back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    behind: bool,
    /// The priority, turned round so that what is more urgent sorts first.
    urgency: u8,
    ticket: RunId,
}

impl Place {
    /// A place of priority 0.
    pub(crate) fn new(front: bool, ticket: RunId) -> Self {
        Place { behind: !front, urgency: 0, ticket }.with(0)
    }

    /// The same place at another priority.
    pub(crate) fn with(self, priority: i8) -> Self {
        Place { urgency: i8::MAX.abs_diff(priority), ..self }
    }

    /// The run whose place it is, or was.
    pub(crate) fn ticket(self) -> RunId {
        self.ticket
    }

    /// Whether it is a place behind the recovered and woken runs.
    pub(super) fn is_behind(self) -> bool {
        self.behind
    }

    /// What decides before turns do.
    pub(super) fn rank(self) -> (bool, u8) {
        (self.behind, self.urgency)
    }
}
