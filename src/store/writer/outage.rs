//! A commit that failed: its outcome is unknown until the file is read again.
//!
//! The store reopens with back-off and looks whether the group is there. Callers from outside are held up to
//! [`HOLD`] and then told that the outcome is unknown; what bodies have finished is held as long as it takes and, if the
//! group is not there, applied again. Nothing is believed that was in memory. A shutdown waits no longer than the callers.

use std::ops::ControlFlow;
use std::time::Duration;

use super::{Fault, Writer};
use crate::error::Error;
use crate::store::op::Op;

/// How long callers are held before they are told that the outcome is unknown.
const HOLD: Duration = Duration::from_secs(5);
const BACK_OFF_MIN: Duration = Duration::from_millis(5);
const BACK_OFF_MAX: Duration = Duration::from_millis(500);
/// A reserve that could not be made is tried again so long after.
pub(super) const RESERVE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// One spell of the file failing.
#[derive(Debug, Default)]
pub(super) struct Outage {
    began: Option<Duration>,
    tries: u32,
    given_up: bool,
}

impl Outage {
    /// The writer was told to end while the file stayed away.
    pub(super) fn is_given_up(&self) -> bool {
        self.given_up
    }
}

impl Writer {
    /// Comes back when the file is open again; breaks where it stays away and the writer is to end.
    pub(super) fn ride_out(&mut self, outage: &mut Outage, fault: &Fault, ops: &mut Vec<Op>) -> ControlFlow<()> {
        let now = self.clock.monotonic();
        outage.began.get_or_insert(now);
        self.publisher.condition.set_degraded(true);
        tracing::error!(error = %fault, "a commit failed; the file is reopened");
        if let Err(error) = self.reserve.give_up() {
            tracing::warn!(%error, "the reserve can't be given up");
        }
        loop {
            self.back_off(outage, ops)?;
            match self.disk.reopen() {
                Ok(()) => return ControlFlow::Continue(()),
                Err(fault) => tracing::error!(error = %fault, "the file can't be reopened yet"),
            }
        }
    }

    /// Rebuilds the engine from the reopened file; should that fail, there is another outage to ride out.
    pub(super) fn rebuild_or_ride_out(&mut self, outage: &mut Outage, ops: &mut Vec<Op>) -> ControlFlow<()> {
        while let Err(fault) = self.rebuild() {
            self.ride_out(outage, &fault, ops)?;
        }
        ControlFlow::Continue(())
    }

    /// The file works again.
    pub(super) fn recovered(&mut self, outage: &Outage) {
        let now = self.clock.monotonic();
        let missed = self.publisher.condition.is_degraded() && !self.reserve.is_held();
        if outage.began.is_some() || (missed && now.saturating_sub(self.reserve_tried) >= RESERVE_AGAIN_AFTER) {
            self.reserve_tried = now;
            // A reserve that can't be made again means that the disk is still as good as full.
            match self.reserve.restore() {
                Ok(()) => self.publisher.condition.set_degraded(false),
                Err(error) => tracing::warn!(%error, "the reserve can't be made again"),
            }
        }
    }

    /// Waits a little longer each time, and lets go of callers who have waited long enough.
    fn back_off(&mut self, outage: &mut Outage, ops: &mut Vec<Op>) -> ControlFlow<()> {
        let pause = BACK_OFF_MIN.saturating_mul(1 << outage.tries.min(10)).min(BACK_OFF_MAX);
        if outage.tries > 0 {
            self.config.hooks.sleep(pause);
        }
        outage.tries += 1;
        let held = outage.began.map_or(Duration::ZERO, |began| self.clock.monotonic().saturating_sub(began));
        let dead = self.config.hooks.is_dead();
        if held < HOLD && !dead {
            return ControlFlow::Continue(());
        }
        release(ops, || Error::Indeterminate);
        self.inbox.clone().take(&mut self.pending, Some(Duration::ZERO));
        // These were never begun, so they are known not to be done.
        release(&mut self.pending, || Error::Overloaded { waited: held });
        if dead || self.is_closing() {
            outage.given_up = true;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

/// Answers the callers from outside among `ops` with an error; what bodies wait for stays.
pub(super) fn release(ops: &mut Vec<Op>, error: impl Fn() -> Error) {
    for op in std::mem::take(ops) {
        if op.is_from_outside() { op.settle(Some(error())) } else { ops.push(op) }
    }
}
