//! How what is done of a map gets to the disk: one segment at a time.

use std::convert::Infallible;
use std::time::Duration;

use crate::codec;
use crate::codec::records::{StepRecordRef, WaitRecord};
use crate::codec::segment::{MapHeader, Segment};
use crate::event::StepTold;
use crate::limits::{SEGMENT_BYTES, SEGMENT_BYTES_MIN, SEGMENT_ITEMS, SEGMENTS_BACKLOG};
use crate::run::StepKind;
use crate::step::execution::{Known, Ticket};
use crate::step::run::never;
use crate::store::Pending;
use crate::store::op::{Accepted, Admitted};
use crate::store::read::{ReplayOutcome, StoredItems};
use crate::time::Timestamp;

pub(super) struct Writing {
    started_at: Timestamp,
    header: Vec<u8>,
    pub(super) has_header: bool,
    /// Done, and not handed over yet.
    pub(super) gathered: Segment,
    /// The newest segment, where it may be written again, and its bytes.
    newest: Option<(u32, Segment, usize)>,
    pub(super) in_flight: Option<Pending<Accepted>>,
}

impl Writing {
    pub(super) fn new(started_at: Timestamp, header: &MapHeader) -> Self {
        Writing {
            started_at,
            header: serde_json::to_vec(header).unwrap_or_default(),
            has_header: false,
            gathered: Segment::default(),
            newest: None,
            in_flight: None,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.gathered.len() >= SEGMENT_ITEMS || self.gathered.bytes() >= SEGMENT_BYTES
    }

    pub(super) fn is_behind(&self) -> bool {
        let (items, bytes) = (SEGMENT_ITEMS * SEGMENTS_BACKLOG, SEGMENT_BYTES * SEGMENTS_BACKLOG);
        self.gathered.len() >= items || self.gathered.bytes() >= bytes
    }

    /// Hands over what has gathered; comes back when it is with the writer.
    pub(super) async fn flush(&mut self, ticket: &mut Ticket) {
        let execution = ticket.execution.clone();
        let gathered = std::mem::take(&mut self.gathered);
        let (index, segment, before) = match self.newest.take() {
            Some((index, mut segment, bytes)) if segment.bytes() < SEGMENT_BYTES_MIN => {
                segment.append(&gathered);
                (index, segment, bytes)
            }
            _ => match execution.next_part() {
                Some(index) => (index, gathered, 0),
                None => return never().await,
            },
        };
        let payload = segment.encode(ticket.index);
        let part = self.part(ticket, "", StepKind::SEGMENT, index, &payload);
        let header = (!self.has_header)
            .then(|| self.part(ticket, &ticket.key, StepKind::Map.to_byte(), ticket.index, &self.header));
        let bytes = part.record.len();
        let with_header = bytes + header.as_ref().map_or(0, |header| header.record.len());
        if !execution.count_bytes(with_header.saturating_sub(before)) {
            execution.fail_over_bytes();
            return never().await;
        }
        let admitted = execution.means.store.admit_body(with_header).await;
        if let Some(header) = header {
            // Before the first segment, and most often in one commit with it: what becomes of that is what became of this.
            drop(execution.hand_part(header, Admitted::default()));
            self.has_header = true;
            // Known from here on, should this be dropped before it is done.
            let header = self.header.clone().into();
            let items = StoredItems { header, segments: Vec::new(), outcome: None, settled: false };
            let known = Known::Replayed(
                ticket.index,
                StepKind::Map,
                ticket.execution.version(),
                ReplayOutcome::Items(Box::new(items)),
            );
            ticket.known = Some(Box::new(known));
        }
        if let Some(Known::Replayed(_, _, _, ReplayOutcome::Items(items))) = ticket.known.as_deref_mut() {
            items.settled = false;
            items.segments.extend((before == 0).then_some(index));
        }
        self.in_flight = Some(execution.hand_part(part, admitted));
        self.newest = Some((index, segment, bytes));
    }

    fn part(&self, ticket: &Ticket, key: &str, kind: u8, index: u32, payload: &[u8]) -> StepTold {
        let execution = &ticket.execution;
        let open = WaitRecord::default();
        let header = StepRecordRef {
            key,
            kind,
            generation: execution.start.generation,
            started_at: self.started_at,
            completed_at: execution.now(),
            attempts: 1,
            version: execution.version(),
            error: None,
            open: Some(&open),
            tries: &[],
        };
        let mut sealed = Vec::new();
        let Ok(output_at) = codec::seal_into(&mut sealed, &header, |out| {
            out.extend_from_slice(payload);
            Ok::<(), Infallible>(())
        });
        let step = ticket.key.clone();
        StepTold { step, index, duration: Duration::ZERO, record: sealed.into(), output_at, error: None }
    }
}
