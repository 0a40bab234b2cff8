//! What may be done to a run in which status, and what a crash makes of one.

use crate::run::RunStatus;

/// What someone wants to do to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Cancel,
    Retrigger,
    Resume,
    Delete,
}

/// Whether the status forbids the action.
pub(crate) fn refuse(action: Action, status: RunStatus) -> bool {
    use RunStatus::{Cancelled, Completed, Failed, Leased, Pending, Suspended};
    match (action, status) {
        (Action::Cancel, Pending | Leased | Suspended) => false,
        (Action::Cancel, Completed | Failed | Cancelled) => true,
        (Action::Retrigger | Action::Delete, Completed | Failed | Cancelled) => false,
        (Action::Retrigger | Action::Delete, Pending | Leased | Suspended) => true,
        (Action::Resume, Failed | Cancelled) => false,
        (Action::Resume, Pending | Leased | Suspended | Completed) => true,
    }
}

/// What becomes of a run that was executing when the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Recovered {
    /// It waits in line again, with this many consecutive crashes.
    Pending { crashes: u32 },
    /// It ends as poisoned: it took the process with it too often.
    Poisoned { crashes: u32 },
}

/// Judges a crash. `crashes` counts the one that has just been found; a checkpoint recorded by the crashed execution makes
/// it innocent.
pub(crate) fn recover(crashes: u32, checkpointed: bool, max_recoveries: u32) -> Recovered {
    if checkpointed {
        Recovered::Pending { crashes: 0 }
    } else if crashes > max_recoveries {
        Recovered::Poisoned { crashes }
    } else {
        Recovered::Pending { crashes }
    }
}
