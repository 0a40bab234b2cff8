//! A program that uses a runtime over a [`SimDisk`], and the ledger of what it was told.

mod act;
mod check;
mod gates;
mod ledger;
mod life;
mod setup;

pub use act::{ALPHABET, Act};
pub use check::{check, check_keys};
pub use ledger::Ledger;
pub use life::Life;
pub use setup::Setup;

use super::clock::simulated;
use super::disk::SimDisk;

/// An empty file of ours, closed: that it is made whole is another suite's.
pub fn empty() -> Vec<u8> {
    let disk = SimDisk::of(Vec::new());
    simulated(async {
        let setup = Setup { two_phase: false, bug: None, fold: (1 << 20, 100), seed: 1 };
        let durably = setup.open(&disk, true).await.expect("opens");
        durably.shutdown().await.expect("closes");
    });
    disk.live()
}
