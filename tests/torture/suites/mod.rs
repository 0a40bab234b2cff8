//! The suites there are. Shared by the test binary and by the example `torture`.

#![allow(dead_code, reason = "the tests and the example use different parts")]

pub mod faults;
pub mod images;
pub mod ledger;
pub mod powerloss;
pub mod simdisk;
pub mod suite;

use suite::Suite;

/// Every suite, in the order in which they are run.
pub const ALL: &[Suite] = &[powerloss::SUITE, faults::SUITE, images::SUITE];
