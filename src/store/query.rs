//! Lists of runs: every condition is an index whose rows are in the order of run ids, and the runs that satisfy all of them
//! are found by leaping from one index to the next.
//!
//! A long search is cut into chunks, each over a view of its own: every run is judged whole within one view, and no view is
//! held long, be it that much is looked through or that much is found. What was found is decoded when its view is gone.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::read::{Names, Rowset, assemble, names, rowset};
use super::tables::Table;
use super::view::View;
use super::{Fault, Store};
use crate::codec::Corrupted;
use crate::codec::keys::{self, Key};
use crate::error::Error;
use crate::id::RunId;
use crate::limits::SLICE_BYTES;
use crate::run::{Run, RunFilter, RunStatus};

/// What is kept of a run until the view is gone, and how many bytes that is; `None` where there is no such run any more.
type Taken<T> = Option<(T, usize)>;

/// Seeks in an index before a new view is taken.
const SEEKS_MAX: usize = 2_000;

/// A condition.
enum Source {
    /// Any of these prefixes of an index.
    Prefixes(Table, Vec<Key>),
    /// Any of these statuses.
    Statuses(Vec<RunStatus>),
}

impl Source {
    /// The greatest run up to `upto` that satisfies the condition.
    fn seek(&self, view: &View<'_>, upto: RunId) -> Result<Option<RunId>, Fault> {
        let mut best = None;
        match self {
            Source::Prefixes(table, prefixes) => {
                for prefix in prefixes {
                    best = best.max(greatest(view, *table, prefix, upto)?);
                }
            }
            Source::Statuses(statuses) => {
                for status in statuses {
                    best = best.max(of_status(view, *status, upto)?);
                }
            }
        }
        Ok(best)
    }
}

fn greatest(view: &View<'_>, table: Table, prefix: &Key, upto: RunId) -> Result<Option<RunId>, Fault> {
    let mut upper = prefix.to_vec();
    upper.extend_from_slice(upto.as_bytes());
    let range = (Bound::Included(&prefix[..]), Bound::Included(&upper[..]));
    let Some(key) = view.last_key(table, range)? else { return Ok(None) };
    // A key of another length may end in a run above `upto`, and a search that goes up again never ends.
    let run = key.strip_prefix(&prefix[..]).and_then(RunId::from_slice);
    Ok(Some(run.ok_or_else(|| Corrupted::new(table, &key, "not of a run"))?))
}

/// Pending runs and leased ones stand together; the leased are those that execute.
fn of_status(view: &View<'_>, status: RunStatus, upto: RunId) -> Result<Option<RunId>, Fault> {
    if status == RunStatus::Leased {
        return Ok(view.executing(upto));
    }
    let prefix = keys::by_status_prefix(status);
    let mut found = greatest(view, Table::ByStatus, &prefix, upto)?;
    while let Some(run) = found.filter(|run| status == RunStatus::Pending && view.live(*run).is_some()) {
        found = before(run).map(|upto| greatest(view, Table::ByStatus, &prefix, upto)).transpose()?.flatten();
    }
    Ok(found)
}

/// A search that goes on over several views.
#[derive(Clone)]
struct Search {
    filter: RunFilter,
    /// Runs up to this one are still to be looked at; `None`: all were.
    upto: Option<RunId>,
    skip: usize,
    left: usize,
}

impl Search {
    fn new(filter: RunFilter) -> Self {
        let upto = filter.after.map_or(Some(RunId::MAX), before);
        Search { upto, skip: filter.offset, left: filter.limit_or_default(), filter }
    }

    /// One chunk: gives what `take` has of the runs found, which says how many bytes that is, and the names of jobs.
    fn chunk<T>(
        &mut self,
        view: &View<'_>,
        take: impl Fn(RunId) -> Result<Taken<T>, Fault>,
    ) -> Result<(Vec<T>, Names), Fault> {
        let mut found = Vec::new();
        let names = names(view)?;
        let Some(sources) = self.sources(&names) else {
            self.upto = None;
            return Ok((found, names));
        };
        let (mut seeks, mut bytes) = (0, 0);
        'runs: while self.left > 0 && seeks < SEEKS_MAX && bytes < SLICE_BYTES {
            let Some(mut upto) = self.upto else { break };
            // Every index is asked for its greatest run up to the smallest that the others gave, until all give the same.
            let mut agreed = 0;
            for source in sources.iter().cycle() {
                seeks += 1;
                let Some(run) = source.seek(view, upto)? else {
                    self.upto = None;
                    break 'runs;
                };
                agreed = if run == upto { agreed + 1 } else { 1 };
                upto = run;
                if agreed >= sources.len() {
                    break;
                }
                if seeks >= SEEKS_MAX {
                    self.upto = Some(upto);
                    break 'runs;
                }
            }
            self.upto = before(upto);
            if self.skip > 0 {
                self.skip -= 1;
            } else if let Some((taken, taken_bytes)) = take(upto)? {
                found.push(taken);
                bytes += taken_bytes;
                self.left -= 1;
            }
        }
        Ok((found, names))
    }

    /// The conditions as indexes; `None` where one of them names something that does not exist.
    fn sources(&self, names: &Names) -> Option<Vec<Source>> {
        let mut sources = Vec::new();
        if !self.filter.statuses.is_empty() {
            sources.push(Source::Statuses(self.filter.statuses.to_vec()));
        }
        if !self.filter.jobs.is_empty() {
            let wanted = names.iter().filter(|(_, name)| self.filter.jobs.iter().any(|job| **job == ***name));
            let prefixes: Vec<_> = wanted.map(|(number, _)| keys::by_job_prefix(*number)).collect();
            if prefixes.is_empty() {
                return None;
            }
            sources.push(Source::Prefixes(Table::ByJob, prefixes));
        }
        for (key, value) in &self.filter.labels {
            sources.push(Source::Prefixes(Table::ByLabel, vec![keys::by_label_prefix(key, value)]));
        }
        if let Some(parent) = self.filter.parent {
            sources.push(Source::Prefixes(Table::Children, vec![keys::run(parent)]));
        }
        if sources.is_empty() {
            sources.push(Source::Prefixes(Table::Runs, vec![Key::from(&[][..])]));
        }
        Some(sources)
    }

    fn is_over(&self) -> bool {
        self.upto.is_none() || self.left == 0
    }
}

impl Store {
    /// Runs that satisfy a filter, newest first.
    pub(crate) async fn get_runs(&self, filter: RunFilter) -> Result<Vec<Run>, Error> {
        filter.validate()?;
        let payloads = !filter.without_payloads;
        let owner = self.owner().clone();
        self.search(
            filter,
            move |view, run| rows_of(view, run, payloads),
            move |(run, rows), names| {
                let mut run = assemble(run, rows, names, &owner)?;
                if !payloads {
                    run.input = None;
                }
                Ok(run)
            },
        )
        .await
    }

    /// The ids of all runs that satisfy a filter, newest first, whatever its limit.
    pub(crate) async fn find_runs(&self, filter: RunFilter) -> Result<Vec<RunId>, Error> {
        filter.validate()?;
        let limit = filter.limit.unwrap_or(usize::MAX);
        self.search(filter.limit(limit), |_, run| Ok(Some((run, 0))), |run, _| Ok(run)).await
    }

    /// What `make` makes of what `take` has taken.
    async fn search<R: 'static, T: Send + 'static>(
        &self,
        filter: RunFilter,
        take: impl Fn(&View<'_>, RunId) -> Result<Taken<R>, Fault> + Send + Sync + 'static,
        make: impl Fn(R, &Names) -> Result<T, Fault> + Send + Sync + 'static,
    ) -> Result<Vec<T>, Error> {
        let (take, make) = (Arc::new(take), Arc::new(make));
        let search = Arc::new(std::sync::Mutex::new(Search::new(filter)));
        let mut found = Vec::new();
        loop {
            let (take, make, searching) = (take.clone(), make.clone(), search.clone());
            let (chunk, over) = self
                .read_then(
                    move |view| {
                        // A chunk that fails is searched again from where it began.
                        let mut held = searching.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        let mut search = held.clone();
                        let (taken, names) = search.chunk(view, |run| take(view, run))?;
                        let over = search.is_over();
                        *held = search;
                        Ok((taken, names, over))
                    },
                    move |(taken, names, over): (Vec<R>, Names, bool)| {
                        let made: Result<Vec<T>, Fault> = taken.into_iter().map(|run| make(run, &names)).collect();
                        Ok((made?, over))
                    },
                )
                .await?;
            found.extend(chunk);
            if over {
                return Ok(found);
            }
        }
    }
}

/// A run's rows, and how many bytes they are. The input is read in any case.
fn rows_of(view: &View<'_>, run: RunId, payloads: bool) -> Result<Taken<(RunId, Rowset)>, Fault> {
    let Some(mut rows) = rowset(view, run, payloads)? else { return Ok(None) };
    if !payloads {
        rows.input = Bytes::new();
    }
    let bytes = rows.bytes;
    Ok(Some(((run, rows), bytes)))
}

/// The run id before this one.
fn before(run: RunId) -> Option<RunId> {
    let before = u128::from_be_bytes(*run.as_bytes()).checked_sub(1)?;
    Some(RunId::from_bytes(before.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::super::backend::SharedMemory;
    use super::super::disk::Disk;
    use super::super::file::{Medium, OpenOptions};
    use super::super::stage::Stage;
    use super::*;
    use crate::codec;
    use crate::codec::records::RunRecord;
    use crate::time::{SystemClock, Timestamp};

    #[test]
    fn a_view_of_a_list_is_held_for_no_more_than_a_slice_and_one_run() {
        let medium = Medium::Memory(SharedMemory::default());
        let clock = Arc::new(SystemClock::default());
        let mut disk = Disk::open(medium, OpenOptions::default(), clock, false).expect("opens");
        let record = RunRecord {
            job: 1,
            created_at: Timestamp::from_millis(0),
            idempotency_key: None,
            idempotency_ttl_ms: None,
            keys: Vec::new(),
            priority: 0,
            labels: Vec::new(),
            fingerprint: [0; 16],
            retriggered_from: None,
            deadline: None,
            forked_from: None,
            continued_from: None,
            version: 0,
            parent: None,
            not_before: None,
            ticket: None,
            schedule: None,
        };
        let row = codec::seal(&record, format!("{:?}", "x".repeat(50 << 10)).as_bytes());
        let mut stage = Stage::default();
        for run in 1..=200 {
            stage.insert(Table::Runs, keys::run(RunId::numbered(run)), row.clone());
        }
        disk.commit(&stage, 0, RunId::numbered(200), &mut Vec::new(), |_| ()).expect("commits");

        let shared = disk.shared().clone();
        for payloads in [true, false] {
            let (mut search, mut found) = (Search::new(RunFilter::new().limit(1_000)), Vec::new());
            while !search.is_over() {
                let view = shared.view().expect("a view");
                let (taken, _) = search.chunk(&view, |run| rows_of(&view, run, payloads)).expect("reads");
                assert!(taken.len() * row.len() < SLICE_BYTES + row.len(), "{} runs at once", taken.len());
                found.extend(taken.into_iter().map(|(run, _)| run));
            }
            assert!(found.into_iter().eq((1..=200).rev().map(RunId::numbered)));
        }
    }
}
