//! More than it can take: what is let in is kept, what is not is refused in time, and memory stays bounded.
//!
//! A case is a child with a slow disk and a load that does not wait for answers, of more than twice the bytes that the disk
//! takes. Then the disk is quick again, everything is answered, and the file is opened anew: what was acknowledged is there,
//! and nothing else. (The bound on the number of calls is met by `tests/integration/overload.rs`.)
#![expect(clippy::disallowed_methods, reason = "a load that waits for nobody goes by the clock")]

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use durably::testing::suites::Disk;
use durably::{Durably, Error, Job, JobHandle, RunFilter, RunId, Step};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::process::{Process, Role, number_of, on_threads, resident, say, with_bug};
use super::several::{Case, InTurn, side_by_side};
use super::suite::{Plan, Report, Suite};

pub const SUITE: Suite = Suite { name: "overload", run, cases: [1, 20, 200] };

const PATIENCE: Duration = Duration::from_secs(120);
const ADMISSION_TIMEOUT: Duration = Duration::from_millis(500);
/// So many refused calls prove the point.
const ENOUGH: u64 = 10;
/// Beside what callers hold themselves: the page cache of the file, a tail, and what the allocator keeps.
const MEMORY: u64 = 400 << 20;

#[derive(Debug, Serialize, Deserialize)]
pub struct Load {
    path: PathBuf,
    /// Of each call.
    bytes: usize,
    /// At most.
    calls: u64,
    /// Between two calls.
    every: Duration,
    /// How long the disk takes for a flush.
    flush: Duration,
    bug: Option<usize>,
}

/// What came of a load.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Outcome {
    acknowledged: u64,
    refused: u64,
    others: Vec<String>,
    missing: u64,
    found: u64,
    grown: u64,
    waited_longest: Duration,
}

fn run(plan: &Plan) -> Report {
    let mut seeds = InTurn::new(plan, 2);
    side_by_side(&mut || seeds.next(), plan.bug.is_some(), |seed| {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        let bug = number_of(plan.bug);
        let ms = Duration::from_millis;
        let load = match InTurn::kind_of(seed, 2) {
            // A large operation goes alone, so it takes one in two seconds.
            0 => Load { path, bytes: 1_000_000, calls: 100, every: ms(20), flush: ms(2_000), bug },
            // Five go together.
            _ => Load { path, bytes: 200_000, calls: 500, every: ms(4), flush: ms(2_000), bug },
        };
        let bytes = load.bytes;
        match judge(load, directory.path()) {
            Ok(outcome) => {
                let counts = [("acknowledged", outcome.acknowledged), ("refused", outcome.refused)];
                let counts =
                    counts.into_iter().map(|(what, count)| (format!("{bytes} bytes: {what}"), count)).collect();
                Case { faults: outcome.refused, counts, violation: None }
            }
            Err(error) => Case { violation: Some(format!("{error:#}")), ..Case::default() },
        }
    })
}

fn judge(load: Load, directory: &Path) -> Result<Outcome> {
    let mut process = Process::start(&Role::Overload(load), directory);
    let outcomes: Vec<Outcome> = process.rest(PATIENCE).context("it hangs")?;
    let words = process.last_words();
    ensure!(process.status().success(), "the child died: {words}");
    let outcome = outcomes.into_iter().next().context("an outcome")?;
    ensure!(outcome.others.is_empty(), "P17: a call was answered with {:?}", outcome.others);
    ensure!(outcome.refused > 0, "P17: nothing was refused of what is more than it can take: {outcome:?}");
    ensure!(outcome.acknowledged > 0, "P17: everything was refused");
    ensure!(outcome.missing == 0, "P1: {} of {} are gone", outcome.missing, outcome.acknowledged);
    ensure!(outcome.found == outcome.acknowledged, "P2: of {} there are {}", outcome.acknowledged, outcome.found);
    ensure!(outcome.grown <= MEMORY, "P17: it grew by {} MiB", outcome.grown >> 20);
    Ok(outcome)
}

/// A file whose flushes take their time, until it is told to be quick.
#[derive(Debug)]
struct Slow {
    file: File,
    flush: Duration,
    quick: AtomicBool,
}

impl Disk for Slow {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        if !self.quick.load(Ordering::Relaxed) {
            std::thread::sleep(self.flush);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }
}

pub fn live(load: &Load) {
    on_threads(2).block_on(async {
        let file = File::options().read(true).write(true).create_new(true).open(&load.path).expect("a file");
        let disk = Arc::new(Slow { file, flush: load.flush, quick: AtomicBool::new(true) });
        let builder = || {
            let builder = Durably::builder().paused(true).admission_timeout(ADMISSION_TIMEOUT);
            with_bug(builder, load.bug)
        };
        let durably = builder().open_on(disk.clone()).await.expect("the disk opens");
        let take = Job::new("take", |_: Step, _: String| async { Ok(()) });
        let jobs = durably.register(take).expect("the job");
        jobs.trigger(String::new()).await.expect("a run");

        disk.quick.store(false, Ordering::Relaxed);
        let before = resident().1;
        let (outcome, kept) = (Arc::new(Mutex::new(Outcome::default())), Arc::new(Mutex::new(BTreeSet::new())));
        let mut calls = JoinSet::new();
        let began = Instant::now();
        for number in 0..load.calls {
            let at = began + load.every * number as u32;
            // Also when it is late: it waits for nobody.
            tokio::time::sleep_until(at.into()).await;
            calls.spawn(one_call(jobs.clone(), load.bytes, outcome.clone(), kept.clone()));
            let grown = resident().1.saturating_sub(before);
            let mut outcome = outcome.lock().await;
            outcome.grown = outcome.grown.max(grown);
            if outcome.refused >= ENOUGH {
                break;
            }
        }
        // A debug build is at the calls for longer than it takes to make them.
        for _ in 0..400 {
            if outcome.lock().await.refused >= ENOUGH {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        disk.quick.store(true, Ordering::Relaxed);
        while calls.join_next().await.is_some() {}
        let grown = resident().1.saturating_sub(before);
        durably.shutdown().await.expect("a clean end");

        let durably = builder().open_on(disk).await.expect("the disk opens again");
        let mut outcome = outcome.lock().await;
        let kept = kept.lock().await;
        outcome.grown = outcome.grown.max(grown);
        let mut found = BTreeSet::new();
        loop {
            let mut page = RunFilter::new().limit(1_000).without_payloads();
            if let Some(run) = found.first() {
                page = page.after(*run);
            }
            let page = durably.get_runs(page).await.expect("runs");
            if page.is_empty() {
                break;
            }
            found.extend(page.iter().map(|run| run.id));
        }
        outcome.missing = kept.difference(&found).count() as u64;
        // Without the one before the load.
        outcome.found = found.len() as u64 - 1;
        say(&*outcome);
    });
}

async fn one_call(
    jobs: JobHandle<String, ()>,
    bytes: usize,
    outcome: Arc<Mutex<Outcome>>,
    kept: Arc<Mutex<BTreeSet<RunId>>>,
) {
    let called = Instant::now();
    let answer = jobs.trigger("x".repeat(bytes)).await;
    let mut outcome = outcome.lock().await;
    outcome.waited_longest = outcome.waited_longest.max(called.elapsed());
    match answer {
        Ok(run) => {
            outcome.acknowledged += 1;
            kept.lock().await.insert(run.id());
        }
        Err(Error::Overloaded { .. }) => outcome.refused += 1,
        Err(error) => outcome.others.push(format!("{error:?}")),
    }
}
