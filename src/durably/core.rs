//! What every handle of a runtime shares: the store, the registry, the actors, and what is done with them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::fork::ForkRequest;
use super::{Health, JobStats, Stats};
use crate::actor::{self, Dispatch, Hub};
use crate::config::Config;
use crate::engine::{Action, refuse};
use crate::error::Error;
use crate::hooks::{Bug, Failpoint};
use crate::id::RunId;
use crate::job::Registry;
use crate::limits::{PURGE_SLICE, SIGNAL_NAME_BYTES_MAX, UNACKED_CALLS_MAX};
use crate::quietly::quietly;
use crate::run::{Explanation, Run, RunFilter, RunStatus};
use crate::step::blocking::Pool;
use crate::step::execution::Means;
use crate::store::Store;
use crate::store::compact::Compaction;
use crate::store::op::{Admitted, NewRun, Op, Purge, Resume, Signal, Targets, Triggered};
use crate::time::Timestamp;
use crate::trigger::Options;
use crate::trigger::labels::within;

/// Runs done something to in one commit, where a filter finds many.
const BULK: usize = 500;

/// Sees to it that a writer without a thread does what is due, as long as there is one.
async fn keep_time(core: Weak<Core>) {
    while let Some(idle) = core.upgrade().and_then(|core| core.store.idle_for()) {
        let changed = idle.changed.notified();
        match idle.timeout {
            Some(timeout) => {
                if tokio::time::timeout(timeout, changed).await.is_err()
                    && let Some(core) = core.upgrade()
                {
                    core.store.send(Op::Tick);
                }
            }
            None => changed.await,
        }
    }
}

/// Whether JSON that is to be stored can be read again: nested too deep, or no JSON at all, it would be as good as lost.
fn read_back(json: &[u8]) -> Result<(), serde_json::Error> {
    serde_json::from_slice::<Value>(json).map(drop)
}

/// What every handle of a runtime shares.
pub(crate) struct Core {
    pub(crate) store: Store,
    pub(crate) registry: Registry,
    pub(crate) config: Config,
    pub(crate) hub: Hub,
    pub(crate) requests: Arc<Semaphore>,
    means: Arc<Means>,
    closed: AtomicBool,
    shutting_down: tokio::sync::Mutex<()>,
}

impl Core {
    pub(super) fn new(store: Store, config: Config) -> Arc<Core> {
        let means = Means {
            store: store.clone(),
            clock: config.clock.clone(),
            pool: Arc::new(Pool::new(config.blocking_threads)),
            draining: CancellationToken::new(),
            payload_bytes_max: config.payload_bytes_max,
            hooks: config.hooks.clone(),
        };
        Arc::new(Core {
            store,
            registry: Registry::default(),
            hub: Hub::default(),
            requests: Arc::new(Semaphore::new(UNACKED_CALLS_MAX)),
            means: Arc::new(means),
            closed: AtomicBool::new(false),
            shutting_down: tokio::sync::Mutex::new(()),
            config,
        })
    }

    /// Makes the actors, and lets the writer start runs.
    pub(super) async fn begin(self: &Arc<Self>) -> Result<(), Error> {
        actor::start(self).await?;
        self.store.connect(Arc::new(Dispatch::new(self)))?;
        if self.config.hooks.drives_time() {
            return Ok(());
        }
        if self.store.idle_for().is_some() {
            tokio::spawn(keep_time(Arc::downgrade(self)));
        }
        if let Some(retention) = self.config.retain_runs {
            tokio::spawn(retain(Arc::downgrade(self), retention, self.means.draining.clone()));
        }
        Ok(())
    }

    /// What an execution works with.
    pub(crate) fn means(&self) -> &Arc<Means> {
        &self.means
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn health(&self) -> Health {
        if self.is_closed() {
            Health::Closed
        } else if self.means.draining.is_cancelled() {
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
        let unknown = || match self.is_closed() {
            true => Error::ShutDown,
            false => Error::JobNotFound { name: job.to_owned() },
        };
        let definition = self.registry.get(job).ok_or_else(unknown)?;
        let input = definition.admit(input)?;
        let options = Options { deadline: options.deadline.or(definition.deadline), ..options };
        options.build((definition.name.clone(), definition.version), input, self.config.payload_bytes_max, from)
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
        let (options, input) = (self.options_of(&old).await?, self.input_of(&old)?);
        let new = self.build_json(&old.job_name, &input, options, Some(run))?;
        let triggered = crate::trigger::send(self, vec![new], true).await?;
        triggered.first().copied().ok_or(Error::ShutDown)
    }

    /// What another run takes over of what this one was triggered with.
    async fn options_of(&self, run: &Run) -> Result<Options, Error> {
        let record = self.store.rowset(run.id).await?.record;
        Ok(Options {
            // What is left to one of a loop of runs is no length that was asked for: then the job's own counts.
            deadline: record.deadline.filter(|_| record.continued_from.is_none()).map(|at| at.since(record.created_at)),
            concurrency_keys: record.keys.into_iter().map(|(key, limit)| (key, Some(limit))).collect(),
            priority: run.priority,
            labels: run.labels.clone().into_iter().collect(),
            ..Options::default()
        })
    }

    /// The stored input as the registered code takes it.
    fn input_of(&self, run: &Run) -> Result<Value, Error> {
        let input = run.input.clone().unwrap_or(Value::Null);
        match self.registry.get(&run.job_name) {
            Some(definition) => definition.upcast(run.version, input).map_err(|error| Error::decode("input", error)),
            None => Ok(input),
        }
    }

    pub(crate) async fn fork(&self, request: ForkRequest) -> Result<Triggered, Error> {
        let ForkRequest { run, input, edits, idempotency_key } = request;
        let old = self.store.get_run(run).await?.ok_or(Error::RunNotFound { run })?;
        if self.registry.get(&old.job_name).is_none() {
            return Err(Error::JobNotFound { name: old.job_name });
        }
        for output in edits.outputs.values() {
            within("checkpoint", output.len(), self.config.payload_bytes_max)?;
            if read_back(output).is_err() {
                let rule = "JSON of at most 127 levels";
                return Err(Error::InvalidOption { option: "output", value: "".into(), rule });
            }
        }
        let input = match input {
            Some(input) => input,
            None => self.input_of(&old)?,
        };
        let options = Options { idempotency_key, ..self.options_of(&old).await? };
        let new = self.build_json(&old.job_name, &input, options, None)?;
        // Room for the checkpoints comes before they are read, so that not many large forks are in memory at a time.
        let bytes = self.store.rowset(run).await?.state.steps_bytes as usize + edits.bytes() + new.bytes();
        let admitted = self.store.admit(bytes, true).await?;
        let forked = self.store.checkpoints(run, edits, self.config.clock.now()).await?;
        let new = NewRun { forked: Some(Box::new(forked)), ..new };
        let triggered = self.store.submit(Op::Trigger, vec![new], admitted).answer().await?;
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

    pub(crate) async fn signal(&self, run: RunId, name: &str, payload: Vec<u8>) -> Result<(), Error> {
        within("signal name", name.len(), SIGNAL_NAME_BYTES_MAX)?;
        if name.is_empty() {
            return Err(Error::InvalidOption { option: "signal name", value: String::new(), rule: "1 to 128 bytes" });
        }
        within("signal", payload.len(), self.config.payload_bytes_max)?;
        read_back(&payload)
            .map_err(|error| Error::InvalidSignal { message: format!("it could not be read back: {error}") })?;
        let admitted = self.store.admit(payload.len(), true).await?;
        let signal = Signal { run, name: name.into(), payload: payload.into() };
        self.store.submit(Op::signal, signal, admitted).answer().await
    }

    /// Why a run is, or is not, executing. What its steps say is read after what the engine says, so it is asked again where the
    /// run has moved on meanwhile.
    pub(crate) async fn explain(&self, run: RunId) -> Result<Explanation, Error> {
        loop {
            let explanation = self.store.submit(Op::Explain, run, Admitted::default()).answer().await?;
            let steps = match explanation {
                Explanation::Executing { .. } | Explanation::Suspended { .. } => self.store.open_steps(run).await?,
                Explanation::Pending { .. } | Explanation::Ended { .. } => return Ok(explanation),
            };
            if steps.status == RunStatus::Leased && matches!(explanation, Explanation::Executing { .. }) {
                let execution = self.hub.bodies.execution(run, None);
                let called = execution.map(|execution| execution.called()).unwrap_or_default();
                let mut under_way: Vec<_> = called.into_iter().filter(|step| !steps.stored.contains(step)).collect();
                under_way.sort_unstable();
                return Ok(explanation.with_steps(steps.open, under_way));
            }
            if steps.status == RunStatus::Suspended && matches!(explanation, Explanation::Suspended { .. }) {
                return Ok(explanation.with_steps(steps.open, Vec::new()));
            }
        }
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

    pub(crate) async fn compact(&self) -> Result<Compaction, Error> {
        let admitted = self.store.admit(0, true).await?;
        self.store.submit(Op::Compact, (), admitted).answer().await
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
        if self.means.draining.is_cancelled() {
            return Err(Error::ShutDown);
        }
        self.store.submit(Op::Pause, paused, Admitted::default()).answer().await
    }

    pub(crate) async fn stop(&self) -> Result<(), Error> {
        self.pause(true).await?;
        self.store.submit(Op::Quiet, (), Admitted::default()).answer().await
    }

    pub(crate) async fn run_until_idle(&self, limit: Option<u64>) -> Result<u64, Error> {
        if self.means.draining.is_cancelled() {
            return Err(Error::ShutDown);
        }
        self.store.submit(Op::Idle, limit, Admitted::default()).answer().await
    }

    pub(crate) async fn shutdown(&self) -> Result<(), Error> {
        let _alone = self.shutting_down.lock().await;
        if self.is_closed() {
            return Ok(());
        }
        // Nothing that is asked for from here on starts a run, before anyone is told to hurry.
        self.store.send(Op::Drain);
        quietly("who waits for a shutdown", || self.means.draining.cancel());
        let hooks = &self.config.hooks;
        hooks.pass(Failpoint::Draining);
        let quiet = || self.store.submit(Op::Quiet, (), Admitted::default()).answer();
        if hooks.plants(Bug::ShutdownWaits) {
            drop(quiet().await);
        }
        if tokio::time::timeout(self.config.shutdown_grace, quiet()).await.is_err() {
            self.hub.bodies.hand_back_all();
            // A body is dropped at its next await; one that does not come to any is left behind.
            if tokio::time::timeout(LEAVE_BEHIND_AFTER, quiet()).await.is_err() {
                let left = self.hub.bodies.hand_back_all();
                tracing::warn!(runs = ?left, blocking = self.means.pool.busy(), "bodies did not stop and are left behind");
            }
        }
        hooks.pass(Failpoint::Drained);
        let closed = self.store.submit(Op::Close, true, Admitted::default()).answer().await;
        self.closed.store(true, Ordering::Release);
        self.hub.kill();
        closed
    }

    /// Ends without ceremony: what executes is found as crashed by the next open.
    pub(crate) fn crash(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        drop(self.store.submit(Op::Close, false, Admitted::default()));
        quietly("who waits for a shutdown", || self.means.draining.cancel());
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
