//! The whole runtime on one thread, from one seed: clients and bodies that draw lots, a disk that fails and loses power, a
//! wall clock that jumps, one life after another; then quiet, in which everything is to end.
//!
//! Holds P1, P2, P3, P5, P6, P7, P8, P19, P20 and P23 after every event, and that the same seed does the same.

pub mod clock;
pub mod disk;
mod ledger;
mod trace;
mod world;

use super::suite::{Plan, Report, Suite, Violation};

pub const SUITE: Suite = Suite { name: "simulation", run, cases: [500, 300_000, 5_000_000] };

/// How often a seed is run a second time, to see that it does the same.
const TWICE: u64 = 25;

fn run(plan: &Plan) -> Report {
    let printed = std::env::var_os("DURABLY_TEST_TRACE").is_some();
    let mut report = Report::default();
    let (mut events, mut crashes, mut twice) = (0, 0, 0);
    super::suite::quietly(|| {
        while plan.goes_on(report.cases) {
            let seed = plan.seed_of(report.cases);
            let done = world::simulate(seed, plan.bug, printed);
            let found = done.violations.into_iter();
            report.violations.extend(found.map(|what| Violation { seed, what }));
            if report.cases.is_multiple_of(TWICE) && plan.bug.is_none() {
                let again = world::simulate(seed, plan.bug, false);
                twice += 1;
                if (again.hash, again.lines) != (done.hash, done.lines) {
                    let what = format!("the same seed did otherwise: {} lines and {}", done.lines, again.lines);
                    report.violations.push(Violation { seed, what });
                }
            }
            report.cases += 1;
            report.faults += done.faults + done.crashes;
            events += done.lines;
            crashes += done.crashes;
            if printed {
                println!("seed {seed}: trace {:016x} of {} lines", done.hash, done.lines);
            }
            if plan.bug.is_some() && !report.violations.is_empty() {
                break;
            }
        }
    });
    report.counts = vec![
        ("events".to_owned(), events),
        ("events a seed".to_owned(), events / report.cases.max(1)),
        ("crashes".to_owned(), crashes),
        ("seeds run twice".to_owned(), twice),
    ];
    report
}
