//! The options of a trigger, checked in one place.

use std::sync::Arc;
use std::time::Duration;

use super::{OnConflict, labels};
use crate::error::Error;
use crate::id::RunId;
use crate::job::fingerprint;
use crate::limits::RUN_KEYS_MAX;
use crate::store::op::{Concurrency, Idempotency, NewRun, NotBefore};

#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) idempotency_key: Option<String>,
    pub(crate) idempotency_ttl: Option<Duration>,
    pub(crate) reject_changed_input: bool,
    pub(crate) reuse_after_failure: bool,
    /// Each once, with the limit if one was given.
    pub(crate) concurrency_keys: Vec<(String, Option<u32>)>,
    /// A limit that was given before any key.
    pub(crate) limit: Option<u32>,
    pub(crate) max_queued: Option<u32>,
    pub(crate) priority: i8,
    pub(crate) on_conflict: OnConflict,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) not_before: Option<NotBefore>,
}

/// An input with the options of its trigger, for a batch.
#[derive(Debug, Clone)]
#[must_use = "an item does nothing until it is in a batch"]
pub struct Trigger<I> {
    pub(crate) input: I,
    pub(crate) options: Options,
}

impl<I> Trigger<I> {
    /// An input without options.
    pub fn new(input: I) -> Self {
        Trigger { input, options: Options::default() }
    }
}

impl<I> From<I> for Trigger<I> {
    fn from(input: I) -> Self {
        Trigger::new(input)
    }
}

/// The setters that every kind of trigger has.
macro_rules! trigger_options {
    ([$($generic:ident),*] $type:ty, $($field:tt).+) => {
        impl<$($generic),*> $type {
            /// Same key, same run, for as long as the run is stored: 1 to 512 bytes, unique per job.
            pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
                self.$($field).+.idempotency_key = Some(key.into());
                self
            }

            /// The idempotency key is free again this long after the trigger, but never before its run has ended.
            pub fn idempotency_ttl(mut self, ttl: std::time::Duration) -> Self {
                self.$($field).+.idempotency_ttl = Some(ttl);
                self
            }

            /// Refuse a repeat of the idempotency key with another input, instead of only reporting it.
            pub fn reject_changed_input(mut self) -> Self {
                self.$($field).+.reject_changed_input = true;
                self
            }

            /// Let the idempotency key create a new run if its run failed or was cancelled.
            pub fn reuse_after_failure(mut self) -> Self {
                self.$($field).+.reuse_after_failure = true;
                self
            }

            /// Runs that share this key, of whatever job, go one at a time: 1 to 512 bytes.
            ///
            /// Called again it adds a key, up to 16. A run of several keys starts when it is first in line for each of them
            /// and all have room, and holds them all until it ends: it takes all or none, so runs can't lock each other out.
            /// Until then nobody overtakes it in any of its lines.
            pub fn concurrency_key(mut self, key: impl Into<String>) -> Self {
                self.$($field).+.add_key(key.into());
                self
            }

            /// Adds concurrency keys.
            pub fn concurrency_keys<K: Into<String>>(self, keys: impl IntoIterator<Item = K>) -> Self {
                keys.into_iter().fold(self, |trigger, key| trigger.concurrency_key(key))
            }

            /// Let this many runs of the concurrency key named last (or first, if none was named yet) execute at a time, from 1;
            /// default 1. Among runs with different limits the smallest counts.
            pub fn limit(mut self, limit: u32) -> Self {
                self.$($field).+.set_limit(limit);
                self
            }

            /// Leave at most this many runs that have never started waiting for each concurrency key of this trigger, from 0:
            /// one more is refused with [`Error::QueueFull`](crate::Error::QueueFull), and a batch whole. Without it, any
            /// number. A run that finds the key free does not wait for it, a delayed one waits from its moment on, and a
            /// repeat of an idempotency key is no new run.
            pub fn max_queued(mut self, runs: u32) -> Self {
                self.$($field).+.max_queued = Some(runs);
                self
            }

            /// Runs of higher priority go first, also in the line of a concurrency key: -128 to 127, default 0. Runs that
            /// have executed and go on (recovered, woken) go before all of them. Nothing rises by waiting: as long as there
            /// are enough runs of a higher priority, those of a lower one do not start.
            ///
            /// ```
            /// # async fn example(sync: durably::JobHandle<u32, ()>) -> Result<(), durably::Error> {
            /// // Needs both keys at once, goes before what others have asked for, and is refused behind a hundred of them.
            /// let run = sync.trigger(7).concurrency_key("customer-7").concurrency_key("api.example.com").limit(4);
            /// run.priority(10).max_queued(100).await?;
            /// # Ok(())
            /// # }
            /// ```
            pub fn priority(mut self, priority: i8) -> Self {
                self.$($field).+.priority = priority;
                self
            }

            /// What to do if a run of the same job already waits for the concurrency key, or for any of several; default
            /// [`OnConflict::Queue`](crate::OnConflict::Queue).
            pub fn on_conflict(mut self, policy: $crate::trigger::OnConflict) -> Self {
                self.$($field).+.on_conflict = policy;
                self
            }

            /// The run fails with [`ErrorKind::DeadlineExceeded`](crate::ErrorKind::DeadlineExceeded) if it has not ended this
            /// long after its trigger, in milliseconds, instead of what its [job](crate::Job::deadline) says.
            pub fn deadline(mut self, deadline: std::time::Duration) -> Self {
                self.$($field).+.deadline = Some(deadline);
                self
            }

            /// Start the run this long after it is created and no sooner, by the wall clock, to the millisecond; without it,
            /// as soon as there is room. Until then it is pending, stands in no line, and holds no key and no slot.
            ///
            /// A new run that [replaces](crate::OnConflict::Replace) one that waits has a moment of its own, whatever that of
            /// the other: a delay, a concurrency key and `Replace` start one run once no trigger has come for that long.
            /// Replaces [`at`](Self::at).
            ///
            /// ```
            /// use durably::OnConflict;
            /// use std::time::Duration;
            ///
            /// # async fn example(reindex: durably::JobHandle<u32, ()>, customer: u32) -> Result<(), durably::Error> {
            /// // Once, a minute after the last change.
            /// let key = format!("customer-{customer}");
            /// let run = reindex.trigger(customer).delay(Duration::from_secs(60));
            /// run.concurrency_key(key).on_conflict(OnConflict::Replace).await?;
            /// # Ok(())
            /// # }
            /// ```
            pub fn delay(mut self, delay: std::time::Duration) -> Self {
                self.$($field).+.not_before = Some($crate::store::op::NotBefore::After(delay));
                self
            }

            /// Start the run at this moment of the wall clock and no sooner, as with [`delay`](Self::delay), which this
            /// replaces. One that is over already delays nothing.
            pub fn at(mut self, at: $crate::Timestamp) -> Self {
                self.$($field).+.not_before = Some($crate::store::op::NotBefore::At(at));
                self
            }

            /// Adds a label; the same key again replaces its value. Keys are 1 to 128 bytes of `[A-Za-z0-9._/-]`, values up
            /// to 256 bytes, 64 of them at most.
            pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
                let (key, value) = (key.into(), value.into());
                let labels = &mut self.$($field).+.labels;
                match labels.iter_mut().find(|(known, _)| *known == key) {
                    Some((_, old)) => *old = value,
                    None => labels.push((key, value)),
                }
                self
            }

            /// Adds labels.
            pub fn labels<K: Into<String>, V: Into<String>>(self, labels: impl IntoIterator<Item = (K, V)>) -> Self {
                labels.into_iter().fold(self, |trigger, (key, value)| trigger.label(key, value))
            }
        }
    };
}
pub(crate) use trigger_options;

trigger_options!([I] Trigger<I>, options);

impl Options {
    pub(crate) fn add_key(&mut self, key: String) {
        if let Some(at) = self.concurrency_keys.iter().position(|(known, _)| *known == key) {
            let again = self.concurrency_keys.remove(at);
            self.concurrency_keys.push(again);
        } else {
            self.concurrency_keys.push((key, self.limit.take()));
        }
    }

    pub(crate) fn set_limit(&mut self, limit: u32) {
        match self.concurrency_keys.last_mut() {
            Some((_, of_key)) => *of_key = Some(limit),
            None => self.limit = Some(limit),
        }
    }

    /// The run that this asks for, if everything about it is allowed.
    pub(crate) fn build(
        self,
        (job, version): (Arc<str>, u32),
        input: Vec<u8>,
        bytes_max: usize,
        retriggered_from: Option<RunId>,
    ) -> Result<NewRun, Error> {
        labels::within("input", input.len(), bytes_max)?;
        labels::check_all(&self.labels)?;
        let needs = |option, missing| {
            if missing {
                return Err(Error::InvalidOption { option, value: String::new(), rule: "given together with its key" });
            }
            Ok(())
        };
        let idempotency = match self.idempotency_key {
            Some(key) => {
                labels::check_key("idempotency key", &key)?;
                Some(Idempotency {
                    key,
                    ttl: self.idempotency_ttl,
                    reject_changed_input: self.reject_changed_input,
                    reuse_after_failure: self.reuse_after_failure,
                })
            }
            None => {
                needs("idempotency_ttl", self.idempotency_ttl.is_some())?;
                needs("reject_changed_input", self.reject_changed_input)?;
                needs("reuse_after_failure", self.reuse_after_failure)?;
                None
            }
        };
        for (key, limit) in &self.concurrency_keys {
            labels::check_key("concurrency key", key)?;
            if *limit == Some(0) {
                return Err(Error::InvalidOption { option: "limit", value: "0".into(), rule: "at least 1" });
            }
        }
        let (what, count, count_max) = ("concurrency keys of a run", self.concurrency_keys.len(), RUN_KEYS_MAX);
        if count > count_max {
            return Err(Error::TooMany { what, count, count_max });
        }
        needs("limit", self.limit.is_some())?;
        let concurrency = if self.concurrency_keys.is_empty() {
            needs("on_conflict", self.on_conflict != OnConflict::Queue)?;
            needs("max_queued", self.max_queued.is_some())?;
            None
        } else {
            let keys = self.concurrency_keys.into_iter().map(|(key, limit)| (key, limit.unwrap_or(1)));
            let (on_conflict, max_queued) = (self.on_conflict, self.max_queued);
            Some(Concurrency { keys: keys.collect(), on_conflict, max_queued })
        };
        let fingerprint = fingerprint(&input);
        Ok(NewRun {
            job,
            input: input.into(),
            fingerprint,
            idempotency,
            concurrency,
            labels: self.labels,
            version,
            retriggered_from,
            forked: None,
            parent: None,
            not_before: self.not_before,
            deadline: self.deadline,
            schedule: None,
            priority: self.priority,
        })
    }
}
