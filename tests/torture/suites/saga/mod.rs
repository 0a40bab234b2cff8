//! `kill -9` over runs that wait: a job that retries, pauses, takes signals, maps and calls another run survives it at every
//! crash point.
//!
//! A case is one file and several lives of a child over it, ended as those of [`kill9`](super::kill9) are. Every saga is triggered under
//! an idempotency key, is sent signals, and ends in the last life at the latest; the parent compares what the bodies reported
//! over all lives, and what the file says in the end.
#![expect(clippy::disallowed_methods, reason = "when a process is killed is no part of what is tested")]

pub mod child;
mod ledger;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use durably::testing::suites::Failpoint;
use durably::{RunFilter, RunId, verify};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::kill9::life::{Deed, DiesAt, Fate};
use super::process::{Next, Process, Role, number_of, on_threads};
use super::several::{Case, InTurn, side_by_side, violation};
use super::suite::{Plan, Report, Suite};
use ledger::Ledger;

pub const SUITE: Suite = Suite { name: "saga", run, cases: [30, 1_000, 10_000] };

/// Lives of a file that are ended, before the last.
const LIVES: u32 = 4;
/// The last life must end by itself by then.
const LIVENESS: Duration = Duration::from_secs(90);
/// With a defect planted, one that has not ended by then never will.
const IMPATIENCE: Duration = Duration::from_secs(10);

/// What one life of the child is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Life {
    pub path: PathBuf,
    pub seed: u64,
    pub number: u32,
    /// Triggers nothing more, sees every saga to its end, and ends.
    pub last: bool,
    pub bug: Option<usize>,
    pub dies_at: Option<DiesAt>,
    /// After so long, and for so long, the file can't be written.
    pub outage: Option<(Duration, Duration)>,
}

/// A line to the parent. What is about to be done is told before, what is done after.
#[derive(Debug, Serialize, Deserialize)]
pub enum Told {
    Opened,
    Dies(usize),
    Closed,
    Asking(String),
    Triggered(String, RunId),
    /// Sends a signal of this value; values of a run grow.
    Signalling(RunId, u64),
    Signalled(RunId, u64),
    Cancelling(RunId),
    Cancelled(RunId),
    /// A step's body begins, at this try.
    Begin(RunId, String, u32),
    /// A step has given a value to the body.
    Resolved(RunId, String, u64),
    /// The flaky step is tried for this time, or fails at it, by the wall clock.
    Trying(RunId, u32, u64),
    Failing(RunId, u32, u64),
    /// So many items of the map are done on disk; nothing executes.
    ItemsStored(RunId, u64),
    ItemBegins(RunId, u64),
    Item(RunId, u64, u64),
    /// The map has given these values to the body.
    Items(RunId, Vec<u64>),
    /// A pause is called, or is over, by the wall clock.
    Pausing(RunId, u64),
    Paused(RunId, u64),
    Output(RunId, u64),
    /// An answer that no call should give.
    Unexpected(String),
}

fn run(plan: &Plan) -> Report {
    let mut seeds = InTurn::new(plan, Failpoint::ALL.len());
    side_by_side(&mut || seeds.next(), plan.bug.is_some(), |seed| case(seed, plan))
}

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
    let focus = Failpoint::ALL[InTurn::kind_of(seed, Failpoint::ALL.len())];
    let path = directory.join("jobs.redb");
    for number in 0..=LIVES {
        let last = number == LIVES;
        let fate = match number {
            _ if last => Fate { name: "not killed", ..Fate::default() },
            0 | 2 => Fate::at(&mut rng, focus),
            _ => Fate::random(&mut rng),
        };
        let bug = number_of(plan.bug);
        let Fate { dies_at, outage, .. } = fate;
        let life = Life { path: path.clone(), seed: rng.u64(..), number, last, bug, dies_at, outage };
        let patience = if plan.bug.is_some() { IMPATIENCE } else { LIVENESS };
        let told = live(Role::Saga(life), &fate, last.then_some(patience), directory, ledger).context(fate.name)?;
        ledger.read(told).with_context(|| format!("in life {number}, {}", fate.name))?;
    }
    inspect(&path, ledger)
}

/// One life of the child: what it told.
/// `last`: it is to end by itself, within this.
fn live(role: Role, fate: &Fate, last: Option<Duration>, directory: &Path, ledger: &mut Ledger) -> Result<Vec<Told>> {
    let mut process = Process::start(&role, directory);
    let began = Instant::now();
    let mut due: BTreeMap<(Instant, usize), Deed> = BTreeMap::new();
    due.insert((began + last.unwrap_or(LIVENESS), usize::MAX), Deed::Kill);
    due.extend(fate.since_start.iter().enumerate().map(|(at, (after, deed))| ((began + *after, at), *deed)));
    let (mut all, mut killed, mut died) = (Vec::new(), false, None);
    loop {
        let (&(at, number), deed) = due.first_key_value().expect("the last of them stays");
        let deed = *deed;
        match process.next(at) {
            Next::Report(told) => {
                match &told {
                    Told::Opened if !killed => {
                        let now = Instant::now();
                        let deeds = fate.since_opened.iter().enumerate();
                        due.extend(deeds.map(|(at, (after, deed))| ((now + *after, at), *deed)));
                    }
                    Told::Dies(point) => died = Some(Failpoint::ALL[*point]),
                    _ => {}
                }
                all.push(told);
                if fate.at_report == Some(all.len()) && !killed {
                    due = BTreeMap::from([((Instant::now(), 0), Deed::Kill)]);
                }
            }
            Next::TimeUp if killed => bail!("a killed child does not end"),
            Next::TimeUp if deed == Deed::Kill && number == usize::MAX => {
                let threads = process.threads();
                bail!("P8: a life did not come to its end: {}; {threads}", process.last_words());
            }
            Next::TimeUp => {
                due.pop_first();
                match deed {
                    Deed::Kill => {
                        process.signal(Signal::KILL);
                        killed = true;
                        due = BTreeMap::from([((Instant::now() + LIVENESS, 0), Deed::Kill)]);
                    }
                    Deed::Stop => process.signal(Signal::STOP),
                    Deed::Continue => process.signal(Signal::CONT),
                    Deed::ShutDown => process.tell("shutdown"),
                }
            }
            Next::Ended => break,
        }
    }
    let status = process.status();
    let by_itself = status.success() && all.iter().any(|told| matches!(told, Told::Closed));
    ensure!(
        by_itself || ((killed || died.is_some()) && last.is_none()),
        "the child ended by itself: {status}: {}",
        process.last_words()
    );
    if !by_itself {
        ledger.count("kills");
    }
    if let Some(point) = died {
        ledger.count(&format!("died at {point:?}"));
    }
    Ok(all)
}

/// Opens the file as a user would, and compares.
fn inspect(path: &Path, ledger: &mut Ledger) -> Result<()> {
    on_threads(1).block_on(async {
        let durably = child::builder().paused(true).open(path).await.context("a file that was killed opens")?;
        let runs = durably.get_runs(RunFilter::new().limit(1_000)).await.context("runs")?;
        let mut steps = Vec::new();
        for run in &runs {
            steps.push(durably.get_steps(run.id).await.context("steps")?);
        }
        durably.shutdown().await.context("a clean end")?;
        let found = verify(path).await.context("is read whole")?;
        ensure!(found.is_sound(), "the file contradicts itself: {found:?}");
        ledger.check(&runs, &steps)
    })
}
