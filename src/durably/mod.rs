//! The façade: opening a runtime, and everything that is asked of it.
//!
//! [`Durably`] is what a user holds; the [`Builder`] has its settings; [`Core`] is what every handle of a runtime shares, and
//! does the work.

mod builder;
mod core;
mod fork;
mod held;
mod pending;
mod schedules;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

pub use self::builder::Builder;
pub(crate) use self::core::Core;
pub use self::fork::{ForkRequest, ForkRun};
pub use self::held::Paused;
pub use self::pending::{PendingCheck, Unreadable};
use crate::actor::message::SupervisorMsg;
use crate::error::Error;
use crate::event::{Events, RunEvents};
use crate::hooks::Bug;
use crate::id::RunId;
use crate::job::Register;
use crate::run::{Explanation, LogLine, Run, RunFilter, RunHandle, RunStatus, StepInfo};
use crate::store::compact::Compaction;
use crate::store::verify::Verification;
use crate::time::Timestamp;
use crate::trigger::{JsonTrigger, WaitForRun};

/// A runtime: jobs, their runs, and the one file they are in.
///
/// Clones are cheap and the same runtime. Dropping the last of them without [`Durably::shutdown`] is a crash-stop: bodies are
/// dropped at their next await and the file is let go of; what was executing is recovered by the next open. A job's body that
/// captures a clone keeps the runtime alive; let it capture a [`JobHandle`](crate::JobHandle) instead, which does not.
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
        self.0.registry.close();
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
    /// One entry a job that is registered or ever had a run, by name.
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

impl Durably {
    /// Opens a runtime over a file, creating it if there is none, and starts working: runs that were executing when the last
    /// process ended are pending again, and start as soon as their jobs are registered.
    ///
    /// # Errors
    /// [`Error::AlreadyOpen`], [`Error::NotADatabase`], [`Error::NewerFormat`], [`Error::Damaged`], [`Error::Open`],
    /// [`Error::NoRuntime`]: nothing in the file is changed. [`Error::Corrupted`] for a row of the journal that can't be read, and
    /// [`Error::Storage`] where the file fails meanwhile.
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

    fn over(core: Arc<Core>) -> Durably {
        Durably { _life: Arc::new(Life(core.clone())), core }
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
        JobInfo::of(&self.core, name)
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

    /// Creates a new run with the stored input, concurrency keys and their limits, priority and labels of one that has ended, and
    /// with as much time until its deadline; one that went on for another has its job's. The idempotency key is not taken over, nor
    /// a delay, and no checkpoint.
    ///
    /// # Errors
    /// [`Error::RunNotFound`], [`Error::JobNotFound`], [`Error::Conflict`] if it has not ended, [`Error::InvalidInput`] if the
    /// registered code does not take its input any more, [`Error::Decode`] if that can't be converted for it.
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

    /// A new run of the same job that begins with checkpoints of an old one, so that it goes on from there: from a step, with
    /// another input, or with outputs that are given. Await the returned builder.
    ///
    /// The old run may be in any status, also executing, and is not touched; what is recorded of it as of the call counts. Taken
    /// over are what a [retrigger](Durably::retrigger) takes over, and its checkpoints: outputs, and failures that its body caught, but not
    /// the one that ended it. What it waits for is not taken over (such a step begins anew), nor are the runs that it has
    /// triggered: a step that has triggered one still gives that run, or its output. Checkpoints that were
    /// [dropped at its end](crate::StepRetention) are not there to be taken over.
    ///
    /// The new run has its own id and [effect keys](crate::StepCx::effect_key), no idempotency key unless one is set, and
    /// [`forked_from`](crate::Run::forked_from). It and its checkpoints are one commit.
    ///
    /// ```
    /// # use durably::{Durably, Job, Step};
    /// # use serde_json::json;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), durably::Error> {
    /// let durably = Durably::in_memory().await?;
    /// let order = durably.register(Job::new("order", |step: Step, item: String| async move {
    ///     let price: u32 = step.run("price", || async { Ok(12) }).await?;
    ///     step.run("invoice", || async { Ok(format!("{item}: {price}")) }).await
    /// }))?;
    /// let run = order.trigger("tea".into()).await?;
    /// assert_eq!(run.output().await?, "tea: 12");
    /// let fork = durably.fork(run.id()).from_step("invoice").with_output("price", json!(10)).await?;
    /// assert_eq!(fork.output().await?, json!("tea: 10"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::RunNotFound`], [`Error::StepNotFound`], [`Error::JobNotFound`], [`Error::InvalidInput`] if the registered code
    /// does not take the input, [`Error::Decode`] if the stored one can't be converted for it, [`Error::TooLarge`], [`Error::Overloaded`], [`Error::Indeterminate`].
    ///
    /// # Cancel safety
    /// Dropped while it is awaited, the run may or may not be created. With an idempotency key, asking again is safe.
    pub fn fork(&self, run: RunId) -> ForkRun {
        ForkRun::new(self.core.clone(), run)
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

    /// Sends a signal to a run that has not ended, for its [`Step::wait_signal`](crate::Step::wait_signal) of that name: 1 to
    /// 128 bytes. The value is stored as JSON, at most `payload_bytes_max` of it and nested in at most 127 levels, and kept until a
    /// step takes it, in order of arrival; the run need not wait yet.
    ///
    /// # Errors
    /// [`Error::RunNotFound`], [`Error::Conflict`] if the run has ended, [`Error::TooMany`] if 1,000 signals of it have not
    /// been taken, [`Error::TooLarge`], [`Error::InvalidSignal`], [`Error::Overloaded`], [`Error::Indeterminate`].
    ///
    /// # Cancel safety
    /// Once begun it is carried out, whether or not it is waited for. Sent again it is another signal.
    pub async fn signal<T: Serialize + ?Sized>(&self, run: RunId, name: &str, value: &T) -> Result<(), Error> {
        let payload = serde_json::to_vec(value).map_err(|error| Error::InvalidSignal { message: error.to_string() })?;
        self.core.signal(run, name, payload).await
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

    /// Gives space that the file does not need back to the file system, as after a purge of many runs. Without it the file keeps
    /// its length, and new runs use what the deleted ones left.
    ///
    /// Triggers, steps and reads wait until it is done: that takes about as long as writing once what the file holds. A crash
    /// meanwhile loses nothing.
    ///
    /// # Errors
    /// [`Error::CompactionBlocked`] while a backup is made, [`Error::Storage`] if the file fails, [`Error::Overloaded`],
    /// [`Error::ShutDown`].
    ///
    /// # Cancel safety
    /// Once begun it is carried out, whether or not it is waited for.
    pub async fn compact(&self) -> Result<Compaction, Error> {
        self.core.compact().await
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
    pub async fn get_runs(&self, mut filter: RunFilter) -> Result<Vec<Run>, Error> {
        if self.core.config.hooks.plants(Bug::OneLabelOfMany) {
            filter.labels.truncate(1);
        }
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

    /// Why a run is, or is not, executing: what holds a pending one back, what a suspended one waits for, in which steps an
    /// executing one is, how one has ended.
    ///
    /// ```
    /// use durably::{Durably, Explanation, Job, Obstacle, Step};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), durably::Error> {
    /// let durably = Durably::builder().paused(true).in_memory().await?;
    /// let greet = durably.register(Job::new("greet", |_: Step, name: String| async move { Ok(format!("Hello, {name}")) }))?;
    /// let run = greet.trigger("Ada".to_owned()).await?;
    /// let why = durably.explain(run.id()).await?;
    /// assert_eq!(why.to_string(), "waiting: the runtime starts no runs");
    /// let Explanation::Pending { obstacles, .. } = why else { panic!("it waits") };
    /// assert_eq!(obstacles, [Obstacle::RuntimePaused]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// It is as of one moment, and may be over when it is read. To count who stands before a run takes time with the length
    /// of its lines, about 10 ms for a million.
    ///
    /// # Errors
    /// [`Error::RunNotFound`], [`Error::Storage`], [`Error::Corrupted`], [`Error::ShutDown`].
    pub async fn explain(&self, run: RunId) -> Result<Explanation, Error> {
        self.core.explain(run).await
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

    /// Whether the registered code can read what the runs in flight (pending, leased, suspended) have stored, for start-up and
    /// for a check of new code against a copy of the file: register the jobs in a runtime that is
    /// [paused](Builder::paused), and ask.
    ///
    /// Every input is read as its job's input type, after its [`upcast_input`](crate::Job::upcast_input)s. Of outputs only
    /// those can be read here of which the job says what it [`expects`](crate::Job::expects): types stand in the body, which
    /// is not run. So what is not found by this may still not fit; a run that meets such an output fails with
    /// [`CheckpointMismatch`](crate::ErrorKind::CheckpointMismatch), and can be resumed. Runs that change their status while
    /// this looks, which they do not in a paused runtime, may be looked at twice or not at all.
    ///
    /// It reads in slices, so that it holds up neither commits nor the file's space however many runs there are.
    ///
    /// ```
    /// # use durably::{Durably, Job, Step};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), durably::Error> {
    /// let durably = Durably::builder().paused(true).in_memory().await?;
    /// let job = Job::new("mail", |step: Step, to: String| async move {
    ///     step.run("send", || async { Ok(to.len()) }).await
    /// });
    /// durably.register(job.expects::<usize>("send", 0))?;
    /// let found = durably.check_pending().await?;
    /// for value in &found.unreadable {
    ///     eprintln!("run {} of {}: {}", value.run_id, value.job_name, value.message);
    /// }
    /// assert!(found.is_ok());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::ShutDown`].
    pub async fn check_pending(&self) -> Result<PendingCheck, Error> {
        self.core.check_pending().await
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

    /// Copies the file to a new one while the runtime goes on: all that was acknowledged before the call, and nothing that
    /// depends on what is not in the copy. The copy appears under its name complete, flushed and [verified](crate::verify);
    /// opened, it goes on from that moment.
    ///
    /// ```
    /// # async fn example(durably: durably::Durably) -> Result<(), durably::Error> {
    /// let copied = durably.backup("jobs.2026-01-01.redb").await?;
    /// println!("{} runs, {} steps", copied.runs, copied.steps);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// It reads one snapshot of the file, which holds up no commit; what is freed meanwhile stays in the file until it is done.
    /// To restore, put the copy in the place of the file, which no runtime has open.
    ///
    /// # Errors
    /// [`Error::Open`] where the copy can't be made, with the kind `AlreadyExists` where something has its name: nothing is ever
    /// replaced. [`Error::Damaged`] if the copy was not what was to be copied; [`Error::Storage`], [`Error::ShutDown`].
    /// What is wrong with single rows is in the result, and in the copy.
    ///
    /// # Cancel safety
    /// Dropped, it is given up, and what was written is removed; dropped at the very end it may be there all the same, whole.
    pub async fn backup(&self, path: impl AsRef<Path>) -> Result<Verification, Error> {
        self.core.store.backup(path.as_ref().to_owned()).await
    }

    /// What all handles share.
    #[cfg(feature = "testing")]
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The supervisor's `ActorRef`: everything that can be done here can also be done by message, but for registering jobs.
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
    /// [`Error::Storage`] if the file stayed away, or could not be folded and closed: the runtime is shut down all the same, and
    /// nothing that was acknowledged is lost. The next open does what is left, and finds what executed as crashed.
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
    pub(crate) fn of(core: &Arc<Core>, name: &str) -> Option<JobInfo> {
        let definition = core.registry.get(name)?;
        Some(JobInfo { core: core.clone(), definition })
    }

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
