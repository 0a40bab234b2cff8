//! Every limit, with its unit and who enforces it.
//!
//! A limit is checked where a value enters: in the trigger builder, at the step's call, in the builder of the runtime.
//! What is over a limit is refused, unless it says that it is cut, and nothing is written: with
//! [`Error::TooLarge`](crate::Error::TooLarge) or [`Error::TooMany`](crate::Error::TooMany), which name both numbers; by the
//! builder with [`Error::InvalidOption`](crate::Error::InvalidOption), for a schedule's expression with
//! [`Error::InvalidSchedule`](crate::Error::InvalidSchedule), at a step's call with
//! [`ErrorKind::OverLimit`](crate::ErrorKind::OverLimit).

use std::time::Duration;

/// A job's name, bytes; enforced by `Job::new` through `register`.
pub const JOB_NAME_BYTES_MAX: usize = 128;
/// A step's key, bytes; enforced at the step's call.
pub const STEP_KEY_BYTES_MAX: usize = 1_024;
/// A label's key, bytes; enforced by the trigger.
pub const LABEL_KEY_BYTES_MAX: usize = 128;
/// A label's value, bytes; enforced by the trigger.
pub const LABEL_VALUE_BYTES_MAX: usize = 256;
/// Labels of one run; enforced by the trigger.
pub const LABELS_MAX: usize = 64;
/// An idempotency or concurrency key, bytes; enforced by the trigger.
pub const KEY_BYTES_MAX: usize = 512;
/// Concurrency keys of one run; enforced by the trigger.
pub const RUN_KEYS_MAX: usize = 16;
/// Default for an input, an output, a checkpoint each, bytes of JSON; enforced at the write.
pub const PAYLOAD_BYTES_DEFAULT: usize = 1 << 20;
/// The most that the limit on payloads can be set to, bytes; enforced by the builder.
pub const PAYLOAD_BYTES_CEILING: usize = 64 << 20;
/// Steps of one run, segments of maps included; enforced at the step's call.
pub const STEPS_MAX: u32 = 100_000;
/// All checkpoints of one run, bytes; enforced at the step's write.
pub const STEPS_BYTES_MAX: usize = 256 << 20;
/// Items of a map; enforced at its call. Their outputs count as checkpoints: a million items with outputs of 250 bytes fill a
/// run, and items without an output need nearly nothing.
pub const MAP_ITEMS_MAX: usize = 10_000_000;
/// Items of a map that are under way at a time, at most; enforced at its call.
pub const MAP_CONCURRENCY_MAX: usize = 4_096;
/// Items of a batch; enforced by the batch trigger.
pub const BATCH_ITEMS_MAX: usize = 100_000;
/// Inputs of a batch in all, bytes; enforced by the batch trigger.
pub const BATCH_BYTES_MAX: usize = 64 << 20;
/// Writes that wait for their commit, bytes; enforced by admission.
pub const UNACKED_BYTES_MAX: usize = 64 << 20;
/// Triggers and other calls from outside that wait for their commit; enforced by admission.
pub const UNACKED_CALLS_MAX: usize = 65_536;
/// The buffer of events, bytes; the oldest go first.
pub const EVENT_BUFFER_BYTES: usize = 16 << 20;
/// An event's payload, bytes; a larger one is left out of the event.
pub const EVENT_PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// Values that the registered code can't read, as `check_pending` lists them; more are only counted.
pub const UNREADABLE_LISTED_MAX: usize = 1_000;
/// Steps of a completed run that are reported as unused; more are only counted.
pub const UNUSED_STEPS_MAX: usize = 1_000;
/// Log lines that a run keeps; the oldest go first and are counted.
pub const LOG_LINES_MAX: u32 = 10_000;
/// Bytes of log lines that a run keeps; the oldest go first and are counted.
pub const LOG_BYTES_MAX: usize = 4 << 20;
/// One log line: message and fields, bytes; what fields are beyond it are left out. The message is cut as an error's is.
pub const LOG_LINE_BYTES_MAX: usize = 64 << 10;
/// A signal's name, bytes; enforced by `signal` and at the step's call.
pub const SIGNAL_NAME_BYTES_MAX: usize = 128;
/// Signals of a run that nobody has taken; enforced by `signal`.
pub const SIGNALS_MAX: usize = 1_000;
/// A schedule's name, bytes; enforced when it is registered.
pub const SCHEDULE_NAME_BYTES_MAX: usize = 128;
/// A schedule's expression, bytes; enforced when it is registered.
pub const SCHEDULE_EXPRESSION_BYTES_MAX: usize = 256;
/// A time zone's name, bytes; enforced when a schedule is registered.
pub const TIME_ZONE_BYTES_MAX: usize = 64;
/// The longest interval of an `@every` expression; the shortest is a second.
pub const SCHEDULE_EVERY_MAX: Duration = Duration::from_secs(366 * 24 * 3_600);
/// Schedules of a file; enforced when one is registered.
pub const SCHEDULES_MAX: usize = 10_000;
/// Firings that a schedule catches up with at once; enforced when it is registered.
pub const SCHEDULE_CATCH_UP_MAX: u32 = 1_000;
/// An error's message and each link of its chain, and a log line's message, bytes; cut beyond.
pub const ERROR_TEXT_BYTES_MAX: usize = 16 << 10;
/// Failed attempts of a step that are kept with it, the newest; all are counted.
pub const TRIES_KEPT_MAX: usize = 32;
/// An attempt's error that is kept with its step, message and chain in all, bytes; cut beyond.
pub const TRY_ERROR_BYTES_MAX: usize = 4 << 10;
/// Runs that execute at a time, at most; enforced by the builder.
pub const CONCURRENT_RUNS_MAX: usize = 65_536;
/// `get_runs` gives this many unless told.
pub const QUERY_LIMIT_DEFAULT: usize = 100;
/// `get_runs` gives no more than this.
pub const QUERY_LIMIT_MAX: usize = 1_000;
/// `get_runs` skips no more than this.
pub const QUERY_OFFSET_MAX: usize = 10_000;

/// Operations in one commit, at most.
pub(crate) const GROUP_OPS_MAX: usize = 1_024;
/// Bytes in one commit, at most; a larger single operation goes alone.
pub(crate) const GROUP_BYTES_MAX: usize = 1 << 20;
/// The journal's unfolded tail, bytes: folding goes before new groups beyond this.
pub(crate) const TAIL_BYTES_MAX: usize = 64 << 20;
/// Folding begins here, bytes, in slices that ride on commits.
pub(crate) const TAIL_BYTES_FOLD: usize = 16 << 20;
/// Folding begins when the oldest record of the tail is this old. The promise is 60 s; half of it leaves time to fold.
pub(crate) const TAIL_AGE_FOLD: Duration = Duration::from_secs(30);
/// Rows folded in one commit at most; beside operations that wait it is as many as take little time.
pub(crate) const FOLD_ROWS_MAX: usize = 4_096;
/// Bytes folded in one commit.
pub(crate) const FOLD_BYTES_MAX: usize = 2 << 20;
/// A record larger than this gets a row of its own, bytes.
pub(crate) const INLINE_BYTES_MAX: usize = 16 << 10;
/// An output up to this size stands in the row of its run's state, bytes; a larger one in a row of its own.
pub(crate) const OUTPUT_WITH_STATE_BYTES_MAX: usize = 1 << 10;
/// Runs that are read at once where all of them are, and bytes of what is read of them.
pub(crate) const SLICE_RUNS: usize = 256;
/// See [`SLICE_RUNS`].
pub(crate) const SLICE_BYTES: usize = 4 << 20;
/// Items that are done go to disk at the latest after this, unless a write of them is under way.
pub(crate) const SEGMENT_FLUSH_AFTER: Duration = Duration::from_millis(20);
/// So many items that are done go to disk at once.
pub(crate) const SEGMENT_ITEMS: usize = 1_024;
/// So many bytes of outputs go to disk at once.
pub(crate) const SEGMENT_BYTES: usize = 64 << 10;
/// A segment smaller than this, bytes, is written again with what has come meanwhile, so that items which take their time do not
/// make a record each: 65,536 of this fill a run's checkpoints.
pub(crate) const SEGMENT_BYTES_MIN: usize = 4 << 10;
/// Items that wait for their write, in segments, before no more are begun.
pub(crate) const SEGMENTS_BACKLOG: usize = 4;
/// Runs deleted in one commit of a purge.
pub(crate) const PURGE_SLICE: usize = 100;
/// The same while runs execute, whose steps wait for that commit, and so many more for each run that ends in it: what is purged
/// all the time keeps up with what ends.
pub(crate) const PURGE_SLICE_BESIDE: usize = 2;
pub(crate) const PURGED_FOR_AN_END: usize = 2;
/// After so many groups in which no body asked for anything, some 20 ms, a purge is in nobody's way.
pub(crate) const PURGE_UNDISTURBED: u32 = 64;
/// Runs started by one commit, and [`STARTS_FOR_A_REPLAY`] more for each that it ends: the bodies of many would keep others from
/// theirs.
pub(crate) const STARTS_MAX: usize = 64;
/// A run that has executed before counts as so many of them, since its body replays at once.
pub(crate) const STARTS_FOR_A_REPLAY: usize = 8;
/// Runs whose checkpoints are read for replay at a time: reading holds the tail, which the writer waits for.
pub(crate) const REPLAYS_MAX: usize = 2;
/// A replaying run keeps checkpoints up to this size in memory, bytes each; larger ones are read when asked for.
pub(crate) const REPLAY_INLINE_BYTES_MAX: usize = 16 << 10;
/// A replaying run keeps no more than this of checkpoints in memory, bytes in all.
pub(crate) const REPLAY_BYTES_MAX: usize = 8 << 20;
/// A probationer that has executed this long is cleared.
pub(crate) const PROBATION: Duration = Duration::from_secs(30);
/// Moments of the wall clock are looked at again after this, since that clock may be set.
pub(crate) const ALARM_RECHECK: Duration = Duration::from_secs(30);
/// Alarms rung in one commit, so that many that are due at once do not keep the operations beside them waiting.
pub(crate) const ALARMS_IN_GROUP_MAX: usize = 512;
/// What can't be read now, since the file is away or being reopened, is read again so long after.
pub(crate) const READ_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// A due time of a schedule counts as missed once it is over by more than this.
pub(crate) const SCHEDULE_ON_TIME: Duration = Duration::from_secs(60);
/// Ranges of due times that have fired which a schedule remembers: a jump of the clock begins a new one.
pub(crate) const SCHEDULE_RANGES_MAX: usize = 16;
/// A body waits in memory for what is due within this; for longer, it is suspended.
pub(crate) const SUSPEND_AFTER: Duration = Duration::from_secs(1);
/// Progress and log lines go to disk at the latest after this.
pub(crate) const NOTES_FLUSH_AFTER: Duration = Duration::from_secs(1);
