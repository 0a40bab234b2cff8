//! The runtime's own threads for code that blocks.
//!
//! Not tokio's: dropping a tokio runtime waits for its blocking tasks without end, and a shutdown must be able to leave one
//! behind. Threads are started when they are needed, up to the bound, and end after a while without work.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::quietly::discard;

const IDLE: Duration = Duration::from_secs(10);

type Task = Box<dyn FnOnce() + Send>;

#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads_max: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

#[derive(Default)]
struct State {
    tasks: VecDeque<Task>,
    threads: usize,
    idle: usize,
    /// Tasks that a thread is at.
    busy: usize,
}

impl Pool {
    pub(crate) fn new(threads_max: usize) -> Self {
        Pool { shared: Arc::default(), threads_max }
    }

    /// Runs a task as soon as a thread is free. A panic in it is the task's own business.
    pub(crate) fn run(&self, task: Task) -> std::io::Result<()> {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.tasks.push_back(task);
        if state.idle < state.tasks.len() && state.threads < self.threads_max {
            let shared = self.shared.clone();
            let spawned = std::thread::Builder::new().name("durably-blocking".into()).spawn(move || shared.work());
            match spawned {
                Ok(_) => state.threads += 1,
                // With a thread there, the task waits for it; without one, nobody would ever take it up.
                Err(error) if state.threads == 0 => {
                    state.tasks.pop_back();
                    return Err(error);
                }
                Err(_) => {}
            }
        }
        drop(state);
        self.shared.arrived.notify_one();
        Ok(())
    }

    /// Tasks that have not returned.
    pub(crate) fn busy(&self) -> usize {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).busy
    }
}

impl Shared {
    fn work(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(task) = state.tasks.pop_front() {
                state.busy += 1;
                drop(state);
                // A task catches what user code throws; this keeps the thread alive should dropping it panic.
                if let Err(thrown) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(task)) {
                    discard(thrown);
                }
                state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.busy -= 1;
                continue;
            }
            state.idle += 1;
            let waited = self.arrived.wait_timeout_while(state, IDLE, |state| state.tasks.is_empty());
            let timeout;
            (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            if timeout.timed_out() && state.tasks.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}
