//! The whole runtime on one thread, from one seed: clients and bodies that draw lots, a disk that fails and loses power, a
//! wall clock that jumps, one life after another; then quiet, in which everything is to end.
//!
//! Holds P1, P2, P3, P5, P6, P7, P8, P19, P20 and P23 after every event, and that the same seed does the same.

mod body;
mod client;
mod ledger;
mod life;
mod trace;
mod world;

use super::several::{Case, in_order, side_by_side};
use super::suite::{Plan, Report, Suite, quietly};

pub const SUITE: Suite = Suite { name: "simulation", run, cases: [500, 300_000, 5_000_000] };

/// How often a seed is run a second time, to see that it does the same.
const TWICE: u64 = 25;

fn run(plan: &Plan) -> Report {
    let mut report = quietly(|| side_by_side(&mut in_order(plan), plan.bug.is_some(), |seed| one(seed, plan)));
    report.counts.sort();
    report
}

fn one(seed: u64, plan: &Plan) -> Case {
    let mut done = life::simulate(seed, plan.bug, plan.trace);
    // By the seed, so that it is run twice where it is repeated.
    let twice = seed.is_multiple_of(TWICE) && plan.bug.is_none();
    if twice {
        let again = life::simulate(seed, plan.bug, false);
        if (again.hash, again.lines) != (done.hash, done.lines) {
            done.violations.push(format!("the same seed did otherwise: {} lines and {}", done.lines, again.lines));
        }
    }
    if plan.trace {
        println!("seed {seed}: trace {:016x} of {} lines", done.hash, done.lines);
    }
    let counts = [
        ("events", done.lines),
        ("committed events", done.events),
        ("crashes", done.crashes),
        ("seeds run twice", u64::from(twice)),
    ];
    Case {
        faults: done.faults + done.crashes,
        counts: counts.into_iter().map(|(what, count)| (what.to_owned(), count)).collect(),
        violation: (!done.violations.is_empty()).then(|| done.violations.join("; ")),
    }
}
