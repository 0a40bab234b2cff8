//! The whole runtime on one thread, from one seed: clients and bodies that draw lots, a disk that fails and loses power, a
//! wall clock that jumps, one life after another; then quiet, in which everything is to end.
//!
//! Holds P1, P2, P3, P5, P6, P7, P8, P19, P20 and P23 after every event, and that the same seed does the same.

pub mod clock;
pub mod disk;
mod ledger;
mod trace;
mod world;

use std::sync::Mutex;

use super::suite::{Plan, Report, Suite, Violation};

pub const SUITE: Suite = Suite { name: "simulation", run, cases: [500, 300_000, 5_000_000] };

/// How often a seed is run a second time, to see that it does the same.
const TWICE: u64 = 25;

/// Two seeds at a time: each has a thread and a world of its own.
const THREADS: usize = 2;

#[derive(Default)]
struct Shared {
    next: u64,
    done: Vec<Line>,
}

/// What one seed did, in the report.
struct Line {
    seed: u64,
    done: world::Done,
    twice: bool,
}

fn one(plan: &Plan, case: u64, printed: bool) -> Line {
    let seed = plan.seed_of(case);
    let mut done = world::simulate(seed, plan.bug, printed);
    let twice = case.is_multiple_of(TWICE) && plan.bug.is_none();
    if twice {
        let again = world::simulate(seed, plan.bug, false);
        if (again.hash, again.lines) != (done.hash, done.lines) {
            let what = format!("the same seed did otherwise: {} lines and {}", done.lines, again.lines);
            done.violations.push(what);
        }
    }
    if printed {
        println!("seed {seed}: trace {:016x} of {} lines", done.hash, done.lines);
    }
    Line { seed, done, twice }
}

fn run(plan: &Plan) -> Report {
    let printed = plan.trace;
    let shared = Mutex::new(Shared::default());
    super::suite::quietly(|| {
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    loop {
                        let case = {
                            let mut shared = shared.lock().expect("whole");
                            let found = shared.done.iter().any(|line| !line.done.violations.is_empty());
                            if !plan.goes_on(shared.next) || (plan.bug.is_some() && found) {
                                return;
                            }
                            shared.next += 1;
                            shared.next - 1
                        };
                        let line = one(plan, case, printed);
                        shared.lock().expect("whole").done.push(line);
                    }
                });
            }
        });
    });
    let mut lines = shared.into_inner().expect("whole").done;
    lines.sort_by_key(|line| line.seed);
    let cases = lines.len() as u64;
    let (mut report, mut events, mut crashes, mut committed) = (Report { cases, ..Report::default() }, 0, 0, 0);
    let twice = lines.iter().filter(|line| line.twice).count() as u64;
    for Line { seed, done, .. } in lines {
        report.violations.extend(done.violations.into_iter().map(|what| Violation { seed, what }));
        report.faults += done.faults + done.crashes;
        events += done.lines;
        committed += done.events;
        crashes += done.crashes;
    }
    report.counts = vec![
        ("events".to_owned(), events),
        ("events a seed".to_owned(), events / cases.max(1)),
        ("committed events".to_owned(), committed),
        ("crashes".to_owned(), crashes),
        ("seeds run twice".to_owned(), twice),
    ];
    report
}
