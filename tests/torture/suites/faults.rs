//! One operation of the disk fails, or all from one on for a while: every answer is true, and the process goes on (M2, M5, M6).
//!
//! As SQLite does it: the fault is at operation 0, 1, 2 … of a scenario until the scenario passes untouched; then the next
//! scenario. A failed flush loses what it was to flush, though it looks written: a loss of power follows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use durably::{Durably, Health};

use super::clock::{SimClock, simulated};
use super::disk::{Fault, Lasts, Plan as DiskPlan, SimDisk};
use super::program::{Act, Ledger, Life, Setup, check, check_keys, empty};
use super::several::{Case, side_by_side, until_done};
use super::suite::{Plan, Report, Suite, caught};

/// Of ten cases one is a failed flush.
pub const SUITE: Suite = Suite { name: "faults", run, cases: [5_400, 220_000, 1_100_000] };

/// What goes wrong, and for how long: once, or until the file was opened so often again.
const FAULTS: [(Fault, Option<u32>); 11] = [
    (Fault::Fails, None),
    (Fault::LostFlush, None),
    (Fault::DoneAndFails, None),
    (Fault::Short, None),
    (Fault::Full, None),
    (Fault::Fails, Some(2)),
    (Fault::LostFlush, None),
    (Fault::DoneAndFails, Some(2)),
    (Fault::Short, Some(1)),
    (Fault::Full, Some(3)),
    (Fault::Slow, None),
];
/// The store asks this often, at most, after the disk works again.
const OPENS_MORE_MAX: u64 = 2;
/// Of a long scenario not every operation, where cases are few.
const STRIDE_MAX: u64 = 9;
/// An open that fails takes this long, of a disk so slow that callers are let go of.
const SLOW: Duration = Duration::from_secs(3);

fn run(plan: &Plan) -> Report {
    let (cases, empty) = (AtomicU64::new(0), empty());
    let mut report = side_by_side(&mut until_done(plan, &cases), plan.bug.is_some(), |seed| {
        let mut sweep = Sweep::new(seed, plan, &empty);
        let outcome = caught(|| sweep.all());
        cases.fetch_add(sweep.cases, Ordering::Relaxed);
        let counts = [("scenarios", 1), ("failed flushes", sweep.flushes), ("passed untouched", sweep.untouched)];
        let counts = counts.into_iter().map(|(what, count)| (what.to_owned(), count)).collect();
        Case { faults: sweep.struck, counts, violation: outcome.err() }
    });
    report.cases = cases.into_inner();
    report
}

/// A scenario, done over and over with another fault each time.
struct Sweep<'a> {
    empty: &'a [u8],
    setup: Setup,
    acts: Vec<Act>,
    /// The fault is in the scenario, not in opening the file.
    late: bool,
    stride_max: u64,
    rng: fastrand::Rng,
    cases: u64,
    struck: u64,
    flushes: u64,
    untouched: u64,
}

impl<'a> Sweep<'a> {
    fn new(seed: u64, plan: &Plan, empty: &'a [u8]) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Sweep {
            empty,
            setup: Setup::random(&mut rng, plan.bug),
            acts: (0..rng.usize(4..14)).map(|_| Act::random(&mut rng)).collect(),
            late: rng.bool(),
            stride_max: if plan.thorough { 1 } else { STRIDE_MAX },
            rng,
            cases: 0,
            struck: 0,
            flushes: 0,
            untouched: 0,
        }
    }

    fn all(&mut self) -> Result<(), String> {
        for (fault, opens) in FAULTS {
            let stride = self.rng.u64(1..=self.stride_max);
            let mut at = self.rng.u64(..stride);
            // Up to where the scenario is over before anything goes wrong.
            while self.one(at, fault, opens).map_err(|what| format!("{what} ({fault:?} at {at}, {opens:?})"))? > 0 {
                at += stride;
            }
            self.untouched += 1;
        }
        Ok(())
    }

    /// Gives how many operations failed.
    fn one(&mut self, at: u64, fault: Fault, opens: Option<u32>) -> Result<u64, String> {
        self.cases += 1;
        self.flushes += u64::from(fault == Fault::LostFlush);
        let each = if self.rng.u32(..4) == 0 { SLOW } else { Duration::ZERO };
        let lasts = opens.map_or(Lasts::Once, |more| Lasts::Opens(more, each));
        let disk = SimDisk::new(&SimClock::default(), self.rng.u64(..), self.empty.to_vec());
        disk.record();
        let ledger = simulated(self.live(&disk, DiskPlan { at, fault, lasts }))?;
        // Killed, and killed by a loss of power: what was answered is there either way.
        self.reopened(disk.live(), &ledger).map_err(|what| format!("after a kill: {what}"))?;
        self.reopened(disk.cut(), &ledger).map_err(|what| format!("after a loss of power: {what}"))?;
        self.struck += disk.struck();
        Ok(disk.struck())
    }

    async fn live(&self, disk: &Arc<SimDisk>, plan: DiskPlan) -> Result<Ledger, String> {
        if !self.late {
            disk.plan(plan);
        }
        let mut life = match Life::begin(&self.setup, disk, Ledger::default()).await {
            Ok(life) => life,
            // Refused: what was there is there.
            Err(_) if disk.struck() > 0 => return Ok(Ledger::default()),
            Err(error) => return Err(format!("does not open: {error}")),
        };
        if self.late {
            disk.plan(plan);
        }
        for act in &self.acts {
            life.act(*act).await?;
        }
        self.goes_on(disk, &mut life).await?;
        check(&life.durably, &life.ledger(), usize::MAX - 1).await?;
        Ok(life.ledger())
    }

    /// The disk works again: so does the runtime, without a new start and without much asking.
    async fn goes_on(&self, disk: &SimDisk, life: &mut Life) -> Result<(), String> {
        disk.heal();
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
            let opened = self.setup.open(&SimDisk::of(image), true).await;
            let durably = opened.map_err(|error| format!("can't be opened: {error}"))?;
            let kept = check(&durably, ledger, usize::MAX - 1).await?;
            check_keys(&durably, &kept).await
        })
    }
}

fn is_degraded(durably: &Durably) -> bool {
    durably.health() != Health::Ok
}
