//! Steps as user code sees them.
//!
//! Layout: [`Step`] is what a body gets; [`StepRun`] the builder and future of one step, [`StepWait`] that of one which
//! waits; `retry` what is done about one that failed; `execution` what its steps share;
//! `current` which body is being polled; `blocking` the threads for code that blocks.

pub(crate) mod blocking;
pub(crate) mod current;
pub(crate) mod execution;
mod logger;
mod map;
mod race;
mod retry;
mod run;
pub(crate) mod signals;
pub(crate) mod wait;

use std::cell::Cell;
use std::fmt::{self, Write};
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

pub use logger::{Logger, ProgressReport};
pub use map::{Collect, ItemCx, MapRun, Mapped, StepMap, Stop};
pub use race::{StepRace, Won};
pub use run::StepRun;
pub use wait::StepWait;

use crate::codec::keys::hex;
use crate::id::RunId;
use crate::job::JobResult;
use crate::limits::{SIGNAL_NAME_BYTES_MAX, STEP_KEY_BYTES_MAX};
use crate::run::StepKind;
use crate::time::Timestamp;
use execution::{Execution, Ticket, Verdict};
use wait::{Until, Wanted};

/// The key of a step: a text, or a text and an item for loops (`("sync", 42)` is `sync[42]`). 1 to 1,024 bytes.
///
/// Steps are matched by key over executions, so a key names the same work every time, and is used once in an execution.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepKey(Arc<str>);

thread_local! {
    static KEY_TEXT: Cell<String> = const { Cell::new(String::new()) };
}

impl From<&str> for StepKey {
    fn from(key: &str) -> Self {
        StepKey(key.into())
    }
}

impl From<String> for StepKey {
    fn from(key: String) -> Self {
        StepKey(key.into())
    }
}

impl From<&String> for StepKey {
    fn from(key: &String) -> Self {
        StepKey(key.as_str().into())
    }
}

impl<D: fmt::Display> From<(&str, D)> for StepKey {
    fn from((name, item): (&str, D)) -> Self {
        // In a loop this is most of what a step costs that does little: written in place, copied once.
        let mut text = KEY_TEXT.take();
        text.clear();
        text.push_str(name);
        text.push('[');
        let written = write!(text, "{item}");
        debug_assert!(written.is_ok(), "a Display that fails");
        text.push(']');
        let key = StepKey(text.as_str().into());
        KEY_TEXT.set(text);
        key
    }
}

impl fmt::Display for StepKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a job's body makes its steps with. Cheap to clone.
#[derive(Clone)]
pub struct Step {
    execution: Arc<Execution>,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("run_id", &self.run_id()).finish_non_exhaustive()
    }
}

impl Step {
    pub(crate) fn new(execution: Arc<Execution>) -> Self {
        Step { execution }
    }

    /// A step: a named unit of work whose outcome is stored before the body goes on.
    ///
    /// The returned value is a builder and a future. Once the outcome is stored, later executions of the run give it again
    /// without calling `body`; a stored failure fails again. Cut off by a crash or a cancel before that, the body runs again:
    /// at least once. What the body gets is the stored form, read back from JSON, live as on every replay.
    ///
    /// # Errors
    /// What `body` returned, as data; a timeout; a value that can't be stored, read back, or is over its limit. A key used
    /// twice, a step inside a step's body and a checkpoint that no longer fits are not errors here: they end the run.
    ///
    /// # Cancel safety
    /// Dropped before its body returned, nothing is stored and the key is free again. Dropped later, the outcome is recorded
    /// all the same, and the next call of the key gives it. Which branch of a `select!` wins is therefore not the same over a
    /// replay.
    #[track_caller]
    pub fn run<'a, T, F, Fut>(&self, key: impl Into<StepKey>, mut body: F) -> StepRun<'a, T>
    where
        T: Serialize + DeserializeOwned + Send + 'a,
        F: FnMut() -> Fut + Send + 'a,
        Fut: Future<Output = JobResult<T>> + Send + 'a,
    {
        self.begin(key.into(), Location::caller(), Box::new(move |_| Box::pin(body())))
    }

    /// Like [`Step::run`], with the step's own context.
    #[track_caller]
    pub fn run_with<'a, T, F, Fut>(&self, key: impl Into<StepKey>, mut body: F) -> StepRun<'a, T>
    where
        T: Serialize + DeserializeOwned + Send + 'a,
        F: FnMut(StepCx) -> Fut + Send + 'a,
        Fut: Future<Output = JobResult<T>> + Send + 'a,
    {
        self.begin(key.into(), Location::caller(), Box::new(move |cx| Box::pin(body(cx))))
    }

    /// Like [`Step::run`], for code that blocks: it runs on a thread of the runtime's own, of which there are at most
    /// `blocking_threads`.
    ///
    /// It can't be stopped: after a cancel or a timeout the run still holds its concurrency key and its slot until the code
    /// has returned, and a shutdown leaves it behind after the grace. One that still waits for a thread then is not begun any
    /// more. An attempt after a timeout waits, on a thread of its own, until the one before has returned.
    #[track_caller]
    pub fn run_blocking<'a, T, F>(&self, key: impl Into<StepKey>, body: F) -> StepRun<'a, T>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        F: FnMut() -> JobResult<T> + Send + 'static,
    {
        let execution = self.execution.clone();
        let body = Arc::new(std::sync::Mutex::new(body));
        let body = Box::new(move |cx: StepCx| {
            let (execution, body) = (execution.clone(), body.clone());
            let pinned: run::BodyFuture<'a, T> = Box::pin(async move {
                let call = move || (body.lock().unwrap_or_else(std::sync::PoisonError::into_inner))();
                run::on_thread(&execution, cx.key, call).await
            });
            pinned
        });
        self.begin(key.into(), Location::caller(), body)
    }

    /// Ends this run and starts its successor with another input, in one commit: for loops without an end, whose history would
    /// grow without one. It never resolves; the body ends with it:
    ///
    /// ```
    /// # use durably::{Job, JobResult, Step};
    /// # use std::time::Duration;
    /// let poll = Job::new("poll", |step: Step, seen: u64| async move {
    ///     let newest: u64 = step.run("fetch", || async { Ok(seen + 1) }).await?;
    ///     if newest > 1_000_000 {
    ///         return Ok(newest);
    ///     }
    ///     step.sleep("pause", Duration::from_secs(60)).await?;
    ///     return step.continue_as_new(newest).await;
    /// });
    /// ```
    ///
    /// This run is completed then, with null for an output and [`continued_as`](crate::Run::continued_as). The successor is a
    /// run of the same job with its own id and steps; it takes over labels, parent, signals that no step has taken, the
    /// idempotency key (with the time that is left of it, and the input that it was triggered with), and the concurrency key,
    /// which no other run gets in between. Whoever waits for this run, by [`RunHandle::output`](crate::RunHandle::output),
    /// [`wait_for_run`](crate::Durably::wait_for_run) or [`Step::call`], now or later, gets the end of the last successor, as
    /// long as the runs in between have not been purged when the wait begins. Runs that this one has triggered go on, and are
    /// not cancelled with the successor. A signal to this run is refused from here on: send it to the successor.
    ///
    /// The input is checked as that of a trigger; one that is refused fails this run with
    /// [`ErrorKind::Mismatch`](crate::ErrorKind::Mismatch). Steps that have not ended are dropped.
    ///
    /// # Errors
    /// None but what stops every step: an input that can't be JSON, or a body that has ended.
    pub async fn continue_as_new<I: Serialize + Send, T>(&self, input: I) -> JobResult<T> {
        let execution = &self.execution;
        if execution.is_over() {
            return Err(run::detached("continue_as_new"));
        }
        let (run, generation) = (execution.start.run, execution.start.generation);
        if let Some(outer) = current::step(run, generation) {
            let message = format!("continue_as_new was called inside the body of step {outer:?}");
            execution.fail(crate::job::ErrorKind::StepNested, message);
        } else {
            let input = serde_json::to_value(&input).map_err(|error| crate::job::not_storable(&error))?;
            execution.judge(Verdict::Continues(input));
        }
        drop(input);
        run::never().await
    }

    /// A choice among steps that is the same over every replay, as that of a `select!` is not: the first of its arms to end
    /// wins, its name is stored, and later executions poll that arm alone.
    ///
    /// An arm is any future of a job's result; steps in it are steps as everywhere, with keys of their own. Arms are polled in
    /// their order, so of several that are ready at once the first wins. The others are dropped before the winner's name goes to
    /// disk, and what they had recorded by then stays: a wait is taken up by the next call of its key, a child goes on, a signal
    /// that an arm has taken is taken. The race gives its value when the name is on disk. After a crash before that, what
    /// the arms recorded is there, and the race is run again: another arm may win, and nobody has seen the first.
    ///
    /// # Errors
    /// An arm that fails has ended, and wins with its error. A race without arms. A stored winner that is no arm any more ends
    /// the run with [`ErrorKind::CheckpointMismatch`](crate::ErrorKind::CheckpointMismatch), a name given twice with
    /// [`ErrorKind::StepReused`](crate::ErrorKind::StepReused).
    ///
    /// # Cancel safety
    /// Dropped before an arm has ended, nothing is stored of the race, and its arms are dropped as steps are. Dropped later, the
    /// winner is recorded all the same, and the next execution takes that arm. A step of an arm that has given its value has been
    /// used, so to call its key again in the same execution, in the same race called again, ends the run as for any step.
    ///
    /// ```
    /// # use durably::{Job, Step};
    /// # use std::time::Duration;
    /// let order = Job::new("order", |step: Step, item: String| async move {
    ///     let decision = step
    ///         .race("decision")
    ///         .arm("approved", step.wait_signal::<bool>("approval", "approved"))
    ///         .arm("timed-out", async {
    ///             step.sleep("patience", Duration::from_secs(86_400)).await?;
    ///             step.run("refuse", || async { Ok(false) }).await
    ///         })
    ///         .await?;
    ///     Ok(format!("{item}: {} ({})", decision.arm(), decision.value()))
    /// });
    /// ```
    #[track_caller]
    pub fn race<'a, T>(&self, key: impl Into<StepKey>) -> StepRace<'a, T> {
        StepRace::new(self.claim(key.into(), Location::caller()))
    }

    /// Work on many items, up to ten million, some of them at a time, with one step's overhead for a thousand.
    ///
    /// Items that are done are stored in batches: at 1,024 items, 64 KiB or 20 ms, whatever comes first, or when the write before
    /// is done, then up to four times as many at once. After a crash, at most those of the last batches run again, and an item
    /// whose batch is on disk never does. So each runs at least once; give [`ItemCx::effect_key`] to services that take an
    /// idempotency key. The result comes in the items' order when all of it is on disk. The run's progress is reported as items
    /// are done. When the runtime shuts down no more items are begun, and the rest goes on after the next start.
    ///
    /// Items must be the same on every replay: a fingerprint of their JSON is stored, not the items. They are no steps: a step
    /// inside of an item's body ends the run as one in a step's body does. Outputs count into the 256 MiB of checkpoints of a
    /// run, 6 bytes more each: about a million of 250 bytes. Items that give `()` cost some bits. Outputs are in memory until
    /// they are all given.
    ///
    /// # Errors
    /// The first item's that fails: the others are dropped, what was done is stored, and a resume goes on with the rest; with
    /// [`collect_failures`](StepMap::collect_failures) the items' failures are part of the result. A changed number of items, or
    /// other ones, ends the run with [`ErrorKind::CheckpointMismatch`](crate::ErrorKind::CheckpointMismatch).
    ///
    /// # Cancel safety
    /// Dropped, the items under way are dropped, and the next call of the key goes on with what is stored.
    ///
    /// ```
    /// # use durably::{Durably, Job, Step};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), durably::Error> {
    /// let squares = Job::new("squares", |step: Step, count: u64| async move {
    ///     let squares = step.map("squares", 0..count).concurrency(32).run(|n| async move { Ok(n * n) }).await?;
    ///     Ok(squares.iter().sum::<u64>())
    /// });
    /// let durably = Durably::in_memory().await?;
    /// let squares = durably.register(squares)?;
    /// assert_eq!(squares.trigger(1_000).await?.output().await?, 332_833_500);
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn map<'a, I>(&self, key: impl Into<StepKey>, items: impl IntoIterator<Item = I>) -> StepMap<'a, I> {
        StepMap::new(self.claim(key.into(), Location::caller()), items.into_iter().collect())
    }

    fn begin<'a, T>(&self, key: StepKey, at: &'static Location<'static>, body: run::Body<'a, T>) -> StepRun<'a, T> {
        match self.claim(key, at) {
            Claimed::Ticket(ticket) => StepRun::new(ticket, body),
            Claimed::Detached(key) => StepRun::detached(key),
            Claimed::Never => StepRun::never(),
        }
    }

    pub(crate) fn begin_wait<'a, T>(
        &self,
        key: StepKey,
        at: &'static Location<'static>,
        wanted: Wanted,
    ) -> StepWait<'a, T> {
        match self.claim(key, at) {
            Claimed::Ticket(ticket) => StepWait::new(ticket, wanted),
            Claimed::Detached(key) => StepWait::detached(key),
            Claimed::Never => StepWait::never(),
        }
    }

    fn claim(&self, StepKey(key): StepKey, at: &'static Location<'static>) -> Claimed {
        if !(1..=STEP_KEY_BYTES_MAX).contains(&key.len()) {
            let message = format!("step key of {} bytes at {at}: it must have 1 to {STEP_KEY_BYTES_MAX}", key.len());
            self.execution.fail(crate::job::ErrorKind::OverLimit, message);
            return Claimed::Never;
        }
        if self.execution.is_over() {
            return Claimed::Detached(key.to_string());
        }
        self.execution.claim(key, at).map_or(Claimed::Never, Claimed::Ticket)
    }

    /// A pause that survives restarts: minutes or months. Its end is stored at the first call, so a crash does not begin it
    /// anew, and it never ends early; how late depends on the load, and at most 30 s on a clock that is set meanwhile.
    ///
    /// While all that a body does is wait, its run is suspended: it keeps its concurrency key, takes no slot, and holds no
    /// memory worth naming. What it awaits beside steps is dropped then, and what it does outside of steps is done again.
    ///
    /// ```
    /// # use durably::{Job, Step};
    /// # use std::time::Duration;
    /// let reminder = Job::new("reminder", |step: Step, user: String| async move {
    ///     step.sleep("three-days", Duration::from_secs(3 * 24 * 3600)).await?;
    ///     step.run("mail", || async { Ok(println!("{user}, you left something behind")) }).await
    /// });
    /// ```
    #[track_caller]
    pub fn sleep<'a>(&self, key: impl Into<StepKey>, duration: Duration) -> StepWait<'a, ()> {
        self.begin_wait(key.into(), Location::caller(), Wanted::pause(Until::For(duration)))
    }

    /// Like [`Step::sleep`], up to a moment of the wall clock. The moment of the first call counts.
    #[track_caller]
    pub fn sleep_until<'a>(&self, key: impl Into<StepKey>, at: Timestamp) -> StepWait<'a, ()> {
        self.begin_wait(key.into(), Location::caller(), Wanted::pause(Until::At(at)))
    }

    /// Waits for a signal sent to this run by [`Durably::signal`](crate::Durably::signal), of a name of 1 to 128 bytes.
    ///
    /// Signals are kept in the order in which they came, also those sent before anyone waits, and each is taken by one step.
    /// A [`timeout`](StepWait::timeout) can be set. See [`Step::sleep`] for what becomes of the run meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout); [`ErrorKind::Mismatch`](crate::ErrorKind::Mismatch) if the signal
    /// does not fit the type: it is consumed all the same.
    ///
    /// ```
    /// # use durably::{Durably, Job, Step};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), durably::Error> {
    /// let order = Job::new("order", |step: Step, item: String| async move {
    ///     let by: String = step.wait_signal("approval", "approved").timeout(Duration::from_secs(86_400)).await?;
    ///     Ok(format!("{item}, approved by {by}"))
    /// });
    /// let durably = Durably::in_memory().await?;
    /// let order = durably.register(order)?;
    /// let run = order.trigger("tea".into()).await?;
    /// durably.signal(run.id(), "approved", &"ann").await?;
    /// assert_eq!(run.output().await?, "tea, approved by ann");
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn wait_signal<'a, T: DeserializeOwned + Send + 'a>(
        &self,
        key: impl Into<StepKey>,
        name: impl Into<String>,
    ) -> StepWait<'a, T> {
        let (name, at) = (name.into(), Location::caller());
        if !(1..=SIGNAL_NAME_BYTES_MAX).contains(&name.len()) {
            let message = format!("signal name of {} bytes at {at}: 1 to {SIGNAL_NAME_BYTES_MAX}", name.len());
            self.execution.fail(crate::job::ErrorKind::OverLimit, message);
            return StepWait::never();
        }
        let wanted = Wanted { signal: Some(name), ..Wanted::new(StepKind::Signal) };
        self.begin_wait(key.into(), at, wanted)
    }

    /// Reports how far the body has come, of `total` if that is known (`None::<usize>` if not). It counts at once; the
    /// returned value can amend it with a message.
    pub fn progress(&self, current: usize, total: impl Into<Option<usize>>) -> ProgressReport<'_> {
        ProgressReport::new(&self.execution, current as u64, total.into().map(|total| total as u64))
    }

    /// The run's log. Inside a step's body, lines are that step's.
    pub fn log(&self) -> Logger {
        let start = &self.execution.start;
        Logger::new(self.execution.clone(), current::step(start.run, start.generation))
    }

    /// Fires when the run is cancelled. The body goes on for up to `cancel_grace` and is dropped then; one that never asked for
    /// this token is dropped as soon as it is at a step, which can't be recorded any more.
    pub fn cancelled(&self) -> CancellationToken {
        self.execution.watch()
    }

    /// Fires when the runtime shuts down. The body goes on up to the shutdown's grace; what it does not finish is handed back
    /// and goes on after the next start.
    pub fn draining(&self) -> CancellationToken {
        // One of its own: whoever cancels it drains nothing.
        self.execution.means.draining.child_token()
    }

    /// The run's id.
    pub fn run_id(&self) -> RunId {
        self.execution.start.run
    }
}

/// What the claim of a key came to.
enum Claimed {
    Ticket(Ticket),
    /// The body has ended.
    Detached(String),
    /// The run is ended.
    Never,
}

/// One try of one step, as its body sees it.
#[derive(Clone)]
pub struct StepCx {
    execution: Arc<Execution>,
    key: Arc<str>,
    attempt: u32,
}

impl fmt::Debug for StepCx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepCx").field("key", &self.key).field("attempt", &self.attempt).finish_non_exhaustive()
    }
}

impl StepCx {
    #[cfg(feature = "testing")]
    pub(crate) fn motion(&self) -> &Arc<crate::testing::Motion> {
        &self.execution.motion
    }

    /// What a test is told of it.
    #[cfg(feature = "testing")]
    pub(crate) fn call(&self) -> crate::testing::StepCallInfo {
        let subject = &self.execution.start.subject;
        crate::testing::StepCallInfo {
            job: subject.job_name.to_string(),
            run: subject.run,
            step: self.key.to_string(),
            attempt: self.attempt,
        }
    }

    /// Which attempt of the step this is, from 1. It counts on over crashes and restarts; one that a crash cut off does not
    /// count.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The run's log, with lines of this step.
    pub fn log(&self) -> Logger {
        Logger::new(self.execution.clone(), Some(self.key.clone()))
    }

    /// Fires when the run is cancelled.
    pub fn cancelled(&self) -> CancellationToken {
        self.execution.watch()
    }

    /// A key for other services' idempotency: 32 hex digits, the same over retry, recovery and resume of this step, another
    /// one for a retriggered run.
    pub fn effect_key(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(self.execution.start.run.as_bytes());
        hasher.update(self.key.as_bytes());
        hex(&hasher.finalize()[..16])
    }
}
