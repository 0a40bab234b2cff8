//! What a workload left: the disk's history, from which bytes, and what was told when.

use crate::suites::clock::simulated;
use crate::suites::disk::{Change, SimDisk, apply};
use crate::suites::program::{Act, Ledger, Life, Setup};

pub struct History {
    pub base: Vec<u8>,
    pub changes: Vec<Change>,
    pub ledger: Ledger,
}

/// A life over these bytes; ended cleanly, also what it left.
pub fn live(
    setup: &Setup,
    base: Vec<u8>,
    ledger: Ledger,
    acts: &[Act],
    clean: bool,
) -> Result<(History, Option<Vec<u8>>), String> {
    let disk = SimDisk::of(base.clone());
    disk.record();
    simulated(async {
        let life = Life::begin(setup, &disk, ledger).await;
        let mut life = life.map_err(|error| format!("does not open: {error}"))?;
        for act in acts {
            life.act(*act).await?;
        }
        let (changes, ledger) = (disk.recorded(), life.ledger());
        let mut closed = None;
        if clean {
            life.durably.shutdown().await.map_err(|error| format!("does not close: {error}"))?;
            closed = Some(disk.live());
        }
        Ok((History { base, changes, ledger }, closed))
    })
}

/// Walks along a history, knowing at each place what is flushed and what is not.
pub struct Cutter<'h> {
    history: &'h History,
    at: usize,
    pub durable: Vec<u8>,
    pending: Vec<Change>,
}

impl<'h> Cutter<'h> {
    pub fn new(history: &'h History) -> Self {
        Cutter { history, at: 0, durable: history.base.clone(), pending: Vec::new() }
    }

    /// What is not flushed after so many changes.
    pub fn to(&mut self, at: usize) -> Vec<Change> {
        for change in &self.history.changes[self.at..at] {
            match change {
                Change::Flush => self.pending.drain(..).for_each(|change| apply(&mut self.durable, &change)),
                change => self.pending.push(change.clone()),
            }
        }
        self.at = at;
        self.pending.clone()
    }
}
