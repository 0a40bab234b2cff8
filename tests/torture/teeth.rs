//! Suites that are to find what is planted: one that does not proves nothing.

use durably::testing::Bug;

use crate::seed;
use crate::suites::suite::{Plan, Suite, Until};
use crate::suites::{fuzz, model, simulation};

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
    (Bug::AckBeforeCommit, &simulation::SUITE, 100),
    (Bug::KeyFreedAtCancel, &simulation::SUITE, 200),
    (Bug::RecoveredGoLast, &model::SUITE, 300),
    (Bug::ResumedGoFirst, &model::SUITE, 300),
    (Bug::LimitGrowsOnRestart, &model::SUITE, 300),
    (Bug::WakeUpLostOnRestart, &model::SUITE, 300),
    (Bug::ReplacedStaysInLine, &model::SUITE, 300),
    (Bug::SkipGivesStarted, &model::SUITE, 300),
    (Bug::KeyFreedAtFailure, &model::SUITE, 300),
    (Bug::PurgeIgnoresTtl, &model::SUITE, 300),
    (Bug::OneLabelOfMany, &model::SUITE, 300),
    (Bug::CancelOnlyTold, &model::SUITE, 300),
    (Bug::KeyFreedAtCancel, &model::SUITE, 300),
    (Bug::FailedStepRunsAgain, &model::SUITE, 300),
    (Bug::ReplayByPosition, &model::SUITE, 300),
    (Bug::StepIndexReused, &model::SUITE, 300),
    (Bug::SequenceGivenTwice, &model::SUITE, 300),
    (Bug::HandBackCounts, &model::SUITE, 1000),
    (Bug::DeepFieldsStored, &fuzz::SUITE, 5_000),
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
