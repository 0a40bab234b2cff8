//! More than it can take: what is let in is kept, what is not is refused in time, and memory stays bounded.
//!
//! A case is a child with a slow disk and a load that does not wait for answers: far more than twice the bytes that the disk
//! takes, and in all several times what may be held of it. Most calls go away when they are not let in at once, so that
//! whatever memory is held of them is the runtime's; some wait as long as they are to. Then the disk is quick again,
//! everything is answered, and the file is opened anew: what was acknowledged is there, and nothing else. (The bound on the
//! number of calls is met by `tests/integration/overload.rs`.)

use std::collections::BTreeSet;
use std::fs::File;
use std::future::IntoFuture;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use durably::limits::{EVENT_BUFFER_BYTES, UNACKED_BYTES_MAX};
use durably::testing::Disk;
use durably::{Durably, Error, Job, RunFilter, RunHandle, RunId, Step};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::process::{Process, Role, number_of, on_threads, resident, say, with_bug};
use super::several::{Case, InTurn, side_by_side};
use super::suite::{Plan, Report, Suite};

pub const SUITE: Suite = Suite { name: "overload", run, cases: [1, 20, 200] };

const PATIENCE: Duration = Duration::from_secs(120);
const ADMISSION_TIMEOUT: Duration = Duration::from_millis(100);
/// Bytes that are offered, in all.
const OFFERED: usize = 5 * UNACKED_BYTES_MAX;
/// Of so many calls, one waits for room.
const ONE_WAITS: usize = 32;
const CACHE: usize = 1 << 20;
/// What is let in, a tail of as much, the buffer of events, and as much again for what is being written, for the file's cache
/// and for callers.
const MEMORY: usize = 3 * UNACKED_BYTES_MAX + EVENT_BUFFER_BYTES;

#[derive(Debug, Serialize, Deserialize)]
pub struct Load {
    path: PathBuf,
    /// Of each call.
    bytes: usize,
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
    /// The most that it had let in and not answered, and by how much its memory grew, bytes.
    held: usize,
    grown: usize,
}

fn run(plan: &Plan) -> Report {
    let mut seeds = InTurn::new(plan, 2);
    side_by_side(&mut || seeds.next(), plan.bug.is_some(), |seed| {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        let bug = number_of(plan.bug);
        // Of large operations each goes alone, of the others five together.
        let bytes = [1_000_000, 200_000][InTurn::kind_of(seed, 2)];
        let load = Load { path, bytes, flush: Duration::from_secs(2), bug };
        match judge(load, directory.path()) {
            Ok(outcome) => {
                let counts = [("acknowledged", outcome.acknowledged), ("refused", outcome.refused)];
                let counts =
                    counts.map(|(what, count)| (format!("{bytes} bytes: {what}"), count)).into_iter().collect();
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
    ensure!(outcome.held <= UNACKED_BYTES_MAX, "P17: it had let in {} MiB", outcome.held >> 20);
    ensure!(outcome.grown <= MEMORY, "P17: it grew by {} MiB, of {} at most", outcome.grown >> 20, MEMORY >> 20);
    ensure!(outcome.refused > 0, "P17: nothing was refused of what is more than it can take: {outcome:?}");
    ensure!(outcome.acknowledged > 0, "P17: everything was refused");
    ensure!(outcome.missing == 0, "P1: {} of {} are gone", outcome.missing, outcome.acknowledged);
    ensure!(outcome.found == outcome.acknowledged, "P2: of {} there are {}", outcome.acknowledged, outcome.found);
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
            let builder = Durably::builder().paused(true).admission_timeout(ADMISSION_TIMEOUT).cache_bytes(CACHE);
            with_bug(builder, load.bug)
        };
        let durably = builder().open_on(disk.clone()).await.expect("the disk opens");
        let take = Job::new("take", |_: Step, _: String| async { Ok(()) });
        let jobs = durably.register(take).expect("the job");
        jobs.trigger(String::new()).await.expect("a run");

        disk.quick.store(false, Ordering::Relaxed);
        let before = resident().1;
        let grown = || (resident().1.saturating_sub(before)) as usize;
        let (mut outcome, mut kept, mut calls, mut held) = (Outcome::default(), BTreeSet::new(), JoinSet::new(), 0);
        for number in 0..OFFERED / load.bytes {
            let input = "x".repeat(load.bytes);
            if number % ONE_WAITS == 0 {
                calls.spawn(answered(false, jobs.trigger(input).into_future()));
            } else {
                let mut call = jobs.try_trigger(input).into_future();
                match futures::poll!(&mut call) {
                    Poll::Pending => {
                        held += load.bytes;
                        calls.spawn(answered(true, call));
                    }
                    Poll::Ready(answer) => outcome.count(answer.map(|run| run.id()), &mut kept),
                }
            }
            while let Some(call) = calls.try_join_next() {
                let (was_held, answer) = call.expect("a call does not panic");
                held -= if was_held { load.bytes } else { 0 };
                outcome.count(answer, &mut kept);
            }
            (outcome.held, outcome.grown) = (outcome.held.max(held), outcome.grown.max(grown()));
        }
        disk.quick.store(true, Ordering::Relaxed);
        while let Some(call) = calls.join_next().await {
            outcome.count(call.expect("a call does not panic").1, &mut kept);
            outcome.grown = outcome.grown.max(grown());
        }
        durably.shutdown().await.expect("a clean end");

        let durably = builder().open_on(disk).await.expect("the disk opens again");
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
        say(&outcome);
    });
}

/// A call's answer, and whether it was let in at once.
async fn answered(
    at_once: bool,
    call: impl Future<Output = Result<RunHandle<()>, Error>>,
) -> (bool, Result<RunId, Error>) {
    (at_once, call.await.map(|run| run.id()))
}

impl Outcome {
    fn count(&mut self, answer: Result<RunId, Error>, kept: &mut BTreeSet<RunId>) {
        match answer {
            Ok(run) => {
                self.acknowledged += 1;
                kept.insert(run);
            }
            Err(Error::Overloaded { .. }) => self.refused += 1,
            Err(error) => self.others.push(format!("{error:?}")),
        }
    }
}
