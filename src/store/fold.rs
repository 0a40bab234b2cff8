//! Folding: moving the journal's older records into their tables, in slices that ride on commits.
//!
//! A round takes every record up to a group. First the rows go into their tables in key order, a slice a commit, and the
//! steps into their blocks; then the blobs that nothing refers to any more are freed; then the journal's rows are removed,
//! oldest first. A crash between any two slices leaves journal rows whose records are in the tables already: replaying them
//! writes the same again. A blob that only the journal refers to is freed before the row that does goes, since the replay of
//! that row is what finds it.

use std::ops::Bound;

use redb::WriteTransaction;

use super::Fault;
use super::blocks::Folder;
use super::bulk::{Raw, insert_ascending, remove_ascending};
use super::journal;
use super::steps::Folded;
use super::tables::{BLOBS, JOURNAL, META, Table, meta};
use super::tail::Tail;
use crate::codec::BlobRef;
use crate::codec::keys::Key;
use crate::hooks::{Bug, Hooks};
use crate::id::RunId;
use crate::limits::{FOLD_BYTES_MAX, FOLD_ROWS_MAX};

/// Where a round stands.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    upto: u64,
    phase: Phase,
}

#[derive(Debug, Clone)]
enum Phase {
    Rows {
        table: usize,
        after: Option<Key>,
    },
    /// Steps, from this one of this run on.
    Steps {
        run: RunId,
        index: u32,
    },
    /// Blobs, those from this one on.
    Orphans {
        from: usize,
    },
    Journal,
    Done,
}

/// How much a slice may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Rows that are put; what costs more counts for several ([`TOMBSTONE`], [`CLEARING`], [`GROUP`], [`BLOB`]).
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
}

/// Rows that a tombstone stands for: where others lie between, its place is looked for by itself and its page written anew.
const TOMBSTONE: usize = 3;
/// Rows that the clearing of a run's steps stands for.
const CLEARING: usize = 8;
/// Rows that a group's row in the journal stands for, when it goes.
const GROUP: usize = 4;
/// Rows that a freed blob stands for.
const BLOB: usize = 4;

impl Default for Size {
    fn default() -> Self {
        Size { rows: FOLD_ROWS_MAX, bytes: FOLD_BYTES_MAX }
    }
}

impl std::ops::Mul<usize> for Size {
    type Output = Size;

    fn mul(self, by: usize) -> Size {
        Size { rows: self.rows * by, bytes: self.bytes * by }
    }
}

/// What a slice did: the tail forgets it once the slice is committed.
#[derive(Debug)]
pub(crate) struct Slice {
    /// By table, in the order of their keys.
    rows: Vec<(Table, Vec<Key>)>,
    steps: Vec<Folded>,
    removed_upto: Option<u64>,
    next: Round,
    /// What it has done, in rows.
    work: usize,
}

/// The numbers that outlive the journal's rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watermark {
    pub(crate) group: u64,
    pub(crate) sequence: u64,
    pub(crate) blob: u64,
    pub(crate) last_id: RunId,
}

impl Round {
    /// A round over all that the tail holds now.
    pub(crate) fn over(tail: &Tail) -> Option<Round> {
        tail.newest_group().map(Round::upto)
    }

    /// A round over the older half of it. By then most runs that wrote there have written all they will, and what they wrote
    /// since goes along: their blocks are made once, and not made again for what the next round brings.
    pub(crate) fn over_older_half(tail: &Tail) -> Option<Round> {
        tail.middle_group().map(Round::upto)
    }

    fn upto(upto: u64) -> Round {
        Round { upto, phase: Phase::Rows { table: 0, after: None } }
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    /// Does one slice inside `txn`.
    pub(crate) fn slice(
        &self,
        txn: &WriteTransaction,
        tail: &Tail,
        watermark: Watermark,
        size: Size,
        hooks: &Hooks,
    ) -> Result<Slice, Fault> {
        let mut slice = Slice { rows: Vec::new(), steps: Vec::new(), removed_upto: None, next: self.clone(), work: 0 };
        match &self.phase {
            Phase::Rows { table, after } => {
                slice.fold_rows(txn, tail, (*table, after.clone()), size, hooks)?;
                if hooks.plants(Bug::JournalBeforeRows) {
                    txn.open_table(JOURNAL)?.retain_in(..=*journal::keys_of(self.upto).end(), |_, _| false)?;
                    watermark.write(txn)?;
                }
            }
            Phase::Steps { run, index } => slice.fold_steps(txn, tail, (*run, *index), size, watermark.last_id)?,
            Phase::Orphans { from } => {
                // Whatever a record of this round supersedes was folded before, so their order stands.
                let (mut blobs, most) = (txn.open_table(BLOBS)?, (size.rows / BLOB).max(1));
                let mut freed = 0;
                for blob in tail.orphans(self.upto).skip(*from).take(most) {
                    freed += 1;
                    if !hooks.plants(Bug::BlobsKept) {
                        blobs.remove(blob)?;
                    }
                }
                slice.work = freed * BLOB;
                slice.next.phase = if freed < most { Phase::Journal } else { Phase::Orphans { from: from + freed } };
            }
            Phase::Journal => {
                let first = tail.oldest_group().unwrap_or(self.upto);
                let last = self.upto.min(first.saturating_add((size.rows / GROUP) as u64));
                slice.work = (last + 1).saturating_sub(first) as usize * GROUP;
                txn.open_table(JOURNAL)?.retain_in(..=*journal::keys_of(last).end(), |_, _| false)?;
                watermark.write(txn)?;
                slice.removed_upto = Some(last);
                slice.next.phase = if last == self.upto { Phase::Done } else { Phase::Journal };
            }
            Phase::Done => {}
        }
        Ok(slice)
    }
}

impl Slice {
    /// What it has done, in rows that were put.
    pub(crate) fn work(&self) -> usize {
        self.work
    }

    /// Whether it removes rows of the journal.
    pub(crate) fn removes_rows(&self) -> bool {
        self.removed_upto.is_some()
    }

    fn fold_rows(
        &mut self,
        txn: &WriteTransaction,
        tail: &Tail,
        (first_table, mut after): (usize, Option<Key>),
        size: Size,
        hooks: &Hooks,
    ) -> Result<(), Fault> {
        let (mut rows, mut bytes) = (0, 0);
        for (at, table) in Table::ALL.into_iter().enumerate().skip(first_table) {
            // The layer of steps is empty: they follow in a phase of their own.
            let after = after.take();
            let lower = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let rows_after = tail.layer(table).range((lower, Bound::Unbounded));
            let due = rows_after.filter(|(_, slot)| slot.group <= self.next.upto);
            let (mut put, mut gone, mut freed, mut done) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let mut target = None;
            let mut full = false;
            for (key, slot) in due {
                full = rows >= size.rows || bytes >= size.bytes;
                if full {
                    break;
                }
                let value = tail.record(slot.group, slot.place)?;
                match value {
                    Some(value) => put.push((&key[..], value)),
                    None if hooks.plants(Bug::TombstonesForgotten) => {}
                    None => {
                        rows += TOMBSTONE - 1;
                        gone.push(&key[..]);
                    }
                }
                rows += 1;
                bytes += key.len() + value.map_or(0, <[u8]>::len);
                done.push(key.clone());
            }
            if !gone.is_empty() {
                remove_ascending(opened(txn, table, &mut target)?, &gone, |old| {
                    freed.extend(BlobRef::of(old).map(|blob| blob.id));
                })?;
            }
            if !put.is_empty() {
                insert_ascending(opened(txn, table, &mut target)?, put, |old, new| {
                    let again = hooks.plants(Bug::BlobFreedOnReplay);
                    let old = BlobRef::of(old).filter(|blob| again || BlobRef::of(new) != Some(*blob));
                    freed.extend(old.map(|blob| blob.id));
                })?;
            }
            free_blobs(txn, freed)?;
            self.work = rows;
            let last = done.last().cloned();
            if !done.is_empty() {
                self.rows.push((table, done));
            }
            if full {
                self.next.phase = Phase::Rows { table: at, after: last };
                return Ok(());
            }
        }
        self.next.phase = Phase::Steps { run: RunId::MIN, index: 0 };
        Ok(())
    }

    fn fold_steps(
        &mut self,
        txn: &WriteTransaction,
        tail: &Tail,
        (first_run, first_index): (RunId, u32),
        size: Size,
        newest: RunId,
    ) -> Result<(), Fault> {
        let round = self.next.upto;
        let (mut rows, mut bytes) = (0, 0);
        let mut target = None;
        let mut freed = Vec::new();
        let mut next = Phase::Orphans { from: 0 };
        let mut folder = Folder::new(newest);
        let mut records: Vec<(u32, Option<&[u8]>)> = Vec::new();
        for (run, steps) in tail.steps_from(first_run) {
            let from = if run == first_run { first_index } else { 0 };
            if rows >= size.rows || bytes >= size.bytes {
                next = Phase::Steps { run, index: from };
                break;
            }
            // A step that is due takes the run's others along. None of them is older than a clearing, so no clearing that is
            // still to come takes them away again.
            let is_due = steps.slots().iter().any(|slot| slot.group <= round);
            let upto = tail.newest_group().filter(|_| is_due).unwrap_or(round);
            let cleared = steps.cleared().is_some_and(|group| group <= round);
            records.clear();
            let due = steps.slots().iter().filter(|slot| slot.index >= from && slot.group <= upto);
            for slot in due {
                if rows >= size.rows || bytes >= size.bytes {
                    next = Phase::Steps { run, index: slot.index };
                    break;
                }
                let record = tail.record(slot.group, slot.place)?;
                rows += 1;
                bytes += record.map_or(0, <[u8]>::len);
                records.push((slot.index, record));
            }
            if !cleared && records.is_empty() {
                continue;
            }
            let table = opened(txn, Table::Steps, &mut target)?;
            if cleared {
                rows += CLEARING;
                let kept = steps
                    .slots()
                    .iter()
                    .map(|slot| tail.record(slot.group, slot.place))
                    .collect::<Result<Vec<_>, _>>()?;
                folder.clear(table, run, &kept, &mut freed)?;
            }
            folder.fold(table, run, &records, &mut freed)?;
            let range = records.first().zip(records.last()).map(|((first, _), (last, _))| (*first, *last));
            self.steps.push(Folded { run, cleared, range, upto });
            if matches!(next, Phase::Steps { .. }) {
                break;
            }
        }
        if let Some(table) = &mut target {
            folder.finish(table)?;
        }
        free_blobs(txn, freed)?;
        self.work = rows;
        self.next.phase = next;
        Ok(())
    }

    /// The slice is committed: the tail forgets what it did. Gives where the round stands now.
    pub(crate) fn committed(self, tail: &mut Tail) -> Round {
        for (table, keys) in &self.rows {
            tail.folded(*table, keys);
        }
        for done in &self.steps {
            tail.folded_steps(done);
        }
        if let Some(upto) = self.removed_upto {
            tail.removed(upto);
        }
        self.next
    }
}

/// The table, opened when it is first needed: one that is not touched costs the commit nothing.
fn opened<'t, 'txn>(
    txn: &'txn WriteTransaction,
    table: Table,
    target: &'t mut Option<Raw<'txn>>,
) -> Result<&'t mut Raw<'txn>, Fault> {
    Ok(match target {
        Some(target) => target,
        none => none.insert(txn.open_table(table.definition())?),
    })
}

fn free_blobs(txn: &WriteTransaction, blobs: Vec<u64>) -> Result<(), Fault> {
    if !blobs.is_empty() {
        let mut table = txn.open_table(BLOBS)?;
        for blob in blobs {
            table.remove(blob)?;
        }
    }
    Ok(())
}

impl Watermark {
    pub(crate) fn write(&self, txn: &WriteTransaction) -> Result<(), Fault> {
        let mut table = txn.open_table(META)?;
        let id = u128::from_be_bytes(*self.last_id.as_bytes());
        table.insert(meta::GROUP, self.group)?;
        table.insert(meta::SEQUENCE, self.sequence)?;
        table.insert(meta::BLOB, self.blob)?;
        table.insert(meta::LAST_ID_HIGH, (id >> 64) as u64)?;
        table.insert(meta::LAST_ID_LOW, id as u64)?;
        Ok(())
    }
}
