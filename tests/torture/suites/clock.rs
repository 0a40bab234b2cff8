//! One clock for everything in a simulated world: tokio's paused time, moved on by waits of the writer, and a wall that jumps.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use durably::{Clock, Timestamp};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

/// 2026-07-01, in the middle of what the wall clock may jump to.
const WALL_MS: i64 = 1_782_864_000_000;

const THIRTY_YEARS_MS: i64 = 30 * 365 * 86_400_000;

#[derive(Debug, Default)]
struct State {
    /// Monotonic time when this life began, with the waits that took none of tokio's time.
    before: Duration,
    began: Option<Instant>,
    last: Duration,
    jumped_ms: i64,
    jumps: u64,
}

/// What the wall clock says, and how often it was set until then.
#[derive(Debug, Clone, Copy)]
pub struct Walls {
    pub now: Timestamp,
    pub jumps: u64,
}

#[derive(Debug, Clone, Default)]
pub struct SimClock(Arc<Mutex<State>>);

impl SimClock {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics here")
    }

    /// A tokio runtime with a paused clock takes over; called inside it.
    pub fn begin(&self) {
        let mut state = self.state();
        (state.before, state.began) = (state.last, Some(Instant::now()));
    }

    /// Time passes in which nothing runs.
    pub fn pass(&self, time: Duration) {
        let mut state = self.state();
        state.before += time;
        state.last += time;
    }

    /// The wall clock is set to another time; it stays within thirty years of where it began.
    pub fn jump(&self, ms: i64) {
        let mut state = self.state();
        state.jumped_ms = (state.jumped_ms + ms).clamp(-THIRTY_YEARS_MS, THIRTY_YEARS_MS);
        state.jumps += 1;
    }

    pub fn walls(&self) -> Walls {
        Walls { now: self.now(), jumps: self.state().jumps }
    }

    /// The wall clock is set as far ahead as it may have been at any time: what anybody waits for is due.
    pub fn catch_up(&self) {
        self.jump(2 * THIRTY_YEARS_MS);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let since = self.monotonic();
        let ms = WALL_MS + self.state().jumped_ms + since.as_millis() as i64;
        Timestamp::from_millis(ms as u64)
    }

    fn monotonic(&self) -> Duration {
        let mut state = self.state();
        // While a world is being dropped there is no runtime, and time stands still.
        if let Some(began) = state.began
            && tokio::runtime::Handle::try_current().is_ok()
        {
            state.last = state.last.max(state.before + began.elapsed());
        }
        state.last
    }
}

/// One thread, whose time moves when all that is on it waits.
pub fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime without I/O")
}

/// A simulation that has not ended by then never does.
const FOREVER: Duration = Duration::from_secs(24 * 60 * 60);

/// Does this on one thread of its own.
pub fn simulated<T>(body: impl Future<Output = T>) -> T {
    // The clock runs ahead where nothing else is left to do.
    let ended = one_thread().block_on(async { tokio::time::timeout(FOREVER, body).await });
    ended.expect("something is waited for that never comes")
}
