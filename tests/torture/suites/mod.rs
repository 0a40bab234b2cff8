//! The suites there are. Shared by the test binary and by the example `torture`.

pub mod clock;
pub mod disk;
pub mod faults;
pub mod fuzz;
pub mod images;
pub mod kill9;
pub mod model;
pub mod overload;
pub mod poison;
pub mod powerloss;
pub mod process;
pub mod program;
pub mod saga;
pub mod several;
pub mod shutdown;
pub mod simulation;
pub mod suite;

use suite::Suite;

/// Every suite, in the order in which they are run.
pub const ALL: &[Suite] = &[
    kill9::SUITE,
    saga::SUITE,
    powerloss::SUITE,
    powerloss::words::SUITE,
    faults::SUITE,
    images::SUITE,
    simulation::SUITE,
    model::SUITE,
    poison::SUITE,
    shutdown::SUITE,
    overload::SUITE,
    fuzz::SUITE,
];
