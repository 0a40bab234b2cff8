//! A clock that a test moves.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::time::{Clock, Timer, Timestamp};

/// A clock that stands still until it is moved. Clones are the same clock; moving it wakes what waits in memory, and a
/// [`TestRuntime`](super::TestRuntime) does the rest.
#[derive(Clone)]
pub struct TestClock(Arc<Mutex<Hands>>);

struct Hands {
    /// The wall clock at monotonic zero, ms.
    origin_ms: u64,
    /// When the wall clock was set, by the monotonic one.
    set_at: Duration,
    monotonic: Duration,
    timers: BTreeMap<(Duration, u64), Waker>,
    next: u64,
}

impl TestClock {
    pub(super) fn starting_at(at: Timestamp) -> Self {
        let (set_at, monotonic) = (Duration::ZERO, Duration::ZERO);
        let hands = Hands { origin_ms: at.as_millis(), set_at, monotonic, timers: BTreeMap::new(), next: 0 };
        TestClock(Arc::new(Mutex::new(hands)))
    }

    /// Moves wall and monotonic clock, and nothing else: [`TestRuntime::advance`](super::TestRuntime::advance) is what
    /// brings about what is due.
    pub fn advance(&self, by: Duration) {
        let due = {
            let mut hands = self.hands();
            hands.monotonic += by;
            let later = (hands.monotonic, u64::MAX);
            let rest = hands.timers.split_off(&later);
            std::mem::replace(&mut hands.timers, rest)
        };
        due.into_values().for_each(Waker::wake);
    }

    /// Sets the wall clock, back or forth, as an administrator might; the monotonic clock stays.
    pub fn set_wall(&self, at: Timestamp) {
        let mut hands = self.hands();
        (hands.origin_ms, hands.set_at) = (at.as_millis(), hands.monotonic);
    }

    /// How long until the next thing that waits in memory is due.
    pub(super) fn next_timer(&self) -> Option<Duration> {
        let hands = self.hands();
        hands.timers.keys().next().map(|(at, _)| at.saturating_sub(hands.monotonic))
    }

    fn hands(&self) -> MutexGuard<'_, Hands> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for TestClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TestClock").field(&self.now()).finish()
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let hands = self.hands();
        Timestamp::from_millis(hands.origin_ms).saturating_add(hands.monotonic - hands.set_at)
    }

    fn monotonic(&self) -> Duration {
        self.hands().monotonic
    }

    fn sleep(&self, duration: Duration) -> Timer {
        let due = self.monotonic().saturating_add(duration);
        Box::pin(Sleeping { clock: self.clone(), due, id: None })
    }
}

struct Sleeping {
    clock: TestClock,
    due: Duration,
    id: Option<u64>,
}

impl Future for Sleeping {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Sleeping { clock, due, id } = &mut *self;
        let mut hands = clock.hands();
        if hands.monotonic >= *due {
            return Poll::Ready(());
        }
        let id = *id.get_or_insert_with(|| {
            hands.next += 1;
            hands.next
        });
        hands.timers.insert((*due, id), cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleeping {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.clock.hands().timers.remove(&(self.due, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sleep_ends_when_the_clock_gets_there_and_is_no_sooner_due_than_it_says() {
        let clock = TestClock::starting_at(Timestamp::from_millis(5));
        let mut sleep = clock.sleep(Duration::from_secs(3));
        assert!(futures::poll!(&mut sleep).is_pending());
        clock.advance(Duration::from_secs(2));
        assert!(futures::poll!(&mut sleep).is_pending());
        assert_eq!(clock.next_timer(), Some(Duration::from_secs(1)));
        clock.advance(Duration::from_secs(1));
        sleep.await;
        assert_eq!((clock.now().as_millis(), clock.next_timer()), (3_005, None));
        clock.set_wall(Timestamp::from_millis(7));
        assert_eq!((clock.now().as_millis(), clock.monotonic()), (7, Duration::from_secs(3)));
    }
}
