//! What is promised, under everything that can be done to it: each suite at the size of its tier.
//!
//! `DURABLY_TEST_TIER` (`ci`, `nightly`, `release`) sets how many cases, `DURABLY_TEST_SEED` repeats a run, `DURABLY_TEST_CASES` sets
//! how many cases it has, and `DURABLY_TEST_TRACE` prints what happens in them.

mod suites;
mod teeth;

use suites::suite::{Plan, Suite, Until, Violation};

fn seed() -> u64 {
    let seed = std::env::var("DURABLY_TEST_SEED").ok().map(|seed| seed.parse().expect("DURABLY_TEST_SEED is a number"));
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("DURABLY_TEST_SEED={seed}");
    seed
}

/// Runs a suite at the size of the tier; fails with what it found.
fn hold(suite: &Suite) {
    let plan = Plan {
        seed: seed(),
        until: Until::Cases(suite.cases_of_tier()),
        bug: None,
        trace: std::env::var_os("DURABLY_TEST_TRACE").is_some(),
    };
    let report = (suite.run)(&plan);
    eprintln!("{}: {} cases, {} faults, {:?}", suite.name, report.cases, report.faults, report.counts);
    for Violation { seed, what } in &report.violations {
        eprintln!("VIOLATION with DURABLY_TEST_SEED={seed} DURABLY_TEST_CASES=1: {what}");
    }
    assert!(report.violations.is_empty(), "{} of {} cases", report.violations.len(), report.cases);
}

#[test]
fn the_whole_runtime_keeps_its_promises_over_crashes_faults_and_jumps_of_the_clock() {
    hold(&suites::simulation::SUITE);
}

#[test]
fn the_runtime_does_what_the_reference_does() {
    hold(&suites::model::SUITE);
}

#[test]
fn nothing_that_comes_in_does_harm() {
    hold(&suites::fuzz::SUITE);
}

#[test]
fn every_suite_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<_> = suites::ALL.iter().map(|suite| suite.name).collect();
    assert_eq!(names.len(), suites::ALL.len());
}
