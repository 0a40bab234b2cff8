//! Which body, and which step's body, is being polled on this thread.
//!
//! Set around each poll, so that steps which run side by side in `join!` are told apart. A task that a body spawns is outside.

use std::cell::RefCell;
use std::sync::Arc;

use crate::engine::Generation;
use crate::id::RunId;

#[derive(Debug, Clone)]
struct Scope {
    run: RunId,
    generation: Generation,
    step: Option<Arc<str>>,
}

thread_local! {
    static CURRENT: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// Puts the scope back that was there before.
#[derive(Debug)]
pub(crate) struct Entered(Option<Scope>);

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.0.take();
        CURRENT.with(|current| *current.borrow_mut() = before);
    }
}

/// Enters a body, or a step's body.
pub(crate) fn enter(run: RunId, generation: Generation, step: Option<&Arc<str>>) -> Entered {
    let scope = Scope { run, generation, step: step.cloned() };
    Entered(CURRENT.with(|current| current.borrow_mut().replace(scope)))
}

/// The run whose body is being polled.
pub(crate) fn run() -> Option<RunId> {
    CURRENT.with(|current| current.borrow().as_ref().map(|scope| scope.run))
}

/// The run and the step whose body is being polled.
#[cfg(feature = "testing")]
pub(crate) fn run_and_step() -> Option<(RunId, String)> {
    CURRENT.with(|current| {
        let current = current.borrow();
        let scope = current.as_ref()?;
        Some((scope.run, scope.step.as_ref()?.to_string()))
    })
}

/// The step of this execution whose body is being polled.
pub(crate) fn step(run: RunId, generation: Generation) -> Option<Arc<str>> {
    CURRENT.with(|current| {
        let current = current.borrow();
        let scope = current.as_ref().filter(|scope| scope.run == run && scope.generation == generation)?;
        scope.step.clone()
    })
}
