//! Pausing jobs and keys, and the rates of keys.

use serde::Serialize;

use super::{Core, Durably};
use crate::error::Error;
use crate::job::RateLimit;
use crate::store::op::{self, Admitted, Op, Part, ThrottleChange, Throttling};
use crate::time::Timestamp;
use crate::trigger::labels::check_key;

/// A job or a key that is paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum Paused {
    /// A job.
    #[non_exhaustive]
    Job {
        /// Its name.
        name: String,
        /// Since when.
        since: Timestamp,
    },
    /// A concurrency key.
    #[non_exhaustive]
    Key {
        /// The key.
        key: String,
        /// Since when.
        since: Timestamp,
    },
}

impl Durably {
    /// Starts no run of a job, whether new, recovered or woken, until it is resumed, also after a restart. What executes goes on;
    /// triggers are taken. Again, it does nothing.
    ///
    /// ```
    /// # async fn example(durably: durably::Durably) -> Result<(), durably::Error> {
    /// durably.pause_job("send-mail").await?;
    /// assert_eq!(durably.paused().await?.len(), 1);
    /// durably.resume_job("send-mail").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A key's line is strict, so a paused run that is first in line for a key delays runs of other jobs that share it.
    ///
    /// # Errors
    /// [`Error::JobNotFound`] if it was never registered with this file; [`Error::Overloaded`], [`Error::Indeterminate`].
    ///
    /// # Cancel safety
    /// Once begun it is carried out, whether or not it is waited for. The same goes for the others here.
    pub async fn pause_job(&self, name: &str) -> Result<(), Error> {
        self.core.throttle(Part::Job(name.to_owned()), ThrottleChange::Pause(true)).await
    }

    /// Starts runs of a paused job again.
    ///
    /// # Errors
    /// As [`Durably::pause_job`].
    pub async fn resume_job(&self, name: &str) -> Result<(), Error> {
        self.core.throttle(Part::Job(name.to_owned()), ThrottleChange::Pause(false)).await
    }

    /// Lets no more runs have a concurrency key until it is resumed, also after a restart. Those that hold it (executing,
    /// suspended, woken) go on; triggers are taken.
    ///
    /// # Errors
    /// [`Error::InvalidOption`], [`Error::TooLarge`] for the key; [`Error::Overloaded`], [`Error::Indeterminate`].
    pub async fn pause_key(&self, key: &str) -> Result<(), Error> {
        self.core.throttle(Part::Key(key.to_owned()), ThrottleChange::Pause(true)).await
    }

    /// Lets runs have a paused key again.
    ///
    /// # Errors
    /// As [`Durably::pause_key`].
    pub async fn resume_key(&self, key: &str) -> Result<(), Error> {
        self.core.throttle(Part::Key(key.to_owned()), ThrottleChange::Pause(false)).await
    }

    /// What is paused: jobs, then keys.
    ///
    /// # Errors
    /// [`Error::ShutDown`].
    pub async fn paused(&self) -> Result<Vec<Paused>, Error> {
        self.core.paused_parts().await
    }

    /// Bounds how many runs of a concurrency key start in a time, of whatever jobs; `None` lifts that. It is stored, and
    /// another limit begins a new window.
    ///
    /// ```
    /// use durably::RateLimit;
    /// use std::time::Duration;
    ///
    /// # async fn example(durably: durably::Durably) -> Result<(), durably::Error> {
    /// durably.limit_key("api.example.com", RateLimit::new(100, Duration::from_secs(60))).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a limit of no start or no time; those of [`Durably::pause_key`].
    pub async fn limit_key(&self, key: &str, limit: impl Into<Option<RateLimit>>) -> Result<(), Error> {
        self.core.limit_key(key.to_owned(), limit.into()).await
    }
}

impl Core {
    pub(crate) async fn throttle(&self, of: Part, change: ThrottleChange) -> Result<(), Error> {
        if let Part::Key(key) = &of {
            check_key("concurrency key", key)?;
        }
        let admitted = self.store.admit(0, true).await?;
        self.store.submit(Op::Throttle, Throttling { of, change }, admitted).answer().await
    }

    pub(crate) async fn limit_key(&self, key: String, limit: Option<RateLimit>) -> Result<(), Error> {
        if let Some(limit) = limit {
            limit.validate()?;
        }
        self.throttle(Part::Key(key), ThrottleChange::Rate(limit.map(RateLimit::to_engine))).await
    }

    pub(crate) async fn paused_parts(&self) -> Result<Vec<Paused>, Error> {
        let parts = self.store.submit(Op::Throttled, (), Admitted::default()).answer().await?;
        let paused = |op::Paused { of, since }| match of {
            Part::Job(name) => Paused::Job { name, since },
            Part::Key(key) => Paused::Key { key, since },
        };
        Ok(parts.into_iter().map(paused).collect())
    }
}
