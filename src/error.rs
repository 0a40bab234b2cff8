//! The one error of everything outside job bodies.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::id::RunId;
use crate::job::schema::DecodeError;
use crate::run::{Run, RunStatus};
use crate::store::Fault;

/// What went wrong, and by [`Error::advice`] what a caller can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No run has this id: it never existed, or it was deleted or purged.
    #[error("run not found: {run}")]
    RunNotFound {
        /// The id asked for.
        run: RunId,
    },
    /// The run has recorded no step of this key.
    #[error("run {run} has no step {step:?}")]
    StepNotFound {
        /// The run.
        run: RunId,
        /// The key asked for.
        step: String,
    },
    /// No job of this name is registered.
    #[error("unknown job: {name}")]
    JobNotFound {
        /// The name asked for.
        name: String,
    },
    /// Another definition is registered under this name. Nothing of the call was registered.
    #[error("job {name} is already registered with a different definition")]
    JobAlreadyRegistered {
        /// The name.
        name: String,
    },
    /// No schedule has this name.
    #[error("unknown schedule: {name}")]
    ScheduleNotFound {
        /// The name asked for.
        name: String,
    },
    /// A schedule's expression or time zone can't be used. Nothing was written.
    #[error("invalid {what} {value:?}: {message}")]
    InvalidSchedule {
        /// Which: `expression` or `time zone`.
        what: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        message: String,
    },
    /// A type's JSON Schema can't be used.
    #[error("the {side} schema of job {job} can't be used: {message}")]
    InvalidSchema {
        /// The job.
        job: String,
        /// `input` or `output`.
        side: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// An input that the job's type or schema refuses. Nothing was written.
    #[error("invalid input{}: {message}", place(.path))]
    InvalidInput {
        /// JSON pointer to the value (`/items/3/qty`), empty for the input itself.
        path: String,
        /// The schema keyword that refused it (`maximum`, `required`), or `type`.
        rule: String,
        /// What is wrong, in words.
        message: String,
    },
    /// An item of a batch was refused, and the whole batch with it. Nothing was written.
    #[error("at index {index}: {error}")]
    Item {
        /// Which item, from 0.
        index: usize,
        /// Why.
        error: Box<Error>,
    },
    /// A name, key, label or setting that is not allowed. Nothing was written.
    #[error("invalid {option} {value:?}: must be {rule}")]
    InvalidOption {
        /// Which.
        option: &'static str,
        /// What was given.
        value: String,
        /// What it must be.
        rule: &'static str,
    },
    /// Larger than its limit. Nothing was written.
    #[error("{what} of {bytes} bytes is over the limit of {bytes_max}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size, bytes.
        bytes: usize,
        /// The limit, bytes.
        bytes_max: usize,
    },
    /// More than its limit. Nothing was written.
    #[error("{count} {what} are over the limit of {count_max}")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many.
        count: usize,
        /// The limit.
        count_max: usize,
    },
    /// The run's status does not allow this.
    #[error("cannot {action} {status} run: {run}")]
    Conflict {
        /// What was asked: `cancel`, `retrigger`, `resume`, `delete`, `signal`.
        action: &'static str,
        /// The run.
        run: RunId,
        /// Its status.
        status: RunStatus,
    },
    /// `OnConflict::Reject`: a run of this job and concurrency key waits already.
    #[error("a run of the same job already waits for concurrency key {key:?}")]
    KeyConflict {
        /// The waiting run; `None` if it was an earlier item of the same batch, which is not created either.
        run: Option<RunId>,
        /// The key.
        key: String,
    },
    /// `max_queued`: so many runs wait for the concurrency key that have never started.
    #[error("{queued} runs wait for concurrency key {key:?} already, over the limit of {queued_max}")]
    QueueFull {
        /// The key.
        key: String,
        /// How many of them wait.
        queued: usize,
        /// The limit that the trigger gave.
        queued_max: usize,
    },
    /// `reject_changed_input`: the key's run was triggered with another input.
    #[error("idempotency key {key:?} belongs to {}, which has another input", holder(.run))]
    IdempotencyMismatch {
        /// The key.
        key: String,
        /// The run that holds it; `None` if it was an earlier item of the same batch, which is not created either.
        run: Option<RunId>,
    },
    /// More waits for the disk than may wait. Nothing was written.
    #[error("overloaded: no room among the writes that wait for the disk within {waited:?}")]
    Overloaded {
        /// How long this call waited for room.
        waited: Duration,
    },
    /// The file failed while this was being committed and could not be read again in time: it may be done or not. Ask again
    /// with the same idempotency key, or read.
    #[error("outcome unknown: the file failed during the commit and did not come back in time")]
    Indeterminate,
    /// The run that was waited for failed. A body that fails with this by `?` fails with the chain of that run's error too.
    #[error("run failed: {}", .run.error.as_ref().map_or("unknown error", |error| &error.message))]
    RunFailed {
        /// The run.
        run: Box<Run>,
    },
    /// The run that was waited for was cancelled.
    #[error("run was cancelled: {run}")]
    RunCancelled {
        /// The run.
        run: RunId,
    },
    /// The wait took longer than its timeout. The run goes on.
    #[error("waited longer than {timeout:?} for run {run}, which goes on")]
    WaitTimeout {
        /// The run.
        run: RunId,
        /// The timeout.
        timeout: Duration,
    },
    /// Waiting here could never end: the run needs a key or a slot that is held by bodies that wait.
    #[error("waiting for run {run} inside a body could never end: it needs a key or a slot that waiting bodies hold")]
    WouldDeadlock {
        /// The run that was to be waited for.
        run: RunId,
    },
    /// A signal's value can't be stored as JSON and read back.
    #[error("signal can't be stored: {message}")]
    InvalidSignal {
        /// What is wrong.
        message: String,
    },
    /// A read that had begun went on for too long: a backup, most likely. The file is as it was.
    #[error("the file can't be compacted: a read goes on for longer than {waited:?}")]
    CompactionBlocked {
        /// How long it was waited for.
        waited: Duration,
    },
    /// Stored JSON does not fit the type, or there is none.
    #[error("{what} does not fit{}: {message}", place(.path))]
    Decode {
        /// What was decoded: `output`, `input`.
        what: &'static str,
        /// JSON pointer to the place.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// A row of the file can't be read. Other rows are not affected, but for one of the journal: a file with such a row is not
    /// opened.
    #[error("row {key} of table {table} is corrupted: {reason}")]
    Corrupted {
        /// The table.
        table: &'static str,
        /// The key: in hex, or as the number or the name that it is.
        key: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The file is open in this or another process.
    #[error("{} is already open, in this process or another", .path.display())]
    AlreadyOpen {
        /// The file.
        path: PathBuf,
    },
    /// The file is not one of ours. Nothing in it was changed.
    #[error("{} is not a durably file: {reason}", .path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: &'static str,
    },
    /// The file was written by a newer version. Not a byte of it was changed: open it with that version.
    #[error("{} has format {found}, this version reads up to {supported}: open it with a newer version", .path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The file's format version.
        found: u64,
        /// The newest that this build reads.
        supported: u64,
    },
    /// The file is damaged and can't be opened. Restore it from a copy.
    #[error("{} is damaged: {message}; restore it from a copy", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        message: String,
    },
    /// The operating system refused to open or create the file.
    #[error("cannot {action} {}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What could not be done.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Reading the file failed. The runtime reopens it by itself; ask again.
    #[error("the file can't be read")]
    Storage(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The runtime has been shut down, or is being.
    #[error("the runtime is shut down")]
    ShutDown,
    /// Not called inside a tokio runtime.
    #[error("no tokio runtime: durably is opened inside one")]
    NoRuntime,
}

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Advice {
    /// The same call may succeed later; with an idempotency key it is safe to repeat.
    Retry,
    /// The same call will fail again: change it, or look at what it names.
    Change,
    /// This runtime is finished: open another.
    Finished,
}

impl Error {
    /// Whether to retry, to change something, or to stop using this runtime.
    pub fn advice(&self) -> Advice {
        match self {
            Error::Overloaded { .. }
            | Error::Indeterminate
            | Error::CompactionBlocked { .. }
            | Error::QueueFull { .. }
            | Error::WaitTimeout { .. }
            | Error::AlreadyOpen { .. }
            | Error::Storage(_) => Advice::Retry,
            Error::Item { error, .. } => error.advice(),
            Error::ShutDown | Error::NoRuntime | Error::Damaged { .. } | Error::NewerFormat { .. } => Advice::Finished,
            _ => Advice::Change,
        }
    }

    pub(crate) fn decode(what: &'static str, error: DecodeError) -> Self {
        Error::Decode { what, path: error.path, message: error.message }
    }

    /// There is nothing to be decoded. That is no null, which some types take.
    pub(crate) fn absent(what: &'static str, message: &str) -> Self {
        Error::Decode { what, path: String::new(), message: message.to_owned() }
    }

    /// The same refusal, naming the item of a batch.
    pub(crate) fn at_index(self, index: usize) -> Self {
        Error::Item { index, error: Box::new(self) }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        use crate::store::file::OpenError;
        match fault {
            Fault::Corrupted(row) => Error::Corrupted { table: row.table, key: row.key, reason: row.reason },
            Fault::Open(OpenError::AlreadyOpen { path }) => Error::AlreadyOpen { path },
            Fault::Open(OpenError::NotADatabase { path, reason }) => Error::NotADatabase { path, reason },
            Fault::Open(OpenError::OldFormat { path, .. }) => {
                Error::NotADatabase { path, reason: "written by a redb that this version does not read" }
            }
            Fault::Open(OpenError::Damaged { path, message }) => Error::Damaged { path, message },
            Fault::Open(OpenError::Io { path, action, source }) => Error::Open { path, action, source },
            Fault::Open(OpenError::Init { source, .. }) => Error::Storage(source.into()),
            Fault::Open(OpenError::NewerFormat { path, found, supported }) => {
                Error::NewerFormat { path, found, supported }
            }
            // Whoever asks memory alone asks again elsewhere, so nobody is told this.
            Fault::Closed | Fault::Elsewhere => Error::ShutDown,
            fault @ (Fault::Panicked | Fault::Away | Fault::Other | Fault::Unread) => Error::Storage(Box::new(fault)),
            Fault::Redb(error) => Error::Storage(error.into()),
        }
    }
}

fn holder(run: &Option<RunId>) -> String {
    run.map_or_else(|| "an earlier item of the batch".into(), |run| format!("run {run}"))
}

fn place(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!(" at {path}") }
}
