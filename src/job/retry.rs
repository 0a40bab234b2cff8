//! Whether a step that has failed is tried again, and when.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::JobError;
use crate::engine::{Backoff, JITTER_MAX};

/// Whether and when a step that failed is tried again: for one step by [`StepRun::retry`](crate::StepRun::retry), for all of
/// a job by [`Job::retry`](crate::Job::retry).
///
/// Attempts are counted on disk, the first included, and so is the moment of the next one: a crash or a restart neither
/// begins the count anew nor makes a delay shorter. While all that a body does is wait, for longer than a second, its run is
/// [suspended](crate::Step::sleep). An error marked [`terminal`](JobError::terminal) and a value that can't be stored are not
/// tried again, and neither is a step whose run is cancelled; a shutdown hands the run back, and the next start goes on.
///
/// ```
/// # use durably::{JobResult, Retry, Step};
/// # use std::time::Duration;
/// # async fn charge(_: u32) -> Result<String, std::io::Error> { Ok("receipt".into()) }
/// # async fn body(step: Step) -> JobResult<()> {
/// let receipt = step
///     .run("charge", || async { Ok(charge(42).await?) })
///     .retry(Retry::exponential(5).initial(Duration::from_millis(200)).max(Duration::from_secs(30)))
///     .timeout(Duration::from_secs(10))
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Retry {
    attempts: u32,
    delays: Delays,
}

#[derive(Clone)]
enum Delays {
    Backoff(Backoff),
    Custom(Arc<Custom>),
}

type Custom = dyn Fn(u32, &JobError) -> Option<Duration> + Send + Sync;

impl fmt::Debug for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Retry");
        shown.field("attempts", &self.attempts);
        match &self.delays {
            Delays::Backoff(backoff) => shown.field("delays", backoff).finish(),
            Delays::Custom(_) => shown.finish_non_exhaustive(),
        }
    }
}

impl Retry {
    /// One attempt, which is also what a step does that was told nothing: for a step of a job that has a default.
    pub fn none() -> Self {
        Self::fixed(1, Duration::ZERO)
    }

    /// Up to this many attempts, the first included (0 counts as 1), with the same delay after each failure, in
    /// milliseconds. No jitter unless it is set.
    pub fn fixed(attempts: u32, delay: Duration) -> Self {
        Self::of(attempts, Backoff { initial: delay, max: delay, factor: 1.0, jitter: 0 })
    }

    /// Up to this many attempts, the first included (0 counts as 1), each delay twice the one before: from 1 s up to 1 h,
    /// up to a fifth of it taken off by chance.
    pub fn exponential(attempts: u32) -> Self {
        let (initial, max) = (Duration::from_secs(1), Duration::from_secs(3600));
        Self::of(attempts, Backoff { initial, max, factor: 2.0, jitter: JITTER_MAX / 5 })
    }

    /// Up to this many attempts, the first included (0 counts as 1), with the delay that `delay` gives for an attempt, from
    /// 1, that failed with this error; with `None` it was the last.
    ///
    /// ```
    /// # use durably::{ErrorKind, Retry};
    /// # use std::time::Duration;
    /// let retry = Retry::custom(10, |attempt, error| match error.kind() {
    ///     ErrorKind::Timeout => None,
    ///     _ => Some(Duration::from_secs(u64::from(attempt) * 5)),
    /// });
    /// ```
    pub fn custom<F>(attempts: u32, delay: F) -> Self
    where
        F: Fn(u32, &JobError) -> Option<Duration> + Send + Sync + 'static,
    {
        Retry { attempts, delays: Delays::Custom(Arc::new(delay)) }
    }

    fn of(attempts: u32, backoff: Backoff) -> Self {
        Retry { attempts, delays: Delays::Backoff(backoff) }
    }

    /// The delay after the first failure. Nothing to a custom one, here as below.
    pub fn initial(self, delay: Duration) -> Self {
        self.with(|backoff| backoff.initial = delay)
    }

    /// The longest delay.
    pub fn max(self, delay: Duration) -> Self {
        self.with(|backoff| backoff.max = delay)
    }

    /// What each delay is of the one before; below 1 it counts as 1.
    pub fn factor(self, factor: f64) -> Self {
        self.with(|backoff| backoff.factor = factor)
    }

    /// Take a share off each delay by chance, from nothing up to this, 0 to 1, so that what failed together does not come
    /// back together.
    pub fn jitter(self, share: f64) -> Self {
        // What is no number converts to 0.
        self.with(|backoff| backoff.jitter = (share.clamp(0.0, 1.0) * f64::from(JITTER_MAX)).round() as u16)
    }

    fn with(mut self, change: impl FnOnce(&mut Backoff)) -> Self {
        if let Delays::Backoff(backoff) = &mut self.delays {
            change(backoff);
        }
        self
    }

    /// How long to wait after the failure of an attempt, from 1; `None`: it was the last. `chance` is any number.
    pub(crate) fn delay(&self, attempt: u32, error: &JobError, chance: impl FnOnce() -> u32) -> Option<Duration> {
        if attempt >= self.attempts || error.is_terminal() {
            return None;
        }
        match &self.delays {
            Delays::Backoff(backoff) => Some(backoff.delay(attempt, chance())),
            Delays::Custom(delay) => delay(attempt, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_end_by_their_number_by_a_terminal_error_and_by_what_the_caller_says() {
        let (error, ms) = (JobError::msg("down"), Duration::from_millis);
        let terminal = JobError::msg("gone").terminal();
        let custom = Retry::custom(9, |attempt, error| (error.message() == "down").then(|| ms_of(attempt)));
        let cases = [
            ("no second attempt", Retry::none(), 1, &error, None),
            ("0 is 1", Retry::fixed(0, ms(5)), 1, &error, None),
            ("two of three", Retry::fixed(3, ms(5)), 2, &error, Some(ms(5))),
            ("three of three", Retry::fixed(3, ms(5)), 3, &error, None),
            ("a terminal error", Retry::fixed(3, ms(5)), 1, &terminal, None),
            ("growing", Retry::exponential(5).jitter(0.0), 3, &error, Some(ms(4_000))),
            ("set", Retry::exponential(5).initial(ms(10)).max(ms(25)).factor(3.0), 2, &error, Some(ms(25))),
            ("all of it by chance", Retry::exponential(5).jitter(7.0), 1, &error, Some(ms(0))),
            ("a jitter that is no number", Retry::exponential(5).jitter(f64::NAN), 1, &error, Some(ms(1_000))),
            ("the caller's delay", custom.clone(), 2, &error, Some(ms(2))),
            ("the caller's number", custom.clone(), 9, &error, None),
            ("the caller's end", custom.clone(), 1, &JobError::msg("else"), None),
            ("the caller is not asked about a terminal one", custom, 1, &terminal, None),
        ];
        for (name, retry, attempt, error, expected) in cases {
            let chance = if name.contains("by chance") { u32::MAX } else { 0 };
            assert_eq!(retry.delay(attempt, error, || chance), expected, "{name}");
        }
    }

    fn ms_of(attempt: u32) -> Duration {
        Duration::from_millis(attempt.into())
    }
}
