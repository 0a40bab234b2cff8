//! How long a step waits before it is tried again.

use std::time::Duration;

/// Delays that grow from attempt to attempt, up to a limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Backoff {
    pub(crate) initial: Duration,
    pub(crate) max: Duration,
    /// What each delay is of the one before; below 1 it is 1.
    pub(crate) factor: f64,
    /// How much of a delay may be taken off by chance, in thousandths.
    pub(crate) jitter: u16,
}

/// All of a delay, in thousandths.
pub(crate) const JITTER_MAX: u16 = 1_000;

impl Backoff {
    /// The delay after the failure of an attempt, from 1. `chance` is any number; all of them make the jitter.
    pub(crate) fn delay(&self, attempt: u32, chance: u32) -> Duration {
        let (initial, max) = (millis(self.initial), millis(self.max));
        let factor = if self.factor > 1.0 { self.factor } else { 1.0 };
        let steps = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        // A product beyond any number is infinite, and the conversion takes the greatest there is for that.
        let grown = if initial == 0 { 0 } else { (initial as f64 * factor.powi(steps)) as u64 };
        let whole = grown.max(initial).min(max);
        let share = u128::from(self.jitter.min(JITTER_MAX)) * u128::from(chance);
        // Of at most the whole: 2^64 ms times 1,000 times 2^32 is below 2^128.
        let off = u128::from(whole) * share / (u128::from(JITTER_MAX) * u128::from(u32::MAX));
        Duration::from_millis(whole - u64::try_from(off).unwrap_or(whole))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backoff(initial: u64, max: u64, factor: f64, jitter: u16) -> Backoff {
        Backoff { initial: Duration::from_millis(initial), max: Duration::from_millis(max), factor, jitter }
    }

    #[test]
    fn delays_grow_up_to_their_limit() {
        let plain = backoff(100, 1_000, 2.0, 0);
        let halved = backoff(100, 1_000, 2.0, 500);
        let cases = [
            ("the first delay is the initial one", plain, 1, 0, 100),
            ("each is twice the one before", plain, 2, 0, 200),
            ("and so on", plain, 4, 0, 800),
            ("up to the limit", plain, 5, 0, 1_000),
            ("for ever", plain, u32::MAX, 0, 1_000),
            ("an attempt that there is not counts as the first", plain, 0, 0, 100),
            ("the least chance takes nothing off", halved, 1, 0, 100),
            ("the greatest takes the whole share", halved, 1, u32::MAX, 50),
            ("one in the middle half of it", halved, 1, u32::MAX / 2, 76),
            ("the limit counts before the chance", halved, 9, u32::MAX, 500),
            ("all of it can be taken off", backoff(100, 1_000, 2.0, 1_000), 3, u32::MAX, 0),
            ("more than all can not", backoff(100, 1_000, 2.0, u16::MAX), 3, u32::MAX, 0),
            ("an initial delay above the limit is the limit", backoff(5_000, 1_000, 2.0, 0), 1, 0, 1_000),
            ("without an initial delay there is none", backoff(0, 1_000, 2.0, 500), u32::MAX, 7, 0),
            ("a factor of 1 stays", backoff(100, 1_000, 1.0, 0), 9, 0, 100),
            ("one below it too", backoff(100, 1_000, 0.1, 0), 9, 0, 100),
            ("one that is no number too", backoff(100, 1_000, f64::NAN, 0), 9, 0, 100),
            ("an endless one is the limit from the second on", backoff(100, 1_000, f64::INFINITY, 0), 2, 0, 1_000),
            ("and not before", backoff(100, 1_000, f64::INFINITY, 0), 1, 0, 100),
            ("half a factor", backoff(100, 1_000, 1.5, 0), 3, 0, 225),
            ("no overflow at the end of time", backoff(u64::MAX, u64::MAX, 9.0, 1_000), u32::MAX, 0, u64::MAX),
            ("nor of what is taken off", backoff(u64::MAX, u64::MAX, 9.0, 1_000), 7, u32::MAX, 0),
        ];
        for (name, backoff, attempt, chance, expected) in cases {
            assert_eq!(backoff.delay(attempt, chance), Duration::from_millis(expected), "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_delay_is_within_its_bounds_and_never_less_than_the_one_before(
            initial: u64, max: u64, factor: f64, jitter: u16, attempt: u32, chance: u32,
        ) {
            let it = backoff(initial, max, factor, jitter);
            let (whole, delay) = (it.delay(attempt, 0), it.delay(attempt, chance));
            prop_assert!(whole <= Duration::from_millis(max));
            prop_assert!(whole >= Duration::from_millis(initial.min(max)));
            prop_assert!(delay <= whole);
            let least = whole.as_millis() * u128::from(1_000 - jitter.min(1_000)) / 1_000;
            prop_assert!(delay.as_millis() >= least);
            // Powers are rounded, each in its own way.
            let next = it.delay(attempt.saturating_add(1), 0).as_millis();
            prop_assert!(next + (next >> 40) >= whole.as_millis());
        }
    }
}
