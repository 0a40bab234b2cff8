//! A runtime in memory whose time is moved by hand.

use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::clock::TestClock;
use super::memory::MemoryDisk;
use super::mocks::{Mocks, StepCallInfo, Times};
use super::rig::Rig;
use crate::durably::{Builder, Durably};
use crate::error::Error;
use crate::id::RunId;
use crate::job::{Definition, Job, JobError, JobHandle, JobResult, Payload, register_again};
use crate::run::{Run, RunFilter, RunStatus};
use crate::store::op::Op;
use crate::time::{Clock, Timestamp};

/// Some day in 2026.
const START: Timestamp = Timestamp::from_millis(1_770_000_000_000);
const PATIENCE: Duration = Duration::from_millis(200);
/// Moments that [`TestRuntime::run_to_completion`] goes through: a run that is due so often never ends.
const STOPS_MAX: usize = 100_000;

type Setup = Arc<dyn Fn(Builder) -> Builder + Send + Sync>;

/// A runtime in memory with a clock that stands still until the test moves it. It is a [`Durably`], and derefs to one.
///
/// [`TestRuntime::advance`] brings about what is due on the way, in order, and comes back when all is settled: runs that
/// sleep wake, delayed ones start, what is tried again is tried. Nothing waits in real time, under any flavour of tokio
/// runtime, whether or not its own clock is paused. Every pause suspends its run, also a short one for which a run stays in
/// memory elsewhere, so a test sees whether the body can be replayed. Time that code asks others for (`tokio::time`,
/// `SystemTime::now`), the timeouts of waits outside of bodies, the grace of a shutdown, and the 20 ms in which a map gathers
/// what its items gave are real time.
///
/// ```
/// use durably::testing::TestRuntime;
/// use durably::{Job, RunStatus, Step};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let runtime = TestRuntime::new().await;
/// let remind = runtime.register(Job::new("remind", |step: Step, user: String| async move {
///     step.sleep("three-days", Duration::from_secs(3 * 86_400)).await?;
///     step.run("mail", || async { Ok(format!("{user}, you left something behind")) }).await
/// }))?;
/// let run = remind.trigger("ann".into()).await?;
///
/// runtime.advance(Duration::from_secs(2 * 86_400)).await;
/// assert_eq!(runtime.get_run(run.id()).await?.unwrap().status, RunStatus::Suspended);
/// runtime.advance(Duration::from_secs(86_400)).await;
/// assert_eq!(run.output().await?, "ann, you left something behind");
/// # Ok(())
/// # }
/// ```
pub struct TestRuntime {
    durably: Durably,
    rig: Arc<Rig>,
    settings: Settings,
}

#[derive(Clone)]
struct Settings {
    setup: Setup,
    patience: Duration,
}

/// How a [`TestRuntime`] is to be opened. Await it.
#[must_use = "a builder opens nothing by itself"]
pub struct TestRuntimeBuilder {
    settings: Settings,
    start: Timestamp,
}

impl TestRuntimeBuilder {
    /// What the clock shows first; default some day in 2026.
    pub fn start_at(mut self, start: Timestamp) -> Self {
        self.start = start;
        self
    }

    /// How long, in real time, to wait for a body that awaits what the runtime does not know of (a socket, a channel, a thread)
    /// and is not woken, before that counts as input from outside, which may never come; default 200 ms.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.settings.patience = patience;
        self
    }
}

impl fmt::Debug for TestRuntimeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestRuntimeBuilder").field("start", &self.start).finish_non_exhaustive()
    }
}

impl IntoFuture for TestRuntimeBuilder {
    type Output = Result<TestRuntime, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let TestRuntimeBuilder { settings, start } = self;
        let clock = TestClock::starting_at(start);
        Box::pin(TestRuntime::open(settings, clock, MemoryDisk::default(), Arc::default()))
    }
}

impl Deref for TestRuntime {
    type Target = Durably;

    fn deref(&self) -> &Durably {
        &self.durably
    }
}

impl fmt::Debug for TestRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestRuntime").field("now", &self.now()).field("mocks", &self.rig.mocks).finish_non_exhaustive()
    }
}

impl TestRuntime {
    /// A runtime with default settings.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[expect(
        clippy::expect_used,
        reason = "it opens unless there is no tokio runtime, and a test should say so at once"
    )]
    pub async fn new() -> Self {
        TestRuntime::builder(|builder| builder).await.expect("a tokio runtime")
    }

    /// A runtime with settings of [`Durably::builder`]; its clock and its place are the test runtime's own. Await the returned
    /// builder.
    ///
    /// ```
    /// # use durably::testing::TestRuntime;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), durably::Error> {
    /// let runtime = TestRuntime::builder(|builder| builder.max_concurrent_runs(1)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Builder::in_memory`].
    pub fn builder(setup: impl Fn(Builder) -> Builder + Send + Sync + 'static) -> TestRuntimeBuilder {
        let settings = Settings { setup: Arc::new(setup), patience: PATIENCE };
        TestRuntimeBuilder { settings, start: START }
    }

    async fn open(
        settings: Settings,
        clock: TestClock,
        disk: MemoryDisk,
        mocks: Arc<Mocks>,
    ) -> Result<TestRuntime, Error> {
        let disk = Arc::new(disk);
        let rig = Rig::new(clock.clone(), disk.clone(), mocks);
        let mut builder = (settings.setup)(Durably::builder().seed(0)).clock(clock);
        builder.config.hooks.set_rig(rig.clone());
        let durably = builder.open_simulated(disk).await?;
        rig.connect(durably.core());
        Ok(TestRuntime { durably, rig, settings })
    }

    /// The clock. Moving it by itself wakes what waits in memory only.
    pub fn clock(&self) -> &TestClock {
        &self.rig.clock
    }

    /// What the clock shows.
    pub fn now(&self) -> Timestamp {
        self.rig.clock.now()
    }

    /// Moves time on and brings about, in order, everything that is due up to then, that moment included. Comes back when the
    /// runtime is [settled](TestRuntime::settle).
    pub async fn advance(&self, by: Duration) {
        self.advance_to(self.now().saturating_add(by)).await;
    }

    /// Moves time on to a moment of the wall clock. See [`TestRuntime::advance`]; a moment that is past moves nothing.
    pub async fn advance_to(&self, to: Timestamp) {
        self.settle().await;
        while let Some(left) = self.next_stop().filter(|left| *left <= to.since(self.now()))
            && !self.has_crashed()
        {
            self.step_by(left).await;
        }
        self.step_by(to.since(self.now())).await;
    }

    /// Waits until nothing happens any more without time passing or input from outside: no body can go on, no run can start,
    /// and every signal of [`TestRuntime::signal_when_waiting`] is sent. Comes back at once after a crash.
    pub async fn settle(&self) {
        loop {
            self.come_to_rest().await;
            if self.has_crashed() || !self.send_signals().await {
                return;
            }
        }
    }

    /// When the next thing is due by the clock; `None` if nothing is.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.next_stop().map(|left| self.now().saturating_add(left))
    }

    /// Moves time on as far as a run needs to end, and gives the run as it ended, in whatever way. One that went on as others
    /// is followed to the last of them.
    ///
    /// # Errors
    /// [`Stuck`], if it waits for something that time does not bring.
    pub async fn run_to_completion(&self, mut run: RunId) -> Result<Run, Stuck> {
        for _ in 0..STOPS_MAX {
            self.settle().await;
            if self.has_crashed() {
                return Err(Stuck::Crashed);
            }
            let found = self.durably.get_run(run).await?.ok_or(Error::RunNotFound { run })?;
            if let Some(next) = found.continued_as {
                run = next;
                continue;
            }
            if found.is_terminal() {
                return Ok(found);
            }
            match self.next_stop() {
                Some(left) => self.step_by(left).await,
                None if self.is_awake_within(self.settings.patience * 20).await => {}
                None => return Err(self.stuck(found).await?),
            }
        }
        Err(Stuck::Endless { run })
    }

    async fn stuck(&self, run: Run) -> Result<Stuck, Error> {
        let steps = self.durably.get_steps(run.id).await?;
        let waits = steps.into_iter().filter_map(|step| {
            let waiting = step.waiting_for?;
            let what = match (waiting.signal, waiting.run) {
                (Some(signal), _) => format!("step {:?} for signal {signal:?}", step.name),
                (None, Some(run)) => format!("step {:?} for run {run}", step.name),
                (None, None) => format!("step {:?}", step.name),
            };
            Some(what)
        });
        Ok(Stuck::Waiting { run: run.id, status: run.status, waits: waits.collect() })
    }

    /// Whether the process that this stands for has crashed: by [`TestRuntime::crash_in_step`].
    pub fn has_crashed(&self) -> bool {
        self.rig.is_dead()
    }

    /// Ends the runtime as the end of its process would, at once: what is not on disk is lost, and bodies are dropped where
    /// they are.
    ///
    /// ```
    /// # use durably::testing::TestRuntime;
    /// # use durably::{Job, Step};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let runtime = TestRuntime::new().await;
    /// let nap = runtime.register(Job::new("nap", |step: Step, _: ()| async move {
    ///     step.sleep("an-hour", Duration::from_secs(3_600)).await
    /// }))?;
    /// let run = nap.trigger(()).await?.id();
    /// runtime.advance(Duration::from_secs(3_000)).await;
    ///
    /// let runtime = runtime.crash().await.reopen().await?;
    /// let run = runtime.run_to_completion(run).await?;
    /// assert_eq!(run.completed_at.unwrap().since(run.created_at), Duration::from_secs(3_600));
    /// # Ok(()) }
    /// ```
    pub async fn crash(self) -> Crashed {
        self.rig.crash(None);
        let core = self.durably.core().clone();
        // Bodies are dropped by their actors, which takes those a turn.
        for turn in 0..10_000 {
            if core.hub.bodies.are_dropped() {
                break;
            }
            give_way(turn).await;
        }
        let TestRuntime { rig, settings, .. } = self;
        let definitions = core.registry.all();
        Crashed {
            settings,
            clock: rig.clock.clone(),
            disk: rig.disk.take_durable(),
            mocks: rig.mocks.clone(),
            definitions,
        }
    }

    /// A handle of this runtime for a job that was registered before a crash.
    pub fn handle<I: Payload, O: Payload>(&self, before: &JobHandle<I, O>) -> JobHandle<I, O> {
        JobHandle { core: self.durably.core().clone(), definition: before.definition.clone(), types: PhantomData }
    }

    /// The next tries of a step fail with this, without a call of its body. `step` is a step's key, of whatever job, or the
    /// name of a loop's keys: `sync` is every `sync[..]`. Of several rules for a step, the newest goes first. As all rules about
    /// steps this is of those that [`Step::run`](crate::Step::run) and its like call: items of a map are none.
    ///
    /// ```
    /// # use durably::testing::{TestRuntime, times};
    /// # use durably::{Job, Step};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let runtime = TestRuntime::new().await;
    /// let order = runtime.register(Job::new("order", |step: Step, _: ()| async move {
    ///     match step.run("charge", || async { Ok("charged") .map(String::from) }).await {
    ///         Ok(receipt) => Ok(receipt),
    ///         Err(error) => Ok(format!("by invoice: {error}")),
    ///     }
    /// }))?;
    /// runtime.fail_step("charge", times(1), "card refused");
    /// assert_eq!(order.trigger(()).await?.output().await?, "by invoice: card refused");
    /// # Ok(()) }
    /// ```
    pub fn fail_step(&self, step: &str, times: Times, error: impl Into<JobError>) {
        self.rig.mocks.fail(step, times, error.into());
    }

    /// The next tries of a step panic with this message, in the place of its body.
    pub fn panic_step(&self, step: &str, times: Times, message: impl Into<String>) {
        self.rig.mocks.panic(step, times, message.into());
    }

    /// The next tries of a step take so much longer, by the clock of this runtime.
    pub fn delay_step(&self, step: &str, times: Times, delay: Duration) {
        self.rig.mocks.delay(step, times, delay);
    }

    /// The process dies once the body of this step has returned, before its outcome is on disk: what it did is done, and it
    /// will run again. [`TestRuntime::settle`] and what waits with it come back then; [`TestRuntime::crash`] goes on from
    /// there.
    pub fn crash_in_step(&self, step: &str) {
        self.rig.mocks.crash(step);
    }

    /// A step gives this from here on, without a call of its body. It must fit what the step's code gives.
    ///
    /// ```
    /// # use durably::testing::TestRuntime;
    /// # use durably::{Job, JobResult, Step};
    /// # use serde_json::json;
    /// # async fn fetch() -> JobResult<Vec<u32>> { Err("no network in tests".into()) }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let runtime = TestRuntime::new().await;
    /// let sum = runtime.register(Job::new("sum", |step: Step, _: ()| async move {
    ///     Ok(step.run("fetch", fetch).await?.iter().sum::<u32>())
    /// }))?;
    /// runtime.mock_step("fetch", json!([1, 2]));
    /// assert_eq!(sum.trigger(()).await?.output().await?, 3);
    /// # Ok(()) }
    /// ```
    pub fn mock_step(&self, step: &str, value: impl Into<Value>) {
        let value = value.into();
        self.rig.mocks.give(step, move |_| Ok(value.clone()));
    }

    /// Like [`TestRuntime::mock_step`], with what a closure gives for each try.
    pub fn mock_step_with<T: Serialize>(
        &self,
        step: &str,
        give: impl Fn(&StepCallInfo) -> JobResult<T> + Send + Sync + 'static,
    ) {
        self.rig.mocks.give(step, give);
    }

    /// Sends this signal to every run that waits for it, whenever the runtime settles: once for each step that does, also where
    /// that was dropped, as by a race.
    ///
    /// ```
    /// # use durably::testing::TestRuntime;
    /// # use durably::{Job, Step};
    /// # use serde_json::json;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let runtime = TestRuntime::new().await;
    /// let order = runtime.register(Job::new("order", |step: Step, _: ()| async move {
    ///     step.wait_signal::<String>("approval", "approved").await
    /// }))?;
    /// runtime.signal_when_waiting("approved", json!("ann"));
    /// let run = order.trigger(()).await?.id();
    /// assert_eq!(runtime.run_to_completion(run).await?.output, Some(json!("ann")));
    /// # Ok(()) }
    /// ```
    pub fn signal_when_waiting(&self, name: &str, value: impl Into<Value>) {
        self.rig.mocks.signal(name, value.into());
    }

    /// Registers a stand-in for a job: what others trigger under this name gives what the closure gives.
    ///
    /// ```
    /// # use durably::testing::TestRuntime;
    /// # use durably::{Job, Step};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let runtime = TestRuntime::new().await;
    /// let price = runtime.mock_job("price", |item: String| Ok(item.len() as u32))?;
    /// let order = runtime.register(Job::new("order", move |step: Step, item: String| {
    ///     let price = price.clone();
    ///     async move { step.call("price", &price, item).await }
    /// }))?;
    /// assert_eq!(order.trigger("tea".into()).await?.output().await?, 3);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Durably::register`].
    pub fn mock_job<I: Payload, O: Payload>(
        &self,
        name: &str,
        give: impl Fn(I) -> JobResult<O> + Send + Sync + 'static,
    ) -> Result<JobHandle<I, O>, Error> {
        self.durably.register(Job::new(name, move |_, input: I| std::future::ready(give(input))))
    }

    /// Takes back all that was said about steps and signals.
    pub fn clear_mocks(&self) {
        self.rig.mocks.clear();
    }

    /// What this runtime shares with the code under it.
    pub(super) fn rig(&self) -> &Arc<Rig> {
        &self.rig
    }

    /// Moves time on to one moment and does what is due then.
    pub(super) async fn step_by(&self, left: Duration) {
        self.rig.note(format!("     time moves by {left:?}"));
        self.rig.clock.advance(left);
        let core = self.durably.core();
        core.store.send(Op::Tick);
        self.settle().await;
        if let Some(retention) = core.config.retain_runs
            && !self.has_crashed()
            && let Err(error) = core.purge_runs(self.now().saturating_sub(retention), usize::MAX).await
        {
            tracing::warn!(%error, "runs past their retention could not be purged");
        }
    }

    /// How long until the next thing is due. Not nothing, where something is overdue: time goes on.
    pub(super) fn next_stop(&self) -> Option<Duration> {
        let (due, _) = self.durably.core().store.outlook();
        let timer = self.rig.clock.next_timer();
        due.into_iter().chain(timer).min().map(|left| left.max(Duration::from_millis(1)))
    }

    async fn come_to_rest(&self) {
        let mut turns = 0;
        while !self.has_crashed() {
            let changed = self.rig.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let epoch = self.rig.epoch();
            self.do_what_is_due();
            match self.at_rest() {
                _ if epoch != self.rig.epoch() => {}
                Some(false) => return,
                Some(true) => {
                    if tokio::time::timeout(self.settings.patience, changed).await.is_err() {
                        return;
                    }
                }
                None => {
                    give_way(turns).await;
                    turns += 1;
                }
            }
        }
    }

    /// Whether a body that waits for something outside goes on within this real time.
    async fn is_awake_within(&self, patience: Duration) -> bool {
        let changed = self.rig.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        match self.at_rest() {
            Some(false) => false,
            Some(true) => tokio::time::timeout(patience, changed).await.is_ok(),
            None => true,
        }
    }

    /// Whether all bodies are at rest, and then whether one of them waits for something outside.
    fn at_rest(&self) -> Option<bool> {
        let core = self.durably.core();
        let (bodies, outside) = core.hub.bodies.at_rest()?;
        let (_, known) = core.store.outlook();
        Some(outside).filter(|_| bodies == known)
    }

    fn do_what_is_due(&self) {
        let store = &self.durably.core().store;
        // Alarms ring in slices, and so does folding.
        for _ in 0..1_000 {
            if store.idle_for().and_then(|idle| idle.timeout) != Some(Duration::ZERO) {
                return;
            }
            store.send(Op::Tick);
        }
    }

    /// Sends the signals that runs wait for; says whether there were some.
    async fn send_signals(&self) -> bool {
        let rules = self.rig.mocks.signals();
        if rules.is_empty() {
            return false;
        }
        for run in self.rig.mocks.signalled() {
            if self.durably.get_run(run).await.is_ok_and(|found| found.is_none_or(|run| run.is_terminal())) {
                self.rig.mocks.forget_signalled(run);
            }
        }
        let waiting = RunFilter::new().statuses([RunStatus::Leased, RunStatus::Suspended]).limit(1_000);
        let mut sent = false;
        for run in self.durably.get_runs(waiting).await.unwrap_or_default() {
            for step in self.durably.get_steps(run.id).await.unwrap_or_default() {
                if self.rig.mocks.is_signalled(run.id, step.index) {
                    continue;
                }
                let name = step.waiting_for.and_then(|waiting| waiting.signal);
                let rule = rules.iter().find(|rule| Some(&rule.name) == name.as_ref());
                if let Some(rule) = rule {
                    self.rig.note(format!("     signal {:?} is sent", rule.name));
                    if self.durably.signal(run.id, &rule.name, &rule.value).await.is_ok() {
                        self.rig.mocks.set_signalled(run.id, step.index);
                        sent = true;
                    }
                }
            }
        }
        sent
    }
}

async fn give_way(turns: usize) {
    if turns < 100 {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What a crash has left: the disk, the clock, the registered jobs, and what the test has said about steps.
pub struct Crashed {
    settings: Settings,
    clock: TestClock,
    disk: Vec<u8>,
    mocks: Arc<Mocks>,
    definitions: Vec<Arc<Definition>>,
}

impl fmt::Debug for Crashed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crashed").field("now", &self.clock.now()).finish_non_exhaustive()
    }
}

impl Crashed {
    /// The clock: moved here, time passes while no process is there.
    pub fn clock(&self) -> &TestClock {
        &self.clock
    }

    /// Starts again over the same disk and clock, with the same jobs registered.
    ///
    /// # Errors
    /// Those of [`Durably::open`].
    pub async fn reopen(mut self) -> Result<TestRuntime, Error> {
        let definitions = std::mem::take(&mut self.definitions);
        let runtime = self.reopen_without_jobs().await?;
        register_again(runtime.durably.core(), definitions)?;
        Ok(runtime)
    }

    /// Starts again without a job, for other code than before the crash.
    ///
    /// # Errors
    /// Those of [`Durably::open`].
    pub async fn reopen_without_jobs(self) -> Result<TestRuntime, Error> {
        let Crashed { settings, clock, disk, mocks, .. } = self;
        TestRuntime::open(settings, clock, MemoryDisk::holding(disk), mocks).await
    }
}

/// Why a run does not end however much time passes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Stuck {
    /// Nothing is due that could wake it.
    #[error("run {run} is {status} and waits for nothing that time brings: {waits:?}")]
    Waiting {
        /// The run.
        run: RunId,
        /// Its status.
        status: RunStatus,
        /// What its steps wait for, in words.
        waits: Vec<String>,
    },
    /// The runtime had something due a hundred thousand times, of this run or of others, and it did not end.
    #[error("run {run} does not end")]
    Endless {
        /// The run.
        run: RunId,
    },
    /// The process that the runtime stands for has crashed.
    #[error("the process has crashed")]
    Crashed,
    /// The runtime refused.
    #[error(transparent)]
    Runtime(#[from] Error),
}
