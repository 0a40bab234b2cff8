//! What is promised, under everything that can be done to it: each suite at the size of its tier.
//!
//! `DURABLY_TEST_TIER` (`ci`, `nightly`, `release`) sets how many cases, `DURABLY_TEST_SEED` repeats a run.

mod full_disk;
mod suites;
mod teeth;

use suites::suite::{Plan, Suite, Until};

fn seed() -> u64 {
    let seed = std::env::var("DURABLY_TEST_SEED").ok().map(|seed| seed.parse().expect("DURABLY_TEST_SEED is a number"));
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("DURABLY_TEST_SEED={seed}");
    seed
}

/// Runs a suite at the size of the tier; fails with what it found.
fn hold(suite: &Suite) {
    let plan = Plan { seed: seed(), until: Until::Cases(suite.cases_of_tier()), bug: None };
    let report = (suite.run)(&plan);
    eprintln!("{}: {} cases, {} faults, {:?}", suite.name, report.cases, report.faults, report.counts);
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

#[test]
fn powerloss() {
    hold(&suites::powerloss::SUITE);
}

#[test]
fn faults() {
    hold(&suites::faults::SUITE);
}

#[test]
fn images() {
    hold(&suites::images::SUITE);
}
