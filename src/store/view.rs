//! A consistent read: tables, the tail over them and, in the writer, the group being built over both.
//!
//! Invariant: a view sees everything that was acknowledged before it was made. The tail is locked before the snapshot of
//! the tables is taken, and a row leaves the tail only after the commit that put it into its table; so a row is in the
//! tail or in the snapshot, and where it is in both the tail is right. Views are short: they hold the tail's lock, and a
//! snapshot that is held makes the file grow.

use std::cell::OnceCell;
use std::ops::{Bound, ControlFlow};
use std::sync::RwLockReadGuard;

use bytes::Bytes;
use redb::{ReadOnlyTable, ReadTransaction};

use super::Fault;
use super::blocks::{self, Indexed};
use super::stage::{self, Stage};
use super::steps::{Change, TailSteps};
use super::tables::{BLOBS, Table};
use super::tail::{Counters, Tail};
use crate::codec::keys::{self, Key};
use crate::codec::{BlobRef, Corrupted};
use crate::id::RunId;

type RawTable = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// What a scan does with each row.
pub(crate) type Visit<'v> = dyn FnMut(&[u8], Bytes) -> Result<ControlFlow<()>, Fault> + 'v;

/// What is done with each step of a run.
pub(crate) type VisitStep<'v> = dyn FnMut(u32, Bytes) -> Result<ControlFlow<()>, Fault> + 'v;

/// Which way a scan goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Forward,
    Backward,
}

/// What can be asked of rows, with or without a group being built on top.
pub(crate) trait Rows {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Fault>;

    /// Visits the rows between two keys until told to stop.
    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), Fault>;

    fn scan_prefix(&self, table: Table, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), Fault> {
        let end = keys::after_prefix(prefix);
        let upper = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.scan(table, (Bound::Included(prefix), upper), Direction::Forward, visit)
    }

    /// Visits the steps of a run by index, each with its record, until told to stop.
    fn steps(&self, run: RunId, visit: &mut VisitStep<'_>) -> Result<(), Fault>;

    /// The record of one step.
    fn step(&self, run: RunId, index: u32) -> Result<Option<Bytes>, Fault>;

    /// The keys that begin with a prefix. Values are not looked at, so none can be found corrupted.
    fn keys(&self, table: Table, prefix: &[u8]) -> Result<Vec<Vec<u8>>, Fault>;

    /// The first row of a range, in a direction.
    fn first(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
    ) -> Result<Option<(Vec<u8>, Bytes)>, Fault> {
        let mut found = None;
        self.scan(table, range, direction, &mut |key, value| {
            found = Some((key.to_vec(), value));
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }
}

pub(crate) struct View<'a> {
    tail: RwLockReadGuard<'a, Tail>,
    /// Absent where only the tail is asked.
    snapshot: Option<ReadTransaction>,
    tables: [OnceCell<RawTable>; Table::ALL.len()],
}

impl<'a> View<'a> {
    pub(super) fn new(tail: RwLockReadGuard<'a, Tail>, snapshot: ReadTransaction) -> Self {
        View { tail, snapshot: Some(snapshot), tables: Default::default() }
    }

    /// A view of the tail alone: what it does not decide is [`Fault::Elsewhere`].
    pub(super) fn of_tail(tail: RwLockReadGuard<'a, Tail>) -> Self {
        View { tail, snapshot: None, tables: Default::default() }
    }

    pub(super) fn snapshot(&self) -> Result<&ReadTransaction, Fault> {
        self.snapshot.as_ref().ok_or(Fault::Elsewhere)
    }

    /// This view with the rows of a group that is not committed yet over it.
    pub(crate) fn with<'v>(&'v self, stage: &'v Stage) -> Staged<'v, 'a> {
        Staged { view: self, stage }
    }

    /// The sequence of the last event that this view holds the effect of.
    pub(crate) fn sequence(&self) -> u64 {
        self.tail.sequence()
    }

    /// The counters of an executing run.
    pub(crate) fn live(&self, run: RunId) -> Option<Counters> {
        self.tail.live(run)
    }

    /// The runs that execute.
    pub(super) fn all_executing(&self) -> impl Iterator<Item = RunId> + '_ {
        self.tail.all_executing()
    }

    /// The greatest executing run up to one.
    pub(crate) fn executing(&self, upto: RunId) -> Option<RunId> {
        self.tail.executing(upto)
    }

    /// Visits the rows of a table as they stand, with references where values are large.
    pub(super) fn stored(&self, table: Table, visit: &mut Visit<'_>) -> Result<(), Fault> {
        self.stored_in(table, (Bound::Unbounded, Bound::Unbounded), visit)
    }

    /// Visits those of a range.
    pub(super) fn stored_in(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        visit: &mut Visit<'_>,
    ) -> Result<(), Fault> {
        self.walk(None, table, range, Direction::Forward, visit)
    }

    /// The last key of a range. Its value is not looked at.
    pub(super) fn last_key(&self, table: Table, range: (Bound<&[u8]>, Bound<&[u8]>)) -> Result<Option<Vec<u8>>, Fault> {
        let mut found = None;
        self.walk(None, table, range, Direction::Backward, &mut |key, _| {
            found = Some(key.to_vec());
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    /// A run's steps as they stand, with references where records are large.
    pub(super) fn stored_steps(&self, run: RunId) -> Result<Vec<Indexed>, Fault> {
        self.all_steps(None, run)
    }

    pub(super) fn tail(&self) -> &Tail {
        &self.tail
    }

    fn table(&self, table: Table) -> Result<&RawTable, Fault> {
        let cell = &self.tables[table as usize];
        if cell.get().is_none() {
            let opened = self.snapshot()?.open_table(table.definition())?;
            // Only this thread has the view, so the cell is still empty.
            let _ = cell.set(opened);
        }
        cell.get().ok_or_else(|| Corrupted::new(table, &[], "table can't be opened").into())
    }

    /// The value, or what its reference stands for.
    pub(super) fn resolved(&self, table: Table, key: &[u8], value: Bytes) -> Result<Bytes, Fault> {
        let Some(blob) = BlobRef::of(&value) else { return Ok(value) };
        let blobs = self.snapshot()?.open_table(BLOBS)?;
        let row = blobs.get(blob.id)?.ok_or_else(|| Corrupted::new(table, key, "its blob is missing"))?;
        if row.value().len() as u64 != u64::from(blob.bytes) {
            return Err(Corrupted::new(table, key, "its blob is another row's").into());
        }
        Ok(Bytes::copy_from_slice(row.value()))
    }

    fn get_over(&self, stage: Option<&stage::Staged>, table: Table, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        let value = if let Some(slot) = stage.and_then(|staged| staged.get(key)) {
            slot.value.clone()
        } else if let Some(slot) = self.tail.layer(table).get(key) {
            self.tail.shared_record(slot.group, slot.place)?
        } else {
            self.table(table)?.get(key)?.map(|row| Bytes::copy_from_slice(row.value()))
        };
        value.map(|value| self.resolved(table, key, value)).transpose()
    }

    fn keys_over(&self, stage: Option<&stage::Staged>, table: Table, prefix: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
        let end = keys::after_prefix(prefix);
        let range = (Bound::Included(prefix), end.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
        let mut found = Vec::new();
        self.walk(stage, table, range, Direction::Forward, &mut |key, _| {
            found.push(key.to_vec());
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    fn scan_over(
        &self,
        stage: Option<&stage::Staged>,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), Fault> {
        self.walk(stage, table, range, direction, &mut |key, value| visit(key, self.resolved(table, key, value)?))
    }

    /// A run's steps as they stand, with references where records are large.
    fn all_steps(&self, stage: Option<&Stage>, run: RunId) -> Result<Vec<Indexed>, Fault> {
        let tail = self.tail.steps_of(run);
        let mut steps = Vec::new();
        if !tail.is_some_and(TailSteps::hides_table) {
            steps = blocks::steps_of(self.table(Table::Steps)?, run)?;
        }
        let slots = tail.map_or(&[][..], TailSteps::slots);
        // Mostly what is in the tail comes after all that is in the table.
        for slot in slots {
            set_step(&mut steps, slot.index, self.tail.shared_record(slot.group, slot.place)?);
        }
        for change in stage.into_iter().flat_map(|stage| stage.steps_of(run)) {
            match change {
                Change::Put(index, value) => set_step(&mut steps, *index, Some(Bytes::copy_from_slice(value))),
                Change::Remove(index) => set_step(&mut steps, *index, None),
                Change::Clear => steps.clear(),
            }
        }
        Ok(steps)
    }

    fn visit_steps(&self, stage: Option<&Stage>, run: RunId, visit: &mut VisitStep<'_>) -> Result<(), Fault> {
        for (index, record) in self.all_steps(stage, run)? {
            let record = self.resolved(Table::Steps, &keys::of_run(run, index), record)?;
            if visit(index, record)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// One step, found without reading the others.
    fn one_step(&self, stage: Option<&Stage>, run: RunId, index: u32) -> Result<Option<Bytes>, Fault> {
        let staged = stage.and_then(|stage| {
            stage.steps_of(run).rev().find_map(|change| match change {
                Change::Put(at, record) if *at == index => Some(Some(Bytes::copy_from_slice(record))),
                Change::Remove(at) if *at == index => Some(None),
                Change::Clear => Some(None),
                Change::Put(..) | Change::Remove(_) => None,
            })
        });
        if let Some(record) = staged {
            return Ok(record);
        }
        let key = keys::of_run(run, index);
        let tail = self.tail.steps_of(run);
        if let Some(steps) = tail
            && let Ok(at) = steps.slots().binary_search_by_key(&index, |slot| slot.index)
        {
            let slot = &steps.slots()[at];
            let value = self.tail.shared_record(slot.group, slot.place)?;
            return value.map(|value| self.resolved(Table::Steps, &key, value)).transpose();
        }
        if tail.is_some_and(TailSteps::hides_table) {
            return Ok(None);
        }
        let found = blocks::step(self.table(Table::Steps)?, (run, index))?;
        found.map(|record| self.resolved(Table::Steps, &key, record)).transpose()
    }

    /// Visits the rows as they stand, with references where values are large.
    fn walk(
        &self,
        stage: Option<&stage::Staged>,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), Fault> {
        if empty(range) {
            return Ok(());
        }
        let mut base = self.table(table)?.range::<&[u8]>(range)?;
        let mut next_base = || -> Result<_, Fault> {
            let row = match direction {
                Direction::Forward => base.next(),
                Direction::Backward => base.next_back(),
            };
            Ok(row.transpose()?)
        };
        let mut tail = Walk { rows: self.tail.layer(table).range(range), direction };
        let mut staged = stage.map(|staged| Walk { rows: staged.sorted(range).into_iter(), direction });
        let mut row = next_base()?;
        let mut upper = tail.next();
        let mut top = staged.as_mut().and_then(Walk::next);
        loop {
            // The nearest key of the three layers; where several have it, the highest layer's row is right.
            let keys = [
                top.map(|(key, _)| &key[..]),
                upper.map(|(key, _)| &key[..]),
                row.as_ref().map(|(key, _)| key.value()),
            ];
            let nearest = keys.into_iter().flatten().reduce(|a, b| match direction {
                Direction::Forward => a.min(b),
                Direction::Backward => a.max(b),
            });
            let Some(nearest) = nearest.map(Key::from) else { return Ok(()) };
            let mut value = None;
            if row.as_ref().is_some_and(|(key, _)| key.value() == &nearest[..]) {
                value = row.as_ref().map(|(_, value)| Bytes::copy_from_slice(value.value()));
                row = next_base()?;
            }
            if let Some((_, slot)) = upper.filter(|(key, _)| **key == nearest) {
                value = self.tail.shared_record(slot.group, slot.place)?;
                upper = tail.next();
            }
            if let Some((_, slot)) = top.filter(|(key, _)| **key == nearest) {
                value = slot.value.clone();
                top = staged.as_mut().and_then(Walk::next);
            }
            if let Some(value) = value
                && visit(&nearest, value)?.is_break()
            {
                return Ok(());
            }
        }
    }
}

fn set_step(steps: &mut Vec<Indexed>, index: u32, value: Option<Bytes>) {
    if let Some(value) = &value
        && steps.last().is_none_or(|(last, _)| *last < index)
    {
        return steps.push((index, value.clone()));
    }
    match (steps.binary_search_by_key(&index, |(index, _)| *index), value) {
        (Ok(at), Some(value)) => steps[at].1 = value,
        (Err(at), Some(value)) => steps.insert(at, (index, value)),
        (Ok(at), None) => drop(steps.remove(at)),
        (Err(_), None) => {}
    }
}

impl Rows for View<'_> {
    fn steps(&self, run: RunId, visit: &mut VisitStep<'_>) -> Result<(), Fault> {
        self.visit_steps(None, run, visit)
    }

    fn step(&self, run: RunId, index: u32) -> Result<Option<Bytes>, Fault> {
        self.one_step(None, run, index)
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.get_over(None, table, key)
    }

    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), Fault> {
        self.scan_over(None, table, range, direction, visit)
    }

    fn keys(&self, table: Table, prefix: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
        self.keys_over(None, table, prefix)
    }
}

/// A view with a group over it.
pub(crate) struct Staged<'v, 'a> {
    view: &'v View<'a>,
    stage: &'v Stage,
}

impl Rows for Staged<'_, '_> {
    fn steps(&self, run: RunId, visit: &mut VisitStep<'_>) -> Result<(), Fault> {
        self.view.visit_steps(Some(self.stage), run, visit)
    }

    fn step(&self, run: RunId, index: u32) -> Result<Option<Bytes>, Fault> {
        self.view.one_step(Some(self.stage), run, index)
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.view.get_over(Some(self.stage.of(table)), table, key)
    }

    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), Fault> {
        self.view.scan_over(Some(self.stage.of(table)), table, range, direction, visit)
    }

    fn keys(&self, table: Table, prefix: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
        self.view.keys_over(Some(self.stage.of(table)), table, prefix)
    }
}

/// One layer's rows of a range, in a direction.
struct Walk<I> {
    rows: I,
    direction: Direction,
}

impl<I: DoubleEndedIterator> Walk<I> {
    fn next(&mut self) -> Option<I::Item> {
        match self.direction {
            Direction::Forward => self.rows.next(),
            Direction::Backward => self.rows.next_back(),
        }
    }
}

/// A range that can hold nothing.
fn empty(range: (Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    match range {
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Excluded(high))
        | (Bound::Excluded(low), Bound::Included(high)) => low >= high,
        _ => false,
    }
}
