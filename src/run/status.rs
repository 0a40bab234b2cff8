//! The states of a run.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a run stands. The last three are *terminal*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RunStatus {
    /// Waits in line: triggered, recovered after a crash, woken, resumed, or handed back by a shutdown. The writer moves it to
    /// `Leased` when there is room; a cancel, or a trigger that replaces it, to `Cancelled`; its deadline to `Failed`.
    Pending,
    /// Its lease is held by a run actor that executes, or is about to execute, its body. The end of the body moves it to
    /// `Completed` or `Failed`, its deadline to `Failed`, a cancel to `Cancelled`, steps that only wait to `Suspended`, a crash
    /// or a shutdown back to `Pending`.
    Leased,
    /// Waits for a timer, a signal or a child, and holds no memory worth naming. What it waits for moves it to `Pending`, a
    /// cancel to `Cancelled`, its deadline to `Failed`.
    Suspended,
    /// The body returned an output. Nobody moves it out; a purge or a delete removes it.
    Completed,
    /// The body returned an error, panicked, or was ended by the runtime. `resume` moves it to `Pending`.
    Failed,
    /// Cancelled, or replaced by a newer trigger. `resume` moves it to `Pending`.
    Cancelled,
}

impl RunStatus {
    /// Every status.
    pub const ALL: [RunStatus; 6] = [
        RunStatus::Pending,
        RunStatus::Leased,
        RunStatus::Suspended,
        RunStatus::Completed,
        RunStatus::Failed,
        RunStatus::Cancelled,
    ];

    /// Whether the run has ended.
    pub const fn is_terminal(self) -> bool {
        matches!(self, RunStatus::Completed | RunStatus::Failed | RunStatus::Cancelled)
    }

    /// The status as it is written everywhere: `pending`, `leased`, …
    pub const fn as_str(self) -> &'static str {
        match self {
            RunStatus::Pending => "pending",
            RunStatus::Leased => "leased",
            RunStatus::Suspended => "suspended",
            RunStatus::Completed => "completed",
            RunStatus::Failed => "failed",
            RunStatus::Cancelled => "cancelled",
        }
    }

    /// The number on disk, part of the file format.
    pub(crate) const fn to_byte(self) -> u8 {
        match self {
            RunStatus::Pending => 0,
            RunStatus::Leased => 1,
            RunStatus::Suspended => 2,
            RunStatus::Completed => 3,
            RunStatus::Failed => 4,
            RunStatus::Cancelled => 5,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<RunStatus> {
        RunStatus::ALL.into_iter().find(|status| status.to_byte() == byte)
    }
}

impl fmt::Display for RunStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that names no status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no such status: expected pending, leased, suspended, completed, failed or cancelled")]
pub struct ParseStatusError(());

impl FromStr for RunStatus {
    type Err = ParseStatusError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        RunStatus::ALL.into_iter().find(|status| status.as_str() == text).ok_or(ParseStatusError(()))
    }
}
