//! Operations on their way to the writer.
//!
//! Any number of threads push, the writer takes everything there is at once: one lock a group. What is waiting is bounded
//! before it gets here, by admission for calls from outside and by the number of executing runs for the rest.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::op::Op;

#[derive(Debug, Default)]
pub(crate) struct Inbox {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    ops: Vec<Op>,
    /// The writer sleeps until there are so many.
    awaited: Option<usize>,
    closed: bool,
}

impl Inbox {
    /// Hands an operation over; gives it back if the writer has ended.
    #[must_use]
    pub(crate) fn push(&self, op: Op) -> Option<Op> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.closed {
            return Some(op);
        }
        queue.ops.push(op);
        if queue.awaited.is_some_and(|awaited| queue.ops.len() >= awaited) {
            self.arrived.notify_one();
        }
        None
    }

    /// Moves everything there is to `ops`, waiting up to `timeout` for the first if there is nothing.
    pub(crate) fn take(&self, ops: &mut Vec<Op>, timeout: Option<Duration>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.ops.is_empty() && timeout != Some(Duration::ZERO) {
            queue.awaited = Some(1);
            queue = match timeout {
                Some(timeout) => {
                    let waited = self.arrived.wait_timeout_while(queue, timeout, |queue| queue.ops.is_empty());
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.arrived.wait_while(queue, |queue| queue.ops.is_empty());
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
            queue.awaited = None;
        }
        if ops.is_empty() {
            std::mem::swap(ops, &mut queue.ops);
        } else {
            ops.append(&mut queue.ops);
        }
    }

    /// Moves to `ops` what comes until there are `wanted` of them, or `timeout` is over.
    pub(crate) fn linger(&self, ops: &mut Vec<Op>, wanted: usize, timeout: Duration) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = wanted.saturating_sub(ops.len());
        if queue.ops.len() < missing {
            queue.awaited = Some(missing);
            let waited = self.arrived.wait_timeout_while(queue, timeout, |queue| queue.ops.len() < missing);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            queue.awaited = None;
        }
        ops.append(&mut queue.ops);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).ops.is_empty()
    }

    /// Refuses what comes from here on, and gives what had come.
    pub(crate) fn close(&self) -> Vec<Op> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.closed = true;
        std::mem::take(&mut queue.ops)
    }
}
