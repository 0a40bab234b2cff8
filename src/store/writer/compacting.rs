//! Giving space back, between two groups.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::outage::Outage;
use super::{Fault, Writer};
use crate::error::Error;
use crate::store::compact::{Compaction, READS_WAIT};
use crate::store::op::{Call, Op};

impl Writer {
    /// Compacts a file that nobody uses yet.
    pub(crate) fn compact_at_open(&mut self) -> Result<(), Fault> {
        if let Some(Compaction { bytes_before, bytes_after }) = self.disk.compact()? {
            tracing::info!(bytes_before, bytes_after, "the file is compacted");
        }
        Ok(())
    }

    /// Compacts the file and answers; what comes meanwhile waits. Breaks where the file stays away and the writer is to end.
    pub(super) fn compact(&mut self, mut call: Call<(), Compaction>) -> ControlFlow<()> {
        let compacted = catch_unwind(AssertUnwindSafe(|| self.disk.compact())).unwrap_or(Err(Fault::Panicked));
        let fault = match compacted {
            Ok(Some(done)) => {
                call.decide(Ok(done));
                Op::Compact(call).settle(None);
                return ControlFlow::Continue(());
            }
            Ok(None) => {
                Op::Compact(call).settle(Some(Error::CompactionBlocked { waited: READS_WAIT }));
                return ControlFlow::Continue(());
            }
            Err(fault) => fault,
        };
        // It changes where things are and nothing of what they are, so its caller need not be held until the file is back.
        let mut outage = Outage::default();
        let rode_out = self.ride_out(&mut outage, &fault, &mut Vec::new());
        Op::Compact(call).settle(Some(fault.into()));
        rode_out?;
        self.rebuild_or_ride_out(&mut outage, &mut Vec::new())?;
        self.recovered(&outage);
        ControlFlow::Continue(())
    }
}
