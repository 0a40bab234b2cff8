//! What the tests share: time limits, bodies that wait to be let on, and openings.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use durably::{
    Builder, Clock, Durably, Event, Events, Job, JobResult, Received, Run, RunId, Step, SystemClock, Timestamp,
};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::sync::{Notify, Semaphore};

/// Fails a test that hangs.
pub async fn within<F: IntoFuture>(test: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), test).await.expect("the test hangs")
}

/// The same for tests that move so much that a slow machine takes its time.
pub async fn within_minutes<F: IntoFuture>(test: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(180), test).await.expect("the test hangs")
}

/// Where bodies wait to be let on. Clones are the same gate.
#[derive(Clone)]
pub struct Gate(Arc<Waiting>);

struct Waiting {
    arrived: Semaphore,
    open: Semaphore,
    arrivals: AtomicUsize,
    inside: AtomicUsize,
    most_inside: AtomicUsize,
}

impl Gate {
    pub fn new() -> Self {
        Gate(Arc::new(Waiting {
            arrived: Semaphore::new(0),
            open: Semaphore::new(0),
            arrivals: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            most_inside: AtomicUsize::new(0),
        }))
    }

    /// In a body: says that it is here, and waits to be let on.
    pub async fn pass(&self) {
        let _inside = self.enter();
        // Closed, the gate stays open.
        if let Ok(permit) = self.0.open.acquire().await {
            permit.forget();
        }
    }

    /// In a body: says that it is here, and counts as inside until the guard is dropped.
    pub fn enter(&self) -> Inside {
        let inside = self.0.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most_inside.fetch_max(inside, Ordering::SeqCst);
        self.0.arrivals.fetch_add(1, Ordering::SeqCst);
        self.0.arrived.add_permits(1);
        Inside(self.clone())
    }

    /// In a test: waits until one more body is here.
    pub async fn reached(&self) {
        self.0.arrived.acquire().await.expect("never closed").forget();
    }

    /// Waits until this many more bodies are here.
    pub async fn reached_by(&self, bodies: u32) {
        self.0.arrived.acquire_many(bodies).await.expect("never closed").forget();
    }

    /// Lets one body on: one that waits, or the next to come.
    pub fn let_one_on(&self) {
        self.0.open.add_permits(1);
    }

    /// Lets every body on, now and from here on.
    pub fn open(&self) {
        self.0.open.close();
    }

    /// Bodies that have come here, ever.
    pub fn arrivals(&self) -> usize {
        self.0.arrivals.load(Ordering::SeqCst)
    }

    /// The most bodies that were here at once.
    pub fn most_inside(&self) -> usize {
        self.0.most_inside.load(Ordering::SeqCst)
    }
}

/// A body is inside its gate.
pub struct Inside(Gate);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A clock that the test moves.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// Some day in 2026.
    pub fn new() -> Self {
        ManualClock(Arc::new(AtomicU64::new(1_770_000_000_000)))
    }

    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_millis()).expect("a short time"), Ordering::SeqCst);
    }

    /// Sets the wall clock back, as an administrator might.
    pub fn set_back(&self, by: Duration) {
        self.0.fetch_sub(u64::try_from(by.as_millis()).expect("a short time"), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// A clock that can hold up the writer, as a disk does that does not come back from a flush.
#[derive(Debug, Clone, Default)]
pub struct Stalling {
    system: SystemClock,
    stalled: Arc<(Mutex<bool>, Condvar)>,
    holds: Arc<Notify>,
}

impl Stalling {
    pub fn stall(&self, stalled: bool) {
        *self.stalled.0.lock().unwrap() = stalled;
        self.stalled.1.notify_all();
    }

    /// Waits until the writer is held up.
    pub async fn reached(&self) {
        self.holds.notified().await;
    }

    fn wait(&self) {
        if std::thread::current().name() == Some("durably-writer") {
            let held = self.stalled.0.lock().unwrap();
            if *held {
                self.holds.notify_one();
            }
            drop(self.stalled.1.wait_while(held, |stalled| *stalled).unwrap());
        }
    }
}

impl Clock for Stalling {
    fn now(&self) -> Timestamp {
        self.wait();
        self.system.now()
    }

    fn monotonic(&self) -> Duration {
        self.wait();
        self.system.monotonic()
    }
}

/// A runtime in memory that works at once.
pub async fn memory() -> Durably {
    Durably::in_memory().await.expect("opens")
}

/// A runtime in memory that starts no run before it is told to.
pub async fn paused() -> Durably {
    Durably::builder().paused(true).in_memory().await.expect("opens")
}

/// A file of a test's own, gone with it.
pub struct TempFile {
    directory: TempDir,
}

impl TempFile {
    pub fn new() -> Self {
        TempFile { directory: TempDir::new().expect("a temporary directory") }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("jobs.redb")
    }

    /// Another path in the same directory.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub async fn open(&self) -> Durably {
        self.open_with(Durably::builder()).await
    }

    pub async fn open_paused(&self) -> Durably {
        self.open_with(Durably::builder().paused(true)).await
    }

    pub async fn open_with(&self, builder: Builder) -> Durably {
        builder.open(self.path()).await.expect("opens")
    }
}

/// Changes a table of a closed file behind the library's back.
pub fn change<K: redb::Key + 'static>(
    file: &TempFile,
    table: &str,
    change: impl FnOnce(&mut redb::Table<'_, K, &'static [u8]>),
) {
    let db = redb::Database::open(file.path()).expect("opens");
    let txn = db.begin_write().expect("begins");
    change(&mut txn.open_table(redb::TableDefinition::new(table)).expect("opens"));
    txn.commit().expect("commits");
}

/// A job that gives its input back.
pub fn echo(name: &str) -> Job<u32, u32> {
    Job::new(name, |_: Step, input: u32| async move { Ok(input) })
}

/// A job that gives its input back once it is let on.
pub fn gated(name: &str, gate: &Gate) -> Job<u32, u32> {
    let gate = gate.clone();
    Job::new(name, move |_: Step, input: u32| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            Ok(input)
        }
    })
}

/// A job that fails with this message.
pub fn failing(name: &str, message: &'static str) -> Job<u32, u32> {
    Job::new(name, move |_: Step, _: u32| async move { Err(message.into()) })
}

/// An input of two fields.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct Pair {
    pub left: u32,
    pub right: u32,
}

/// A job that adds.
pub fn pair() -> Job<Pair, u32> {
    Job::new("pair", |_: Step, input: Pair| async move { Ok(input.left + input.right) })
}

/// The run, which must be there.
pub async fn run_of(durably: &Durably, run: RunId) -> Run {
    durably.get_run(run).await.expect("is read").expect("is there")
}

/// Waits until the run has ended, however it ends.
pub async fn ended(durably: &Durably, run: RunId) -> Run {
    let mut events = durably.subscribe(run).await.expect("is there");
    while events.next().await.is_some() {}
    run_of(durably, run).await
}

/// The next event that the test waits for.
pub async fn next_event(events: &mut Events, wanted: impl Fn(&Event) -> bool) -> Arc<Event> {
    loop {
        match events.next().await.expect("the runtime is there") {
            Received::Event(event) if wanted(&event) => return event,
            Received::Event(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The runs and names of the committed events since `events` began, up to what is committed now.
///
/// A later trigger's own event marks how far there is to read, so that nothing has to be waited for in vain.
pub async fn told_so_far(durably: &Durably, events: &mut Events) -> Vec<(RunId, &'static str)> {
    if durably.get_job("marker").is_none() {
        durably.register(echo("marker")).expect("registers");
    }
    let mark = durably.trigger_json("marker", 0.into()).await.expect("triggers");
    let mut told = Vec::new();
    loop {
        match events.next().await.expect("the runtime is there") {
            Received::Event(event) if event.run_id == mark.id() => return told,
            Received::Event(event) if event.committed => told.push((event.run_id, event.kind.name())),
            Received::Event(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A job whose body gets its own clone of what it shares with the test.
pub fn job_with<S, O, F, Fut>(name: &str, shared: S, body: F) -> Job<u32, O>
where
    S: Clone + Send + Sync + 'static,
    O: Serialize + DeserializeOwned + JsonSchema + Send + 'static,
    F: Fn(Step, u32, S) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = JobResult<O>> + Send + 'static,
{
    Job::new(name, move |step: Step, input: u32| body(step, input, shared.clone()))
}

/// Counts calls. Clones are the same count.
#[derive(Clone, Default)]
pub struct Count(Arc<AtomicUsize>);

impl Count {
    /// One more; gives how many there are with it.
    pub fn up(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// Notes that it was dropped.
pub struct OnDrop(pub Count);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.up();
    }
}
