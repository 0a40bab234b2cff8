//! Suites that are to find what is planted: one that does not proves nothing.

use durably::testing::Bug;

use crate::seed;
use crate::suites::suite::{Plan, Suite, Until};
use crate::suites::{fuzz, model, simulation};

/// A defect, the suite that finds it, and in how many cases at most.
const TEETH: &[(Bug, &Suite, u64)] = &[
    (Bug::AckBeforeCommit, &simulation::SUITE, 500),
    (Bug::LimitGrowsOnRestart, &simulation::SUITE, 500),
    (Bug::WakeUpLostOnRestart, &simulation::SUITE, 500),
    (Bug::CancelOnlyTold, &simulation::SUITE, 500),
    (Bug::StepIndexReused, &simulation::SUITE, 500),
    (Bug::SequenceGivenTwice, &simulation::SUITE, 500),
    (Bug::DeadlocksAllowed, &simulation::SUITE, 500),
    (Bug::RecoveredGoLast, &model::SUITE, 1_000),
    (Bug::ResumedGoFirst, &model::SUITE, 1_000),
    (Bug::ReplacedStaysInLine, &model::SUITE, 1_000),
    (Bug::SkipGivesStarted, &model::SUITE, 1_000),
    (Bug::KeyFreedAtFailure, &model::SUITE, 1_000),
    (Bug::KeyFreedAtCancel, &model::SUITE, 1_000),
    (Bug::PurgeIgnoresTtl, &model::SUITE, 1_000),
    (Bug::OneLabelOfMany, &model::SUITE, 1_000),
    (Bug::FailedStepRunsAgain, &model::SUITE, 1_000),
    (Bug::ReplayByPosition, &model::SUITE, 1_000),
    (Bug::HandBackCounts, &model::SUITE, 1_000),
    (Bug::DeepFieldsStored, &fuzz::SUITE, 5_000),
];

#[test]
fn every_planted_defect_is_found() {
    let seed = seed();
    let mut missed = Vec::new();
    for (bug, suite, cases) in TEETH {
        let report = (suite.run)(&Plan { seed, until: Until::Cases(*cases), bug: Some(*bug), trace: false });
        match report.violations.first() {
            Some(first) => eprintln!("{bug:?}: found by {} in {} cases: {}", suite.name, report.cases, first.what),
            None => missed.push((bug, suite.name, report.cases)),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
