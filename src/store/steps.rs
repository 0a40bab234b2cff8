//! The checkpoints of a run in the tail.
//!
//! Most writes are checkpoints, so they have a form of their own: a run's steps stand in one list by index. On disk they stand in
//! [`blocks`](super::blocks).

use std::num::NonZeroU32;
use std::ops::Range;

use crate::id::RunId;

/// A run with one step in the tail is likely to get more: room for so many costs less than to grow twice.
const SLOTS_MIN: usize = 16;
/// Memory for more slots than this is not kept.
const SLOTS_KEPT_MAX: usize = 64;

/// What a group does to the steps of a run.
#[derive(Debug, Clone)]
pub(crate) enum Change<V> {
    Put(u32, V),
    Remove(u32),
    /// All of them go.
    Clear,
}

/// What of a run's steps is in the tail.
#[derive(Debug)]
pub(crate) struct TailSteps {
    /// The group that removed everything recorded before it.
    cleared: Option<u64>,
    slots: Vec<StepSlot>,
}

/// The newest record of a step. It says where that is and does not hold it: most are never looked at before they are folded,
/// and to count who holds a row is dear where many threads do.
#[derive(Debug)]
pub(crate) struct StepSlot {
    pub(crate) index: u32,
    pub(crate) group: u64,
    /// `None` is a tombstone.
    pub(crate) place: Option<Place>,
}

/// Where a record lies in its group's row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Never 0, where the row's header is.
    at: NonZeroU32,
    bytes: u32,
}

impl Place {
    pub(crate) fn new(range: &Range<usize>) -> Option<Place> {
        Some(Place { at: NonZeroU32::new(range.start.try_into().ok()?)?, bytes: range.len().try_into().ok()? })
    }

    pub(crate) fn range(self) -> Range<usize> {
        let at = self.at.get() as usize;
        at..at + self.bytes as usize
    }
}

impl TailSteps {
    /// Steps that use the memory of others.
    pub(crate) fn with(spare: Option<Vec<StepSlot>>) -> Self {
        TailSteps { cleared: None, slots: spare.unwrap_or_default() }
    }

    /// The memory of those that are gone, if it is worth keeping.
    pub(crate) fn into_spare(self) -> Option<Vec<StepSlot>> {
        let mut slots = self.slots;
        slots.clear();
        (SLOTS_MIN..=SLOTS_KEPT_MAX).contains(&slots.capacity()).then_some(slots)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.cleared.is_none() && self.slots.is_empty()
    }

    /// Nothing that the table has of the run counts any more.
    pub(crate) fn hides_table(&self) -> bool {
        self.cleared.is_some()
    }

    pub(crate) fn cleared(&self) -> Option<u64> {
        self.cleared
    }

    pub(crate) fn slots(&self) -> &[StepSlot] {
        &self.slots
    }

    /// Takes up a change. Of a record that it supersedes, `orphan` is told.
    pub(crate) fn apply(&mut self, group: u64, change: Change<Place>, mut orphan: impl FnMut(&StepSlot)) {
        let (index, place) = match change {
            Change::Put(index, place) => (index, Some(place)),
            Change::Remove(index) => (index, None),
            Change::Clear => {
                self.slots.drain(..).for_each(|slot| orphan(&slot));
                self.cleared = Some(group);
                return;
            }
        };
        let slot = StepSlot { index, group, place };
        if self.slots.last().is_none_or(|last| last.index < index) {
            if self.slots.capacity() == 0 {
                self.slots.reserve(SLOTS_MIN);
            }
            return self.slots.push(slot);
        }
        match self.slots.binary_search_by_key(&index, |slot| slot.index) {
            Ok(at) => {
                orphan(&self.slots[at]);
                self.slots[at] = slot;
            }
            Err(at) => self.slots.insert(at, slot),
        }
    }

    /// These steps are in the table now; so is the clearing, if it was among what was folded.
    pub(crate) fn folded(&mut self, done: &Folded) {
        if done.cleared {
            self.cleared = self.cleared.filter(|group| *group > done.upto);
        }
        self.slots.retain(|slot| slot.group > done.upto || !done.covers(slot.index));
    }
}

/// What one slice of folding did to a run.
#[derive(Debug)]
pub(crate) struct Folded {
    pub(crate) run: RunId,
    pub(crate) cleared: bool,
    /// From the first index to the last, where there were any.
    pub(crate) range: Option<(u32, u32)>,
    /// Those recorded up to this group.
    pub(crate) upto: u64,
}

impl Folded {
    fn covers(&self, index: u32) -> bool {
        self.range.is_some_and(|(first, last)| (first..=last).contains(&index))
    }
}
