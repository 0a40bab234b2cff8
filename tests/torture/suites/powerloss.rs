//! Loss of power, at every operation of the disk, with any part of what was not flushed: nothing answered is lost, nothing is
//! invented (P1, P2, P5, P6).
//!
//! Half of the cases are cut out of small workloads, words of up to three calls, in a random order; the nightly tier does all
//! of them with all subsets of what was not flushed. The other half is cut out of long random ones that live through several
//! losses. A quarter of all losses is followed by another one while recovering.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::ledger::{ALPHABET, Act, Ledger, Life, Setup, Ticking, check, check_keys};
use super::simdisk::{Change, SimDisk, apply, subset, torn};
use super::suite::{Plan, Report, Suite, Until, Violation, caught};

pub const SUITE: Suite = Suite { name: "powerloss", run, cases: [10_000, 1_000_000, 10_000_000] };

/// More unflushed changes than this are sampled, not enumerated.
const SUBSET_CHANGES_MAX: usize = 12;
/// Cases from which on small workloads are exhausted.
const EXHAUSTIVE_FROM: u64 = 1_000_000;

pub fn run(plan: &Plan) -> Report {
    let workers = 2;
    let found = AtomicBool::new(false);
    let reports: Vec<Report> = std::thread::scope(|scope| {
        let spawned: Vec<_> = (0..workers)
            .map(|worker| {
                let share = match plan.until {
                    Until::Cases(cases) => Until::Cases(cases.div_ceil(workers)),
                    until => until,
                };
                let plan = Plan { seed: plan.seed.wrapping_add(worker), until: share, ..plan.clone() };
                let found = &found;
                scope.spawn(move || run_alone(&plan, found))
            })
            .collect();
        spawned.into_iter().map(|worker| worker.join().expect("a suite does not panic")).collect()
    });
    let mut total = Report::default();
    let mut counts = std::collections::BTreeMap::new();
    for report in reports {
        total.cases += report.cases;
        total.faults += report.faults;
        total.violations.extend(report.violations);
        report.counts.into_iter().for_each(|(name, count)| *counts.entry(name).or_insert(0) += count);
    }
    total.counts = counts.into_iter().collect();
    total
}

fn run_alone(plan: &Plan, found: &AtomicBool) -> Report {
    let mut suite = Powerloss::new(plan);
    let mut round = 0;
    while suite.goes_on() && !found.load(Ordering::Relaxed) {
        let seed = plan.seed_of(round);
        suite.rng = fastrand::Rng::with_seed(seed);
        // By the seed, so that the case is the same where it is the first.
        let is_small = suite.rng.bool();
        let outcome = caught(|| if is_small { suite.small() } else { suite.long() });
        if let Err(what) = outcome {
            suite.report.violations.push(Violation { seed, what });
            if plan.bug.is_some() || suite.report.violations.len() >= 10 {
                found.store(true, Ordering::Relaxed);
                break;
            }
        }
        round += 1;
    }
    let Powerloss { mut report, small, long, nested, .. } = suite;
    report.cases = report.faults;
    let names = ["small workloads", "long workloads", "losses while recovering"];
    report.counts = names.into_iter().map(str::to_owned).zip([small, long, nested]).collect();
    report
}

struct Powerloss<'p> {
    plan: &'p Plan,
    rng: fastrand::Rng,
    report: Report,
    /// A file as it is made: that it is made whole is another suite's.
    empty: Vec<u8>,
    small: u64,
    long: u64,
    nested: u64,
}

/// What a workload left: the disk's history, from which bytes, and what was told when.
struct History {
    base: Vec<u8>,
    changes: Vec<Change>,
    ledger: Ledger,
}

/// A file's bytes, and what is known of what is in them.
type Recovered = (Vec<u8>, Ledger);

/// A simulation that has not ended by then never does.
const FOREVER: Duration = Duration::from_secs(24 * 60 * 60);

pub fn simulated<T>(body: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime starts");
    // The clock runs ahead where nothing else is left to do.
    let ended = runtime.block_on(async { tokio::time::timeout(FOREVER, body).await });
    ended.expect("something is waited for that never comes")
}

/// An empty file of ours, closed.
pub fn empty() -> Vec<u8> {
    let disk = SimDisk::of(Vec::new());
    simulated(async {
        let setup = Setup { two_phase: false, bug: None, fold: (1 << 20, 100), seed: 1 };
        let life = Life::begin(&setup, &disk, &Ticking::new(), Ledger::default()).await.expect("opens");
        life.durably.shutdown().await.expect("closes");
    });
    disk.live()
}

impl<'p> Powerloss<'p> {
    fn new(plan: &'p Plan) -> Self {
        let (rng, report) = (fastrand::Rng::with_seed(plan.seed), Report::default());
        Powerloss { plan, rng, report, empty: empty(), small: 0, long: 0, nested: 0 }
    }

    fn goes_on(&self) -> bool {
        self.plan.goes_on(self.report.faults)
    }

    fn is_exhaustive(&self) -> bool {
        matches!(self.plan.until, Until::Cases(cases) if cases >= EXHAUSTIVE_FROM)
    }

    fn setup(&mut self) -> Setup {
        Setup::random(&mut self.rng, self.plan.bug)
    }

    /// One word of up to three calls, cut everywhere.
    fn small(&mut self) -> Result<(), String> {
        self.small += 1;
        let mut word = vec![ALPHABET[self.rng.usize(..3)]];
        (0..self.rng.usize(1..=3)).for_each(|_| word.push(ALPHABET[self.rng.usize(..ALPHABET.len())]));
        let setup = self.setup();
        let (history, _) = self.live(&setup, self.empty.clone(), Ledger::default(), &word, false)?;
        let mut cutter = Cutter::new(&history);
        for at in 0..=history.changes.len() {
            let pending = cutter.to(at);
            if self.is_exhaustive() && pending.len() <= SUBSET_CHANGES_MAX {
                for which in 0..1 << pending.len() {
                    let kept: Vec<_> = subset(&pending, which).collect();
                    self.lose(&setup, &cutter.durable, kept, &history.ledger, at)?;
                }
            } else if self.rng.u32(..4) == 0 || pending.is_empty() {
                let kept = torn(&pending, &mut self.rng);
                self.lose(&setup, &cutter.durable, kept, &history.ledger, at)?;
            }
            if !self.goes_on() {
                break;
            }
        }
        Ok(())
    }

    /// A long life, and those after it.
    fn long(&mut self) -> Result<(), String> {
        self.long += 1;
        let setup = self.setup();
        let (mut base, mut ledger) = (self.empty.clone(), Ledger::default());
        for _ in 0..3 {
            let acts: Vec<Act> = (0..self.rng.usize(20..90)).map(|_| Act::random(&mut self.rng)).collect();
            let clean = self.rng.bool();
            let (history, closed) = self.live(&setup, base, ledger, &acts, clean)?;
            let mut cutter = Cutter::new(&history);
            let mut points: Vec<usize> = (0..30).map(|_| self.rng.usize(..=history.changes.len())).collect();
            points.sort_unstable();
            let mut last = None;
            for at in points {
                let pending = cutter.to(at);
                let kept = torn(&pending, &mut self.rng);
                last = Some(self.lose(&setup, &cutter.durable, kept, &history.ledger, at)?);
            }
            (base, ledger) = match closed {
                Some(bytes) => self.recover(&setup, bytes, &history.ledger, usize::MAX - 1)?.0,
                None => last.ok_or("no loss")?,
            };
        }
        Ok(())
    }

    /// A life over these bytes; ended cleanly, also what it left.
    fn live(
        &self,
        setup: &Setup,
        base: Vec<u8>,
        ledger: Ledger,
        acts: &[Act],
        clean: bool,
    ) -> Result<(History, Option<Vec<u8>>), String> {
        let disk = SimDisk::of(base.clone());
        disk.record();
        simulated(async {
            let life = Life::begin(setup, &disk, &Ticking::new(), ledger).await;
            let mut life = life.map_err(|error| format!("does not open: {error}"))?;
            for act in acts {
                life.act(*act).await?;
            }
            let (changes, ledger) = (disk.recorded(), life.ledger());
            let mut closed = None;
            if clean {
                life.durably.shutdown().await.map_err(|error| format!("does not close: {error}"))?;
                closed = Some(disk.live());
            }
            Ok((History { base, changes, ledger }, closed))
        })
    }

    /// Power is lost; gives what is recovered.
    fn lose(
        &mut self,
        setup: &Setup,
        durable: &[u8],
        kept: Vec<Change>,
        ledger: &Ledger,
        at: usize,
    ) -> Result<Recovered, String> {
        self.report.faults += 1;
        let mut image = durable.to_vec();
        kept.iter().for_each(|change| apply(&mut image, change));
        let (mut recovered, disk) = self.recover(setup, image.clone(), ledger, at)?;
        if self.rng.u32(..4) == 0 {
            self.report.faults += 1;
            self.nested += 1;
            // Recovering changed the file as well, and that is cut now.
            let history = History { base: image, changes: disk.recorded(), ledger: Ledger::default() };
            let mut cutter = Cutter::new(&history);
            let pending = cutter.to(self.rng.usize(..=history.changes.len()));
            let mut image = std::mem::take(&mut cutter.durable);
            torn(&pending, &mut self.rng).iter().for_each(|change| apply(&mut image, change));
            recovered = self.recover(setup, image, ledger, at).map_err(|what| format!("while recovering: {what}"))?.0;
        }
        Ok(recovered)
    }

    fn recover(
        &self,
        setup: &Setup,
        image: Vec<u8>,
        ledger: &Ledger,
        at: usize,
    ) -> Result<(Recovered, Arc<SimDisk>), String> {
        let disk = SimDisk::of(image);
        disk.record();
        let kept = simulated(async {
            let durably = setup.open(disk.clone(), &Ticking::new(), true).await;
            let durably = durably.map_err(|error| format!("can't be opened: {error}"))?;
            let kept = check(&durably, ledger, at).await?;
            check_keys(&durably, &kept).await?;
            Ok::<_, String>(kept)
        })?;
        Ok(((disk.live(), kept), disk))
    }
}

/// Walks along a history, knowing at each place what is flushed and what is not.
struct Cutter<'h> {
    history: &'h History,
    at: usize,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

impl<'h> Cutter<'h> {
    fn new(history: &'h History) -> Self {
        Cutter { history, at: 0, durable: history.base.clone(), pending: Vec::new() }
    }

    /// What is not flushed after so many changes.
    fn to(&mut self, at: usize) -> Vec<Change> {
        for change in &self.history.changes[self.at..at] {
            match change {
                Change::Flush => self.pending.drain(..).for_each(|change| apply(&mut self.durable, &change)),
                change => self.pending.push(change.clone()),
            }
        }
        self.at = at;
        self.pending.clone()
    }
}
