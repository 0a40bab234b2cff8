//! The runtime against a reference of it: random operations on few keys, and after each everything that can be read is as the
//! reference has it. Crashes, restarts, failing disks and jumps of the clock are operations like others.

mod bodies;
mod case;
mod commands;
mod comparing;
mod control;
mod operation;
mod reading;
mod reference;
mod triggers;

use super::several::{Case, in_order, side_by_side};
use super::suite::{Plan, Report, Suite, Violation, quietly};
use case::carry_out;
use operation::{Counts, KINDS, Kind, draw};

pub const SUITE: Suite = Suite { name: "model", run, cases: [1_000, 200_000, 1_000_000] };

/// Of a case, as the tier has it.
const OPERATIONS: [usize; 2] = [50, 100];
/// From so many cases on, each operation is to have succeeded and failed.
const COVERED_FROM: u64 = 200;
/// What can't fail, being done to the runtime and not asked of it.
const NEVER_FAIL: [Kind; 7] =
    [Kind::Crash, Kind::Shutdown, Kind::Fault, Kind::Jump, Kind::Advance, Kind::Logs, Kind::Propagates];

/// One case. Where it fails, operations are left out as long as it does.
fn case(seed: u64, plan: &Plan, counts: &mut Counts) -> Result<(), String> {
    let mut operations = draw(seed, OPERATIONS[usize::from(plan.thorough)]);
    let Err(mut what) = carry_out(seed, &operations, plan.bug, counts) else { return Ok(()) };
    if plan.bug.is_none() {
        for at in (0..operations.len()).rev() {
            let mut fewer = operations.clone();
            fewer.remove(at);
            if let Err(still) = carry_out(seed, &fewer, plan.bug, &mut Counts::new()) {
                (operations, what) = (fewer, still);
            }
        }
    }
    let kinds: Vec<Kind> = operations.iter().map(|operation| operation.kind).collect();
    Err(format!("{what}; by {kinds:?}"))
}

fn run(plan: &Plan) -> Report {
    let mut report = quietly(|| {
        side_by_side(&mut in_order(plan), plan.bug.is_some(), |seed| {
            let mut counts = Counts::new();
            let violation = case(seed, plan, &mut counts).err();
            let faults = [Kind::Crash, Kind::Fault, Kind::Jump].iter().filter_map(|kind| counts.get(&(*kind, true)));
            let faults = faults.sum();
            let counts = counts.into_iter().map(|((kind, worked), count)| (name(kind, worked), count)).collect();
            Case { faults, counts, violation }
        })
    });
    report.counts.sort();
    if report.cases >= COVERED_FROM && report.violations.is_empty() && plan.bug.is_none() {
        let wanted = KINDS.iter().flat_map(|(kind, _)| [(*kind, true), (*kind, false)]);
        for (kind, worked) in wanted.filter(|(kind, worked)| *worked || !NEVER_FAIL.contains(kind)) {
            if !report.counts.iter().any(|(counted, _)| *counted == name(kind, worked)) {
                let what = format!("there was no {}", name(kind, worked));
                report.violations.push(Violation { seed: plan.seed, what });
            }
        }
    }
    report
}

fn name(kind: Kind, worked: bool) -> String {
    format!("{kind:?}{}", if worked { "" } else { ": failed" })
}
