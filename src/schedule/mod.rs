//! Schedules: runs that are triggered by the clock.
//!
//! A schedule is a row: an expression, a zone, a trigger. The writer creates its runs, each in the commit that moves the
//! schedule to its next due time. When that is, is said by [`timetable`]; which due times fire, by [`due`]. Neither reads a
//! clock.

mod call;
mod due;
mod timetable;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::call::{ScheduleBuilder, ScheduleCall};
pub(crate) use self::due::Standing;
pub(crate) use self::timetable::Timetable;
use crate::error::Error;
use crate::id::RunId;
use crate::limits::SCHEDULE_CATCH_UP_MAX;
use crate::time::Timestamp;

/// What a schedule does about due times that were missed, because no process was there, or since the clock jumped over them.
///
/// A due time is missed once it is over by more than a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Missed {
    /// They do not fire. Of several that are due at once and not missed, as after a commit that took long, the newest does, for all.
    Skip,
    /// The newest of those that are due at once fires, missed or not, for all of them.
    #[default]
    Once,
    /// The newest of those that are due at once fire, missed or not, up to so many, in order: 1 to 1,000.
    All(u32),
}

impl Missed {
    /// As numbers on disk.
    pub(crate) fn to_numbers(self) -> (u8, u32) {
        match self {
            Missed::Skip => (0, 0),
            Missed::Once => (1, 0),
            Missed::All(count) => (2, count),
        }
    }

    pub(crate) fn from_numbers((kind, count): (u8, u32)) -> Option<Missed> {
        match kind {
            0 => Some(Missed::Skip),
            1 => Some(Missed::Once),
            2 => Some(Missed::All(count.min(SCHEDULE_CATCH_UP_MAX))),
            _ => None,
        }
    }

    pub(crate) fn check(self) -> Result<(), Error> {
        match self {
            Missed::All(count) if count == 0 || count > SCHEDULE_CATCH_UP_MAX => {
                Err(Error::InvalidOption { option: "missed", value: count.to_string(), rule: "1 to 1,000 firings" })
            }
            _ => Ok(()),
        }
    }
}

/// What triggered a run: a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Scheduled {
    /// The schedule's name.
    pub name: String,
    /// The due time that it is for; `None` if it was [fired by hand](crate::Durably::fire_schedule).
    pub due: Option<Timestamp>,
}

/// A schedule as the file has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ScheduleInfo {
    /// Its name.
    pub name: String,
    /// When it is due.
    pub expression: String,
    /// The zone whose wall clock the expression is read on.
    pub time_zone: String,
    /// What it does about due times that were missed.
    pub missed: Missed,
    /// The job it triggers.
    pub job_name: String,
    /// The input of every firing.
    pub input: Value,
    /// The concurrency keys of every firing.
    pub concurrency_keys: Vec<String>,
    /// The priority of every firing.
    pub priority: i8,
    /// The labels of every firing.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Whether it fires nothing for now.
    pub paused: bool,
    /// When it is due next; `None` while it is paused.
    pub next_due: Option<Timestamp>,
    /// The last due time that fired.
    pub last_due: Option<Timestamp>,
    /// The run of that firing, or the one that it was answered with; `None` if it was refused.
    pub last_run: Option<RunId>,
    /// When it was registered first.
    pub created_at: Timestamp,
}

impl ScheduleInfo {
    /// The next due times from a moment on, that moment excluded, up to `count` of them and 1,000. Whether it is paused makes
    /// no difference.
    pub fn due_after(&self, after: Timestamp, count: usize) -> Vec<Timestamp> {
        let Ok(timetable) = Timetable::parse(&self.expression, &self.time_zone) else { return Vec::new() };
        let next = |at: &Timestamp| timetable.next_after(*at);
        let due = std::iter::successors(timetable.next_after(after), next);
        due.take(count.min(SCHEDULE_CATCH_UP_MAX as usize)).collect()
    }
}
