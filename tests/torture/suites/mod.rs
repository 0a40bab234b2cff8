//! The suites there are. Shared by the test binary and by the example `torture`.

pub mod fuzz;
pub mod kill9;
pub mod model;
pub mod overload;
pub mod poison;
pub mod process;
pub mod several;
pub mod shutdown;
pub mod simulation;
pub mod suite;

use suite::Suite;

/// Every suite, in the order in which they are run.
pub const ALL: &[Suite] =
    &[kill9::SUITE, poison::SUITE, shutdown::SUITE, overload::SUITE, simulation::SUITE, model::SUITE, fuzz::SUITE];
