//! Events as they are buffered: put together only for someone who listens.
//!
//! What every event of a run has in common stands in one [`Subject`], and what a checkpoint tells is read from its record, as it
//! lies in the journal's row, which the events of a group have in common. So an event that nobody listens to costs one count, and
//! holds no memory that a body's thread made: giving that back from the writer's thread is what allocators are slow at.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::ring::Buffered;
use super::{Event, EventKind, Payload, labels_bytes};
use crate::codec::records::{ErrorRecord, StepRecord};
use crate::codec::{self, keys};
use crate::id::RunId;
use crate::store::tables::Table;
use crate::time::Timestamp;

/// Whom events are about.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) run: RunId,
    pub(crate) job_name: Arc<str>,
    /// `None`: it has none, as most runs.
    labels: Option<Arc<BTreeMap<String, String>>>,
    labels_bytes: usize,
}

impl Subject {
    pub(crate) fn new(run: RunId, job_name: Arc<str>, labels: &[(String, String)]) -> Arc<Self> {
        let labels = (!labels.is_empty()).then(|| Arc::new(labels.iter().cloned().collect()));
        let labels_bytes = labels.as_deref().map_or(0, labels_bytes);
        Arc::new(Subject { run, job_name, labels, labels_bytes })
    }
}

/// An event as it is buffered.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) sequence: u64,
    pub(crate) committed: bool,
    pub(crate) timestamp: Timestamp,
    pub(crate) subject: Arc<Subject>,
    pub(crate) what: What,
}

/// What happened.
#[derive(Debug, Clone)]
pub(crate) enum What {
    Kind(Box<EventKind>),
    /// A step's outcome, on its way to the disk in the group's row: which of the group's changes to steps it is.
    Staged {
        index: u32,
        duration: Duration,
        at: usize,
    },
    /// A step's outcome that is too large for the group's row.
    Checkpoint(Box<StepTold>),
    /// A step's outcome that is on disk; its key, and its error if it has one, are read from the record, which lies here in the
    /// group's row.
    Recorded {
        index: u32,
        duration: Duration,
        at: u32,
        bytes: u32,
    },
}

/// What a checkpoint tells.
#[derive(Debug, Clone)]
pub(crate) struct StepTold {
    pub(crate) step: Arc<str>,
    pub(crate) index: u32,
    pub(crate) duration: Duration,
    /// The sealed record, and where in it the output begins.
    pub(crate) record: Arc<[u8]>,
    pub(crate) output_at: usize,
    pub(crate) error: Option<Box<ErrorRecord>>,
}

impl Told {
    fn kind(&self, row: &Bytes) -> EventKind {
        let (index, duration, record) = match &self.what {
            What::Kind(kind) => return EventKind::clone(kind),
            // Told of only once its row is on disk.
            What::Staged { index, duration, .. } => (*index, *duration, Bytes::new()),
            What::Checkpoint(told) => (told.index, told.duration, Bytes::copy_from_slice(&told.record)),
            What::Recorded { index, duration, at, bytes } => {
                let (from, upto) = (*at as usize, *at as usize + *bytes as usize);
                (*index, *duration, if upto <= row.len() { row.slice(from..upto) } else { Bytes::new() })
            }
        };
        match codec::open::<StepRecord>(Table::Steps, &keys::of_run(self.subject.run, index), &record) {
            Ok((StepRecord { key, error: None, open: None, .. }, output)) => {
                EventKind::StepCompleted { step: key.into(), index, output: Payload::new(&output), duration }
            }
            Ok((StepRecord { key, error: Some(error), open: None, .. }, _)) => {
                EventKind::StepFailed { step: key.into(), index, error: error.into() }
            }
            Ok((StepRecord { key, open: Some(_), .. }, _)) => EventKind::StepWaiting { step: key.into(), index },
            // It was sealed in this process; only memory that fails can have changed it.
            Err(row) => EventKind::RuntimeError { message: row.to_string() },
        }
    }
}

impl Buffered for Told {
    type Event = Event;
    /// The journal's row.
    type Common = Bytes;

    fn sequence(&self) -> u64 {
        self.sequence
    }

    fn bytes(&self) -> usize {
        let what = match &self.what {
            What::Kind(kind) => kind.bytes(),
            What::Staged { .. } | What::Recorded { .. } => 0,
            What::Checkpoint(step) => step.step.len() + step.record.len(),
        };
        what + self.subject.labels_bytes
    }

    fn common_bytes(row: &Bytes) -> usize {
        row.len()
    }

    fn event(&self, row: &Bytes) -> Arc<Event> {
        Arc::new(Event {
            sequence: self.sequence,
            committed: self.committed,
            timestamp: self.timestamp,
            run_id: self.subject.run,
            job_name: self.subject.job_name.clone(),
            labels: self.subject.labels.clone().unwrap_or_default(),
            kind: self.kind(row),
        })
    }
}
