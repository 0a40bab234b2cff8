//! Runs the suites that prove what is promised, and prints what they did.
//!
//! ```text
//! cargo run --release --features testing --example torture -- --minutes 10 [--suite NAME] [--thorough] [--seed N [--trace]]
//! ```
//!
//! Each suite gets an equal share of the time, or does as many cases as `--cases` says. `--thorough` enumerates, as the nightly
//! tier does, what is sampled otherwise. With `--seed` the suite's first case is the one of that seed; `--trace` does that
//! case alone, and prints what happened in it where the suite keeps a trace.

#[path = "../tests/torture/suites/mod.rs"]
mod suites;

use std::time::{Duration, Instant};

use suites::suite::{Plan, Until};

#[expect(clippy::disallowed_methods, reason = "how long a suite takes is no part of what it tests")]
fn main() {
    suites::process::be_the_child_if_asked();
    let mut arguments = std::env::args().skip(1);
    let (mut minutes, mut cases, mut only, mut seed, mut thorough, mut trace) = (1.0, None, None, None, false, false);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| usage(&format!("{argument} needs a value")));
        match argument.as_str() {
            "--minutes" => minutes = value().parse().unwrap_or_else(|_| usage("--minutes takes a number")),
            "--cases" => cases = Some(value().parse().unwrap_or_else(|_| usage("--cases takes a number"))),
            "--suite" => only = Some(value()),
            "--seed" => seed = Some(value().parse().unwrap_or_else(|_| usage("--seed takes a number"))),
            "--thorough" => thorough = true,
            "--trace" => trace = true,
            other => usage(&format!("unknown argument {other}")),
        }
    }
    let chosen: Vec<_> =
        suites::ALL.iter().filter(|suite| only.as_deref().is_none_or(|name| name == suite.name)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = suites::ALL.iter().map(|suite| suite.name).collect();
        usage(&format!("no such suite; there are {}", names.join(", ")));
    }
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    let share = Duration::from_secs_f64(minutes * 60.0 / chosen.len() as f64);
    let mut bad = false;
    let mut rows = Vec::new();
    for suite in chosen {
        let until = match cases {
            _ if trace => Until::Cases(1),
            Some(cases) => Until::Cases(cases),
            None => Until::Time(Instant::now() + share),
        };
        let report = (suite.run)(&Plan { seed, until, bug: None, thorough, trace });
        for violation in &report.violations {
            println!(
                "{}: VIOLATION with --suite {} --seed {}: {}",
                suite.name, suite.name, violation.seed, violation.what
            );
        }
        bad |= !report.violations.is_empty();
        println!("{}: {:?}", suite.name, report.counts);
        rows.push((suite.name, report.cases, report.faults, report.violations.len()));
    }
    println!("\n{:<14} {:>12} {:>16} {:>11}", "suite", "cases", "faults injected", "violations");
    for (name, cases, faults, violations) in rows {
        println!("{name:<14} {cases:>12} {faults:>16} {violations:>11}");
    }
    if bad {
        std::process::exit(1);
    }
}

fn usage(problem: &str) -> ! {
    eprintln!("{problem}\nusage: torture [--minutes N | --cases N] [--suite NAME] [--thorough] [--seed S [--trace]]");
    std::process::exit(2)
}
