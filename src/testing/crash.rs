//! Whether a job survives a crash at every point.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::effects::{Effects, Undisturbed};
use super::rig::{CrashPoint, Rig};
use super::runtime::{Stuck, TestRuntime};
use crate::durably::{Builder, Durably};
use crate::error::Error;
use crate::id::RunId;
use crate::job::{ErrorKind, Job, JobHandle, Payload};
use crate::run::{Run, RunFilter, RunStatus, StepStatus};

/// The idempotency key of the run that is tried: a caller who does not hear of its trigger asks again.
const KEY: &str = "crash-safety";
/// Lives of one trial, at most.
const LIVES_MAX: usize = 16;

type Setup = Arc<dyn Fn(&Durably) -> Result<String, Error> + Send + Sync>;

/// Runs a job undisturbed, and then once for every point at which a process can die on the way: before and after each commit,
/// when a body begins or has ended, when a step has its outcome and nobody knows. Each time the process starts again over what
/// was flushed, and the run goes on to its end, with time moved on as far as it takes. It must end each time as it does
/// undisturbed, and its [`Effects`] be as expected.
///
/// ```
/// use durably::testing::{CrashSafety, Effects};
/// use durably::{Job, Step};
/// use serde_json::json;
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let effects = Effects::new().exactly_once_per_checkpoint("charge");
/// let charges = effects.clone();
/// let order = Job::new("order", move |step: Step, euros: u32| {
///     let charges = charges.clone();
///     async move {
///         step.wait_signal::<String>("approval", "approved").await?;
///         step.sleep("cool-off", Duration::from_secs(86_400)).await?;
///         step.run("charge", || async { charges.record("charge"); Ok(euros) }).await
///     }
/// });
/// let safety = CrashSafety::new().job(order).effects(&effects).signal_when_suspended("approved", json!("ann"));
/// let report = safety.run(5).await.unwrap();
/// assert!(report.crash_points > 20 && report.commits > 5);
/// # }
/// ```
#[derive(Clone)]
#[must_use = "nothing is tried before `run`"]
pub struct CrashSafety {
    job: Option<Setup>,
    others: Vec<Setup>,
    signals: Vec<(String, Value)>,
    effects: Effects,
    setup: Arc<dyn Fn(Builder) -> Builder + Send + Sync>,
    crashes: usize,
    any_output: bool,
    seed: u64,
}

impl Default for CrashSafety {
    fn default() -> Self {
        CrashSafety {
            job: None,
            others: Vec::new(),
            signals: Vec::new(),
            effects: Effects::default(),
            setup: Arc::new(|builder| builder),
            crashes: 1,
            any_output: false,
            seed: 0,
        }
    }
}

impl fmt::Debug for CrashSafety {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CrashSafety").field("effects", &self.effects).field("seed", &self.seed).finish_non_exhaustive()
    }
}

/// What was tried, and held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CrashReport {
    /// Points at which the process can die on the way of the undisturbed run.
    pub crash_points: usize,
    /// Commits of the undisturbed run.
    pub commits: usize,
    /// Runs that were cut off, and ended all the same.
    pub trials: usize,
    /// Executions of the run's body in all of them; of one that [went on as another](crate::Step::continue_as_new), those of the
    /// last.
    pub executions: u64,
}

/// [`CrashSafety`] for a job that needs nothing else: panics with all that is known if a crash somewhere changes how it ends, or
/// makes it do again what is on disk.
///
/// ```
/// # use durably::testing::assert_crash_safe;
/// # use durably::{Job, Step};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let double = Job::new("double", |step: Step, n: u32| async move {
///     step.run("double", || async { Ok(n * 2) }).await
/// });
/// assert_crash_safe(double, 21).await;
/// # }
/// ```
///
/// # Panics
/// If it is not crash safe.
#[expect(clippy::panic, reason = "it is an assertion")]
pub async fn assert_crash_safe<I: Payload, O: Payload>(job: Job<I, O>, input: I) -> CrashReport {
    match CrashSafety::new().job(job).run(input).await {
        Ok(report) => report,
        Err(error) => panic!("{error}"),
    }
}

impl CrashSafety {
    /// Nothing is to be tried yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The job that is tried.
    pub fn job<I: Payload, O: Payload>(self, job: Job<I, O>) -> Self {
        self.job_with(move |durably| durably.register(job.clone()))
    }

    /// The job that is tried, registered anew at each start: for one that captures handles of others.
    ///
    /// ```
    /// # use durably::testing::CrashSafety;
    /// # use durably::{Job, Step};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let safety = CrashSafety::new().job_with(|durably| {
    ///     let price = durably.register(Job::new("price", |_: Step, item: String| async move { Ok(item.len()) }))?;
    ///     durably.register(Job::new("order", move |step: Step, item: String| {
    ///         let price = price.clone();
    ///         async move { step.call("price", &price, item).await }
    ///     }))
    /// });
    /// safety.run("tea").await.unwrap();
    /// # }
    /// ```
    pub fn job_with<I: Payload, O: Payload>(
        mut self,
        register: impl Fn(&Durably) -> Result<JobHandle<I, O>, Error> + Send + Sync + 'static,
    ) -> Self {
        self.job = Some(Arc::new(move |durably| Ok(register(durably)?.definition.name.to_string())));
        self
    }

    /// Another job that is there.
    pub fn register<I: Payload, O: Payload>(mut self, job: Job<I, O>) -> Self {
        let name = job.name().to_owned();
        self.others.push(Arc::new(move |durably| durably.register(job.clone()).map(|_| name.clone())));
        self
    }

    /// Sends this signal to every run that waits for it.
    pub fn signal_when_suspended(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.signals.push((name.into(), value.into()));
        self
    }

    /// What the steps record their effects in.
    pub fn effects(mut self, effects: &Effects) -> Self {
        self.effects = effects.clone();
        self
    }

    /// Settings of the runtime.
    pub fn configure(mut self, setup: impl Fn(Builder) -> Builder + Send + Sync + 'static) -> Self {
        self.setup = Arc::new(setup);
        self
    }

    /// After each crash, crash again at every point up to the end: as many trials as there are pairs of points.
    pub fn crash_twice(mut self) -> Self {
        self.crashes = 2;
        self
    }

    /// Only the status at the end must be the same: for outputs that are never twice the same.
    pub fn any_output(mut self) -> Self {
        self.any_output = true;
        self
    }

    /// Where the random part of ids comes from; default 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Tries it.
    ///
    /// # Errors
    /// [`NotCrashSafe`], with the first point at which something was not as undisturbed.
    pub async fn run(self, input: impl Serialize) -> Result<CrashReport, NotCrashSafe> {
        let refused = |error: Error| self.failure(Violation::Runtime(error), None);
        let input = serde_json::to_value(&input).map_err(|error| {
            refused(Error::InvalidInput { path: String::new(), rule: "type".into(), message: error.to_string() })
        })?;
        let reference = self.trial(&input, &[], None).await?;
        let undisturbed = self.effects.undisturbed();
        if let Some(violation) = self.effects.violation(&undisturbed) {
            return Err(self.failure(Violation::Effect(violation), Some(&reference.rig)));
        }
        let (crash_points, commits) = reference.passed;
        let mut report = CrashReport { crash_points, commits, ..CrashReport::default() };
        let expected = Some((&reference.ending, &undisturbed));
        for first in 1..=crash_points {
            let trial = self.trial(&input, &[first], expected).await?;
            report.count(&trial);
            let again = if self.crashes > 1 { trial.passed.0 } else { 0 };
            for second in 1..=again {
                report.count(&self.trial(&input, &[first, second], expected).await?);
            }
        }
        Ok(report)
    }

    /// The run from its trigger to its end, with a crash at each of these points: the first counted from the start, the next
    /// from the start after that.
    async fn trial(
        &self,
        input: &Value,
        crashes: &[usize],
        expected: Option<(&Ending, &Undisturbed)>,
    ) -> Result<Trial, NotCrashSafe> {
        self.effects.clear();
        let (setup, seed) = (self.setup.clone(), self.seed);
        let opened = TestRuntime::builder(move |builder| setup(builder).seed(seed)).await;
        let mut runtime = opened.map_err(|error| self.failure(error.into(), None))?;
        for (name, value) in &self.signals {
            runtime.signal_when_waiting(name, value.clone());
        }
        let mut first_crash = None;
        for life in 0..LIVES_MAX {
            let rig = runtime.rig().clone();
            let failed = |violation: Violation| {
                let mut failure = self.failure(violation, Some(&rig));
                failure.at = first_crash.clone().or(failure.at);
                failure
            };
            let stored = stored_steps(&runtime).await.map_err(|error| failed(error.into()))?;
            self.effects.begin_life(&rig, stored);
            let job = self.register_all(&runtime).map_err(&failed)?;
            rig.arm(crashes.get(life).copied());
            match self.live(&runtime, &job, input).await {
                Err(_) if runtime.has_crashed() => {}
                Err(violation) => return Err(failed(violation)),
                Ok(_) if runtime.has_crashed() => {}
                Ok(run) => {
                    let trial = Trial::new(&run, rig.disarm(), rig.clone(), life);
                    if let Some((ending, undisturbed)) = expected {
                        if !trial.ending.is_like(ending, self.any_output) {
                            let (expected, got) = (ending.to_string(), trial.ending.to_string());
                            return Err(failed(Violation::Ending { expected, got }));
                        }
                        if let Some(violation) = self.effects.violation(undisturbed) {
                            return Err(failed(Violation::Effect(violation)));
                        }
                    }
                    return Ok(trial);
                }
            }
            first_crash = first_crash.or_else(|| rig.crashed_at());
            let trace = rig.trace();
            let reopened = runtime.crash().await.reopen_without_jobs().await;
            runtime = reopened.map_err(|error| self.failure(error.into(), Some(&rig)))?;
            trace.into_iter().for_each(|line| runtime.rig().note(line));
        }
        Err(self.failure(Violation::Runtime(Error::ShutDown), Some(runtime.rig())))
    }

    /// Registers all there is; gives the name of the job that is tried.
    fn register_all(&self, durably: &Durably) -> Result<String, Violation> {
        for register in &self.others {
            register(durably)?;
        }
        match &self.job {
            Some(register) => Ok(register(durably)?),
            None => Err(Violation::NoJob),
        }
    }

    /// Asks for the run, and moves time on until it has ended.
    async fn live(&self, runtime: &TestRuntime, job: &str, input: &Value) -> Result<Run, Violation> {
        let run = runtime.trigger_json(job, input.clone()).idempotency_key(KEY).await?.id();
        let ended = runtime.run_to_completion(run).await?;
        runtime.settle().await;
        Ok(ended)
    }

    fn failure(&self, violation: Violation, rig: Option<&Arc<Rig>>) -> NotCrashSafe {
        let at = rig.and_then(|rig| rig.crashed_at());
        let trace = rig.map(|rig| rig.trace()).unwrap_or_default();
        NotCrashSafe { violation: Box::new(violation), at, seed: self.seed, trace }
    }
}

/// The steps whose outcome is on disk.
async fn stored_steps(durably: &Durably) -> Result<BTreeSet<(RunId, String)>, Error> {
    let mut stored = BTreeSet::new();
    for run in durably.get_runs(RunFilter::new().limit(1_000)).await? {
        let steps = durably.get_steps(run.id).await?;
        let decided =
            steps.into_iter().filter(|step| matches!(step.status, StepStatus::Completed | StepStatus::Failed));
        stored.extend(decided.map(|step| (run.id, step.name)));
    }
    Ok(stored)
}

/// One run to its end.
struct Trial {
    ending: Ending,
    /// Crash points of the last life, and commits.
    passed: (usize, usize),
    executions: u64,
    crashes: usize,
    rig: Arc<Rig>,
}

impl Trial {
    fn new(run: &Run, passed: (usize, usize), rig: Arc<Rig>, crashes: usize) -> Self {
        let error = run.error.as_ref().map(|error| {
            let of_child = matches!(error.kind, ErrorKind::ChildFailed | ErrorKind::ChildCancelled);
            // Their messages name the child, which may have another id.
            let message = if of_child { error.chain.join(": ") } else { error.message.clone() };
            format!("{:?} {message:?}", error.kind)
        });
        let ending = Ending { status: run.status, output: run.output.clone(), error };
        Trial { ending, passed, executions: run.lease_generation, crashes, rig }
    }
}

impl CrashReport {
    fn count(&mut self, trial: &Trial) {
        self.trials += usize::from(trial.crashes > 0);
        self.executions += trial.executions;
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
struct Ending {
    status: RunStatus,
    output: Option<Value>,
    error: Option<String>,
}

impl Ending {
    fn is_like(&self, other: &Ending, any_output: bool) -> bool {
        if any_output { self.status == other.status } else { self == other }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        self.output.iter().try_for_each(|output| write!(f, " with {output}"))?;
        self.error.iter().try_for_each(|error| write!(f, " with {error}"))
    }
}

/// What was not as it must be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// The run ended otherwise than undisturbed.
    #[error("the run ended as {got}, and undisturbed as {expected}")]
    Ending {
        /// How it ends undisturbed.
        expected: String,
        /// How it ended.
        got: String,
    },
    /// An effect was not done as often as expected.
    #[error("{0}")]
    Effect(String),
    /// The run did not end.
    #[error(transparent)]
    Stuck(#[from] Stuck),
    /// The runtime refused.
    #[error(transparent)]
    Runtime(#[from] Error),
    /// [`CrashSafety::job`] was not called.
    #[error("no job was given")]
    NoJob,
}

/// A job is not crash safe: what went wrong, where it had crashed, and all that had happened up to then.
#[non_exhaustive]
pub struct NotCrashSafe {
    /// What was not as it must be.
    pub violation: Box<Violation>,
    at: Option<CrashPoint>,
    seed: u64,
    /// What had happened, a line each.
    pub trace: Vec<String>,
}

impl NotCrashSafe {
    /// The commit that was next or last when it crashed, from 1, which is the trigger's.
    pub fn commit(&self) -> Option<usize> {
        self.at.as_ref().map(|at| at.commit)
    }

    /// The step that had begun last when it crashed.
    pub fn step(&self) -> Option<&str> {
        self.at.as_ref()?.step.as_deref()
    }
}

impl std::error::Error for NotCrashSafe {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.violation)
    }
}

impl fmt::Display for NotCrashSafe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not crash safe: {}", self.violation)?;
        if let Some(CrashPoint { point, commit, step }) = &self.at {
            write!(f, "\ncrashed at commit {commit}")?;
            point.iter().try_for_each(|point| write!(f, " ({point:?})"))?;
            step.iter().try_for_each(|step| write!(f, ", after step {step:?} had begun"))?;
        }
        write!(f, "\nseed {}; what happened:", self.seed)?;
        self.trace.iter().try_for_each(|line| write!(f, "\n{line}"))
    }
}

impl fmt::Debug for NotCrashSafe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
