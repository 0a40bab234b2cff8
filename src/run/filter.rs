//! Which runs a query, a cancel, a retrigger or a resume is about.

use super::RunStatus;
use crate::error::Error;
use crate::id::RunId;
use crate::limits::{QUERY_LIMIT_DEFAULT, QUERY_LIMIT_MAX, QUERY_OFFSET_MAX};
use crate::trigger::labels;

/// A filter of runs. Statuses and jobs are alternatives, labels must all be there, and these and the parent combine with *and*;
/// what is not given does not restrict.
///
/// Order is newest first by id. The default limit is 100 and the most is 1,000.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunFilter {
    pub(crate) statuses: Vec<RunStatus>,
    pub(crate) jobs: Vec<String>,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) parent: Option<RunId>,
    pub(crate) limit: Option<usize>,
    pub(crate) offset: usize,
    pub(crate) after: Option<RunId>,
    pub(crate) without_payloads: bool,
}

impl RunFilter {
    /// Every run.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs in this status; called again, in one of them.
    pub fn status(mut self, status: RunStatus) -> Self {
        self.statuses.push(status);
        self
    }

    /// Runs in one of these statuses. None at all is no restriction.
    pub fn statuses(mut self, statuses: impl IntoIterator<Item = RunStatus>) -> Self {
        self.statuses.extend(statuses);
        self
    }

    /// Runs of this job; called again, of one of them.
    pub fn job(mut self, name: impl Into<String>) -> Self {
        self.jobs.push(name.into());
        self
    }

    /// Runs with this label; called again, with all of them.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// Runs that steps of this run have triggered, the detached ones too.
    pub fn parent(mut self, run: RunId) -> Self {
        self.parent = Some(run);
        self
    }

    /// At most this many runs, 0 to 1,000; default 100.
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Skip this many, 0 to 10,000. A cursor ([`RunFilter::after`]) is cheaper and does not shift.
    pub fn offset(mut self, offset: usize) -> Self {
        self.offset = offset;
        self
    }

    /// Go on after this run: give the id of the last run of the page before.
    pub fn after(mut self, run: RunId) -> Self {
        self.after = Some(run);
        self
    }

    /// Leave inputs and outputs out, which makes long lists cheaper.
    pub fn without_payloads(mut self) -> Self {
        self.without_payloads = true;
        self
    }

    /// Restricts to these statuses, where none was named.
    pub(crate) fn or_statuses(mut self, statuses: &[RunStatus]) -> Self {
        if self.statuses.is_empty() {
            self.statuses = statuses.to_vec();
        }
        self
    }

    pub(crate) fn limit_or_default(&self) -> usize {
        self.limit.unwrap_or(QUERY_LIMIT_DEFAULT)
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let limit = self.limit_or_default();
        if limit > QUERY_LIMIT_MAX {
            return Err(Error::TooMany { what: "runs of a page", count: limit, count_max: QUERY_LIMIT_MAX });
        }
        if self.offset > QUERY_OFFSET_MAX {
            return Err(Error::TooMany { what: "runs to skip", count: self.offset, count_max: QUERY_OFFSET_MAX });
        }
        self.labels.iter().try_for_each(|(key, value)| labels::check(key, value))
    }
}
