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

/// What a trigger does when a run of the same job and concurrency key waits that has never started, in line or for the moment
/// that it was [delayed](crate::TriggerCall::delay) to.
///
/// With a delay, `Replace` makes one run of many triggers, once they have ceased:
///
/// ```
/// # use std::time::Duration;
/// # use durably::{JobHandle, OnConflict, Timestamp};
/// # async fn example(reindex: JobHandle<String, ()>) -> Result<(), durably::Error> {
/// for edit in ["a", "ab", "abc"] {
///     reindex
///         .trigger(edit.to_owned())
///         .delay(Duration::from_secs(5))
///         .concurrency_key("index")
///         .on_conflict(OnConflict::Replace)
///         .await?;
/// }
/// // One run is left, with "abc", due 5 s after its own trigger.
/// let midnight = Timestamp::from_millis(1_798_761_600_000);
/// let run = reindex.trigger("all".to_owned()).at(midnight).await?;
/// assert_eq!(run.get().await?.not_before, Some(midnight));
/// # Ok(())
/// # }
/// ```
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
    /// It takes the waiting run's place in line; that one ends as cancelled. The moment of a delayed run does not pass on: the
    /// new one starts at its own.
    Replace,
}

impl OnConflict {
    /// The number on disk, part of the file format.
    pub(crate) const fn to_byte(self) -> u8 {
        match self {
            OnConflict::Queue => 0,
            OnConflict::Reject => 1,
            OnConflict::Skip => 2,
            OnConflict::Replace => 3,
        }
    }

    pub(crate) const fn from_byte(byte: u8) -> OnConflict {
        match byte {
            1 => OnConflict::Reject,
            2 => OnConflict::Skip,
            3 => OnConflict::Replace,
            _ => OnConflict::Queue,
        }
    }
}
