//! What bodies and clients of a life share.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use durably::{Clock, Durably, JobHandle};

use super::ledger::Ledger;
use super::trace::Trace;
use crate::suites::clock::SimClock;
use crate::suites::disk::SimDisk;

pub const JOBS: [&str; 3] = ["free", "two", "parent"];
const KEYS: [(&str, u32); 4] = [("alpha", 1), ("beta", 1), ("gamma", 2), ("delta", 3)];

/// What bodies and clients of a life share.
#[derive(Clone)]
pub struct World {
    pub ledger: Arc<Mutex<Ledger>>,
    pub random: Arc<Mutex<fastrand::Rng>>,
    pub trace: Trace,
    pub clock: SimClock,
    pub disk: Arc<SimDisk>,
    pub seed: u64,
    /// Waits for a child, started by a body, need it.
    pub durably: Arc<Mutex<Option<Weak<Handles>>>>,
}

pub struct Handles {
    pub durably: Durably,
    pub jobs: Vec<JobHandle<u64, u64>>,
}

impl World {
    /// Does this, unless the power went: the dead tell nothing.
    pub fn tell(&self, tell: impl FnOnce(&mut Ledger)) -> bool {
        let lives = !self.disk.is_dark();
        if lives {
            tell(&mut self.ledger.lock().expect("whole"));
        }
        lives
    }

    pub fn note(&self, what: std::fmt::Arguments<'_>) {
        if !self.disk.is_dark() {
            self.trace.note(self.clock.monotonic(), what);
        }
    }

    pub fn draw(&self, below: u64) -> u64 {
        self.random.lock().expect("whole").u64(..below)
    }

    pub fn key_of(&self, nonce: u64) -> Option<(&'static str, u32)> {
        KEYS.get((self.script(nonce).u64(..7)) as usize).copied()
    }

    /// What everything about an input derives from.
    pub fn script(&self, nonce: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed ^ nonce.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// Lets others go first, a little or for a while.
    pub async fn noise(&self) {
        match self.draw(6) {
            0 => {}
            1 => tokio::time::sleep(Duration::from_micros(self.draw(5_000))).await,
            yields => {
                for _ in 2..yields {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}
