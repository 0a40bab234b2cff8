//! What job bodies and steps fail with.

use std::error::Error as StdError;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::codec::records::ErrorRecord;
use crate::error::Error;
use crate::limits::ERROR_TEXT_BYTES_MAX;
use crate::run::RunError;

/// The result of a job body, and of a step.
pub type JobResult<T> = Result<T, JobError>;

/// What sort of failure ended a run or a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The code returned an error.
    Error,
    /// The code panicked; the message is the panic's.
    Panic,
    /// The step took longer than its timeout.
    Timeout,
    /// The run took the process with it too often without a new checkpoint.
    Poisoned,
    /// A step key was used twice in one execution; the message names both places.
    StepReused,
    /// A step was called inside another step's body.
    StepNested,
    /// A stored checkpoint does not fit the type that the code expects now; resume after a fix.
    CheckpointMismatch,
    /// A value can't be stored as JSON and read back.
    NotStorable,
    /// A value, a key or a number of steps is over its limit.
    OverLimit,
    /// The output does not satisfy the job's schema.
    InvalidOutput,
    /// A row of the run can't be read.
    Corrupted,
    /// A step was called after its body had ended.
    Detached,
    /// A run that the step waited for failed; the chain has its error.
    ChildFailed,
    /// A run that the step waited for was cancelled.
    ChildCancelled,
    /// A run could not be triggered.
    NotTriggered,
    /// What arrived does not fit the type that the code expects.
    Mismatch,
    /// The run had not ended by its deadline.
    DeadlineExceeded,
    /// Not known to this version.
    Other,
}

impl ErrorKind {
    const NUMBERED: [ErrorKind; 17] = [
        ErrorKind::Error,
        ErrorKind::Panic,
        ErrorKind::Timeout,
        ErrorKind::Poisoned,
        ErrorKind::StepReused,
        ErrorKind::StepNested,
        ErrorKind::CheckpointMismatch,
        ErrorKind::NotStorable,
        ErrorKind::OverLimit,
        ErrorKind::InvalidOutput,
        ErrorKind::Corrupted,
        ErrorKind::Detached,
        ErrorKind::ChildFailed,
        ErrorKind::ChildCancelled,
        ErrorKind::NotTriggered,
        ErrorKind::Mismatch,
        ErrorKind::DeadlineExceeded,
    ];

    /// The number on disk, part of the file format.
    pub(crate) fn to_byte(self) -> u8 {
        Self::NUMBERED.iter().position(|kind| *kind == self).map_or(u8::MAX, |at| at as u8)
    }

    pub(crate) fn from_byte(byte: u8) -> Self {
        Self::NUMBERED.get(usize::from(byte)).copied().unwrap_or(ErrorKind::Other)
    }
}

/// What a job body or a step fails with: any error, as data that can be stored.
///
/// `?` makes one from every `std::error::Error`, from `anyhow::Error` and from texts. Message and source chain are taken
/// at once, since they are what is stored; a body sees the same error live and replayed. So it can't be downcast, and it does
/// not implement `Error` itself; [`JobError::into_boxed`] gives one that does.
pub struct JobError {
    record: Box<ErrorRecord>,
}

impl JobError {
    /// An error of this message.
    pub fn msg(message: impl fmt::Display) -> Self {
        Self::of_kind(ErrorKind::Error, message.to_string())
    }

    pub(crate) fn of_kind(kind: ErrorKind, message: String) -> Self {
        let record = ErrorRecord {
            kind: kind.to_byte(),
            message: cut(message, ERROR_TEXT_BYTES_MAX),
            chain: Vec::new(),
            step: None,
            terminal: false,
        };
        JobError { record: Box::new(record) }
    }

    pub(crate) fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.record.kind = kind.to_byte();
        self
    }

    pub(crate) fn from_record(record: ErrorRecord) -> Self {
        JobError { record: Box::new(record) }
    }

    pub(crate) fn into_record(self) -> ErrorRecord {
        *self.record
    }

    /// Says what was being done: the new message, with the old one first in the chain.
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        let message = std::mem::replace(&mut self.record.message, cut(context.to_string(), ERROR_TEXT_BYTES_MAX));
        self.record.chain.insert(0, message);
        self
    }

    /// Marks an error that must not be retried.
    pub fn terminal(mut self) -> Self {
        self.record.terminal = true;
        self
    }

    /// Whether [`JobError::terminal`] marked it.
    pub fn is_terminal(&self) -> bool {
        self.record.terminal
    }

    /// What sort of failure it is.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::from_byte(self.record.kind)
    }

    /// The message of the outermost error.
    pub fn message(&self) -> &str {
        &self.record.message
    }

    /// The messages of its sources, outermost first.
    pub fn chain(&self) -> impl Iterator<Item = &str> {
        self.record.chain.iter().map(String::as_str)
    }

    /// The step it came from, if it came from one.
    pub fn step(&self) -> Option<&str> {
        self.record.step.as_deref()
    }

    /// As an error of the standard library's kind, for helpers that return `anyhow::Result` or `Box<dyn Error>`.
    pub fn into_boxed(self) -> Box<dyn StdError + Send + Sync> {
        let mut record = *self.record;
        let message = std::mem::take(&mut record.message);
        let chain = std::mem::take(&mut record.chain);
        let says_more = record.step.is_some() || record.terminal || record.kind != ErrorKind::Error.to_byte();
        let mut source: Source = says_more.then(|| Box::new(Origin(record)) as _);
        for message in chain.into_iter().rev() {
            source = Some(Box::new(Boxed { message, source }));
        }
        Box::new(Boxed { message, source })
    }
}

impl<E: Into<Box<dyn StdError + Send + Sync>>> From<E> for JobError {
    fn from(error: E) -> Self {
        let error = error.into();
        let mut made = JobError::msg(&error);
        let mut chain: Vec<String> = held(&*error).collect();
        let mut source = error.source();
        while let Some(cause) = source.filter(|_| chain.len() < LINKS_MAX) {
            match cause.downcast_ref::<Origin>() {
                Some(Origin(origin)) => {
                    made.record.kind = origin.kind;
                    made.record.step.clone_from(&origin.step);
                    made.record.terminal = origin.terminal;
                }
                None => {
                    chain.push(cut(cause.to_string(), ERROR_TEXT_BYTES_MAX));
                    chain.extend(held(cause));
                }
            }
            source = cause.source();
        }
        chain.truncate(LINKS_MAX);
        made.record.chain = chain;
        made
    }
}

/// A chain is a few links; a cyclic one must not fill the memory.
const LINKS_MAX: usize = 64;

/// The links after a run's error, which has them as texts and so can't give them as sources.
fn held(error: &(dyn StdError + 'static)) -> impl Iterator<Item = String> {
    let of_run = match error.downcast_ref::<Error>() {
        Some(Error::RunFailed { run }) => run.error.as_ref(),
        _ => error.downcast_ref::<RunError>(),
    };
    let links = of_run.into_iter().flat_map(|error| &error.chain).take(LINKS_MAX);
    links.map(|link| cut(link.clone(), ERROR_TEXT_BYTES_MAX))
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.record.message)
    }
}

impl fmt::Debug for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.record.message)?;
        self.record.chain.iter().try_for_each(|cause| write!(f, "\ncaused by: {cause}"))
    }
}

type Source = Option<Box<dyn StdError + Send + Sync>>;

#[derive(Debug)]
struct Boxed {
    message: String,
    source: Source,
}

impl fmt::Display for Boxed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Boxed {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// The last link of a boxed error's chain: what a message can't say, so that a step's error that went through a helper is
/// still that step's. At the end, since other error types hide the first link but never the rest.
#[derive(Debug)]
struct Origin(ErrorRecord);

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.step {
            Some(step) => write!(f, "in step {step:?}"),
            None if self.0.terminal => f.write_str("not to be retried"),
            None => write!(f, "{:?}", ErrorKind::from_byte(self.0.kind)),
        }
    }
}

impl StdError for Origin {}

impl From<ErrorRecord> for RunError {
    fn from(record: ErrorRecord) -> Self {
        RunError {
            kind: ErrorKind::from_byte(record.kind),
            message: record.message,
            chain: record.chain,
            step: record.step,
        }
    }
}

/// A text within its limit, cut at a character.
pub(crate) fn cut(mut text: String, bytes_max: usize) -> String {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_chain_as_data_and_gives_it_back() {
        let io = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let error: JobError = anyhow::Error::new(io).context("reading the list").into();
        let error = error.context("importing");
        assert_eq!(error.to_string(), "importing");
        assert_eq!(error.chain().collect::<Vec<_>>(), ["reading the list", "no such file"]);
        let boxed = error.into_boxed();
        let inner = boxed.source().and_then(StdError::source).map(ToString::to_string);
        assert_eq!(inner.as_deref(), Some("no such file"));
    }

    #[test]
    fn what_a_message_cannot_say_survives_a_helpers_error_type() {
        let mut error = JobError::msg("down").terminal();
        error.record.step = Some("fetch".into());
        let helped = anyhow::Error::from_boxed(error.into_boxed()).context("helping");
        assert_eq!(format!("{helped:#}"), "helping: down: in step \"fetch\"");
        let error = JobError::from(helped);
        assert_eq!((error.step(), error.is_terminal()), (Some("fetch"), true));
        assert_eq!(error.chain().collect::<Vec<_>>(), ["down"]);
    }

    #[test]
    fn a_runs_error_keeps_its_chain_also_under_another() {
        let error = || RunError::from(JobError::msg("disk").context("reading").context("importing").into_record());
        assert_eq!(JobError::from(error()).chain().collect::<Vec<_>>(), ["reading", "disk"]);
        let under = JobError::from(anyhow::Error::new(error()).context("waiting"));
        assert_eq!(under.chain().collect::<Vec<_>>(), ["importing", "reading", "disk"]);
        let long = RunError { chain: vec!["again".into(); 1_000], ..error() };
        assert_eq!(JobError::from(long).chain().count(), LINKS_MAX);
    }

    #[test]
    fn every_kind_keeps_its_number() {
        for (number, kind) in ErrorKind::NUMBERED.into_iter().enumerate() {
            assert_eq!(ErrorKind::from_byte(kind.to_byte()), kind);
            assert_eq!(usize::from(kind.to_byte()), number);
        }
        assert_eq!(ErrorKind::from_byte(200), ErrorKind::Other);
    }
}
