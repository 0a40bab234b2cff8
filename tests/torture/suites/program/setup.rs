//! How a program opens its runtimes.

use std::sync::Arc;
use std::time::Duration;

use durably::testing::Bug;
use durably::{Durably, Error};

use crate::suites::disk::SimDisk;

#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub two_phase: bool,
    pub bug: Option<Bug>,
    /// Bytes at which folding begins, and rows in a slice.
    pub fold: (usize, usize),
    pub seed: u64,
}

impl Setup {
    pub fn random(rng: &mut fastrand::Rng, bug: Option<Bug>) -> Setup {
        let fold = ([200, 2_000, 40_000][rng.usize(..3)], [1, 3, 50, 4_096][rng.usize(..4)]);
        Setup { two_phase: rng.u32(..4) == 0, bug, fold, seed: rng.u64(..) }
    }

    pub async fn open(&self, disk: &Arc<SimDisk>, paused: bool) -> Result<Durably, Error> {
        let clock = disk.clock().clone();
        clock.begin();
        let builder = Durably::builder()
            .cache_bytes(1 << 20)
            .cancel_grace(Duration::from_millis(1))
            .max_recoveries(1_000_000)
            .two_phase_commit(self.two_phase)
            .clock(clock.clone())
            .sleeping_by(move |pause| clock.pass(pause))
            .seed(self.seed)
            .paused(paused)
            .fold_at(self.fold.0, self.fold.1);
        let builder = if let Some(bug) = self.bug { builder.plant(bug) } else { builder };
        builder.open_simulated(disk.clone()).await
    }
}
