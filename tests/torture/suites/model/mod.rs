//! The runtime against a reference of it: random operations on few keys, and after each everything that can be read is as the
//! reference has it. Crashes, restarts, failing disks and jumps of the clock are operations like others.

mod bodies;
mod driver;
mod reference;

use std::sync::Mutex;

use super::suite::{Plan, Report, Suite, Violation};
use driver::{Counts, KINDS, Kind, Operation};

pub const SUITE: Suite = Suite { name: "model", run, cases: [1_000, 200_000, 1_000_000] };

const OPERATIONS: usize = 50;
/// From so many cases on, each operation is to have succeeded and failed.
const COVERED_FROM: u64 = 200;
/// What can't fail, being done to the runtime and not asked of it.
const NEVER_FAIL: [Kind; 7] =
    [Kind::Crash, Kind::Shutdown, Kind::Fault, Kind::Jump, Kind::Advance, Kind::Logs, Kind::Propagates];
const THREADS: usize = 2;

#[derive(Default)]
struct Shared {
    next: u64,
    violations: Vec<Violation>,
    counts: Counts,
}

fn operations(seed: u64) -> Vec<Operation> {
    let mut random = fastrand::Rng::with_seed(seed ^ 0x6d6f_6465_6c00);
    let all: u32 = KINDS.iter().map(|(_, weight)| weight).sum();
    let mut draw = || {
        let mut at = random.u32(..all);
        let drawn = KINDS.iter().find(|(_, weight)| {
            let found = at < *weight;
            at = at.saturating_sub(*weight);
            found
        });
        Operation { kind: drawn.map_or(Kind::Trigger, |(kind, _)| *kind), seed: random.u64(..) }
    };
    (0..OPERATIONS).map(|_| draw()).collect()
}

/// One case. Where it fails, operations are left out as long as it does.
fn case(seed: u64, plan: &Plan, counts: &mut Counts) -> Result<(), String> {
    let mut operations = operations(seed);
    let Err(mut what) = driver::carry_out(seed, &operations, plan.bug, counts) else { return Ok(()) };
    if plan.bug.is_none() {
        let mut at = operations.len();
        while at > 0 {
            at -= 1;
            let mut fewer = operations.clone();
            fewer.remove(at);
            if let Err(still) = driver::carry_out(seed, &fewer, plan.bug, &mut Counts::new()) {
                (operations, what) = (fewer, still);
            }
        }
    }
    let kinds: Vec<Kind> = operations.iter().map(|operation| operation.kind).collect();
    Err(format!("{what}; by {kinds:?}"))
}

fn run(plan: &Plan) -> Report {
    let shared = Mutex::new(Shared::default());
    super::suite::quietly(|| {
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    loop {
                        let number = {
                            let mut shared = shared.lock().expect("whole");
                            let enough = plan.bug.is_some() && !shared.violations.is_empty();
                            if !plan.goes_on(shared.next) || enough || shared.violations.len() >= 5 {
                                return;
                            }
                            shared.next += 1;
                            shared.next - 1
                        };
                        let (seed, mut counts) = (plan.seed_of(number), Counts::new());
                        let ended = case(seed, plan, &mut counts);
                        let mut shared = shared.lock().expect("whole");
                        shared.violations.extend(ended.err().map(|what| Violation { seed, what }));
                        for (kind, count) in counts {
                            *shared.counts.entry(kind).or_default() += count;
                        }
                    }
                });
            }
        });
    });
    let Shared { next, mut violations, counts } = shared.into_inner().expect("whole");
    let count = |kind: Kind, worked: bool| counts.get(&(kind, worked)).copied().unwrap_or(0);
    if next >= COVERED_FROM && violations.is_empty() && plan.bug.is_none() {
        for (kind, _) in KINDS {
            for worked in [true, false] {
                if count(*kind, worked) == 0 && (worked || !NEVER_FAIL.contains(kind)) {
                    let what = format!("no {kind:?} {}", if worked { "succeeded" } else { "failed" });
                    violations.push(Violation { seed: plan.seed, what });
                }
            }
        }
    }
    let faults = [Kind::Crash, Kind::Fault, Kind::Jump].map(|kind| count(kind, true)).iter().sum();
    let each = KINDS.iter().map(|(kind, _)| (format!("{kind:?}: failed"), count(*kind, false)));
    let worked = KINDS.iter().map(|(kind, _)| (format!("{kind:?}"), count(*kind, true)));
    Report { cases: next, faults, violations, counts: worked.chain(each).collect() }
}
