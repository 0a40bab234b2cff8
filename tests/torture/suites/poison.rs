//! A run that takes the process with it is quarantined, and nobody else is.
//!
//! A case is one way to die: a child dies of one run, beside which 99 others execute, over and over until it comes through.
//! Then the culprit must have been executed as often as is allowed and have failed as poisoned, and all others be completed.
//! Or it is a run of thousands of steps whose process is killed 50 times, as often as it may be without a new checkpoint between:
//! it completes. A body that panics takes the process with it only where the build says so.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use durably::testing::Failpoint;
use durably::{Durably, ErrorKind, Job, Run, RunFilter, RunStatus, Step};
use rustix::process::{Resource, Signal};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::process::{Process, Role, die, limit, number_of, on_threads, resident, say, with_bug};
use super::several::{Case, InTurn, side_by_side, violation};
use super::suite::{Plan, Report, Suite};

pub const SUITE: Suite = Suite { name: "poison", run, cases: [7, 70, 700] };

const INNOCENTS: u64 = 99;
/// Those that come later, in each life.
const LATECOMERS: u64 = 5;
const MAX_RECOVERIES: u32 = 3;
/// Lives in which all of them execute side by side when the culprit strikes.
const TOGETHER: u32 = 2;
const KILLS: u32 = 50;
const STEPS: u32 = 10_000;
/// Steps of the long run that are under way at a time: they share commits.
const ABREAST: u32 = 50;
/// A child has died, or is done, by then.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Death {
    Aborts,
    OverflowsItsStack,
    ExhaustsMemory,
    Segfaults,
    /// Of itself a death only in a build that aborts on panics.
    Panics,
    /// Nothing of its own doing: it is killed, and gets on each time.
    IsKilled,
}

const DEATHS: [Death; 6] =
    [Death::Aborts, Death::OverflowsItsStack, Death::ExhaustsMemory, Death::Segfaults, Death::Panics, Death::IsKilled];

#[derive(Debug, Serialize, Deserialize)]
pub struct Life {
    path: PathBuf,
    number: u32,
    death: Death,
    bug: Option<usize>,
}

impl Death {
    fn is_survived(self) -> bool {
        self == Death::Panics && cfg!(panic = "unwind")
    }
}

impl Life {
    /// New checkpoints of the long run that this life is killed at: none in as many lives in a row as that may be.
    fn checkpoints(&self) -> u32 {
        match self.number % (MAX_RECOVERIES + 1) {
            0 => 1 + self.number * 7 % 90,
            _ => 0,
        }
    }
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Said {
    Strikes,
    Done,
}

fn run(plan: &Plan) -> Report {
    let mut seeds = InTurn::new(plan, DEATHS.len());
    side_by_side(&mut || seeds.next(), plan.bug.is_some(), |seed| {
        let death = DEATHS[InTurn::kind_of(seed, DEATHS.len())];
        let directory = tempfile::tempdir().expect("a directory");
        let mut counts = BTreeMap::new();
        let outcome = match death {
            Death::IsKilled => of_many_kills(plan, directory.path(), &mut counts),
            _ => of_a_culprit(death, plan, directory.path(), &mut counts),
        };
        let outcome = outcome.with_context(|| format!("{death:?}"));
        let violation = outcome.err().map(|error| violation(&error, plan, directory));
        Case { faults: counts.get("deaths").copied().unwrap_or(0), counts, violation }
    })
}

fn of_a_culprit(death: Death, plan: &Plan, directory: &Path, counts: &mut BTreeMap<String, u64>) -> Result<()> {
    let (path, mut strikes, mut number) = (directory.join("jobs.redb"), 0, 0);
    while !life(Life { path: path.clone(), number, death, bug: number_of(plan.bug) }, directory, counts, &mut strikes)?
    {
        number += 1;
        ensure!(number <= 2 * MAX_RECOVERIES, "P10: after {number} deaths the culprit still executes");
    }
    let (expected, fate) =
        if death.is_survived() { (1, ErrorKind::Panic) } else { (MAX_RECOVERIES + 1, ErrorKind::Poisoned) };
    ensure!(strikes == expected, "P10: the culprit was executed {strikes} times");
    let runs = runs_of(&path)?;
    ensure!(runs.len() as u64 > INNOCENTS, "P1: there are {} runs", runs.len());
    for run in runs {
        if run.job_name == "culprit" {
            let kind = run.error.as_ref().map(|error| error.kind);
            ensure!(kind == Some(fate), "P10: the culprit is {} with {kind:?}", run.status);
        } else {
            let (status, error) = (run.status, run.error);
            ensure!(status == RunStatus::Completed, "P10: an innocent is {status} with {error:?}");
        }
    }
    Ok(())
}

fn of_many_kills(plan: &Plan, directory: &Path, counts: &mut BTreeMap<String, u64>) -> Result<()> {
    let (path, death) = (directory.join("jobs.redb"), Death::IsKilled);
    for number in 0..=KILLS {
        let life_of = Life { path: path.clone(), number, death, bug: number_of(plan.bug) };
        let done = life(life_of, directory, counts, &mut 0)?;
        ensure!(done == (number == KILLS), "P10: after {number} kills the long run is not under way any more");
    }
    let runs = runs_of(&path)?;
    let status = runs.iter().map(|run| (run.status, run.completed_step_count)).collect::<Vec<_>>();
    ensure!(status == [(RunStatus::Completed, STEPS)], "P10: the long run is {status:?}: {:?}", runs[0].error);
    Ok(())
}

/// One life; whether it came to its end.
fn life(life: Life, directory: &Path, counts: &mut BTreeMap<String, u64>, strikes: &mut u32) -> Result<bool> {
    let death = life.death;
    let mut process = Process::start(&Role::Poison(life), directory);
    let said: Vec<Said> = process.rest(PATIENCE).context("P8: a life neither ends nor dies")?;
    *strikes += said.iter().filter(|said| **said == Said::Strikes).count() as u32;
    let (status, done) = (process.status(), said.contains(&Said::Done));
    let words = process.last_words();
    ensure!(done == status.success(), "{status}: {words}");
    ensure!(done || death == Death::IsKilled || said.contains(&Said::Strikes), "died of something else: {words}");
    if !done {
        *counts.entry("deaths".into()).or_default() += 1;
        *counts.entry(format!("{death:?}: {status}")).or_default() += 1;
    }
    Ok(done)
}

fn runs_of(path: &Path) -> Result<Vec<Run>> {
    on_threads(1).block_on(async {
        let durably = Durably::builder().paused(true).open(path).await?;
        let runs = durably.get_runs(RunFilter::new().limit(1_000)).await?;
        durably.shutdown().await?;
        Ok(runs)
    })
}

pub fn live(life: &Life) {
    on_threads(2).block_on(async {
        let mut builder =
            with_bug(Durably::builder(), life.bug).max_recoveries(MAX_RECOVERIES).max_concurrent_runs(128);
        if life.death == Death::IsKilled && life.number < KILLS {
            let fatal = AtomicU32::new(life.checkpoints());
            builder = builder.at_failpoint(move |point| {
                if point == Failpoint::CheckpointRecorded && fatal.fetch_sub(1, Ordering::Relaxed) == 1 {
                    die(Signal::KILL)
                }
            });
        }
        let durably = builder.open(&life.path).await.expect("the file opens");
        match life.death {
            Death::IsKilled => get_on(life, &durably).await,
            _ => side_by_side_with_a_culprit(life, &durably).await,
        }
        durably.run_until_idle(None).await.expect("idle");
        durably.shutdown().await.expect("a clean end");
        say(&Said::Done);
    });
}

async fn get_on(life: &Life, durably: &Durably) {
    let at_once = life.number < KILLS && life.checkpoints() == 0;
    let long = Job::new("long", move |step: Step, (): ()| async move {
        for number in (0..STEPS).step_by(ABREAST as usize) {
            let abreast = (number..number + ABREAST).map(|number| {
                step.run(("step", number), move || async move {
                    if at_once {
                        die(Signal::KILL)
                    }
                    Ok(())
                })
            });
            futures::future::try_join_all(abreast).await?;
        }
        Ok(())
    });
    let jobs = durably.register(long).expect("the job");
    if life.number == 0 {
        jobs.trigger(()).await.expect("a run");
    }
}

async fn side_by_side_with_a_culprit(life: &Life, durably: &Durably) {
    let together = life.number < TOGETHER && !life.death.is_survived();
    // How many innocents are executing.
    let executing = Arc::new(watch::channel(0).0);
    let innocent = Job::new("innocent", {
        let executing = executing.clone();
        move |step: Step, _: u64| {
            let executing = executing.clone();
            async move {
                executing.send_modify(|count| *count += 1);
                if together {
                    // No checkpoint clears them before the process dies.
                    std::future::pending::<()>().await;
                }
                step.run("only", || async { Ok(()) }).await
            }
        }
    });
    let death = life.death;
    let culprit = Job::new("culprit", move |_: Step, (): ()| {
        let mut executing = executing.subscribe();
        async move {
            if together {
                executing.wait_for(|count| *count == INNOCENTS).await?;
            }
            say(&Said::Strikes);
            strike(death);
            Ok(())
        }
    });
    if life.number == 0 {
        // Nothing starts before its code is known, so all are there when the first one dies.
        let (innocents, culprits) = durably.register((innocent, culprit)).expect("the jobs");
        let triggering = async {
            innocents.batch_trigger(0..INNOCENTS / 2).await?;
            culprits.trigger(()).await?;
            innocents.batch_trigger(INNOCENTS / 2..INNOCENTS).await
        };
        triggering.await.expect("runs");
    } else {
        let (innocents, _) = durably.register((innocent, culprit)).expect("the jobs");
        if !together {
            // New ones start beside those that are suspect.
            innocents.batch_trigger(0..LATECOMERS).await.expect("runs");
        }
    }
}

fn strike(death: Death) {
    match death {
        Death::Aborts => std::process::abort(),
        Death::OverflowsItsStack => {
            black_box(deeper(black_box(0)));
        }
        Death::ExhaustsMemory => {
            limit(Resource::As, Some(address_space() + (64 << 20)));
            let mut taken = Vec::new();
            loop {
                taken.push(black_box(vec![1_u8; 1 << 20]));
            }
        }
        Death::Segfaults => die(Signal::SEGV),
        Death::Panics => std::panic::panic_any("a body panics".to_owned()),
        Death::IsKilled => {}
    }
}

#[expect(unconditional_recursion, reason = "that is the point")]
fn deeper(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    deeper(black_box(depth + 1)) + frame[0]
}

fn address_space() -> u64 {
    resident().0
}
