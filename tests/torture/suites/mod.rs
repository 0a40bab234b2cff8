//! The suites there are. Shared by the test binary and by the example `torture`.

pub mod fuzz;
pub mod model;
pub mod simulation;
pub mod suite;

use suite::Suite;

/// Every suite, in the order in which they are run.
pub const ALL: &[Suite] = &[simulation::SUITE, model::SUITE, fuzz::SUITE];
