//! Suites that are to find what is planted: one that does not proves nothing.

use durably::testing::Bug;

use crate::seed;
use crate::suites::simulation;
use crate::suites::suite::{Plan, Suite, Until};

/// A defect, the suite that finds it, and in how many cases at most.
const TEETH: &[(Bug, &Suite, u64)] = &[
    (Bug::LimitGrowsOnRestart, &simulation::SUITE, 200),
    (Bug::WakeUpLostOnRestart, &simulation::SUITE, 200),
    (Bug::CancelOnlyTold, &simulation::SUITE, 200),
    (Bug::FailedStepRunsAgain, &simulation::SUITE, 200),
    (Bug::ReplayByPosition, &simulation::SUITE, 200),
    (Bug::StepIndexReused, &simulation::SUITE, 200),
    (Bug::SequenceGivenTwice, &simulation::SUITE, 200),
    (Bug::DeadlocksAllowed, &simulation::SUITE, 200),
    (Bug::AckBeforeCommit, &simulation::SUITE, 200),
    (Bug::KeyFreedAtCancel, &simulation::SUITE, 200),
    (Bug::KeyFreedAtFailure, &simulation::SUITE, 200),
    (Bug::ReplacedStaysInLine, &simulation::SUITE, 200),
];

#[test]
fn every_planted_defect_is_found() {
    let seed = seed();
    let mut missed = Vec::new();
    for (bug, suite, cases) in TEETH {
        let report = (suite.run)(&Plan { seed, until: Until::Cases(*cases), bug: Some(*bug) });
        match report.violations.first() {
            Some(first) => eprintln!("{bug:?}: found by {} in {} cases: {}", suite.name, report.cases, first.what),
            None => missed.push((bug, suite.name, report.cases)),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
