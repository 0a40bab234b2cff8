//! Asking for runs: options, the builders that are awaited, batches, and waiting for the end.

pub(crate) mod batch;
mod call;
mod child;
pub(crate) mod labels;
mod options;
mod wait;

use serde::{Deserialize, Serialize};

pub(crate) use call::send;
pub use call::{JsonTrigger, TriggerAndWait, TriggerCall};
pub use child::StepCall;
pub use options::Trigger;
pub(crate) use options::{Options, trigger_options};
pub use wait::{Finished, WaitForRun};

/// What became of a trigger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Disposition {
    /// A run was created.
    Created,
    /// The idempotency key has a run: that one.
    Idempotent,
    /// A run of the same job waits for the same concurrency key: that one.
    Coalesced,
}

/// What a trigger does when a run of the same job and concurrency key waits that has never started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OnConflict {
    /// It goes in line behind.
    #[default]
    Queue,
    /// It is refused with [`Error::KeyConflict`](crate::Error::KeyConflict).
    Reject,
    /// It is answered with the waiting run; its input is not used.
    Skip,
    /// It takes the waiting run's place in line; that one ends as cancelled.
    Replace,
}
