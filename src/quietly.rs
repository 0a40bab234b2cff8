//! Foreign code on the way of something else, such as a waker: should it panic, that is its owner's fault and touches nobody else.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs it; a panic is logged and ends here.
pub(crate) fn quietly(what: &'static str, run: impl FnOnce()) {
    if let Err(thrown) = catch_unwind(AssertUnwindSafe(run)) {
        discard(thrown);
        tracing::error!("{what} panicked");
    }
}

/// Drops what a panic has thrown. That is the user's own, and may panic in turn: what that throws is left alone.
pub(crate) fn discard(thrown: Box<dyn Any + Send>) {
    if let Err(thrown) = catch_unwind(AssertUnwindSafe(|| drop(thrown))) {
        std::mem::forget(thrown);
    }
}
