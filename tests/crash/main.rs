//! `kill -9` over a real process: what was acknowledged is kept, nothing is invented, nothing runs twice.
//!
//! The parent is never killed. It starts this test binary again as the child, which opens a file, triggers, cancels and runs,
//! and reports each thing over its stdout; kills it at a random moment; opens the file itself, through the public API only;
//! and compares what is there with the ledger of what was reported. The numbers (P1 …) are those of the checks below.
//!
//! `DURABLY_TEST_TIER` (`ci`, `nightly`, `release`) sets how many kills, `DURABLY_TEST_SEED` repeats a run's plan. A file on
//! which a check failed is kept.

mod child;
mod ledger;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use child::{Life, Report};
use durably::{Durably, Run, RunFilter};
use ledger::{Ledger, Seen};

/// A life that is not killed must have ended by then.
const LIVENESS: Duration = Duration::from_secs(60);

/// How many files, and how many kills on each.
struct Tier {
    files: u32,
    kills_per_file: u32,
    first_starts: u32,
}

impl Tier {
    fn from_env() -> Tier {
        match std::env::var("DURABLY_TEST_TIER").as_deref() {
            Ok("release") => Tier { files: 12_000, kills_per_file: 15, first_starts: 20_000 },
            Ok("nightly") => Tier { files: 1_200, kills_per_file: 15, first_starts: 2_000 },
            Ok("ci") | Err(_) => Tier { files: 8, kills_per_file: 10, first_starts: 40 },
            Ok(other) => panic!("DURABLY_TEST_TIER is {other:?}: there are ci, nightly and release"),
        }
    }
}

fn seed() -> u64 {
    let seed = std::env::var("DURABLY_TEST_SEED").ok().map(|seed| seed.parse().expect("DURABLY_TEST_SEED is a number"));
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("DURABLY_TEST_SEED={seed}");
    seed
}

#[test]
fn p1_to_p8_p20_hold_over_kills_at_any_time() {
    let (tier, mut rng) = (Tier::from_env(), fastrand::Rng::with_seed(seed()));
    let mut seen = Seen::default();
    for _ in 0..tier.files {
        seen.add(&file_under_kills(&mut rng, tier.kills_per_file, Duration::from_millis(500)));
    }
    eprintln!("{seen:?}");
    assert!(seen.is_all(), "the plan never came to something that it is to check: {seen:?}");
}

/// A file that is killed while it is being made must be openable, and hold what was acknowledged.
#[test]
fn p1_holds_from_the_first_start_of_a_fresh_file() {
    let (tier, mut rng) = (Tier::from_env(), fastrand::Rng::with_seed(seed() ^ 1));
    for _ in 0..tier.first_starts {
        file_under_kills(&mut rng, 1, Duration::from_millis(40));
    }
}

/// Not a test: the process that the tests kill.
#[test]
fn child_process() {
    if let Some(life) = Life::from_env() {
        child::live(&life);
    }
}

/// A file from its first start to the end of its last run.
fn file_under_kills(rng: &mut fastrand::Rng, kills: u32, latest: Duration) -> Seen {
    let directory = tempfile::tempdir().expect("a directory");
    let (path, mut ledger) = (directory.path().join("jobs.redb"), Ledger::default());
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for number in 0..=kills {
            let last = number == kills;
            let life = Life { path: path.clone(), seed: rng.u64(..), number, last };
            let kill = if last { Kill::LATEST } else { Kill::random(rng, latest) };
            let (reports, killed) = live(&life, &kill);
            assert!(!(last && killed), "P8: without kills, every run ends within {LIVENESS:?}");
            ledger.read(&life, reports);
            if path.exists() {
                inspect(&path, &ledger, last);
            } else {
                assert!(ledger.acknowledged_nothing(), "P1: the file is gone with what was acknowledged");
            }
        }
    }));
    if let Err(panic) = outcome {
        eprintln!("the file is kept in {}", directory.keep().display());
        std::panic::resume_unwind(panic);
    }
    ledger.seen
}

/// When a life is to end: after some time, or at a report if that comes first.
struct Kill {
    after: Duration,
    at_report: usize,
}

impl Kill {
    const LATEST: Kill = Kill { after: LIVENESS, at_report: usize::MAX };

    /// Half of the kills hit right after something was reported as done, where what is not on disk yet would be lost.
    fn random(rng: &mut fastrand::Rng, latest: Duration) -> Kill {
        let least = Duration::from_micros(200);
        let after = least.mul_f64((latest.as_secs_f64() / least.as_secs_f64()).powf(rng.f64()));
        match rng.bool() {
            true => Kill { after, at_report: usize::MAX },
            false => Kill { after: latest, at_report: 600f64.powf(rng.f64()) as usize },
        }
    }
}

/// One life of the child: what it reported, and whether it had to be killed.
fn live(life: &Life, kill: &Kill) -> (Vec<Report>, bool) {
    let mut child = Command::new(std::env::current_exe().expect("this executable"))
        .args(["--exact", "child_process", "--nocapture"])
        .env(child::LIFE, serde_json::to_string(life).expect("a plan as JSON"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe"));
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let at_report = kill.at_report;
        let reading = scope.spawn(move || {
            let (mut reports, mut line) = (Vec::new(), Vec::new());
            // A line without its end was cut off by the kill. What the test harness says is none of ours.
            while lines.read_until(b'\n', &mut line).expect("the pipe") > 0 && line.ends_with(b"\n") {
                if let Some(report) = line.strip_prefix(b"@") {
                    reports.push(serde_json::from_slice(report).expect("a report"));
                    if reports.len() == at_report {
                        let _ = tell.send("kill it");
                    }
                }
                line.clear();
            }
            let _ = tell.send("it has ended");
            reports
        });
        let killed = told.recv_timeout(kill.after) != Ok("it has ended");
        if killed {
            child.kill().expect("SIGKILL");
        }
        let status = child.wait().expect("the child's end");
        let reports = reading.join().expect("the reader");
        assert!(killed || (life.last && status.success()), "the child ended by itself: {status}");
        (reports, killed)
    })
}

/// Opens the file as a user would, with no code for its runs, and compares.
fn inspect(path: &Path, ledger: &Ledger, last: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let durably = child::builder().paused(true).open(path).await.expect("a file that was killed opens");
        let mut runs: Vec<Run> = Vec::new();
        loop {
            let mut page = RunFilter::new().limit(1_000);
            if let Some(run) = runs.last() {
                page = page.after(run.id);
            }
            let page = durably.get_runs(page).await.expect("runs");
            if page.is_empty() {
                break;
            }
            runs.extend(page);
        }
        let mut steps = Vec::new();
        for run in &runs {
            steps.push(durably.get_steps(run.id).await.expect("steps"));
        }
        close(durably).await;
        ledger.check(&runs, &steps, last);
    });
}

async fn close(durably: Durably) {
    durably.shutdown().await.expect("a clean end");
}
