//! What the runtime wants of a body: raised from anywhere, seen by the one task that polls it.
//!
//! A body is polled once for every step and more; looking here costs one load.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;

/// One of the things that can be raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Signal {
    /// There is a verdict.
    Judged = 1,
    /// Its run is cancelled.
    Cancelled = 2,
    /// Progress or a log line waits for the next write.
    Noted = 4,
}

#[derive(Debug, Default)]
pub(crate) struct Signals {
    raised: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

/// What was raised since the last look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Raised(u8);

impl Raised {
    pub(crate) fn has(self, signal: Signal) -> bool {
        self.0 & signal as u8 != 0
    }
}

impl Signals {
    pub(crate) fn raise(&self, signal: Signal) {
        // Raised before the waker is looked for, and looked at after it is left: one of the two sees the other.
        self.raised.fetch_or(signal as u8, Ordering::SeqCst);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Leaves the waker of the task that looks, if it is another than before.
    pub(crate) fn leave(&self, waker: &Waker, left: &mut Option<Waker>) {
        if left.as_ref().is_none_or(|left| !left.will_wake(waker)) {
            *left = Some(waker.clone());
            *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
        }
    }

    pub(crate) fn take(&self) -> Raised {
        if self.raised.load(Ordering::SeqCst) == 0 {
            return Raised(0);
        }
        Raised(self.raised.swap(0, Ordering::SeqCst))
    }
}
