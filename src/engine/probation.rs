//! Probation: runs that crashed the process twice in a row start one at a time, so that the next crash names its culprit.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{JobNumber, Place};
use crate::id::RunId;
use crate::limits::PROBATION;

/// Consecutive crashes from which a run is on probation.
pub(super) const CRASHES: u32 = 2;

#[derive(Debug, Default)]
pub(super) struct Probation {
    current: Option<Current>,
    parked: BTreeMap<Place, (RunId, JobNumber)>,
}

#[derive(Debug)]
struct Current {
    run: RunId,
    started: Option<Duration>,
}

impl Probation {
    /// The one on probation, if it has not started.
    pub(super) fn unstarted(&self) -> Option<RunId> {
        self.current.as_ref().filter(|current| current.started.is_none()).map(|current| current.run)
    }

    pub(super) fn current(&self) -> Option<RunId> {
        self.current.as_ref().map(|current| current.run)
    }

    /// Whether this run may be the one on probation.
    pub(super) fn admit(&mut self, run: RunId) -> bool {
        if self.current.is_none() {
            self.current = Some(Current { run, started: None });
            return true;
        }
        false
    }

    pub(super) fn park(&mut self, place: Place, run: RunId, job: JobNumber) {
        self.parked.insert(place, (run, job));
    }

    pub(super) fn is_parked(&self, place: Place) -> bool {
        self.parked.contains_key(&place)
    }

    pub(super) fn unpark(&mut self, place: Place) {
        self.parked.remove(&place);
    }

    /// The next one to let through, if none is on probation.
    pub(super) fn next(&mut self, open: impl Fn(JobNumber) -> bool) -> Option<(Place, JobNumber)> {
        if self.current.is_some() {
            return None;
        }
        let (place, (run, job)) = self.parked.iter().find(|(_, (_, job))| open(*job)).map(|(p, r)| (*p, *r))?;
        self.parked.remove(&place);
        self.current = Some(Current { run, started: None });
        Some((place, job))
    }

    pub(super) fn started(&mut self, run: RunId, now: Duration) {
        if let Some(current) = self.current.as_mut().filter(|current| current.run == run) {
            current.started = Some(now);
        }
    }

    /// A checkpoint, or its end, clears a run; says whether it was the one on probation.
    pub(super) fn clear(&mut self, run: RunId) -> bool {
        self.current.take_if(|current| current.run == run).is_some()
    }

    /// Time clears a run as well.
    pub(super) fn expire(&mut self, now: Duration) -> bool {
        self.current.take_if(|current| current.started.is_some_and(|at| now >= at + PROBATION)).is_some()
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        Some(self.current.as_ref()?.started? + PROBATION)
    }
}
