//! A suite that never went red proves nothing: each planted defect is found, within so many cases.

use durably::testing::Bug;

use super::seed;
use super::suites::suite::{Plan, Suite, Until};
use super::suites::{faults, images, powerloss};

fn finds(suite: &Suite, teeth: &[(Bug, u64)]) {
    let seed = seed();
    let mut missed = Vec::new();
    for (bug, cases) in teeth {
        let report = (suite.run)(&Plan { seed, until: Until::Cases(*cases), bug: Some(*bug) });
        match report.violations.first() {
            Some(violation) => eprintln!("{bug:?}: in {} of {cases} cases: {}", report.cases, violation.what),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "{} does not find {missed:?}", suite.name);
}

#[test]
fn powerloss_finds_its_bugs() {
    finds(&powerloss::SUITE, powerloss::TEETH);
}

#[test]
fn faults_finds_its_bugs() {
    finds(&faults::SUITE, faults::TEETH);
}

#[test]
fn images_finds_its_bugs() {
    finds(&images::SUITE, images::TEETH);
}
