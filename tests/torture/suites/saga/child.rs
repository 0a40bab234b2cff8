//! The process that is killed: sagas, and who sends them signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use durably::testing::suites::Failpoint;
use durably::{Builder, Durably, Error, Job, JobHandle, JobResult, Retry, RunFilter, RunId, Step, Timestamp};
use rustix::process::Signal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Life, Told};
use crate::suites::process::{die, on_threads, refuse_writes, say, told, with_bug};

/// Sagas that each life triggers.
const SAGAS: u32 = 4;
/// Signals that each takes.
pub const SIGNALS: u32 = 2;
pub const SHORT_PAUSE: Duration = Duration::from_millis(3);
/// Of the step that fails at first: the last one succeeds.
pub const TRIES: u32 = 3;
/// Items of a map, and how many of them are under way at a time.
pub const ITEMS: usize = 120;
const ITEMS_AT_A_TIME: usize = 4;
/// Long enough to be suspended for.
pub const LONG_PAUSE: Duration = Duration::from_millis(1_200);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Saga {
    pub name: String,
    pub long: bool,
    pub keyed: bool,
}

impl Saga {
    pub fn pause(&self) -> Duration {
        if self.long { LONG_PAUSE } else { SHORT_PAUSE }
    }

    /// How long it is before the flaky step is tried again after this try.
    pub fn pause_after(&self, failed: u32) -> Duration {
        if failed == 1 { self.pause() } else { SHORT_PAUSE }
    }
}

fn now() -> u64 {
    Timestamp::now().as_millis()
}

/// The settings of child and parent. Kills are many here, and no run is to blame for them.
pub fn builder() -> Builder {
    Durably::builder().max_recoveries(u32::MAX).max_concurrent_runs(4).shutdown_grace(Duration::from_millis(50))
}

/// A step whose value no other execution of it would come to.
async fn one_step(step: &Step, key: &str) -> JobResult<u64> {
    let run = step.run_id();
    let value = step.run_with(key, |cx| {
        say(&Told::Begin(run, key.to_owned(), cx.attempt()));
        async move {
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..1_500))).await;
            Ok(fastrand::u64(..1 << 32))
        }
    });
    resolved(run, key, value.await?)
}

fn resolved(run: RunId, key: &str, value: u64) -> JobResult<u64> {
    say(&Told::Resolved(run, key.to_owned(), value));
    Ok(value)
}

/// A step that fails until its last try.
async fn flaky_step(step: &Step, saga: Saga) -> JobResult<u64> {
    let run = step.run_id();
    let value = step.run_with("flaky", |cx| {
        let attempt = cx.attempt();
        say(&Told::Trying(run, attempt, now()));
        async move {
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..1_000))).await;
            if attempt < TRIES {
                say(&Told::Failing(run, attempt, now()));
                return Err("not yet".into());
            }
            Ok(fastrand::u64(..1 << 32))
        }
    });
    let value = value.retry(Retry::custom(TRIES, move |failed, _| Some(saga.pause_after(failed))));
    resolved(run, "flaky", value.await?)
}

/// A map whose items have values that no other execution of them would come to.
async fn many_items(step: &Step) -> JobResult<u64> {
    let run = step.run_id();
    let items = step.map("items", 0..ITEMS as u64).concurrency(ITEMS_AT_A_TIME);
    let values = items.run(move |item| {
        say(&Told::ItemBegins(run, item));
        async move {
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..3_000))).await;
            let value = fastrand::u64(..1 << 32);
            say(&Told::Item(run, item, value));
            Ok(value)
        }
    });
    let values = values.await?;
    let sum = values.iter().sum();
    say(&Told::Items(run, values));
    resolved(run, "items", sum)
}

fn part() -> Job<String, u64> {
    Job::new("part", |step: Step, _: String| async move {
        let (a, b) = tokio::join!(one_step(&step, "left"), one_step(&step, "right"));
        Ok(a? + b?)
    })
}

fn saga(part: JobHandle<String, u64>) -> Job<Saga, u64> {
    Job::new("saga", move |step: Step, saga: Saga| {
        let part = part.clone();
        async move {
            let run = step.run_id();
            let mut sum = one_step(&step, "begin").await?;
            sum += flaky_step(&step, saga.clone()).await?;
            say(&Told::Pausing(run, now()));
            step.sleep("pause", saga.pause()).await?;
            say(&Told::Paused(run, now()));
            for number in 0..SIGNALS {
                let key = format!("signal[{number}]");
                sum += resolved(run, &key, step.wait_signal(key.as_str(), "go").await?)?;
            }
            sum += many_items(&step).await?;
            // A step goes on beside the child, so that its end is also told to a body in memory.
            let (called, beside) = tokio::join!(step.call("part", &part, saga.name.clone()), one_step(&step, "beside"));
            sum += resolved(run, "part", called?)? + beside?;
            sum += one_step(&step, "end").await?;
            Ok(sum)
        }
    })
}

pub fn live(life: &Life) {
    on_threads(if life.seed.is_multiple_of(2) { 1 } else { 2 }).block_on(async {
        let mut builder = with_bug(builder(), life.bug);
        if life.seed.is_multiple_of(3) {
            // The journal is folded while sagas wait.
            builder = builder.fold_at(4 << 10, 16);
        }
        if let Some(dies_at) = life.dies_at {
            let passes = AtomicU32::new(0);
            builder = builder.at_failpoint(move |point| {
                if Failpoint::ALL[dies_at.point] == point && passes.fetch_add(1, Ordering::Relaxed) + 1 == dies_at.pass
                {
                    say(&Told::Dies(dies_at.point));
                    std::thread::sleep(dies_at.linger);
                    if dies_at.aborts {
                        std::process::abort();
                    }
                    die(Signal::KILL);
                }
            });
        }
        let durably = builder.open(&life.path).await.expect("the file opens");
        say(&Told::Opened);
        items_on_disk(&durably).await;
        let part = durably.register(part()).expect("the part");
        let sagas = durably.register(saga(part)).expect("the saga");
        if life.last {
            see_to_the_end(life, &durably).await;
            durably.shutdown().await.expect("a clean end");
            return say(&Told::Closed);
        }
        if let Some((after, lasts)) = life.outage {
            refuse_writes(after, lasts);
        }
        tokio::select! {
            line = told() => {
                if line.as_deref() == Some("shutdown") {
                    durably.shutdown().await.expect("a clean end");
                    say(&Told::Closed);
                }
            }
            () = storm(life, &durably, &sagas) => {}
        }
    });
}

/// Before anything executes: how many items are done. Those do not begin again.
async fn items_on_disk(durably: &Durably) {
    let runs = durably.get_runs(RunFilter::new().job("saga").limit(1_000)).await.expect("runs");
    for run in runs.iter().filter(|run| !run.is_terminal()) {
        let steps = durably.get_steps(run.id).await.expect("steps");
        if let Some(items) = steps.iter().find_map(|step| step.items) {
            say(&Told::ItemsStored(run.id, items.completed));
        }
    }
}

async fn storm(life: &Life, durably: &Durably, sagas: &JobHandle<Saga, u64>) {
    let mut rng = fastrand::Rng::with_seed(life.seed);
    for number in 0..SAGAS {
        // Also of names that the life before has used.
        let name = format!("{}-{number}", life.number.saturating_sub(rng.u32(..2)));
        let odd = name.bytes().map(u32::from).sum::<u32>();
        let saga = Saga { keyed: odd.is_multiple_of(2), long: odd.is_multiple_of(3), name };
        let (durably, sagas, cancels) = (durably.clone(), sagas.clone(), rng.u8(..8) == 0);
        let first = u64::from(life.number) * 1_000;
        tokio::spawn(async move {
            if let Err(error) = one(&durably, &sagas, saga, cancels, first).await
                && !matches!(
                    error,
                    Error::ShutDown | Error::Indeterminate | Error::Overloaded { .. } | Error::Conflict { .. }
                )
            {
                say(&Told::Unexpected(format!("{error:?}")));
            }
        });
        tokio::time::sleep(Duration::from_micros(rng.u64(..3_000))).await;
    }
    std::future::pending().await
}

async fn one(
    durably: &Durably,
    sagas: &JobHandle<Saga, u64>,
    saga: Saga,
    cancels: bool,
    first: u64,
) -> Result<(), Error> {
    say(&Told::Asking(saga.name.clone()));
    let mut trigger = sagas.trigger(saga.clone()).idempotency_key(&saga.name);
    if saga.keyed {
        trigger = trigger.concurrency_key("shared");
    }
    let run = trigger.await?.id();
    say(&Told::Triggered(saga.name.clone(), run));
    send(durably, run, &AtomicU64::new(first), SIGNALS).await?;
    if cancels {
        tokio::time::sleep(Duration::from_micros(fastrand::u64(..20_000))).await;
        say(&Told::Cancelling(run));
        durably.cancel(run).await?;
        say(&Told::Cancelled(run));
    }
    Ok(())
}

/// Sends signals one after the other, each with a greater value.
async fn send(durably: &Durably, run: RunId, next: &AtomicU64, count: u32) -> Result<(), Error> {
    for _ in 0..count {
        let value = next.fetch_add(1, Ordering::Relaxed);
        say(&Told::Signalling(run, value));
        durably.signal(run, "go", &value).await?;
        say(&Told::Signalled(run, value));
    }
    Ok(())
}

/// Sends what may have been lost with a life before it was acknowledged, and waits for every run.
async fn see_to_the_end(life: &Life, durably: &Durably) {
    let runs = durably.get_runs(RunFilter::new().limit(1_000)).await.expect("runs");
    let next = Arc::new(AtomicU64::new(u64::from(life.number) * 1_000));
    for run in runs.iter().filter(|run| run.job_name == "saga" && !run.is_terminal()) {
        match send(durably, run.id, &next, SIGNALS).await {
            Ok(()) | Err(Error::Conflict { .. }) => {}
            Err(error) => say(&Told::Unexpected(format!("{error:?}"))),
        }
    }
    for run in runs {
        match durably.wait_for_run(run.id).await {
            Ok(done) => say(&Told::Output(run.id, done.output_as().expect("a number"))),
            Err(Error::RunCancelled { .. }) => {}
            Err(error) => say(&Told::Unexpected(format!("{error:?}"))),
        }
    }
    // Parts that were triggered meanwhile are awaited by their sagas.
}
