//! The suites there are. Shared by the test binary and by the example `torture`.

pub mod faults;
pub mod fuzz;
pub mod images;
pub mod kill9;
pub mod ledger;
pub mod model;
pub mod overload;
pub mod poison;
pub mod powerloss;
pub mod process;
pub mod several;
pub mod shutdown;
pub mod simdisk;
pub mod simulation;
pub mod suite;

use suite::Suite;

/// Every suite, in the order in which they are run.
pub const ALL: &[Suite] = &[
    kill9::SUITE,
    powerloss::SUITE,
    faults::SUITE,
    images::SUITE,
    simulation::SUITE,
    model::SUITE,
    poison::SUITE,
    shutdown::SUITE,
    overload::SUITE,
    fuzz::SUITE,
];
