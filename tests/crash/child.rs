//! The process that is killed: triggers, cancels and runs, and reports each thing as it happens.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use durably::{Builder, Durably, Job, JobHandle, JobResult, RunHandle, RunId, Step, Trigger};
use futures::future::join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The environment variable that makes this binary the child.
pub(crate) const LIFE: &str = "DURABLY_CRASH_CHILD";
/// Triggers of one life; each may be several runs.
const TRIGGERS: u32 = 40;

/// What one life of the child is to be.
#[derive(Serialize, Deserialize)]
pub(crate) struct Life {
    pub(crate) path: PathBuf,
    pub(crate) seed: u64,
    pub(crate) number: u32,
    /// Triggers nothing, works off what is there, and ends.
    pub(crate) last: bool,
}

impl Life {
    pub(crate) fn from_env() -> Option<Life> {
        let plan = std::env::var(LIFE).ok()?;
        Some(serde_json::from_str(&plan).expect("a plan"))
    }

    /// On one thread a report can't be overtaken by what happened before it, so a late one proves a late deed.
    pub(crate) fn on_one_thread(&self) -> bool {
        self.seed.is_multiple_of(2)
    }
}

/// A line to the parent. What is about to be done is reported before, what is done after.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Asking(Vec<Work>),
    Triggered(Work, RunId),
    /// A body begins, and is gone.
    Enter(RunId, Work),
    Exit(RunId),
    /// A step's body begins.
    Begin(RunId, u32),
    /// A step has resolved; whether its body ran for that.
    Resolved(RunId, u32, u64, bool),
    Cancelled(RunId),
    Output(RunId, u64),
}

fn say(report: &Report) {
    let line = format!("@{}\n", serde_json::to_string(report).expect("a report as JSON"));
    if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
        std::process::exit(1);
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Work {
    /// Its own for every trigger, but for those of the same idempotency key.
    pub(crate) name: String,
    pub(crate) idempotent: bool,
    /// Concurrency key, and how many may share it.
    pub(crate) key: Option<(String, u32)>,
    /// Those of one batch are there together or not at all.
    pub(crate) batch: Option<String>,
    pub(crate) steps: u32,
    /// Side by side, or one after the other.
    pub(crate) side_by_side: bool,
}

impl Work {
    fn random(rng: &mut fastrand::Rng, name: String) -> Work {
        let number = rng.u32(..6);
        Work {
            name,
            idempotent: false,
            key: rng.bool().then(|| (format!("key-{number}"), 1 + number % 2)),
            batch: None,
            steps: rng.u32(1..6),
            side_by_side: rng.u8(..4) == 0,
        }
    }

    fn trigger(&self) -> Trigger<Work> {
        let mut trigger = Trigger::new(self.clone());
        if self.idempotent {
            trigger = trigger.idempotency_key(&self.name);
        }
        if let Some((key, limit)) = &self.key {
            trigger = trigger.concurrency_key(key).limit(*limit);
        }
        trigger
    }
}

/// Says when a body is gone, however it went.
struct Entered(RunId);

impl Drop for Entered {
    fn drop(&mut self) {
        say(&Report::Exit(self.0));
    }
}

fn work() -> Job<Work, u64> {
    Job::new("work", |step: Step, work: Work| async move {
        say(&Report::Enter(step.run_id(), work.clone()));
        let _entered = Entered(step.run_id());
        let mut sum = 0;
        if work.side_by_side {
            for value in join_all((0..work.steps).map(|number| one_step(&step, number))).await {
                sum += value?;
            }
        } else {
            for number in 0..work.steps {
                sum += one_step(&step, number).await?;
                // A cancel, too, may come between two steps.
                tokio::time::sleep(Duration::from_micros(fastrand::u64(..2_000))).await;
            }
        }
        Ok(sum)
    })
}

/// A step whose value no other execution of it would come to.
async fn one_step(step: &Step, number: u32) -> JobResult<u64> {
    let (run, ran) = (step.run_id(), AtomicBool::new(false));
    let value = step.run(("step", number), || async {
        say(&Report::Begin(run, number));
        ran.store(true, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_micros(fastrand::u64(..3_000))).await;
        Ok(fastrand::u64(..1 << 40))
    });
    let value = value.await?;
    say(&Report::Resolved(run, number, value, ran.load(Ordering::Relaxed)));
    Ok(value)
}

/// The settings of child and parent. Kills are many here, and no run is to blame for them.
pub(crate) fn builder() -> Builder {
    Durably::builder().max_recoveries(u32::MAX).max_concurrent_runs(16)
}

pub(crate) fn live(life: &Life) {
    let mut runtime = match life.on_one_thread() {
        true => tokio::runtime::Builder::new_current_thread(),
        false => tokio::runtime::Builder::new_multi_thread(),
    };
    // Ends the line that the test harness has begun.
    let _ = std::io::stdout().write_all(b"\n");
    runtime.enable_all().build().expect("a runtime").block_on(async {
        let durably = builder().open(&life.path).await.expect("the file opens");
        let jobs = durably.register(work()).expect("the job");
        if life.last {
            durably.run_until_idle(None).await.expect("idle");
            return durably.shutdown().await.expect("a clean end");
        }
        storm(life, &durably, &jobs).await;
        // The kill comes.
        std::future::pending().await
    });
}

async fn storm(life: &Life, durably: &Durably, jobs: &JobHandle<Work, u64>) {
    let mut rng = fastrand::Rng::with_seed(life.seed);
    let known: Arc<std::sync::Mutex<Vec<RunId>>> = Arc::default();
    for number in 0..TRIGGERS {
        let name = format!("{}-{number}", life.number);
        let work = Work::random(&mut rng, name.clone());
        let (jobs, durably, known) = (jobs.clone(), durably.clone(), known.clone());
        let mut own_rng = rng.fork();
        tokio::spawn(async move {
            match own_rng.u8(..8) {
                0 => {
                    let item = |at| Work { name: format!("{name}-{at}"), batch: Some(name.clone()), ..work.clone() };
                    let items: Vec<Work> = (0..3).map(item).collect();
                    say(&Report::Asking(items.clone()));
                    let runs = jobs.batch_trigger(items.iter().map(Work::trigger)).await.expect("a batch");
                    items.iter().zip(&runs).for_each(|(item, run)| say(&Report::Triggered(item.clone(), run.id())));
                }
                1 | 2 => {
                    // Few keys, so that lives and bursts meet in them; the same work for the same key.
                    let name = format!("once-{}", own_rng.u32(..12));
                    let seed = name.bytes().map(u64::from).sum();
                    let work = Work { idempotent: true, ..Work::random(&mut fastrand::Rng::with_seed(seed), name) };
                    join_all((0..4).map(|_| ask(&jobs, &work))).await;
                }
                3 => {
                    let run = ask(&jobs, &work).await;
                    known.lock().expect("known").push(run.id());
                    let output = run.output().await;
                    if let Ok(output) = output {
                        say(&Report::Output(run.id(), output));
                    }
                }
                4 => {
                    let victim = known.lock().expect("known").pop();
                    let victim = match victim {
                        Some(run) => run,
                        None => ask(&jobs, &work).await.id(),
                    };
                    tokio::time::sleep(Duration::from_micros(own_rng.u64(..4_000))).await;
                    // One that has ended already can't be cancelled.
                    if durably.cancel(victim).await.is_ok() {
                        say(&Report::Cancelled(victim));
                    }
                }
                _ => drop(ask(&jobs, &work).await),
            }
        });
        tokio::time::sleep(Duration::from_micros(rng.u64(..4_000))).await;
    }
}

async fn ask(jobs: &JobHandle<Work, u64>, work: &Work) -> RunHandle<u64> {
    say(&Report::Asking(vec![work.clone()]));
    let batch = jobs.batch_trigger([work.trigger()]).await.expect("a trigger");
    let run = batch.into_iter().next().expect("one run");
    say(&Report::Triggered(work.clone(), run.id()));
    run
}
