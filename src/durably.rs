//! The façade: opening a runtime, and everything that is asked of it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::actor::message::SupervisorMsg;
use crate::actor::{self, Dispatch, Hub};
use crate::config::{Config, LogRetention, StepRetention};
use crate::engine::{Action, refuse};
use crate::error::Error;
use crate::event::{Events, RunEvents};
use crate::id::RunId;
use crate::job::{Register, Registry};
use crate::limits::{PURGE_SLICE, UNACKED_CALLS_MAX};
use crate::run::{LogLine, Run, RunFilter, RunHandle, RunStatus, StepInfo};
use crate::step::blocking::Pool;
use crate::step::execution::Means;
use crate::store::backend::SharedMemory;
use crate::store::file::Medium;
use crate::store::op::{Admitted, NewRun, Op, Purge, Resume, Targets, Triggered};
use crate::store::{Placement, Store};
use crate::time::{Clock, Timestamp};
use crate::trigger::{JsonTrigger, Options, WaitForRun};

/// Runs done something to in one commit, where a filter finds many.
const BULK: usize = 500;

/// What every handle of a runtime shares.
pub(crate) struct Core {
    pub(crate) store: Store,
    pub(crate) registry: Registry,
    pub(crate) config: Config,
    pub(crate) hub: Hub,
    pub(crate) requests: Arc<Semaphore>,
    pool: Arc<Pool>,
    draining: CancellationToken,
    closed: AtomicBool,
    shutting_down: tokio::sync::Mutex<()>,
}

/// A runtime: jobs, their runs, and the one file they are in.
///
/// Clones are cheap and the same runtime. Dropping the last of them without [`Durably::shutdown`] is a crash-stop: bodies are
/// dropped at their next await and the file is let go of; what was executing is recovered by the next open.
#[derive(Clone)]
pub struct Durably {
    core: Arc<Core>,
    _life: Arc<Life>,
}

/// Ends the runtime with the last [`Durably`].
struct Life(Arc<Core>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.crash();
    }
}

impl fmt::Debug for Durably {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Durably").field("health", &self.health()).finish_non_exhaustive()
    }
}

/// How a runtime is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// It works.
    Ok,
    /// The file failed, or the disk is full: the store is reopening it, or works without its reserve. What bodies have
    /// finished is held meanwhile.
    Degraded,
    /// It is being shut down: no run is started any more.
    Draining,
    /// It has been shut down.
    Closed,
}

/// Runs by job and status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// One entry a job that has ever had a run, by name.
    pub jobs: Vec<JobStats>,
    /// Commits since the file was opened.
    pub commits: u64,
    /// Flushes of the file since it was opened.
    pub flushes: u64,
    /// Bytes written to the file since it was opened.
    pub bytes_written: u64,
}

/// The runs of one job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobStats {
    /// The job's name.
    pub name: String,
    /// Runs in each status, in the order of [`RunStatus::ALL`].
    pub counts: [u64; 6],
}

impl JobStats {
    /// Runs in a status.
    pub fn count(&self, status: RunStatus) -> u64 {
        RunStatus::ALL.iter().position(|other| *other == status).map_or(0, |at| self.counts[at])
    }
}

/// How a runtime is to be opened.
#[derive(Debug, Clone, Default)]
#[must_use = "a builder opens nothing by itself"]
pub struct Builder {
    config: Config,
}

impl Builder {
    /// Runs that execute at a time, 1 to 65,536; default 64.
    pub fn max_concurrent_runs(mut self, runs: usize) -> Self {
        self.config.max_concurrent_runs = runs;
        self
    }

    /// How often in a row a run may take the process with it, without a new checkpoint, before it is failed as poisoned;
    /// default 3.
    pub fn max_recoveries(mut self, recoveries: u32) -> Self {
        self.config.max_recoveries = recoveries;
        self
    }

    /// How long a body may go on after its cancel before it is dropped; default 5 s.
    pub fn cancel_grace(mut self, grace: Duration) -> Self {
        self.config.cancel_grace = grace;
        self
    }

    /// How long a shutdown waits for executing runs; default 20 s.
    pub fn shutdown_grace(mut self, grace: Duration) -> Self {
        self.config.shutdown_grace = grace;
        self
    }

    /// How long a call waits for room among the writes that wait for the disk; default 1 s.
    pub fn admission_timeout(mut self, timeout: Duration) -> Self {
        self.config.admission_timeout = timeout;
        self
    }

    /// The most bytes of JSON that an input, an output and a checkpoint may have each, 1 to 64 MiB; default 1 MiB.
    pub fn payload_bytes_max(mut self, bytes: usize) -> Self {
        self.config.payload_bytes_max = bytes;
        self
    }

    /// How long checkpoints are kept; default as long as their run.
    pub fn keep_steps(mut self, retention: StepRetention) -> Self {
        self.config.keep_steps = retention;
        self
    }

    /// How long log lines are kept; default as long as their run.
    pub fn keep_logs(mut self, retention: LogRetention) -> Self {
        self.config.keep_logs = retention;
        self
    }

    /// Purge terminal runs this long after their end, in the background; default never.
    pub fn retain_runs(mut self, retention: Duration) -> Self {
        self.config.retain_runs = Some(retention);
        self
    }

    /// Start no run before [`Durably::start`]; default false.
    pub fn paused(mut self, paused: bool) -> Self {
        self.config.paused = paused;
        self
    }

    /// Commit in two phases always. By default a commit is one flush, which survives every crash and power loss on a disk that
    /// keeps its word; two phases also survive damage to the newest page, at two flushes a commit.
    pub fn two_phase_commit(mut self, two_phase: bool) -> Self {
        self.config.two_phase_commit = two_phase;
        self
    }

    /// Memory for cached pages of the file, bytes, 1 MiB to 1 TiB; default 64 MiB.
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.config.cache_bytes = bytes;
        self
    }

    /// How long an open waits for another holder to let go of the file; default 1 s.
    pub fn lock_wait(mut self, wait: Duration) -> Self {
        self.config.lock_wait = wait;
        self
    }

    /// Threads for blocking steps, 1 to 4,096, started when they are needed; default 64.
    pub fn blocking_threads(mut self, threads: usize) -> Self {
        self.config.blocking_threads = threads;
        self
    }

    /// The clock; default the system's.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.config.clock = Arc::new(clock);
        self
    }

    /// Fixes the random part of run ids, for tests that compare them.
    pub fn seed(mut self, seed: u64) -> Self {
        self.config.seed = Some(seed);
        self
    }

    /// Opens the file, or creates it. See [`Durably::open`].
    ///
    /// # Errors
    /// Those of [`Durably::open`], and [`Error::InvalidOption`] for a setting out of its range.
    pub async fn open(self, path: impl AsRef<Path>) -> Result<Durably, Error> {
        self.open_medium(Medium::File(path.as_ref().to_owned())).await
    }

    /// Opens a runtime in memory. See [`Durably::in_memory`].
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a setting out of its range, [`Error::NoRuntime`].
    pub async fn in_memory(self) -> Result<Durably, Error> {
        self.open_medium(Medium::Memory(SharedMemory::default())).await
    }

    async fn open_medium(self, medium: Medium) -> Result<Durably, Error> {
        let config = self.config;
        config.validate()?;
        tokio::runtime::Handle::try_current().map_err(|_| Error::NoRuntime)?;
        if cfg!(panic = "abort") {
            tracing::warn!(
                "built with panic=abort: a panic in a job's body ends the process instead of failing its run"
            );
        }
        let opening = config.clone();
        let opened = tokio::task::spawn_blocking(move || Store::open(medium, &opening, Placement::Threads));
        let store = opened.await.map_err(|_| Error::ShutDown)??;
        Durably::over(store, config).await
    }
}

impl Durably {
    /// Opens a runtime over a file, creating it if there is none, and starts working: runs that were executing when the last
    /// process ended are pending again, and start as soon as their jobs are registered.
    ///
    /// # Errors
    /// [`Error::AlreadyOpen`], [`Error::NotADatabase`], [`Error::NewerFormat`], [`Error::Damaged`], [`Error::Open`],
    /// [`Error::NoRuntime`]. The file is left as it is.
    ///
    /// # Cancel safety
    /// Dropped, the file is let go of again.
    pub async fn open(path: impl AsRef<Path>) -> Result<Durably, Error> {
        Durably::builder().open(path).await
    }

    /// A runtime whose file is in memory: the same engine, for tests and trials. Nothing survives it.
    ///
    /// # Errors
    /// [`Error::NoRuntime`].
    pub async fn in_memory() -> Result<Durably, Error> {
        Durably::builder().in_memory().await
    }

    /// Settings for a runtime to be opened.
    pub fn builder() -> Builder {
        Builder::default()
    }

    async fn over(store: Store, config: Config) -> Result<Durably, Error> {
        let core = Arc::new(Core {
            store,
            registry: Registry::default(),
            hub: Hub::default(),
            requests: Arc::new(Semaphore::new(UNACKED_CALLS_MAX)),
            pool: Arc::new(Pool::new(config.blocking_threads)),
            draining: CancellationToken::new(),
            closed: AtomicBool::new(false),
            shutting_down: tokio::sync::Mutex::new(()),
            config,
        });
        let durably = Durably { core: core.clone(), _life: Arc::new(Life(core.clone())) };
        actor::start(&core).await?;
        core.store.connect(Arc::new(Dispatch(Arc::downgrade(&core))))?;
        if let Some(retention) = core.config.retain_runs {
            tokio::spawn(retain(Arc::downgrade(&core), retention, core.draining.clone()));
        }
        Ok(durably)
    }

    /// Registers a job, or a tuple of jobs: all of them or none. Runs that waited for their code start now. The same definition
    /// again gives an equal handle.
    ///
    /// # Errors
    /// [`Error::JobAlreadyRegistered`], [`Error::InvalidOption`] for a name, [`Error::InvalidSchema`].
    pub fn register<R: Register>(&self, jobs: R) -> Result<R::Handles, Error> {
        crate::job::register(&self.core, jobs)
    }

    /// A registered job by name, for its names and schemas; `None` if there is none.
    pub fn get_job(&self, name: &str) -> Option<JobInfo> {
        let definition = self.core.registry.get(name)?;
        Some(JobInfo { core: self.core.clone(), definition })
    }

    /// Asks for a run of a job by name, with JSON input: for servers and command lines. Await the returned builder.
    ///
    /// # Errors
    /// [`Error::JobNotFound`], and those of [`JobHandle::trigger`](crate::JobHandle::trigger).
    #[must_use = "a trigger does nothing until it is awaited"]
    pub fn trigger_json(&self, job: impl Into<String>, input: Value) -> JsonTrigger {
        JsonTrigger::new(self.core.clone(), job.into(), input, true)
    }

    /// Cancels a run. Once this returns, nothing that the run finishes is recorded and no step of it starts; a body that is
    /// executing goes on for up to `cancel_grace` and is then dropped at its next await.
    ///
    /// # Errors
    /// [`Error::RunNotFound`], [`Error::Conflict`] if it has ended, [`Error::Overloaded`], [`Error::Indeterminate`].
    ///
    /// # Cancel safety
    /// Once begun it is carried out, whether or not it is waited for.
    pub async fn cancel(&self, run: RunId) -> Result<(), Error> {
        self.core.cancel(run).await
    }

    /// Cancels every run of a filter that has not ended, in commits of up to 500; gives how many. The filter's limit applies
    /// only if it was set.
    ///
    /// # Errors
    /// Those of [`Durably::get_runs`] and [`Durably::cancel`].
    pub async fn cancel_where(&self, filter: RunFilter) -> Result<usize, Error> {
        self.core.cancel_where(filter).await
    }

    /// Creates a new run with the stored input, concurrency key and labels of one that has ended. The idempotency key is not
    /// taken over, and no checkpoint.
    ///
    /// # Errors
    /// [`Error::RunNotFound`], [`Error::JobNotFound`], [`Error::Conflict`] if it has not ended, [`Error::InvalidInput`] if the
    /// registered code does not take its input any more.
    pub async fn retrigger(&self, run: RunId) -> Result<RunHandle<Value>, Error> {
        Ok(RunHandle::new(self.core.clone(), self.core.retrigger(run).await?))
    }

    /// Retriggers every run of a filter that has ended; gives the new runs' ids.
    ///
    /// # Errors
    /// Those of [`Durably::get_runs`] and [`Durably::retrigger`].
    pub async fn retrigger_where(&self, filter: RunFilter) -> Result<Vec<RunId>, Error> {
        self.core.retrigger_where(filter).await
    }

    /// Goes on with a failed or cancelled run under its id, with its checkpoints, from the back of the line. Only the failure
    /// that ended it is cleared: one that the body caught stays, since what followed it was recorded. Await the returned value.
    ///
    /// # Errors
    /// [`Error::RunNotFound`], [`Error::Conflict`] if it has not failed or been cancelled.
    pub fn resume(&self, run: RunId) -> ResumeRun {
        ResumeRun { core: self.core.clone(), run, clear: Vec::new() }
    }

    /// Resumes every run of a filter that can be; gives how many.
    ///
    /// # Errors
    /// Those of [`Durably::get_runs`] and [`Durably::resume`].
    pub async fn resume_where(&self, filter: RunFilter) -> Result<usize, Error> {
        self.core.resume_where(filter, Vec::new()).await
    }

    /// Deletes a run that has ended, with everything that belongs to it; its idempotency key is free.
    ///
    /// # Errors
    /// [`Error::RunNotFound`], [`Error::Conflict`] if it has not ended.
    pub async fn delete_run(&self, run: RunId) -> Result<(), Error> {
        self.core.delete_run(run).await
    }

    /// Deletes runs that ended before a moment, oldest end first, in small commits; gives how many. Runs whose
    /// `idempotency_ttl` is not over stay.
    ///
    /// # Errors
    /// [`Error::Overloaded`], [`Error::Indeterminate`], [`Error::ShutDown`].
    pub async fn purge_runs(&self, older_than: Timestamp) -> Result<usize, Error> {
        self.core.purge_runs(older_than, usize::MAX).await
    }

    /// Like [`Durably::purge_runs`], at most `limit` runs.
    ///
    /// # Errors
    /// As [`Durably::purge_runs`].
    pub async fn purge_up_to(&self, older_than: Timestamp, limit: usize) -> Result<usize, Error> {
        self.core.purge_runs(older_than, limit).await
    }

    /// Waits for a run to complete. Set a timeout or callbacks, then await the returned value for the run.
    ///
    /// # Errors
    /// [`Error::RunNotFound`], also if it is deleted meanwhile, [`Error::RunFailed`], [`Error::RunCancelled`],
    /// [`Error::WaitTimeout`], [`Error::WouldDeadlock`] inside a body, [`Error::ShutDown`].
    ///
    /// # Cancel safety
    /// Dropping it stops waiting; the run goes on.
    pub fn wait_for_run(&self, run: RunId) -> WaitForRun {
        WaitForRun::new(self.core.clone(), run)
    }

    /// A run as it is now; `None` if there is none of this id.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::Corrupted`].
    pub async fn get_run(&self, run: RunId) -> Result<Option<Run>, Error> {
        self.core.store.get_run(run).await
    }

    /// Runs that satisfy a filter, newest first.
    ///
    /// # Errors
    /// [`Error::TooMany`] and [`Error::InvalidOption`] for the filter, [`Error::Storage`], [`Error::Corrupted`].
    pub async fn get_runs(&self, filter: RunFilter) -> Result<Vec<Run>, Error> {
        self.core.store.get_runs(filter).await
    }

    /// The recorded steps of a run, by index.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::Corrupted`].
    pub async fn get_steps(&self, run: RunId) -> Result<Vec<StepInfo>, Error> {
        self.core.store.get_steps(run).await
    }

    /// The stored log lines of a run, in order.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::Corrupted`].
    pub async fn get_logs(&self, run: RunId) -> Result<Vec<LogLine>, Error> {
        self.core.store.get_logs(run).await
    }

    /// Every event from now on; [`Events::after`] goes back to a sequence.
    pub fn events(&self) -> Events {
        Events::new(self.core.clone())
    }

    /// One run's events: first where it stands, then what happens, up to its end.
    ///
    /// # Errors
    /// [`Error::RunNotFound`], [`Error::Storage`], [`Error::Corrupted`].
    pub async fn subscribe(&self, run: RunId) -> Result<RunEvents, Error> {
        RunEvents::new(self.core.clone(), run).await
    }

    /// Runs by job and status, and what the file has cost.
    ///
    /// # Errors
    /// [`Error::ShutDown`].
    pub async fn stats(&self) -> Result<Stats, Error> {
        self.core.stats().await
    }

    /// How the runtime is.
    pub fn health(&self) -> Health {
        self.core.health()
    }

    /// Starts runs, after `paused(true)` or [`Durably::stop`]. Again, it does nothing.
    ///
    /// # Errors
    /// [`Error::ShutDown`].
    pub async fn start(&self) -> Result<(), Error> {
        self.core.pause(false).await
    }

    /// Starts no new run, and returns once the executing ones have ended. Triggers, queries and cancels go on.
    ///
    /// # Errors
    /// [`Error::ShutDown`].
    ///
    /// # Cancel safety
    /// Dropped, no new run is started all the same.
    pub async fn stop(&self) -> Result<(), Error> {
        self.core.stop().await
    }

    /// Works the queue off and returns how many runs ended: for programs and tests that are paused otherwise. `max` bounds how
    /// many runs are started (or, in a runtime that is not paused, are waited for).
    ///
    /// # Errors
    /// [`Error::ShutDown`].
    pub async fn run_until_idle(&self, max: impl Into<Option<u64>>) -> Result<u64, Error> {
        self.core.run_until_idle(max.into()).await
    }

    /// The supervisor's `ActorRef`: everything that can be done here can also be done by message.
    ///
    /// Should the supervisor have been rebuilt after a fault of ours, this gives the new one. `None` once the runtime is shut
    /// down.
    pub fn actor_ref(&self) -> Option<ractor::ActorRef<SupervisorMsg>> {
        self.core.hub.supervisor().filter(|_| !self.core.is_closed())
    }

    /// Shuts down: starts no run, fires `draining`, waits for executing runs up to the grace, hands the rest back as pending,
    /// and closes the file. Again, it does nothing.
    ///
    /// # Errors
    /// [`Error::Storage`] if the file could not be closed cleanly; nothing is lost by that.
    ///
    /// # Cancel safety
    /// Dropped, the runtime stays draining; call it again to end it.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.core.shutdown().await
    }
}

/// A registered job as seen by name.
#[derive(Clone)]
pub struct JobInfo {
    core: Arc<Core>,
    definition: Arc<crate::job::Definition>,
}

impl fmt::Debug for JobInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobInfo").field("name", &self.definition.name).finish_non_exhaustive()
    }
}

impl JobInfo {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.definition.name
    }

    /// The JSON Schema that inputs must satisfy.
    pub fn input_schema(&self) -> &Value {
        self.definition.input_schema()
    }

    /// The JSON Schema that outputs satisfy.
    pub fn output_schema(&self) -> &Value {
        self.definition.output_schema()
    }

    /// Asks for a run, as [`Durably::trigger_json`].
    #[must_use = "a trigger does nothing until it is awaited"]
    pub fn trigger(&self, input: Value) -> JsonTrigger {
        JsonTrigger::new(self.core.clone(), self.definition.name.to_string(), input, true)
    }
}

/// A resume that has not been sent: name further failures to clear, then await it.
#[must_use = "a resume does nothing until it is awaited"]
pub struct ResumeRun {
    core: Arc<Core>,
    run: RunId,
    clear: Vec<String>,
}

impl fmt::Debug for ResumeRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResumeRun").field("run", &self.run).field("clear", &self.clear).finish_non_exhaustive()
    }
}

impl ResumeRun {
    /// Also clears the recorded failures of these steps, though the body caught them, so that they run again.
    pub fn clear_failures<K: Into<crate::step::StepKey>>(mut self, keys: impl IntoIterator<Item = K>) -> Self {
        self.clear.extend(keys.into_iter().map(|key| key.into().to_string()));
        self
    }
}

impl std::future::IntoFuture for ResumeRun {
    type Output = Result<(), Error>;
    type IntoFuture = std::pin::Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.core.resume(self.run, self.clear).await })
    }
}

impl Core {
    /// What an execution works with.
    pub(crate) fn means(&self) -> Means {
        Means {
            store: self.store.clone(),
            clock: self.config.clock.clone(),
            pool: self.pool.clone(),
            draining: self.draining.clone(),
            payload_bytes_max: self.config.payload_bytes_max,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn health(&self) -> Health {
        if self.is_closed() {
            Health::Closed
        } else if self.draining.is_cancelled() {
            Health::Draining
        } else if self.store.is_degraded() {
            Health::Degraded
        } else {
            Health::Ok
        }
    }

    /// A trigger of a registered job, checked whole.
    pub(crate) fn build_json(
        &self,
        job: &str,
        input: &Value,
        options: Options,
        from: Option<RunId>,
    ) -> Result<NewRun, Error> {
        let definition = self.registry.get(job).ok_or_else(|| Error::JobNotFound { name: job.to_owned() })?;
        let input = definition.admit(input)?;
        options.build(definition.name.clone(), input, self.config.payload_bytes_max, from)
    }

    pub(crate) async fn cancel(&self, run: RunId) -> Result<(), Error> {
        let admitted = self.store.admit(0, true).await?;
        let targets = Targets { runs: vec![run], strict: true };
        self.store.submit(Op::Cancel, targets, admitted).answer().await.map(drop)
    }

    pub(crate) async fn cancel_where(&self, filter: RunFilter) -> Result<usize, Error> {
        let filter = filter.or_statuses(&[RunStatus::Pending, RunStatus::Leased, RunStatus::Suspended]);
        let mut count = 0;
        for runs in self.store.find_runs(filter).await?.chunks(BULK) {
            let admitted = self.store.admit(0, true).await?;
            let targets = Targets { runs: runs.to_vec(), strict: false };
            count += self.store.submit(Op::Cancel, targets, admitted).answer().await?;
        }
        Ok(count)
    }

    pub(crate) async fn retrigger(&self, run: RunId) -> Result<Triggered, Error> {
        let old = self.store.get_run(run).await?.ok_or(Error::RunNotFound { run })?;
        if self.registry.get(&old.job_name).is_none() {
            return Err(Error::JobNotFound { name: old.job_name });
        }
        if refuse(Action::Retrigger, old.status) {
            return Err(Error::Conflict { action: "retrigger", run, status: old.status });
        }
        let limit = self.store.rowset(run).await?.record.key_limit;
        let options = Options {
            limit: old.concurrency_key.as_ref().map(|_| limit),
            concurrency_key: old.concurrency_key,
            labels: old.labels.into_iter().collect(),
            ..Options::default()
        };
        let input = old.input.unwrap_or(Value::Null);
        let new = self.build_json(&old.job_name, &input, options, Some(run))?;
        let triggered = crate::trigger::send(self, vec![new], true).await?;
        triggered.first().copied().ok_or(Error::ShutDown)
    }

    pub(crate) async fn retrigger_where(&self, filter: RunFilter) -> Result<Vec<RunId>, Error> {
        let filter = filter.or_statuses(&[RunStatus::Completed, RunStatus::Failed, RunStatus::Cancelled]);
        let mut new = Vec::new();
        for run in self.store.find_runs(filter).await? {
            match self.retrigger(run).await {
                Ok(triggered) => new.push(triggered.run),
                // It was deleted or resumed since it was found.
                Err(Error::RunNotFound { .. } | Error::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(new)
    }

    pub(crate) async fn resume(&self, run: RunId, clear_failures: Vec<String>) -> Result<(), Error> {
        let admitted = self.store.admit(0, true).await?;
        let resume = Resume { targets: Targets { runs: vec![run], strict: true }, clear_failures };
        self.store.submit(Op::Resume, resume, admitted).answer().await.map(drop)
    }

    pub(crate) async fn resume_where(&self, filter: RunFilter, clear_failures: Vec<String>) -> Result<usize, Error> {
        let filter = filter.or_statuses(&[RunStatus::Failed, RunStatus::Cancelled]);
        let mut count = 0;
        for runs in self.store.find_runs(filter).await?.chunks(BULK) {
            let admitted = self.store.admit(0, true).await?;
            let targets = Targets { runs: runs.to_vec(), strict: false };
            let resume = Resume { targets, clear_failures: clear_failures.clone() };
            count += self.store.submit(Op::Resume, resume, admitted).answer().await?;
        }
        Ok(count)
    }

    pub(crate) async fn delete_run(&self, run: RunId) -> Result<(), Error> {
        let admitted = self.store.admit(0, true).await?;
        self.store.submit(Op::Delete, run, admitted).answer().await
    }

    pub(crate) async fn purge_runs(&self, before: Timestamp, limit: usize) -> Result<usize, Error> {
        let (mut deleted, mut after) = (0, None);
        while deleted < limit {
            let admitted = self.store.admit(0, true).await?;
            let purge = Purge { before, limit: PURGE_SLICE.min(limit - deleted), after };
            let slice = self.store.submit(Op::Purge, purge, admitted).answer().await?;
            deleted += slice.deleted;
            after = slice.after;
            if after.is_none() {
                break;
            }
        }
        Ok(deleted)
    }

    pub(crate) async fn stats(&self) -> Result<Stats, Error> {
        let counts = self.store.submit(Op::Stats, (), Admitted::default()).answer().await?;
        Ok(Stats {
            jobs: counts.jobs.into_iter().map(|(name, counts)| JobStats { name, counts }).collect(),
            commits: counts.commits,
            flushes: counts.flushes,
            bytes_written: counts.bytes_written,
        })
    }

    pub(crate) async fn pause(&self, paused: bool) -> Result<(), Error> {
        if self.draining.is_cancelled() {
            return Err(Error::ShutDown);
        }
        self.store.submit(Op::Pause, paused, Admitted::default()).answer().await
    }

    pub(crate) async fn stop(&self) -> Result<(), Error> {
        self.pause(true).await?;
        self.store.submit(Op::Quiet, (), Admitted::default()).answer().await
    }

    pub(crate) async fn run_until_idle(&self, limit: Option<u64>) -> Result<u64, Error> {
        self.store.submit(Op::Idle, limit, Admitted::default()).answer().await
    }

    pub(crate) async fn shutdown(&self) -> Result<(), Error> {
        let _alone = self.shutting_down.lock().await;
        if self.is_closed() {
            return Ok(());
        }
        // No run starts from here on, before anyone is told to hurry.
        drop(self.store.submit(Op::Pause, true, Admitted::default()).answer().await);
        self.draining.cancel();
        let quiet = || self.store.submit(Op::Quiet, (), Admitted::default()).answer();
        if tokio::time::timeout(self.config.shutdown_grace, quiet()).await.is_err() {
            self.hub.bodies.hand_back_all();
            // A body is dropped at its next await; one that does not come to any is left behind.
            if tokio::time::timeout(LEAVE_BEHIND_AFTER, quiet()).await.is_err() {
                let left = self.hub.bodies.hand_back_all();
                tracing::warn!(runs = ?left, blocking = self.pool.busy(), "bodies did not stop and are left behind");
            }
        }
        let closed = self.store.submit(Op::Close, true, Admitted::default()).answer().await;
        self.closed.store(true, Ordering::Release);
        self.hub.kill();
        closed
    }

    /// Ends without ceremony: what executes is found as crashed by the next open.
    fn crash(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        drop(self.store.submit(Op::Close, false, Admitted::default()));
        self.draining.cancel();
        self.hub.kill();
    }
}

/// How long bodies have to stop once a shutdown has dropped them.
const LEAVE_BEHIND_AFTER: Duration = Duration::from_millis(500);

/// Purges what has been terminal for long enough, in the background.
async fn retain(core: std::sync::Weak<Core>, retention: Duration, draining: CancellationToken) {
    let period = (retention / 4).clamp(Duration::from_millis(100), Duration::from_secs(60));
    loop {
        let Some(core) = core.upgrade() else { return };
        let before = core.config.clock.now().saturating_sub(retention);
        if let Err(error) = core.purge_runs(before, usize::MAX).await {
            tracing::warn!(%error, "runs past their retention could not be purged; it is tried again");
        }
        drop(core);
        tokio::select! {
            biased;
            () = draining.cancelled() => return,
            () = tokio::time::sleep(period) => {}
        }
    }
}
