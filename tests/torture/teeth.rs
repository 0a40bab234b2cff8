//! A suite that never went red proves nothing: each planted defect is found, within so many cases.

use durably::testing::Bug;

use super::seed;
use super::suites::suite::{Plan, Suite, Until};
use super::suites::{faults, images, powerloss};

/// A defect, the suite that finds it, and in how many cases at most.
const TEETH: &[(Bug, Suite, u64)] = &[
    (Bug::CommitNotFlushed, powerloss::SUITE, 4_000),
    (Bug::JournalBeforeRows, powerloss::SUITE, 2_000),
    (Bug::TombstonesForgotten, powerloss::SUITE, 2_000),
    (Bug::BlobsKept, powerloss::SUITE, 2_000),
    (Bug::BlobFreedOnReplay, powerloss::SUITE, 2_000),
    (Bug::BlobNumberReused, powerloss::SUITE, 2_000),
    (Bug::SequenceReset, powerloss::SUITE, 2_000),
    (Bug::IdempotencyKept, powerloss::SUITE, 2_000),
    (Bug::CommitErrorIsNo, faults::SUITE, 2_000),
    (Bug::PagesKeptAfterFailedFlush, faults::SUITE, 5_000),
    (Bug::FormatIgnored, images::SUITE, 1_000),
    (Bug::JournalUnchecked, images::SUITE, 2_000),
];

#[test]
fn every_planted_bug_is_found() {
    let seed = seed();
    let mut missed = Vec::new();
    for (bug, suite, cases) in TEETH {
        let report = (suite.run)(&Plan { seed, until: Until::Cases(*cases), bug: Some(*bug) });
        match report.violations.first() {
            Some(violation) => {
                eprintln!("{bug:?}: {} in {} of {cases} cases: {}", suite.name, report.cases, violation.what)
            }
            None => missed.push((bug, suite.name)),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
