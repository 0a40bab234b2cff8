//! Events as they are buffered: put together only for someone who listens.
//!
//! What every event of a run has in common stands in one [`Subject`], and what a checkpoint tells is read from its record, so
//! an event that nobody listens to costs little more than two counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::ring::Buffered;
use super::{Event, EventKind, Payload, labels_bytes};
use crate::codec::records::ErrorRecord;
use crate::id::RunId;
use crate::time::Timestamp;

/// Whom events are about.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) run: RunId,
    pub(crate) job_name: Arc<str>,
    pub(crate) labels: Arc<BTreeMap<String, String>>,
    labels_bytes: usize,
}

impl Subject {
    pub(crate) fn new(run: RunId, job_name: Arc<str>, labels: Arc<BTreeMap<String, String>>) -> Arc<Self> {
        let labels_bytes = labels_bytes(&labels);
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
    Kind(EventKind),
    Checkpoint(StepTold),
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
    fn kind(&self) -> EventKind {
        match &self.what {
            What::Kind(kind) => kind.clone(),
            What::Checkpoint(StepTold { step, index, error: Some(error), .. }) => {
                EventKind::StepFailed { step: step.clone(), index: *index, error: ErrorRecord::clone(error).into() }
            }
            What::Checkpoint(StepTold { step, index, duration, record, output_at, error: None }) => {
                let output = record.get(*output_at..).unwrap_or_default();
                let output = Payload::of(output.len(), || Bytes::copy_from_slice(output));
                EventKind::StepCompleted { step: step.clone(), index: *index, output, duration: *duration }
            }
        }
    }
}

impl Buffered for Told {
    type Event = Event;

    fn sequence(&self) -> u64 {
        self.sequence
    }

    fn bytes(&self) -> usize {
        let what = match &self.what {
            What::Kind(kind) => kind.bytes(),
            What::Checkpoint(step) => step.step.len() + step.record.len(),
        };
        what + self.subject.labels_bytes
    }

    fn event(&self) -> Arc<Event> {
        Arc::new(Event {
            sequence: self.sequence,
            committed: self.committed,
            timestamp: self.timestamp,
            run_id: self.subject.run,
            job_name: self.subject.job_name.clone(),
            labels: self.subject.labels.clone(),
            kind: self.kind(),
        })
    }
}
