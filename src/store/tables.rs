//! Every table of the file, with the layout of its keys and values.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | fixed-width numbers: format version, sequences that outlive the journal |
//! | `journal` | group and piece `u64`, ascending | all records of one commit (see [`journal`](super::journal)) |
//! | `blobs` | blob `u64`, ascending | one record over 16 KiB, whose row holds a reference |
//! | [`Table::Jobs`] | job name | `JobRecord`: the job's number |
//! | [`Table::Runs`] | run | `RunRecord`, payload the input |
//! | [`Table::States`] | run | `StateRecord`, payload an output of up to 1 KiB |
//! | [`Table::Outputs`] | run | payload an output that is larger |
//! | [`Table::Steps`] | run, index `u32`, the first that it may hold | a block of steps (see [`blocks`](super::blocks)), each a `StepRecord`, payload its output |
//! | [`Table::Logs`] | run, line `u32` | `LogRecord`, payload the fields |
//! | [`Table::Idempotency`] | job `u32`, key | run |
//! | [`Table::ByStatus`] | status `u8`, run | pending and leased, which stand together: `LineRecord` as of when it was pending; suspended: `SleepRecord`; else – |
//! | [`Table::ByJob`] | job `u32`, run | – |
//! | [`Table::ByLabel`] | length, label key, length, label value, run | – |
//! | [`Table::Ended`] | completion time `u64` ms, run | – |
//! | [`Table::Tallies`] | job `u32` | `TallyRecord` |
//! | [`Table::Signals`] | run, length, name, ticket | payload of a signal that nobody has taken |
//! | [`Table::Children`] | parent, child | whether the child goes its own way: one byte |
//! | [`Table::Awaiters`] | awaited run, waiting run, its step `u32` | – |
//! | [`Table::Throttles`] | `0`, job `u32`; or `1`, concurrency key | `ThrottleRecord` |
//! | [`Table::Schedules`] | schedule's name | `ScheduleRecord`, payload the input |
//! | [`Table::Standings`] | schedule's name | `StandingRecord`: when it is due next, what has fired |
//!
//! Numbers in keys are big endian, so that bytes sort as numbers do. All but the first three are *logical* tables: their
//! rows may still be in the journal, and every read goes through tables and tail together.

use redb::TableDefinition;

pub(crate) type Raw = TableDefinition<'static, &'static [u8], &'static [u8]>;

pub(crate) const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");
pub(crate) const JOURNAL: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("journal");
pub(crate) const BLOBS: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("blobs");

/// The version of the file format that this build reads and writes.
pub(crate) const FORMAT_VERSION: u64 = 1;

/// Rows of [`META`].
pub(crate) mod meta {
    pub(crate) const FORMAT: &str = "format";
    /// The next group, event, blob, and the last run id (in two halves), as of the last journal row that was removed.
    pub(crate) const GROUP: &str = "group";
    pub(crate) const SEQUENCE: &str = "sequence";
    pub(crate) const BLOB: &str = "blob";
    pub(crate) const LAST_ID_HIGH: &str = "last_id_high";
    pub(crate) const LAST_ID_LOW: &str = "last_id_low";
}

/// A logical table. The numbers are part of the file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Table {
    Jobs = 0,
    Runs = 1,
    States = 2,
    Outputs = 3,
    Steps = 4,
    Logs = 5,
    Idempotency = 6,
    ByStatus = 7,
    ByJob = 8,
    ByLabel = 9,
    Ended = 10,
    Tallies = 11,
    Signals = 12,
    Children = 13,
    Awaiters = 14,
    Throttles = 15,
    Schedules = 16,
    Standings = 17,
}

impl Table {
    pub(crate) const ALL: [Table; 18] = [
        Table::Jobs,
        Table::Runs,
        Table::States,
        Table::Outputs,
        Table::Steps,
        Table::Logs,
        Table::Idempotency,
        Table::ByStatus,
        Table::ByJob,
        Table::ByLabel,
        Table::Ended,
        Table::Tallies,
        Table::Signals,
        Table::Children,
        Table::Awaiters,
        Table::Throttles,
        Table::Schedules,
        Table::Standings,
    ];

    pub(crate) fn from_byte(byte: u8) -> Option<Table> {
        Table::ALL.get(usize::from(byte)).copied()
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Table::Jobs => "jobs",
            Table::Runs => "runs",
            Table::States => "states",
            Table::Outputs => "outputs",
            Table::Steps => "steps",
            Table::Logs => "logs",
            Table::Idempotency => "idempotency",
            Table::ByStatus => "by_status",
            Table::ByJob => "by_job",
            Table::ByLabel => "by_label",
            Table::Ended => "ended",
            Table::Tallies => "tallies",
            Table::Signals => "signals",
            Table::Children => "children",
            Table::Awaiters => "awaiters",
            Table::Throttles => "throttles",
            Table::Schedules => "schedules",
            Table::Standings => "standings",
        }
    }

    pub(crate) const fn definition(self) -> Raw {
        TableDefinition::new(self.name())
    }
}
