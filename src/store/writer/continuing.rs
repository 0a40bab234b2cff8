//! Runs that end and go on as another: all that belonged to the one, and does not end with it, is the other's.

use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;

use super::execution::{deadline_of, line_of};
use super::triggers::queued;
use super::turn::Turn;
use super::waits::{awaiters_of, awaits};
use super::{Body, Fault, Writer};
use crate::codec::keys::Key;
use crate::codec::records::{LineRecord, RunRecord, StateRecord, StepRecord};
use crate::codec::{self, keys};
use crate::engine::Event as EngineEvent;
use crate::event::{Ended, EventKind, What};
use crate::id::RunId;
use crate::run::RunStatus;
use crate::store::op::Continuation;
use crate::store::steps::Change;
use crate::store::tables::Table;
use crate::store::view::Rows;

impl Writer {
    /// Ends a leased run and creates the one that goes on for it.
    pub(super) fn continue_as(
        &mut self,
        turn: &mut Turn<'_>,
        run: RunId,
        body: &Body,
        state: &mut StateRecord,
        with: &Continuation,
    ) -> Result<(), Fault> {
        let old = &body.record;
        let next = self.ids.next(turn.now);
        // After a failure and a resume it may be another run's by now.
        let holds_key = match &old.idempotency_key {
            Some(key) => turn.holder(old.job, key)? == Some(run),
            None => false,
        };
        let record = RunRecord {
            created_at: turn.now,
            idempotency_key: old.idempotency_key.clone().filter(|_| holds_key),
            // It counts from the trigger, which was not this.
            idempotency_ttl_ms: old.idempotency_ttl_ms.map(|ttl| {
                let passed = Duration::as_millis(&turn.now.since(old.created_at));
                ttl.saturating_sub(u64::try_from(passed).unwrap_or(u64::MAX))
            }),
            // So does this.
            deadline: deadline_of(old, state),
            retriggered_from: None,
            forked_from: None,
            continued_from: Some(run),
            version: with.version,
            not_before: None,
            ticket: None,
            // The fingerprint stays that of the trigger: who repeats it repeats its input.
            ..RunRecord::clone(old)
        };
        // With a key it goes on at once; without one there is nothing to hold, and others have their turn.
        let holds = !record.keys.is_empty();
        let fresh = StateRecord { front: holds, ..StateRecord::default() };
        let signalled = state.signalled && self.move_signals(turn, run, next)?;
        let line = LineRecord { holds, touched: signalled, ..line_of(&record, &fresh, false) };
        turn.ends.push((run, Ended::Continued(next)));
        state.continued_as = Some(next);
        self.end_rows(turn, run, &body.record, state, RunStatus::Leased, RunStatus::Completed)?;
        turn.put_ended(run, state, &Bytes::from_static(b"null"));
        turn.tell(&body.subject, What::Kind(Box::new(EventKind::RunContinued { next })));
        self.write_run(turn, next, &record, &with.input, &line);
        if signalled {
            let state = StateRecord { signalled, updated_at: Some(turn.now), ..fresh };
            turn.put_state(next, &state, true);
        }
        if let Some(parent) = record.parent {
            self.move_child(turn, parent, run, next)?;
        }
        self.move_awaiters(turn, run, next)?;
        self.tell_engine(turn, EngineEvent::Continued { run, next: queued(next, &line) });
        self.arm(turn, next, line.deadline);
        Ok(())
    }

    /// Signals that nobody has taken; says whether there are any.
    fn move_signals(&mut self, turn: &mut Turn<'_>, run: RunId, next: RunId) -> Result<bool, Fault> {
        let mut signals = Vec::new();
        turn.rows().scan_prefix(Table::Signals, run.as_bytes(), &mut |key, row| {
            signals.push((key.to_vec(), row));
            Ok(ControlFlow::Continue(()))
        })?;
        let any = !signals.is_empty();
        for (key, row) in signals {
            let moved = [next.as_bytes(), key.get(RunId::BYTES..).unwrap_or_default()].concat();
            turn.stage.delete(Table::Signals, &key[..]);
            turn.stage.insert(Table::Signals, Key::from(&moved[..]), row);
        }
        Ok(any)
    }

    /// The parent that is cancelled cancels the run that goes on.
    fn move_child(&mut self, turn: &mut Turn<'_>, parent: RunId, run: RunId, next: RunId) -> Result<(), Fault> {
        let old = keys::child(parent, run);
        if let Some(detached) = turn.rows().get(Table::Children, &old)? {
            turn.stage.delete(Table::Children, old);
            turn.stage.insert(Table::Children, keys::child(parent, next), detached);
        }
        Ok(())
    }

    /// Steps that wait for the end of the run wait for that of the other. Their records say so too, since the run that they
    /// name may be purged before they ask again.
    fn move_awaiters(&mut self, turn: &mut Turn<'_>, run: RunId, next: RunId) -> Result<(), Fault> {
        let awaiters: Vec<_> =
            self.awaited.range(awaiters_of(run)).map(|(_, waiter, index)| (*waiter, *index)).collect();
        for (waiter, index) in awaiters {
            self.no_longer_awaits(turn, run, waiter, index);
            self.awaited.insert((next, waiter, index));
            turn.stage.put(Table::Awaiters, keys::awaiter(next, waiter, index), Vec::new());
            match point_at(turn, (waiter, index), run, next) {
                Err(Fault::Corrupted(row)) => {
                    tracing::error!(run = %waiter, error = %row, "a step that waits can't be told whom it waits for now");
                }
                pointed => pointed?,
            }
        }
        Ok(())
    }
}

/// Lets the record of a step that waits for a run name another.
fn point_at(turn: &mut Turn<'_>, (waiter, index): (RunId, u32), run: RunId, next: RunId) -> Result<(), Fault> {
    let Some(row) = turn.rows().step(waiter, index)? else { return Ok(()) };
    let (mut record, payload) = codec::open::<StepRecord>(Table::Steps, &keys::of_run(waiter, index), &row)?;
    if awaits(&record, run)
        && let Some(open) = &mut record.open
    {
        open.run = Some(next);
        turn.stage.change_steps(waiter, Change::Put(index, codec::seal(&record, &payload).into()));
    }
    Ok(())
}
