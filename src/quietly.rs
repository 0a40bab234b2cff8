//! Foreign code on the way of something else, such as a waker: should it panic, that is its owner's fault and touches nobody else.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs it; a panic is logged and ends here.
pub(crate) fn quietly(what: &'static str, run: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        // To drop what it was raised with may panic again.
        std::mem::forget(panic);
        tracing::error!("{what} panicked");
    }
}
