//! One operation of the disk fails, or all from one on for a while: every answer is true, and the process goes on (M2, M5, M6).
//!
//! As SQLite does it: the fault is at operation 0, 1, 2 … of a scenario until the scenario passes untouched; then the next
//! scenario. A failed flush loses what it was to flush, though it looks written: a loss of power follows it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use durably::{Durably, Health};

use super::ledger::{Act, Ledger, Life, Setup, Ticking, check, check_keys};
use super::powerloss::{empty, simulated};
use super::simdisk::{Fault, Plan as DiskPlan, SimDisk, apply, torn};
use super::suite::{Plan, Report, Suite, Violation};

/// Of ten cases one is a failed flush.
pub const SUITE: Suite = Suite { name: "faults", run, cases: [5_400, 220_000, 1_100_000] };

/// What goes wrong, and for how many further opens of the file.
const FAULTS: [(Fault, Option<u32>); 11] = [
    (Fault::Eio, None),
    (Fault::LostFlush, None),
    (Fault::DoneButSaysNot, None),
    (Fault::Short, None),
    (Fault::NoSpace, None),
    (Fault::Eio, Some(2)),
    (Fault::LostFlush, None),
    (Fault::DoneButSaysNot, Some(2)),
    (Fault::Short, Some(1)),
    (Fault::NoSpace, Some(3)),
    (Fault::Slow, Some(0)),
];
/// The store asks this often, at most, after the disk works again.
const OPENS_MORE_MAX: u64 = 2;

pub fn run(plan: &Plan) -> Report {
    let mut report = Report::default();
    let empty = empty();
    let (mut scenarios, mut flushes, mut passed) = (0, 0, 0);
    'scenarios: while plan.goes_on(report.cases) {
        let seed = plan.seed_of(scenarios);
        let mut rng = fastrand::Rng::with_seed(seed);
        let setup = Setup::random(&mut rng, plan.bug);
        let acts: Vec<Act> = (0..rng.usize(4..14)).map(|_| Act::random(&mut rng)).collect();
        let late = rng.bool();
        scenarios += 1;
        for (fault, opens) in FAULTS {
            // Not every operation of a long scenario, where cases are few.
            let stride = rng.u64(
                1..=if matches!(plan.until, super::suite::Until::Cases(cases) if cases > 100_000) { 1 } else { 9 },
            );
            let mut at = rng.u64(..stride);
            loop {
                let slow = rng.u32(..4) == 0;
                let case = Case { setup, acts: &acts, plan: DiskPlan { at, fault, opens }, late, slow };
                let outcome = catch_unwind(AssertUnwindSafe(|| case.run(&empty, &mut rng)));
                let outcome = outcome.unwrap_or_else(|_| Err("a panic".into()));
                report.cases += 1;
                flushes += u64::from(fault == Fault::LostFlush);
                match outcome {
                    Ok(0) => {
                        passed += 1;
                        break;
                    }
                    Ok(hits) => report.faults += hits,
                    Err(what) => {
                        let what = format!("{what} ({fault:?} at {at}, {opens:?})");
                        report.violations.push(Violation { seed, what });
                        if plan.bug.is_some() || report.violations.len() >= 10 {
                            break 'scenarios;
                        }
                    }
                }
                if !plan.goes_on(report.cases) {
                    break 'scenarios;
                }
                at += stride;
            }
        }
    }
    let counts = [("scenarios", scenarios), ("failed flushes", flushes), ("passed untouched", passed)];
    report.counts = counts.map(|(name, count)| (name.to_owned(), count)).to_vec();
    report
}

struct Case<'a> {
    setup: Setup,
    acts: &'a [Act],
    plan: DiskPlan,
    /// The fault is in the scenario, not in opening the file.
    late: bool,
    /// The disk takes so long that callers are let go of.
    slow: bool,
}

impl Case<'_> {
    /// Gives how many operations failed.
    fn run(&self, empty: &[u8], rng: &mut fastrand::Rng) -> Result<u64, String> {
        let disk = SimDisk::of(empty.to_vec());
        let clock = Ticking::new();
        disk.record();
        if self.slow || self.plan.fault == Fault::Slow {
            disk.takes_time(&clock);
        }
        let ledger = simulated(self.live(&disk, &clock))?;
        // Killed, and killed by a loss of power: what was answered is there either way.
        let (mut image, pending) = disk.unflushed();
        torn(&pending, rng).iter().for_each(|change| apply(&mut image, change));
        self.reopened(disk.live(), &ledger).map_err(|what| format!("after a kill: {what}"))?;
        self.reopened(image, &ledger).map_err(|what| format!("after a loss of power: {what}"))?;
        Ok(disk.hits())
    }

    async fn live(&self, disk: &Arc<SimDisk>, clock: &Arc<Ticking>) -> Result<Ledger, String> {
        if !self.late {
            disk.plan(self.plan);
        }
        let mut life = match Life::begin(&self.setup, disk, clock, Ledger::default()).await {
            Ok(life) => life,
            // Refused: what was there is there.
            Err(_) if disk.hits() > 0 => return Ok(Ledger::default()),
            Err(error) => return Err(format!("does not open: {error}")),
        };
        if self.late {
            disk.plan(self.plan);
        }
        for act in self.acts {
            life.act(*act).await?;
        }
        self.goes_on(disk, &mut life).await?;
        check(&life.durably, &life.ledger(), usize::MAX - 1).await?;
        Ok(life.ledger())
    }

    /// The disk works again: so does the runtime, without a new start and without much asking.
    async fn goes_on(&self, disk: &SimDisk, life: &mut Life) -> Result<(), String> {
        disk.plan(None);
        let opens = disk.opens();
        life.act(Act::Trigger { idempotency: None, concurrency: None, large: false }).await?;
        if !life.last_is_there() {
            return Err("a trigger after the fault is refused".into());
        }
        let more = disk.opens() - opens;
        if more > OPENS_MORE_MAX || is_degraded(&life.durably) {
            return Err(format!("{:?} after the fault, {more} opens later", life.durably.health()));
        }
        Ok(())
    }

    fn reopened(&self, image: Vec<u8>, ledger: &Ledger) -> Result<(), String> {
        simulated(async {
            let opened = self.setup.open(SimDisk::of(image), &Ticking::new(), true).await;
            let durably = opened.map_err(|error| format!("can't be opened: {error}"))?;
            let kept = check(&durably, ledger, usize::MAX - 1).await?;
            check_keys(&durably, &kept).await
        })
    }
}

fn is_degraded(durably: &Durably) -> bool {
    durably.health() != Health::Ok
}
