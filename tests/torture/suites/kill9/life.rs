//! One life of the child: what it is to be, how it is to end, and what it reports.

use std::path::PathBuf;
use std::time::Duration;

use durably::testing::suites::Failpoint;
use durably::{RunId, Trigger};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::suites::process::log_uniform;

/// What one life of the child is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Life {
    pub path: PathBuf,
    pub seed: u64,
    pub number: u32,
    /// Triggers nothing, works off what is there, and ends.
    pub last: bool,
    /// Runs that have ended may be purged.
    pub purges: bool,
    pub bug: Option<usize>,
    /// The crash point at which it kills itself.
    pub dies_at: Option<DiesAt>,
    /// After so long, and for so long, the file can't be written.
    pub outage: Option<(Duration, Duration)>,
}

/// A crash point at which a child kills itself.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct DiesAt {
    /// Its number among all.
    pub point: usize,
    /// At which pass.
    pub pass: u32,
    /// The other threads go on for so long.
    pub linger: Duration,
    pub aborts: bool,
}

impl Life {
    /// On one thread a report can't be overtaken by what happened before it, so a late one proves a late deed.
    pub fn on_one_thread(&self) -> bool {
        self.seed.is_multiple_of(2)
    }

    /// Time runs a thousand times as fast, so that the journal is folded while runs execute.
    pub fn hurries(&self) -> bool {
        self.seed.is_multiple_of(3)
    }
}

/// What is done to a life from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    Stop,
    Continue,
    ShutDown,
    Kill,
}

/// How a life is to end: what is done to it, and when.
#[derive(Debug, Default)]
pub struct Fate {
    pub name: &'static str,
    pub since_start: Vec<(Duration, Deed)>,
    pub since_opened: Vec<(Duration, Deed)>,
    /// It is killed when it has reported so often.
    pub at_report: Option<usize>,
    pub dies_at: Option<DiesAt>,
    pub outage: Option<(Duration, Duration)>,
}

const SHORT: Duration = Duration::from_micros(200);
/// When a life is over at the latest.
const LATEST: Duration = Duration::from_millis(500);

/// Passed while a new file is made, or any is opened, each once at most.
const CREATING: &[Failpoint] = &[
    Failpoint::TemporaryMade,
    Failpoint::TemporaryFilled,
    Failpoint::Linked,
    Failpoint::Opened,
    Failpoint::DirectorySynced,
];
const RECOVERING: &[Failpoint] = &[
    Failpoint::Opened,
    Failpoint::DirectorySynced,
    Failpoint::Rebuilt,
    Failpoint::Recovered,
    Failpoint::SliceFolded,
    Failpoint::SliceCommitted,
    Failpoint::JournalRemoved,
];
const ENDING: &[Failpoint] =
    &[Failpoint::Draining, Failpoint::Drained, Failpoint::HandedBack, Failpoint::FoldedAtClose, Failpoint::Closed];
const FAILING: &[Failpoint] = &[Failpoint::Released, Failpoint::Reopened];

impl Fate {
    /// The end of a first start: while the file is being made.
    pub fn of_first_start(rng: &mut fastrand::Rng, focus: Failpoint) -> Fate {
        if CREATING.contains(&focus) {
            return Fate::at(rng, focus);
        }
        match rng.bool() {
            true => {
                let at = log_uniform(rng, SHORT, Duration::from_millis(60));
                Fate { name: "killed on first start", since_start: vec![(at, Deed::Kill)], ..Fate::default() }
            }
            false => {
                let point = *rng.choice(CREATING).expect("some");
                Fate::at(rng, point)
            }
        }
    }

    /// The end of a later life.
    pub fn random(rng: &mut fastrand::Rng) -> Fate {
        let mut fate = match rng.u8(..20) {
            0..4 => Fate::while_recovering(rng),
            4..7 => Fate::while_ending(rng),
            7..8 => {
                let point = *rng.choice(FAILING).expect("some");
                Fate::at(rng, point)
            }
            8..11 => {
                let point = *rng.choice(Failpoint::ALL).expect("some");
                Fate::at(rng, point)
            }
            // Right after something was reported as done, where what is not on disk yet would be lost.
            11..15 => Fate {
                name: "killed at a report",
                at_report: Some(600f64.powf(rng.f64()) as usize),
                since_opened: vec![(LATEST, Deed::Kill)],
                ..Fate::default()
            },
            _ => {
                let at = log_uniform(rng, SHORT, LATEST);
                Fate { name: "killed at any time", since_opened: vec![(at, Deed::Kill)], ..Fate::default() }
            }
        };
        if rng.u8(..6) == 0 {
            fate.name = "stopped, continued and killed";
            let at = log_uniform(rng, SHORT, LATEST / 4);
            let pause = Duration::from_millis(rng.u64(5..60));
            fate.since_opened.extend([(at, Deed::Stop), (at + pause, Deed::Continue)]);
        }
        fate
    }

    fn while_recovering(rng: &mut fastrand::Rng) -> Fate {
        match rng.bool() {
            true => {
                let at = log_uniform(rng, Duration::from_millis(4), Duration::from_millis(80));
                Fate { name: "killed while recovering", since_start: vec![(at, Deed::Kill)], ..Fate::default() }
            }
            false => {
                let point = *rng.choice(RECOVERING).expect("some");
                Fate::at(rng, point)
            }
        }
    }

    fn while_ending(rng: &mut fastrand::Rng) -> Fate {
        let asked = log_uniform(rng, SHORT, LATEST / 4);
        let killed = asked + log_uniform(rng, SHORT, LATEST / 4);
        let deeds = vec![(asked, Deed::ShutDown), (killed, Deed::Kill)];
        Fate { name: "killed while shutting down", since_opened: deeds, ..Fate::default() }
    }

    /// An end at a crash point, with what it takes to come there.
    pub fn at(rng: &mut fastrand::Rng, point: Failpoint) -> Fate {
        let once = CREATING.contains(&point) || ENDING.contains(&point) || FAILING.contains(&point);
        let pass = match point {
            _ if once => 1,
            Failpoint::Rebuilt | Failpoint::Recovered => 1,
            // The first of them while opening, the others while runs execute.
            _ if RECOVERING.contains(&point) => 8f64.powf(rng.f64()) as u32,
            _ => 40f64.powf(rng.f64()) as u32,
        };
        let linger = if rng.bool() { Duration::ZERO } else { Duration::from_micros(rng.u64(..5_000)) };
        let number = Failpoint::ALL.iter().position(|other| *other == point).expect("one of them");
        let mut fate = Fate {
            name: "killed at a crash point",
            dies_at: Some(DiesAt { point: number, pass, linger, aborts: rng.bool() }),
            since_opened: vec![(LATEST, Deed::Kill)],
            ..Fate::default()
        };
        if ENDING.contains(&point) {
            fate.since_opened = vec![
                (log_uniform(rng, Duration::from_millis(5), LATEST / 4), Deed::ShutDown),
                (LATEST * 4, Deed::Kill),
            ];
        }
        if FAILING.contains(&point) {
            let begins = log_uniform(rng, Duration::from_millis(2), LATEST / 8);
            fate.outage = Some((begins, Duration::from_millis(rng.u64(1..100))));
        }
        fate
    }
}

/// A line to the parent. What is about to be done is reported before, what is done after.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    Opened,
    /// The point of its life at which it kills itself.
    Dies(usize),
    Asking(Vec<Work>),
    /// Many triggers of one idempotency key at once.
    Bursting(Work),
    Triggered(String, RunId),
    /// A body begins, and is gone; each has a number of its own within a life.
    Enter(RunId, u32, Work),
    Exit(RunId, u32),
    /// A step's body begins.
    Begin(RunId, u32, u32),
    /// A step has resolved to a value; whether its body ran for that.
    Resolved(RunId, u32, u32, u64, bool),
    Cancelling(RunId),
    Cancelled(RunId),
    Resuming(RunId),
    Deleting(RunId),
    Deleted(RunId),
    Purging,
    Output(RunId, u64),
    /// An answer that no call should give.
    Unexpected(String),
    Closed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Work {
    /// Its own for every trigger, but for those of the same idempotency key.
    pub name: String,
    pub idempotent: bool,
    /// Concurrency key, and how many may share it.
    pub key: Option<(String, u32)>,
    /// Those of one batch are there together or not at all.
    pub batch: Option<String>,
    pub steps: u32,
    /// Side by side, or one after the other.
    pub side_by_side: bool,
    /// Its first step takes longer than a shutdown waits.
    pub slow: bool,
}

impl Work {
    pub fn random(rng: &mut fastrand::Rng, name: String) -> Work {
        let number = rng.u32(..4);
        Work {
            name,
            idempotent: false,
            key: rng.bool().then(|| (format!("key-{number}"), 1 + number % 2)),
            batch: None,
            steps: rng.u32(1..6),
            side_by_side: rng.u8(..4) == 0,
            slow: rng.u8(..32) == 0,
        }
    }

    /// Few names, so that lives and bursts meet in them; the same work for the same name.
    pub fn once(name: String) -> Work {
        let seed = name.bytes().fold(0, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        Work { idempotent: true, ..Work::random(&mut fastrand::Rng::with_seed(seed), name) }
    }

    pub fn trigger(&self) -> Trigger<Work> {
        let mut trigger = Trigger::new(self.clone());
        if self.idempotent {
            // A purge waits for its key, so it never goes.
            trigger = trigger.idempotency_key(&self.name).idempotency_ttl(Duration::from_secs(86_400));
        }
        if let Some((key, limit)) = &self.key {
            trigger = trigger.concurrency_key(key).limit(*limit);
        }
        trigger
    }
}
