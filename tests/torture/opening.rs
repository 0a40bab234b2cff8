//! A flush that fails while a file is opened, or closed: the next open does not believe what the cache shows (M2).

use std::sync::Arc;

use crate::suites::clock::{SimClock, simulated};
use crate::suites::disk::{Fault, Lasts, Plan, SimDisk};
use crate::suites::program::{Act, Ledger, Life, Setup, check, empty};

const TRIGGER: Act = Act::Trigger { idempotency: None, concurrency: None, large: true };
const SETUP: Setup = Setup { two_phase: false, bug: None, fold: (1 << 20, 100), seed: 1 };

/// What a kill leaves in the middle of some work.
fn killed() -> (Vec<u8>, Ledger) {
    let disk = SimDisk::of(empty());
    simulated(async {
        let mut life = Life::begin(&SETUP, &disk, Ledger::default()).await.expect("opens");
        for act in [TRIGGER, Act::Checkpoint { nth: 0, large: true }, TRIGGER] {
            life.act(act).await.expect("acts");
        }
        (disk.live(), life.ledger())
    })
}

/// Opens the disk, goes on with its work once it is open, and loses power.
fn goes_on(disk: &Arc<SimDisk>, ledger: Ledger) -> Ledger {
    simulated(async {
        let mut life = Life::begin(&SETUP, disk, ledger).await.expect("opens again");
        life.act(TRIGGER).await.expect("acts");
        disk.cut();
        life.ledger()
    })
}

fn holds(image: Vec<u8>, ledger: &Ledger, which: &str) {
    let held = simulated(async {
        let opened = SETUP.open(&SimDisk::of(image), true).await.map_err(|error| error.to_string());
        check(&opened?, ledger, usize::MAX - 1).await
    });
    assert!(held.is_ok(), "{which}: {}", held.map(drop).unwrap_err());
}

#[test]
fn a_flush_that_fails_while_opening_is_not_believed_by_the_next_open() {
    let (image, ledger) = killed();
    for seed in 0..8 {
        for at in 0.. {
            let disk = SimDisk::new(&SimClock::default(), seed, image.clone());
            disk.plan(Plan { at, fault: Fault::LostFlush, lasts: Lasts::Once });
            let refused = simulated(async { SETUP.open(&disk, true).await.is_err() });
            if disk.struck() == 0 {
                break;
            }
            if refused {
                let ledger = goes_on(&disk, ledger.clone());
                holds(disk.cut(), &ledger, &format!("seed {seed}, from operation {at} on"));
            }
        }
    }
}

#[test]
fn a_flush_that_fails_while_closing_is_not_believed_by_the_next_open() {
    let (image, ledger) = killed();
    for seed in 0..8 {
        for at in 0.. {
            let disk = SimDisk::new(&SimClock::default(), seed, image.clone());
            let closed = simulated(async {
                let durably = SETUP.open(&disk, true).await.expect("opens");
                disk.plan(Plan { at, fault: Fault::LostFlush, lasts: Lasts::Once });
                durably.shutdown().await
            });
            if disk.struck() == 0 {
                closed.expect("closes");
                break;
            }
            let ledger = goes_on(&disk, ledger.clone());
            holds(disk.cut(), &ledger, &format!("seed {seed}, from operation {at} on"));
        }
    }
}
