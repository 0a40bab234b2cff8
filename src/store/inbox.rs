//! Operations on their way to the writer.
//!
//! Any number of threads push, the writer takes everything there is at once: one lock a group. What is waiting is bounded
//! before it gets here, by admission for calls from outside and by the number of executing runs for the rest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::op::Op;

#[derive(Debug, Default)]
pub(crate) struct Inbox {
    queue: Mutex<Queue>,
    arrived: Condvar,
    /// Something is in the queue: for a look that takes no lock.
    filled: AtomicBool,
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
        self.filled.store(true, Ordering::Relaxed);
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
        self.filled.store(false, Ordering::Relaxed);
    }

    /// Whether there is something, or comes before `timeout` is over. The thread does not sleep meanwhile.
    #[allow(clippy::disallowed_methods, reason = "how long a core is kept busy is a matter of the machine's own clock")]
    pub(crate) fn look(&self, timeout: Duration) -> bool {
        /// Looks between two at the clock.
        const LOOKS: u32 = 64;
        let began = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if self.filled.load(Ordering::Relaxed) {
                    return true;
                }
                std::hint::spin_loop();
            }
            if began.elapsed() >= timeout {
                return false;
            }
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
        self.filled.store(false, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_finds_what_there_is_until_it_is_taken() {
        let inbox = Inbox::default();
        let look = || inbox.look(Duration::ZERO);
        assert!(!look());
        let mut ops = Vec::new();
        for taken in 0..2 {
            assert!(inbox.push(Op::Tick).is_none() && look() && look());
            match taken {
                0 => inbox.take(&mut ops, Some(Duration::ZERO)),
                _ => inbox.linger(&mut ops, 1, Duration::ZERO),
            }
            assert!(!look());
        }
        assert_eq!(ops.len(), 2);
        std::thread::scope(|scope| {
            scope.spawn(|| inbox.push(Op::Tick));
            while !inbox.look(Duration::from_secs(1)) {}
        });
    }
}
