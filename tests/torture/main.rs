//! What is promised, under everything that can be done to it: each suite at the size of its tier.
//!
//! `DURABLY_TEST_TIER` (`ci`, `nightly`, `release`) sets how many cases, `DURABLY_TEST_SEED` repeats a run, `DURABLY_TEST_CASES` sets
//! how many cases it has, and `DURABLY_TEST_TRACE` prints what happens in them.

mod aborting;
mod full_disk;
mod holding;
mod opening;
mod signals;
mod suites;
mod teeth;

use suites::suite::{Plan, Suite, Until, tier};
use suites::{faults, fuzz, images, kill9, model, overload, poison, powerloss, saga, shutdown, simulation};

fn seed() -> u64 {
    let seed = std::env::var("DURABLY_TEST_SEED").ok().map(|seed| seed.parse().expect("DURABLY_TEST_SEED is a number"));
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("DURABLY_TEST_SEED={seed}");
    seed
}

/// Runs a suite at the size of the tier; fails with what it found.
fn hold(suite: &Suite) {
    assert!(suites::ALL.iter().any(|listed| listed.name == suite.name), "{} is not listed", suite.name);
    let plan = Plan {
        seed: seed(),
        until: Until::Cases(suite.cases_of_tier()),
        bug: None,
        thorough: tier() > 0,
        trace: std::env::var_os("DURABLY_TEST_TRACE").is_some(),
    };
    let report = (suite.run)(&plan);
    eprintln!("{}: {} cases, {} faults, {:?}", suite.name, report.cases, report.faults, report.counts);
    for found in &report.violations {
        let (seed, what) = (found.seed, &found.what);
        eprintln!("{}: VIOLATION with DURABLY_TEST_SEED={seed} DURABLY_TEST_CASES=1: {what}", suite.name);
    }
    assert!(report.violations.is_empty(), "{} of {} cases", report.violations.len(), report.cases);
}

/// Not a test: the process that suites kill.
#[test]
fn child_process() {
    suites::process::be_the_child_if_asked();
}

#[test]
fn p1_to_p8_p20_hold_over_kills_at_any_time() {
    hold(&kill9::SUITE);
}

#[test]
fn retries_pauses_signals_maps_and_children_hold_over_kills_at_any_time() {
    hold(&saga::SUITE);
}

#[test]
fn p10_a_run_that_kills_the_process_is_quarantined_and_nobody_else_is() {
    hold(&poison::SUITE);
}

#[test]
fn p15_a_signal_ends_the_process_in_order() {
    hold(&shutdown::SUITE);
}

#[test]
fn p17_overload_is_refused_in_time_and_bounded() {
    hold(&overload::SUITE);
}

#[test]
fn the_whole_runtime_keeps_its_promises_over_crashes_faults_and_jumps_of_the_clock() {
    hold(&simulation::SUITE);
}

#[test]
fn the_runtime_does_what_the_reference_does() {
    hold(&model::SUITE);
}

#[test]
fn nothing_that_comes_in_does_harm() {
    hold(&fuzz::SUITE);
}

#[test]
fn every_suite_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<_> = suites::ALL.iter().map(|suite| suite.name).collect();
    assert_eq!(names.len(), suites::ALL.len());
}

#[test]
fn nothing_acknowledged_is_lost_with_the_power() {
    hold(&powerloss::SUITE);
}

#[test]
fn small_workloads_survive_every_loss_of_power_that_there_can_be() {
    hold(&powerloss::words::SUITE);
}

#[test]
fn p11_p12_every_answer_is_true_whatever_operation_fails() {
    hold(&faults::SUITE);
}

#[test]
fn p13_a_damaged_file_is_an_error_that_names_it() {
    hold(&images::SUITE);
}
