//! What was asked and answered, outside of whatever crashes.
//!
//! An entry knows its places in the disk's history: where it was when it was asked for and, if it was, when it was answered.
//! Whatever the disk then keeps of that history, what was answered before must be there, what was not may be, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use durably::{RunId, RunStatus};

/// A run as the program knows it, before it has an id.
pub type Tag = u64;

/// What was asked about a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Created { batch: Option<u64> },
    Step(u32, String),
    Ends(RunStatus),
    Resumed,
    Deleted,
}

#[derive(Debug, Clone)]
pub struct Entry {
    pub begun: usize,
    pub answered: Option<usize>,
    pub what: What,
}

/// All that is known of a run.
#[derive(Debug, Clone, Default)]
pub struct Known {
    pub run: Option<RunId>,
    pub key: Option<String>,
    pub entries: Vec<Entry>,
}

/// What was asked and answered.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    pub runs: BTreeMap<Tag, Known>,
    pub next: Tag,
    /// Where in history which event was the last that was told of.
    pub sequences: Vec<(usize, u64)>,
    /// The first event of this life must come after this one.
    pub floor: u64,
}

impl Known {
    /// Statuses that it may have after this much of history, and whether it must be there.
    pub fn allowed(&self, at: usize) -> (BTreeSet<RunStatus>, bool, bool) {
        let mut allowed = BTreeSet::new();
        let (mut must, mut may) = (false, false);
        for entry in self.entries.iter().filter(|entry| entry.begun <= at) {
            let answered = entry.answered.is_some_and(|answered| answered <= at);
            let statuses: &[RunStatus] = match &entry.what {
                What::Created { .. } => {
                    (must, may) = (must || answered, true);
                    &[RunStatus::Pending, RunStatus::Leased]
                }
                What::Resumed => &[RunStatus::Pending, RunStatus::Leased],
                What::Ends(status) => std::slice::from_ref(status),
                What::Step(..) => continue,
                What::Deleted => {
                    must = false;
                    may &= !answered;
                    continue;
                }
            };
            if answered {
                allowed.clear();
            }
            allowed.extend(statuses.iter().copied());
        }
        (allowed, must, may)
    }

    /// Whether it has certainly ended, or certainly not.
    pub fn is_terminal(&self) -> Option<bool> {
        let (allowed, must, _) = self.allowed(usize::MAX);
        let terminal = allowed.iter().filter(|status| status.is_terminal()).count();
        if !must {
            None
        } else if terminal == allowed.len() {
            Some(true)
        } else if terminal == 0 {
            Some(false)
        } else {
            None
        }
    }
}

impl Ledger {
    /// Whether anything was asked or answered at that place in history.
    pub fn says_at(&self, at: usize) -> bool {
        let entries = self.runs.values().flat_map(|known| &known.entries);
        let mut places = entries.flat_map(|entry| [Some(entry.begun), entry.answered]).flatten();
        places.any(|place| place == at) || self.sequences.iter().any(|(told, _)| *told == at)
    }

    /// The checkpoints of a run that were asked for, in order: each that is recorded is replayed.
    pub fn steps_of(&self, tag: Tag) -> Vec<(u64, String)> {
        let entries = self.runs.get(&tag).map(|known| &known.entries[..]).unwrap_or_default();
        let steps: BTreeMap<u64, String> = entries
            .iter()
            .filter_map(|entry| match &entry.what {
                What::Step(index, value) if entry.begun != usize::MAX => Some((u64::from(*index), value.clone())),
                _ => None,
            })
            .collect();
        steps.into_iter().collect()
    }
}
