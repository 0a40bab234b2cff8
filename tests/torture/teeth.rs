//! What the suites are worth: each planted defect is found, in no more cases than the tier `ci` has.

use durably::testing::suites::Bug;

use crate::suites::suite::{Plan, Suite, Until};
use crate::suites::{faults, fuzz, images, kill9, model, overload, poison, powerloss, saga, shutdown, simulation};

/// A defect, the suite that finds it, and in how many cases.
const TEETH: &[(Bug, &Suite, u64)] = &[
    (Bug::AckBeforeCommit, &kill9::SUITE, 64),
    (Bug::CheckpointBeforeCommit, &kill9::SUITE, 64),
    (Bug::KeyFreeBeforeStop, &kill9::SUITE, 64),
    (Bug::IdempotencyFromStaleRead, &kill9::SUITE, 64),
    (Bug::OrderLost, &kill9::SUITE, 64),
    (Bug::RecoveredTwice, &kill9::SUITE, 64),
    (Bug::CreatedInPlace, &kill9::SUITE, 64),
    (Bug::CancelInMemory, &kill9::SUITE, 64),
    (Bug::SignalKept, &saga::SUITE, 30),
    (Bug::NewsForgotten, &saga::SUITE, 120),
    (Bug::PauseBegunAnew, &saga::SUITE, 30),
    (Bug::ChildUnrecorded, &saga::SUITE, 30),
    (Bug::EndUntold, &saga::SUITE, 30),
    (Bug::TriesForgotten, &saga::SUITE, 30),
    (Bug::ItemsForgotten, &saga::SUITE, 30),
    (Bug::CrashUncounted, &poison::SUITE, 7),
    (Bug::CrashesNeverForgotten, &poison::SUITE, 7),
    (Bug::HandBackCountsCrash, &shutdown::SUITE, 12),
    (Bug::DrainedFails, &shutdown::SUITE, 12),
    (Bug::ShutdownWaits, &shutdown::SUITE, 12),
    (Bug::ClosedBeforeFlush, &shutdown::SUITE, 12),
    (Bug::AdmissionUnbounded, &overload::SUITE, 1),
    (Bug::AckBeforeCommit, &simulation::SUITE, 500),
    (Bug::LimitGrowsOnRestart, &simulation::SUITE, 500),
    (Bug::WakeUpLostOnRestart, &simulation::SUITE, 500),
    (Bug::CancelInMemory, &simulation::SUITE, 500),
    (Bug::StepIndexReused, &simulation::SUITE, 500),
    (Bug::SequenceGivenTwice, &simulation::SUITE, 500),
    (Bug::DeadlocksAllowed, &simulation::SUITE, 500),
    (Bug::RecoveredGoLast, &model::SUITE, 1_000),
    (Bug::ResumedGoFirst, &model::SUITE, 1_000),
    (Bug::ReplacedStaysInLine, &model::SUITE, 1_000),
    (Bug::SkipGivesStarted, &model::SUITE, 1_000),
    (Bug::KeyFreedAtFailure, &model::SUITE, 1_000),
    (Bug::KeyFreeBeforeStop, &model::SUITE, 1_000),
    (Bug::PurgeIgnoresTtl, &model::SUITE, 1_000),
    (Bug::OneLabelOfMany, &model::SUITE, 1_000),
    (Bug::FailedStepRunsAgain, &model::SUITE, 1_000),
    (Bug::ReplayByPosition, &model::SUITE, 1_000),
    (Bug::HandBackCountsCrash, &model::SUITE, 1_000),
    (Bug::DeepFieldsStored, &fuzz::SUITE, 5_000),
    (Bug::CommitNotFlushed, &powerloss::SUITE, 4_000),
    (Bug::JournalBeforeRows, &powerloss::SUITE, 2_000),
    (Bug::TombstonesForgotten, &powerloss::SUITE, 2_000),
    (Bug::BlobsKept, &powerloss::SUITE, 2_000),
    (Bug::BlobFreedOnReplay, &powerloss::SUITE, 2_000),
    (Bug::BlobNumberReused, &powerloss::SUITE, 2_000),
    (Bug::SequenceReset, &powerloss::SUITE, 2_000),
    (Bug::IdempotencyKept, &powerloss::SUITE, 2_000),
    (Bug::CommitErrorIsNo, &faults::SUITE, 2_000),
    (Bug::PagesKeptAfterFailedFlush, &faults::SUITE, 5_000),
    (Bug::FormatIgnored, &images::SUITE, 1_000),
    (Bug::JournalUnchecked, &images::SUITE, 2_000),
];

#[test]
fn every_planted_defect_is_found() {
    let only = std::env::var("DURABLY_TEST_BUG").ok();
    let mut missed = Vec::new();
    for (bug, suite, cases) in TEETH {
        if only.as_ref().is_some_and(|only| *only != format!("{bug:?}")) {
            continue;
        }
        let seed = crate::seed();
        let report =
            (suite.run)(&Plan { seed, until: Until::Cases(*cases), bug: Some(*bug), thorough: false, trace: false });
        match report.violations.first() {
            Some(found) => eprintln!("{bug:?}: found by {} in case {}: {}", suite.name, report.cases, found.what),
            None => missed.push(format!("{bug:?} by {} in {} cases, seed {seed}", suite.name, report.cases)),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:#?}");
}
