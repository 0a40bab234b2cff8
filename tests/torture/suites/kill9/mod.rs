//! `kill -9` over a real process: what was acknowledged is kept, nothing is invented, nothing runs twice.
//!
//! A case is one file and several lives of a child over it. The child triggers, cancels and runs, and reports each thing; the
//! parent ends it at a random moment, at a report, at a named crash point, while it recovers, makes its file or shuts down, or
//! stops it for a while first; opens the file itself, through the public API only; and compares what is there with the ledger
//! of what was reported. The last life works everything off. A file on which a check failed is kept.
#![expect(clippy::disallowed_methods, reason = "when a process is killed is no part of what is tested")]

pub mod child;
pub mod ledger;
pub mod life;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use durably::testing::suites::Failpoint;
use durably::{Run, RunFilter};
use rustix::process::Signal;

use super::process::{Next, Process, Role, number_of, on_threads};
use super::several::{Case, InTurn, side_by_side, violation};
use super::suite::{Plan, Report, Suite, Until, Violation};
use ledger::Ledger;
use life::{Deed, Fate, Life};

pub const SUITE: Suite = Suite { name: "kill9", run, cases: [64, 3_600, 36_000] };

/// Lives of a file that are ended, after the first.
const LIVES: u32 = 5;
/// A life that is not ended must end by itself by then.
const LIVENESS: Duration = Duration::from_secs(60);
/// Further cases for a crash point at which no child has died.
const TRIES: u64 = 12;

/// The crash point that a case comes back to.
fn focus_of(seed: u64) -> Failpoint {
    Failpoint::ALL[InTurn::kind_of(seed, Failpoint::ALL.len())]
}

fn run(plan: &Plan) -> Report {
    let mut seeds = InTurn::new(plan, Failpoint::ALL.len());
    let mut report = side_by_side(&mut || seeds.next(), plan.bug.is_some(), |seed| case(seed, plan));
    // A suite that never came to a crash point proves nothing about it.
    let enough = matches!(plan.until, Until::Cases(cases) if cases >= Failpoint::ALL.len() as u64);
    if enough && plan.bug.is_none() {
        for (kind, point) in Failpoint::ALL.iter().enumerate() {
            let mut tries = 0..TRIES;
            while !report.counts.iter().any(|(what, _)| *what == died_at(*point)) {
                if tries.next().is_none() {
                    let what = format!("no child has died at {point:?} in {TRIES} further cases");
                    report.violations.push(Violation { seed: plan.seed, what });
                    break;
                }
                let mut one = Some(seeds.next_of(kind));
                report.add(side_by_side(&mut || one.take(), false, |seed| case(seed, plan)));
            }
        }
        for what in
            ["bursts", "keys shared", "runs cancelled", "runs resumed", "runs deleted", "purges", "steps replayed"]
        {
            if !report.counts.iter().any(|(counted, _)| counted == what) {
                report.violations.push(Violation { seed: plan.seed, what: format!("there were no {what}") });
            }
        }
    }
    report
}

fn died_at(point: Failpoint) -> String {
    format!("died at {point:?}")
}

/// A file from its first start to the end of its last run.
fn case(seed: u64, plan: &Plan) -> Case {
    let directory = tempfile::tempdir().expect("a directory");
    let mut ledger = Ledger::default();
    let outcome = lives(seed, plan, directory.path(), &mut ledger);
    let kills = ledger.seen.get("kills").copied().unwrap_or(0);
    let violation = outcome.err().map(|error| violation(&error, plan, directory));
    Case { faults: kills, counts: ledger.seen, violation }
}

fn lives(seed: u64, plan: &Plan, directory: &Path, ledger: &mut Ledger) -> Result<()> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let focus = focus_of(seed);
    let path = directory.join("jobs.redb");
    let purges = rng.u8(..4) == 0;
    for number in 0..=LIVES + 1 {
        let last = number > LIVES;
        let fate = match number {
            0 => Fate::of_first_start(&mut rng, focus),
            1 | 3 => Fate::at(&mut rng, focus),
            _ if last => Fate { name: "not killed", ..Fate::default() },
            _ => Fate::random(&mut rng),
        };
        let Fate { dies_at, outage, .. } = fate;
        let bug = number_of(plan.bug);
        let life = Life { path: path.clone(), seed: rng.u64(..), number, last, purges, bug, dies_at, outage };
        let reports = live(Role::Kill9(life.clone()), &fate, last, directory, ledger).context(fate.name)?;
        ledger.read(life.on_one_thread(), reports).with_context(|| format!("in life {number}, {}", fate.name))?;
        let checked = last || rng.u8(..3) == 0;
        if !path.exists() {
            ensure!(ledger.acknowledged_nothing(), "P1: the file is gone with what was acknowledged");
        } else if checked {
            inspect(&path, ledger, last).with_context(|| format!("after life {number}, {}", fate.name))?;
        }
    }
    Ok(())
}

/// One life of the child: what it reported.
fn live(role: Role, fate: &Fate, last: bool, directory: &Path, ledger: &mut Ledger) -> Result<Vec<life::Report>> {
    let mut process = Process::start(&role, directory);
    let began = Instant::now();
    let mut due: BTreeMap<(Instant, usize), Deed> = BTreeMap::new();
    due.insert((began + LIVENESS, usize::MAX), Deed::Kill);
    due.extend(fate.since_start.iter().enumerate().map(|(at, (after, deed))| ((began + *after, at), *deed)));
    let (mut reports, mut killed, mut closed, mut late) = (Vec::new(), false, false, false);
    loop {
        let (&(at, number), deed) = due.first_key_value().expect("the last of them stays");
        let deed = *deed;
        match process.next(at) {
            // What it still said before it died.
            Next::Report(report) if killed => reports.push(report),
            Next::Report(report) => {
                match &report {
                    life::Report::Opened => {
                        let now = Instant::now();
                        let deeds = fate.since_opened.iter().enumerate();
                        due.extend(deeds.map(|(at, (after, deed))| ((now + *after, at), *deed)));
                    }
                    life::Report::Closed => closed = true,
                    _ => {}
                }
                reports.push(report);
                if fate.at_report == Some(reports.len()) {
                    due = BTreeMap::from([((Instant::now(), 0), Deed::Kill)]);
                }
            }
            Next::TimeUp => match deed {
                _ if killed => bail!("a killed child does not end"),
                Deed::Kill => {
                    late = number == usize::MAX;
                    process.signal(Signal::KILL);
                    killed = true;
                    due = BTreeMap::from([((Instant::now() + LIVENESS, 0), Deed::Kill)]);
                }
                _ => {
                    due.pop_first();
                    match deed {
                        Deed::Stop => process.signal(Signal::STOP),
                        Deed::Continue => process.signal(Signal::CONT),
                        _ => process.tell("shutdown"),
                    }
                }
            },
            Next::Ended => break,
        }
    }
    let died = reports.iter().find_map(|report| match report {
        life::Report::Dies(point) => Some(Failpoint::ALL[*point]),
        _ => None,
    });
    let status = process.status();
    ensure!(!late, "P8: a life did not come to its end within {LIVENESS:?}: {}", process.last_words());
    let by_itself = closed && status.success();
    ensure!(
        by_itself || ((killed || died.is_some()) && !last),
        "the child ended by itself: {status}: {}",
        process.last_words()
    );
    if !by_itself {
        ledger.count("kills");
        ledger.count(if died.is_some() { "killed at a crash point" } else { fate.name });
    }
    if let Some(point) = died {
        ledger.count(&died_at(point));
    }
    Ok(reports)
}

/// Opens the file as a user would, with no code for its runs, and compares.
fn inspect(path: &Path, ledger: &Ledger, last: bool) -> Result<()> {
    on_threads(1).block_on(async {
        let durably = child::builder().paused(true).open(path).await.context("a file that was killed opens")?;
        let mut runs: Vec<Run> = Vec::new();
        loop {
            let mut page = RunFilter::new().limit(1_000);
            if let Some(run) = runs.last() {
                page = page.after(run.id);
            }
            let page = durably.get_runs(page).await.context("runs")?;
            if page.is_empty() {
                break;
            }
            runs.extend(page);
        }
        let mut steps = Vec::new();
        for run in &runs {
            steps.push(durably.get_steps(run.id).await.context("steps")?);
        }
        durably.shutdown().await.context("a clean end")?;
        ledger.check(&runs, &steps, last)
    })
}
