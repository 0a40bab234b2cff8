//! So many starts in a time.

use std::time::Duration;

use crate::engine::Rate;
use crate::error::Error;

/// At most so many starts in a time, of a [job](crate::Job::rate_limit) or of a [key](crate::Durably::limit_key).
///
/// Time is counted in windows of that length, of the wall clock; one begins with the first start after the one before is over.
/// So no window has more starts than the limit, and any stretch of its length at most twice as many. The count survives a
/// restart. A clock that is set back makes nothing wait longer than one window.
///
/// A start is what a trigger or a resume asks for: a run that goes on after it was suspended, handed back or recovered is neither
/// counted nor held back. A run that is held back delays none of other jobs and keys; but a key's line is strict, so it does
/// delay those behind it in the line of a key that it shares with them. [`run_until_idle`](crate::Durably::run_until_idle) does
/// not wait for the next window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateLimit {
    /// Starts in a window, at least 1.
    pub starts: u32,
    /// The window's length, at least 1 ms; counted in milliseconds.
    pub per: Duration,
}

impl RateLimit {
    /// So many starts in a time.
    pub fn new(starts: u32, per: Duration) -> Self {
        RateLimit { starts, per }
    }

    pub(crate) fn validate(self) -> Result<(), Error> {
        if self.starts == 0 || self.per < Duration::from_millis(1) {
            let value = format!("{} in {:?}", self.starts, self.per);
            return Err(Error::InvalidOption {
                option: "rate limit",
                value,
                rule: "at least 1 start in at least 1 ms",
            });
        }
        Ok(())
    }

    pub(crate) fn to_engine(self) -> Rate {
        Rate { starts: self.starts, per: self.per }
    }
}
