//! The tail: the journal's records that are not folded into tables yet, in memory, as the reader sees them.
//!
//! Invariant: for every key, the newest of its records in the journal that is not folded stands here. So a row is read
//! rightly by asking the tail first and the table second, whatever is being folded meanwhile.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::journal::Row;
use super::layer::Layer;
use super::steps::{Folded, Place, StepSlot, TailSteps};
use super::tables::Table;
use crate::codec::keys::Key;
use crate::codec::{BlobRef, Corrupted};
use crate::id::{RunId, RunMap};
use crate::time::Timestamp;

/// The newest record of a key. It says where that is and does not hold it: most are never looked at before they are folded, and
/// to count who holds a row is dear where many threads do.
#[derive(Debug)]
pub(crate) struct Slot {
    /// The group that wrote it.
    pub(crate) group: u64,
    /// `None` is a tombstone.
    pub(crate) place: Option<Place>,
    /// Nothing of this key is in the table.
    fresh: bool,
}

/// Runs whose memory for steps is kept, at most.
const SPARE_STEPS_MAX: usize = 1_024;

#[derive(Debug, Default)]
pub(crate) struct Tail {
    /// Rows above those of the tables on disk.
    layers: [Layer<Slot>; Table::ALL.len()],
    /// Steps have no layer: they are found by their run, and folded in the order of runs.
    steps: RunMap<TailSteps>,
    /// The runs that have some.
    runs_with_steps: BTreeSet<RunId>,
    /// Memory of runs that have none any more.
    spare_steps: Vec<Vec<StepSlot>>,
    groups: VecDeque<Group>,
    bytes: usize,
    /// Blobs that only the journal refers to, with the group that does: freed before that group's row is removed.
    orphans: Vec<(u64, u64)>,
    /// The runs that execute, and where their counters stand.
    executing: BTreeMap<RunId, u32>,
    /// What changes with every step of an executing run and is never rewritten on disk.
    counters: Vec<Counters>,
    /// The sequence of the last committed event.
    sequence: u64,
}

/// The counters of an executing run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counters {
    pub(crate) steps_completed: u32,
    pub(crate) step_index: u32,
    pub(crate) updated_at: Timestamp,
}

/// What a commit changes about which runs execute, and how far they are.
#[derive(Debug)]
pub(crate) enum LiveChange {
    /// Its counters stand in this place.
    Began(u32, Counters),
    /// The counters of whoever has this place.
    Counts(u32, Counters),
    Ended,
}

#[derive(Debug)]
struct Group {
    number: u64,
    row: Bytes,
    at: Duration,
}

/// The row of a group.
fn row_of(groups: &VecDeque<Group>, number: u64) -> Option<&Bytes> {
    // They follow each other, but in a file that has lost one.
    let at = usize::try_from(number.checked_sub(groups.front()?.number)?).ok()?;
    let found = groups.get(at).filter(|group| group.number == number).or_else(|| {
        let at = groups.binary_search_by_key(&number, |group| group.number).ok()?;
        groups.get(at)
    });
    found.map(|group| &group.row)
}

/// The row in which a record lies, and where in it; `None` for a tombstone.
///
/// # Errors
/// Where its row is not there any more. It goes after all its records are folded.
fn found(
    groups: &VecDeque<Group>,
    group: u64,
    place: Option<Place>,
) -> Result<Option<(&Bytes, Range<usize>)>, Corrupted> {
    let Some(place) = place else { return Ok(None) };
    let row = row_of(groups, group).filter(|row| place.range().end <= row.len());
    let gone = || Corrupted { table: "journal", key: group.to_string(), reason: "removed before its records" };
    Ok(Some((row.ok_or_else(gone)?, place.range())))
}

/// The blob that a record refers to, if it does.
fn blob_of(groups: &VecDeque<Group>, group: u64, place: Option<Place>) -> Option<BlobRef> {
    let (row, range) = found(groups, group, place).ok()??;
    BlobRef::of(&row[range])
}

impl Tail {
    pub(crate) fn layer(&self, table: Table) -> &Layer<Slot> {
        &self.layers[table as usize]
    }

    /// Bytes of journal rows that are still to be removed.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// When the oldest group was committed, by the monotonic clock.
    pub(crate) fn oldest(&self) -> Option<Duration> {
        self.groups.front().map(|group| group.at)
    }

    pub(crate) fn newest_group(&self) -> Option<u64> {
        self.groups.back().map(|group| group.number)
    }

    /// The group up to which lies the older half of the bytes.
    pub(crate) fn middle_group(&self) -> Option<u64> {
        let mut bytes = 0;
        let older = |group: &&Group| {
            bytes += group.row.len();
            2 * bytes >= self.bytes
        };
        self.groups.iter().find(older).map(|group| group.number)
    }

    pub(crate) fn oldest_group(&self) -> Option<u64> {
        self.groups.front().map(|group| group.number)
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(crate) fn set_sequence(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    pub(crate) fn live(&self, run: RunId) -> Option<Counters> {
        let place = *self.executing.get(&run)?;
        self.counters.get(place as usize).copied()
    }

    /// The greatest executing run up to one.
    pub(crate) fn executing(&self, upto: RunId) -> Option<RunId> {
        self.executing.range(..=upto).next_back().map(|(run, _)| *run)
    }

    pub(crate) fn all_executing(&self) -> impl Iterator<Item = RunId> + '_ {
        self.executing.keys().copied()
    }

    /// Takes over which runs execute, for a tail that was read again.
    pub(crate) fn keep_live(&mut self, before: &mut Tail) {
        self.executing = std::mem::take(&mut before.executing);
        self.counters = std::mem::take(&mut before.counters);
    }

    /// Brings an executing run's counters up to date, or forgets them.
    pub(crate) fn set_live(&mut self, run: RunId, change: LiveChange) {
        match change {
            LiveChange::Began(place, counters) => {
                let at = place as usize;
                if self.counters.len() <= at {
                    self.counters.resize(at + 1, counters);
                }
                self.counters[at] = counters;
                self.executing.insert(run, place);
            }
            LiveChange::Counts(place, counters) => {
                if let Some(found) = self.counters.get_mut(place as usize) {
                    *found = counters;
                }
            }
            LiveChange::Ended => drop(self.executing.remove(&run)),
        }
    }

    /// What the tail has of a run's steps.
    pub(crate) fn steps_of(&self, run: RunId) -> Option<&TailSteps> {
        self.steps.get(&run)
    }

    /// The record of a group that lies there; `None` for a tombstone.
    pub(crate) fn record(&self, group: u64, place: Option<Place>) -> Result<Option<&[u8]>, Corrupted> {
        Ok(found(&self.groups, group, place)?.map(|(row, range)| &row[range]))
    }

    /// The same, to be kept.
    pub(crate) fn shared_record(&self, group: u64, place: Option<Place>) -> Result<Option<Bytes>, Corrupted> {
        Ok(found(&self.groups, group, place)?.map(|(row, range)| row.slice(range)))
    }

    /// The runs that the tail has steps of, in order, from one on.
    pub(crate) fn steps_from(&self, run: RunId) -> impl Iterator<Item = (RunId, &TailSteps)> {
        self.runs_with_steps.range(run..).filter_map(|run| Some((*run, self.steps.get(run)?)))
    }

    /// Takes up a committed row.
    pub(crate) fn add(&mut self, group: u64, row: &Row, at: Duration) {
        self.groups.push_back(Group { number: group, row: row.bytes.clone(), at });
        self.bytes += row.bytes.len();
        for entry in &row.entries {
            let key = &row.bytes[entry.key.clone()];
            let place = entry.value.as_ref().and_then(Place::new);
            if entry.table == Table::Steps {
                if let Some((run, change)) = super::journal::step_change(key, place) {
                    let new = || {
                        self.runs_with_steps.insert(run);
                        TailSteps::with(self.spare_steps.pop())
                    };
                    let orphan = |slot: &StepSlot| {
                        let blob = blob_of(&self.groups, slot.group, slot.place);
                        self.orphans.extend(blob.map(|blob| (slot.group, blob.id)));
                    };
                    self.steps.entry(run).or_insert_with(new).apply(group, change, orphan);
                }
                continue;
            }
            let (layer, key) = (&mut self.layers[entry.table as usize], Key::from(key));
            let mut slot = Slot { group, place, fresh: entry.fresh };
            match layer.find(&key) {
                // What is deleted before it is folded leaves nothing to fold.
                Err(_) if slot.place.is_none() && slot.fresh => {}
                Err(at) => layer.insert(at, key, slot),
                Ok(at) => {
                    let old = layer.at_mut(at);
                    let blob = blob_of(&self.groups, old.group, old.place);
                    self.orphans.extend(blob.map(|blob| (old.group, blob.id)));
                    slot.fresh = old.fresh;
                    if slot.place.is_none() && slot.fresh {
                        layer.remove(at);
                    } else {
                        *old = slot;
                    }
                }
            }
        }
    }

    /// Rows were folded, in the order of their keys: the table has them now. No newer ones have come since the slice that did it
    /// was made.
    pub(crate) fn folded(&mut self, table: Table, keys: &[Key]) {
        self.layers[table as usize].remove_ascending(keys);
    }

    /// Steps of a run were folded.
    pub(crate) fn folded_steps(&mut self, done: &Folded) {
        if let Some(steps) = self.steps.get_mut(&done.run) {
            steps.folded(done);
            if steps.is_empty() {
                let spare = self.steps.remove(&done.run).and_then(TailSteps::into_spare);
                self.spare_steps.extend(spare.filter(|_| self.spare_steps.len() < SPARE_STEPS_MAX));
                self.runs_with_steps.remove(&done.run);
            }
        }
    }

    /// Blobs that a superseded record of a group up to `upto` refers to.
    pub(crate) fn orphans(&self, upto: u64) -> impl Iterator<Item = u64> + '_ {
        self.orphans.iter().filter(move |(group, _)| *group <= upto).map(|(_, blob)| *blob)
    }

    /// Journal rows up to `upto` are gone.
    pub(crate) fn removed(&mut self, upto: u64) {
        while let Some(group) = self.groups.front().filter(|group| group.number <= upto) {
            self.bytes -= group.row.len();
            self.groups.pop_front();
        }
        self.orphans.retain(|(group, _)| *group > upto);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::keys;
    use crate::store::journal::RowBuilder;

    fn run() -> RunId {
        RunId::numbered(1)
    }

    /// A group that puts one step.
    fn add(tail: &mut Tail, group: u64, index: u32, record: &[u8]) {
        let mut row = RowBuilder::with_capacity(0, 0);
        row.push(Table::Steps, &keys::of_run(run(), index), Some(record), false);
        tail.add(group, &row.finish(0, run()), Duration::ZERO);
    }

    fn records(tail: &Tail) -> Vec<Result<&[u8], u64>> {
        let slots = tail.steps_of(run()).map_or(&[][..], TailSteps::slots);
        let record = |slot: &StepSlot| tail.record(slot.group, slot.place).map(Option::unwrap_or_default);
        slots.iter().map(|slot| record(slot).map_err(|_| slot.group)).collect()
    }

    #[test]
    fn steps_are_found_in_their_rows_also_after_a_group_that_is_missing() {
        let mut tail = Tail::default();
        add(&mut tail, 3, 0, b"three");
        add(&mut tail, 4, 1, b"four");
        add(&mut tail, 7, 2, b"seven");
        add(&mut tail, 8, 3, b"eight");
        assert_eq!(records(&tail), [Ok(&b"three"[..]), Ok(b"four"), Ok(b"seven"), Ok(b"eight")]);
    }

    #[test]
    fn a_step_whose_row_is_gone_is_an_error_and_no_deletion() {
        let mut tail = Tail::default();
        (1..4).for_each(|group| add(&mut tail, group, group as u32, b"record"));
        tail.removed(2);
        assert_eq!(records(&tail), [Err(1), Err(2), Ok(&b"record"[..])]);
    }

    #[test]
    fn the_blob_of_a_step_that_is_written_again_is_freed_with_the_group_that_referred_to_it() {
        let mut tail = Tail::default();
        for (group, blob) in [(1, 10), (2, 11), (3, 12)] {
            add(&mut tail, group, 0, &BlobRef { id: blob, bytes: 5 }.to_value());
        }
        assert_eq!(tail.orphans(1).collect::<Vec<_>>(), [10]);
        assert_eq!(tail.orphans(3).collect::<Vec<_>>(), [10, 11]);
    }
}
