//! What is done to runs from outside.

use std::time::Duration;

use durably::{Error, RunFilter, RunId, RunStatus, Timestamp};

use super::case::{Case, JOBS, Life, STEPS, same};
use super::operation::Kind;
use super::reference::{Filter, Refusal};

impl Case<'_> {
    pub fn done<T: std::fmt::Debug>(
        &mut self,
        kind: Kind,
        is: Result<T, Error>,
        should: Result<(), Refusal>,
    ) -> Result<Option<T>, String> {
        self.count(kind, is.is_ok());
        match (is, should) {
            (Ok(done), Ok(())) => Ok(Some(done)),
            (Err(error), Err(refusal)) if fits(&error, &refusal) => Ok(None),
            (is, should) => Err(format!("is {is:?}, should be {should:?}")),
        }
    }

    pub fn filter(&self, random: &mut fastrand::Rng) -> (Filter, RunFilter) {
        let (mut filter, mut asked) = (Filter::default(), RunFilter::new());
        for key in ["x", "y"] {
            if random.bool() {
                let value = ["0", "1"][random.usize(..2)];
                filter.labels.insert(key.to_owned(), value.to_owned());
                asked = asked.label(key, value);
            }
        }
        if random.u8(..3) == 0 {
            for _ in 0..random.usize(1..3) {
                let job = random.usize(..JOBS.len());
                filter.jobs.push(job);
                asked = asked.job(JOBS[job].0);
            }
        }
        (filter, asked)
    }

    pub async fn outside(&mut self, life: &Life, kind: Kind, random: &mut fastrand::Rng) -> Result<(), String> {
        let durably = &life.durably;
        match kind {
            Kind::CancelWhere | Kind::ResumeWhere | Kind::RetriggerWhere => {
                let (mut filter, asked) = self.filter(random);
                let most = random.usize(..4);
                let asked = asked.limit(most);
                use RunStatus::{Cancelled, Completed, Failed, Leased, Pending};
                filter.statuses = match kind {
                    Kind::CancelWhere => vec![Pending, Leased],
                    Kind::ResumeWhere => vec![Failed, Cancelled],
                    _ => vec![Completed, Failed, Cancelled],
                };
                let mut found = self.model.find(&filter);
                found.truncate(most);
                match kind {
                    Kind::CancelWhere => {
                        let count = durably.cancel_where(asked).await;
                        same!(count.ok(), Some(found.len()), "cancelled");
                        self.uncertain_logs.extend(&found);
                        self.model.cancel_all(&found);
                    }
                    Kind::ResumeWhere => {
                        let count = durably.resume_where(asked).await;
                        same!(count.ok(), Some(found.len()), "resumed");
                        self.model.resume_all(&found, &[]);
                    }
                    _ => {
                        let new = durably.retrigger_where(asked).await;
                        let mut should = Ok(Vec::new());
                        for number in found {
                            match (self.model.retrigger(number), &mut should) {
                                (Ok(new), Ok(list)) => list.push(new),
                                (Err(refusal), should) => {
                                    *should = Err(refusal);
                                    break;
                                }
                                _ => {}
                            }
                        }
                        match (new, should) {
                            (Ok(new), Ok(should)) => {
                                same!(new.len(), should.len(), "retriggered");
                                for (id, number) in new.into_iter().zip(should) {
                                    self.created(id, number)?;
                                }
                            }
                            // What was retriggered before the one that is refused stays, and its id is not told.
                            (Err(error), Err(refusal)) if fits(&error, &refusal) => self.adopt(life).await?,
                            (is, should) => return Err(format!("is {is:?}, should be {should:?}")),
                        }
                    }
                }
                self.count(kind, true);
            }
            Kind::Purge | Kind::PurgeUpTo => {
                let before = self.model.now.saturating_sub(random.u64(..20_000)) + 1;
                let limit = if kind == Kind::Purge { usize::MAX } else { random.usize(..3) };
                let at = Timestamp::from_millis(before);
                let purged = match kind {
                    Kind::Purge => durably.purge_runs(at).await,
                    _ => durably.purge_up_to(at, limit).await,
                };
                self.count(kind, purged.is_ok());
                same!(purged.ok(), Some(self.model.purge(before, limit)), "purged");
            }
            _ => {
                let Some((number, id)) = self.any(random) else { return Ok(()) };
                match kind {
                    Kind::Cancel => {
                        let is = durably.cancel(id).await;
                        self.uncertain_logs.insert(number);
                        let should = self.model.cancel(number);
                        self.done(kind, is, should)?;
                    }
                    Kind::Retrigger => {
                        let is = durably.retrigger(id).await;
                        let should = self.model.retrigger(number);
                        let made = should.clone().ok();
                        if let (Some(run), Some(made)) = (self.done(kind, is, should.map(drop))?, made) {
                            self.created(run.id(), made)?;
                        }
                    }
                    Kind::Resume => {
                        let clear: Vec<String> =
                            STEPS.iter().filter(|_| random.u8(..4) == 0).map(|key| (*key).to_owned()).collect();
                        let is = durably.resume(id).clear_failures(clear.iter()).await;
                        let should = self.model.resume(number, &clear);
                        self.done(kind, is, should)?;
                    }
                    Kind::Delete => {
                        let is = durably.delete_run(id).await;
                        let should = self.model.delete(number);
                        self.done(kind, is, should)?;
                    }
                    other => return Err(format!("{other:?} is carried out nowhere")),
                }
            }
        }
        Ok(())
    }

    /// Learns the ids of runs that were created without being told.
    pub async fn adopt(&mut self, life: &Life) -> Result<(), String> {
        let runs = life.durably.get_runs(RunFilter::new().limit(1_000)).await.map_err(|error| error.to_string())?;
        let last = self.ids.last().copied();
        let new: Vec<RunId> = runs.iter().map(|run| run.id).filter(|id| last.is_none_or(|last| *id > last)).collect();
        self.ids.extend(new.into_iter().rev());
        Ok(())
    }

    pub async fn wait(&mut self, life: &Life, random: &mut fastrand::Rng) -> Result<(), String> {
        let Some((number, id)) = self.any(random) else { return Ok(()) };
        let waited = life.durably.wait_for_run(id).timeout(Duration::from_millis(1)).await;
        self.count(Kind::Wait, waited.is_ok());
        let is = match &waited {
            Ok(run) => Some(run.status),
            Err(Error::RunFailed { .. }) => Some(RunStatus::Failed),
            Err(Error::RunCancelled { .. }) => Some(RunStatus::Cancelled),
            Err(Error::WaitTimeout { .. }) => Some(RunStatus::Pending),
            Err(Error::RunNotFound { .. }) => None,
            Err(other) => return Err(other.to_string()),
        };
        let should = self
            .model
            .runs
            .get(&number)
            .map(|run| if run.status.is_terminal() { run.status } else { RunStatus::Pending });
        same!(is, should, "waiting for {id}");
        Ok(())
    }

    /// Whoever asks after the end is told so.
    pub async fn closed(&mut self, life: &Life) -> Result<(), String> {
        let durably = &life.durably;
        let id = self.ids.last().copied().unwrap_or_else(some_id);
        let filter = || RunFilter::new();
        let before = Timestamp::from_millis(0);
        let answers = [
            (Kind::CancelWhere, durably.cancel_where(filter()).await.err()),
            (Kind::ResumeWhere, durably.resume_where(filter()).await.err()),
            (Kind::RetriggerWhere, durably.retrigger_where(filter()).await.err()),
            (Kind::Purge, durably.purge_runs(before).await.err()),
            (Kind::PurgeUpTo, durably.purge_up_to(before, 1).await.err()),
            (Kind::GetRun, durably.get_run(id).await.err()),
            (Kind::GetRuns, durably.get_runs(filter()).await.err()),
            (Kind::GetSteps, durably.get_steps(id).await.err()),
            (Kind::GetLogs, durably.get_logs(id).await.err()),
            (Kind::Stats, durably.stats().await.err()),
            (Kind::Subscribe, durably.subscribe(id).await.err()),
            (Kind::Start, durably.start().await.err()),
            (Kind::Stop, durably.stop().await.err()),
            (Kind::RunUntilIdle, durably.run_until_idle(None).await.err()),
        ];
        for (kind, error) in answers {
            self.count(kind, error.is_none());
            if !matches!(error, Some(Error::ShutDown)) {
                return Err(format!("{kind:?} after the end: {error:?}"));
            }
        }
        Ok(())
    }
}

/// An id for questions that nobody answers.
fn some_id() -> RunId {
    "01KWDFKD007RZR956N5TAESCXH".parse().expect("an id")
}

pub fn fits(error: &Error, refusal: &Refusal) -> bool {
    match (error, refusal) {
        (Error::RunNotFound { .. }, Refusal::NotFound)
        | (Error::JobNotFound { .. }, Refusal::UnknownJob)
        | (Error::KeyConflict { .. }, Refusal::KeyConflict)
        | (Error::IdempotencyMismatch { .. }, Refusal::Mismatch) => true,
        (Error::Conflict { status, .. }, Refusal::Status(other)) => status == other,
        _ => false,
    }
}
