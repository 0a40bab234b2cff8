//! A step that failed and is to be tried again.
//!
//! That an attempt failed, and when the next one is due, is a record without an outcome, as of every step that waits; so the
//! count goes on over a crash, and a long delay suspends the run.

use std::time::Duration;

use super::execution::{Execution, Known, Ticket};
use super::run::never;
use super::wait::park;
use crate::codec::records::{ErrorRecord, StepRecord, TryRecord, WaitRecord};
use crate::error::Error;
use crate::id::chance;
use crate::job::{ErrorKind, JobError, Retry, cut};
use crate::limits::{TRIES_KEPT_MAX, TRY_ERROR_BYTES_MAX};
use crate::run::StepKind;
use crate::store::op::{Await, Op, Settled};
use crate::time::Timestamp;

impl Ticket {
    /// The record of a step that has been tried before.
    pub(super) fn tried(&self) -> Option<&StepRecord> {
        match self.known.as_deref() {
            Some(Known::Waits(_, record)) => Some(record),
            _ => None,
        }
    }

    /// Which attempt the next one is.
    pub(super) fn next_attempt(&self) -> u32 {
        self.tried().map_or(1, |record| record.attempts.saturating_add(1))
    }
}

/// How long to wait after an attempt that has failed; `None`: the step has failed.
pub(super) fn delay(ticket: &Ticket, retry: Option<&Retry>, error: &JobError) -> Option<Duration> {
    let Execution { start, .. } = &*ticket.execution;
    let attempt = ticket.next_attempt();
    retry.or_else(|| ticket.execution.retry())?.delay(attempt, error, || chance(start.run, ticket.index, attempt))
}

/// Adds an attempt to those that failed.
pub(super) fn add_try(tries: &mut Vec<TryRecord>, number: u32, error: &ErrorRecord, times: (Timestamp, Timestamp)) {
    let over = (tries.len() + 1).saturating_sub(TRIES_KEPT_MAX);
    tries.drain(..over);
    let (started_at, failed_at) = times;
    tries.push(TryRecord { number, error: shortened(error), started_at, failed_at });
}

/// An error within the bytes that are kept of an attempt's.
fn shortened(error: &ErrorRecord) -> ErrorRecord {
    let message = cut(error.message.clone(), TRY_ERROR_BYTES_MAX);
    let mut left = TRY_ERROR_BYTES_MAX - message.len();
    let mut chain = Vec::new();
    for link in &error.chain {
        let link = cut(link.clone(), left);
        if link.is_empty() {
            break;
        }
        left -= link.len();
        chain.push(link);
    }
    ErrorRecord { message, chain, ..error.clone() }
}

/// Stores that an attempt has failed, and gives the ticket back when it is time for the next.
pub(super) async fn again(mut ticket: Ticket, error: JobError, started_at: Timestamp, delay: Duration) -> Ticket {
    let execution = ticket.execution.clone();
    let (now, start) = (execution.now(), &execution.start);
    let mut record = match ticket.known.take().map(|known| *known) {
        Some(Known::Waits(_, record)) => *record,
        _ => StepRecord {
            key: ticket.key.to_string(),
            kind: StepKind::Run.to_byte(),
            generation: start.generation,
            started_at,
            completed_at: now,
            attempts: 0,
            version: execution.version(),
            error: None,
            open: None,
            tries: Vec::new(),
        },
    };
    record.attempts = record.attempts.saturating_add(1);
    (record.version, record.generation, record.completed_at) = (execution.version(), start.generation, now);
    record.open = Some(WaitRecord { due: Some(now.saturating_add(delay)), ..WaitRecord::default() });
    let mut error = error.into_record();
    error.step = Some(record.key.clone());
    add_try(&mut record.tries, record.attempts, &error, (started_at, now));
    // Known before it is stored: dropped in between, the next call of the key goes on with this.
    ticket.known = Some(Box::new(Known::Waits(ticket.index, Box::new(record.clone()))));
    // Handed over at once: nothing may come between what is known here and what is to be stored.
    let admitted = execution.means.store.try_admit_body(record.bytes()).unwrap_or_default();
    let asked = Await { run: start.run, generation: start.generation, index: ticket.index, record, stored: false };
    match execution.means.store.submit(|call| Op::Await(Box::new(call)), asked, admitted).answer().await {
        Ok(Settled::Open(_)) => due(ticket).await,
        Err(error @ Error::Corrupted { .. }) => {
            execution.fail(ErrorKind::Corrupted, error.to_string());
            never().await
        }
        Ok(Settled::Decided(_) | Settled::Refused) | Err(_) => {
            execution.stuck();
            never().await
        }
    }
}

/// Gives the ticket of a step that has been tried before back when it is time to try it again.
pub(super) async fn due(mut ticket: Ticket) -> Ticket {
    let open = ticket.tried().and_then(|record| record.open.clone()).unwrap_or_default();
    park(&mut ticket, open, 0).await;
    if ticket.execution.is_cancelled() {
        ticket.execution.stuck();
        return never().await;
    }
    ticket
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(message: &str, chain: &[&str]) -> ErrorRecord {
        let mut record = JobError::of_kind(ErrorKind::Timeout, message.to_owned()).into_record();
        record.chain = chain.iter().map(|link| (*link).to_owned()).collect();
        record
    }

    #[test]
    fn the_newest_attempts_are_kept() {
        let (mut tries, at) = (Vec::new(), Timestamp::from_millis);
        for number in 1..=40 {
            add_try(&mut tries, number, &record("down", &[]), (at(u64::from(number)), at(u64::from(number) + 1)));
        }
        let numbers: Vec<u32> = tries.iter().map(|tried| tried.number).collect();
        assert_eq!(numbers, (9..=40).collect::<Vec<u32>>());
        assert_eq!((tries[0].started_at, tries[0].failed_at), (at(9), at(10)));
    }

    #[test]
    fn an_attempts_error_keeps_what_there_is_room_for() {
        let full = "é".repeat(TRY_ERROR_BYTES_MAX / 2);
        let cases = [
            (record("a", &["b", "c"]), record("a", &["b", "c"])),
            (record(&full, &["b"]), record(&full, &[])),
            (record(&format!("{full}x"), &[]), record(&full, &[])),
            (record("a", &[&full, "b"]), record("a", &[full.strip_suffix('é').expect("a text"), "b"])),
            (record("ab", &[&full, "b"]), record("ab", &[full.strip_suffix('é').expect("a text")])),
        ];
        for (whole, expected) in cases {
            assert!(shortened(&whole) == expected, "{} {}", whole.message.len(), whole.chain.len());
        }
    }
}
