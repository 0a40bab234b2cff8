//! A signal ends the process in order: what finished is on disk, the rest goes on after the next start, and nothing is counted.
//!
//! A case is one file. Under load, with steps that do not end and one that blocks for ever, the child is told to stop by SIGTERM
//! or SIGINT, twice; sometimes a second signal comes before it has stopped. Then it is killed once, and at last works
//! everything off. The ledger is that of [`kill9`](super::kill9).
#![expect(clippy::disallowed_methods, reason = "the time that a stop takes is what is tested")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use durably::{Durably, Error, Job, JobHandle, Run, RunFilter, RunStatus, Step};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use super::kill9::child::Entered;
use super::kill9::ledger::Ledger;
use super::kill9::life::{Report as Said, Work};
use super::process::{Next, Process, Role, number_of, on_threads, say, with_bug};
use super::several::{Case, in_order, side_by_side, violation};
use super::suite::{Plan, Report, Suite};

pub const SUITE: Suite = Suite { name: "shutdown", run, cases: [12, 500, 5_000] };

const GRACE: Duration = Duration::from_millis(300);
/// Beyond the grace.
const PROMISED: Duration = Duration::from_secs(1);
/// What a machine that is busy with other things may add.
const BUSY: Duration = Duration::from_secs(5);
/// A life that works everything off has ended by then.
const LIVENESS: Duration = Duration::from_secs(60);
const EXIT_AT_ONCE: i32 = 130;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Signal,
    TwoSignals,
    Kill,
    /// Works everything off.
    None,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Life {
    path: PathBuf,
    number: u32,
    last: bool,
    max_recoveries: u32,
    bug: Option<usize>,
}

fn run(plan: &Plan) -> Report {
    side_by_side(&mut in_order(plan), plan.bug.is_some(), |seed| {
        let directory = tempfile::tempdir().expect("a directory");
        let mut ledger = Ledger::default();
        let outcome = case(seed, plan, directory.path(), &mut ledger);
        let stops = ledger.seen.get("stops").copied().unwrap_or(0);
        Case {
            faults: stops,
            counts: ledger.seen,
            violation: outcome.err().map(|error| violation(&error, plan, directory)),
        }
    })
}

fn case(seed: u64, plan: &Plan, directory: &Path, ledger: &mut Ledger) -> Result<()> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let path = directory.join("jobs.redb");
    let second = if rng.u8(..4) == 0 { End::TwoSignals } else { End::Signal };
    // One kill is to be borne, and a second signal is another.
    let max_recoveries = if second == End::TwoSignals { 2 } else { 1 };
    let mut crashes = 0;
    for (number, end) in [End::Signal, second, End::Kill, End::None].into_iter().enumerate() {
        let last = end == End::None;
        let life = Life { path: path.clone(), number: number as u32, last, max_recoveries, bug: number_of(plan.bug) };
        let (reports, in_order) =
            live_until(life, end, &mut rng, directory, ledger).with_context(|| format!("{end:?}"))?;
        crashes += u32::from(!in_order);
        ledger.read(false, reports).with_context(|| format!("in life {number}, {end:?}"))?;
        inspect(&path, ledger, (crashes, max_recoveries), last)
            .with_context(|| format!("after life {number}, {end:?}"))?;
    }
    Ok(())
}

/// One life: what was reported, and whether it ended in order.
fn live_until(
    life: Life,
    end: End,
    rng: &mut fastrand::Rng,
    directory: &Path,
    ledger: &mut Ledger,
) -> Result<(Vec<Said>, bool)> {
    let mut process = Process::start(&Role::Shutdown(life), directory);
    let Next::Report(Said::Opened) = process.next(Instant::now() + LIVENESS) else {
        anyhow::bail!("the child did not open the file: {}", process.last_words());
    };
    let mut reports = Vec::new();
    let busy_until = Instant::now() + Duration::from_millis(rng.u64(10..250));
    loop {
        match process.next(busy_until) {
            Next::Report(report) => reports.push(report),
            Next::TimeUp => break,
            Next::Ended if end == End::None => break,
            Next::Ended => anyhow::bail!("the child ended by itself: {}", process.last_words()),
        }
    }
    let told = Instant::now();
    let signals = if rng.bool() { [Signal::TERM, Signal::INT] } else { [Signal::INT, Signal::TERM] };
    match end {
        End::Signal => process.signal(signals[0]),
        End::TwoSignals => {
            process.signal(signals[0]);
            std::thread::sleep(Duration::from_millis(rng.u64(..200)));
            process.signal(signals[1]);
        }
        End::Kill => process.signal(Signal::KILL),
        End::None => {}
    }
    let patience = if end == End::None { LIVENESS } else { GRACE + PROMISED + BUSY };
    let rest = process.rest(patience).with_context(|| format!("P15: it does not end: {}", process.threads()))?;
    let took = told.elapsed();
    reports.extend(rest);
    let status = process.status();
    let words = process.last_words();
    let closed = reports.iter().any(|report| matches!(report, Said::Closed));
    match end {
        End::Signal => {
            ledger.count("stops");
            ensure!(status.success() && closed, "P15: told to stop, it ended with {status}: {words}");
            if took > GRACE + PROMISED {
                ledger.count("stops later than promised");
            }
        }
        End::TwoSignals => {
            let at_once = status.code() == Some(EXIT_AT_ONCE);
            ledger.count(if at_once { "stops at once" } else { "stops before the second signal" });
            ensure!(at_once || (status.success() && closed), "P15: told twice, it ended with {status}: {words}");
            ensure!(!at_once || took < GRACE + BUSY, "P15: told twice, it took {took:?}");
        }
        End::Kill => ledger.count("kills"),
        End::None => ensure!(status.success() && closed, "P8: it ended with {status}: {words}"),
    }
    Ok((reports, status.success()))
}

/// Opens the file as a user would, with no code for its runs, and compares.
fn inspect(path: &Path, ledger: &Ledger, (crashes, max_recoveries): (u32, u32), last: bool) -> Result<()> {
    on_threads(1).block_on(async {
        let builder = Durably::builder().paused(true).max_recoveries(max_recoveries);
        let durably = builder.open(path).await.context("a file that was let go of opens")?;
        let (mut runs, mut steps): (Vec<Run>, _) = (Vec::new(), Vec::new());
        loop {
            let mut page = RunFilter::new().limit(1_000);
            if let Some(run) = runs.last() {
                page = page.after(run.id);
            }
            let page = durably.get_runs(page).await?;
            if page.is_empty() {
                break;
            }
            runs.extend(page);
        }
        for run in &runs {
            steps.push(durably.get_steps(run.id).await?);
        }
        durably.shutdown().await?;
        for run in &runs {
            let (id, status, recoveries) = (run.id, run.status, run.recoveries);
            ensure!(recoveries <= crashes, "P15: {id} was recovered {recoveries} times after {crashes} crashes");
            let resumable = matches!(status, RunStatus::Pending | RunStatus::Completed);
            ensure!(resumable, "P15: {id} is {status}: {:?}", run.error);
        }
        ledger.check(&runs, &steps, last)
    })
}

/// The example `graceful_shutdown`, under load.
pub fn live(life: &Life) {
    on_threads(2).block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).expect("a handler");
        let mut terminate = signal(SignalKind::terminate()).expect("a handler");
        let builder = with_bug(Durably::builder(), life.bug).shutdown_grace(GRACE).max_recoveries(life.max_recoveries);
        let durably = builder.open(&life.path).await.expect("the file opens");
        say(&Said::Opened);
        let jobs = durably.register(work(life.last)).expect("the job");
        if life.last {
            durably.run_until_idle(None).await.expect("idle");
        } else {
            let load = tokio::spawn(load(jobs, life.number));
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = load => {}
            }
        }
        tokio::select! {
            closed = durably.shutdown() => closed.expect("a clean end"),
            _ = interrupt.recv() => std::process::exit(EXIT_AT_ONCE),
            _ = terminate.recv() => std::process::exit(EXIT_AT_ONCE),
        }
        say(&Said::Closed);
        // What a step blocks is not waited for.
        std::process::exit(0)
    })
}

/// Asks for runs until it is told that there are none any more.
async fn load(jobs: JobHandle<Work, u64>, life: u32) {
    let mut rng = fastrand::Rng::with_seed(u64::from(life));
    for number in 0.. {
        let (slow, stuck) = (number % 40 < 3, life == 0 && number == 5);
        let kind = if stuck { "stuck" } else { "work" };
        let name = format!("{kind}-{life}-{number}");
        let work = Work { slow, key: None, ..Work::random(&mut rng, name) };
        let jobs = jobs.clone();
        tokio::spawn(async move {
            say(&Said::Asking(vec![work.clone()]));
            match jobs.batch_trigger([work.trigger()]).await {
                Ok(runs) => runs.iter().for_each(|run| say(&Said::Triggered(work.name.clone(), run.id()))),
                Err(Error::ShutDown) => {}
                Err(error) => say(&Said::Unexpected(format!("{error:?}"))),
            }
        });
        tokio::time::sleep(Duration::from_micros(rng.u64(..1_500))).await;
    }
}

/// Slow work ends only in the last life; so does what is stuck.
fn work(last: bool) -> Job<Work, u64> {
    static BODIES: AtomicU32 = AtomicU32::new(0);
    Job::new("work", move |step: Step, work: Work| async move {
        let (run, body, draining) = (step.run_id(), BODIES.fetch_add(1, Ordering::Relaxed), step.draining());
        say(&Said::Enter(run, body, work.clone()));
        let _entered = Entered(run, body);
        let mut sum = 0;
        for number in 0..work.steps {
            let ran = AtomicBool::new(false);
            let value = if work.name.starts_with("stuck") && !last {
                let blocks = move || {
                    say(&Said::Begin(run, body, number));
                    std::thread::sleep(Duration::from_secs(600));
                    Ok(0)
                };
                step.run_blocking(("step", number), blocks).await?
            } else {
                let takes = if work.slow && !last { 600_000_000 } else { fastrand::u64(..3_000) };
                let runs = || async {
                    say(&Said::Begin(run, body, number));
                    ran.store(true, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_micros(takes)).await;
                    Ok(fastrand::u64(..1 << 40))
                };
                step.run(("step", number), runs).await?
            };
            say(&Said::Resolved(run, body, number, value, ran.load(Ordering::Relaxed)));
            sum += value;
            // No failure: the run is handed back.
            if draining.is_cancelled() && number % 2 == 0 {
                return Err(durably::JobError::msg("stopped"));
            }
        }
        Ok(sum)
    })
}
