//! The options of a trigger, checked in one place.

use std::sync::Arc;
use std::time::Duration;

use super::{OnConflict, labels};
use crate::error::Error;
use crate::id::RunId;
use crate::job::fingerprint;
use crate::store::op::{Concurrency, Idempotency, NewRun};

#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) idempotency_key: Option<String>,
    pub(crate) idempotency_ttl: Option<Duration>,
    pub(crate) reject_changed_input: bool,
    pub(crate) reuse_after_failure: bool,
    pub(crate) concurrency_key: Option<String>,
    pub(crate) limit: Option<u32>,
    pub(crate) on_conflict: OnConflict,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) deadline: Option<Duration>,
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
            pub fn concurrency_key(mut self, key: impl Into<String>) -> Self {
                self.$($field).+.concurrency_key = Some(key.into());
                self
            }

            /// Let this many runs of the concurrency key execute at a time, from 1; default 1. Among runs with different
            /// limits the smallest counts.
            pub fn limit(mut self, limit: u32) -> Self {
                self.$($field).+.limit = Some(limit);
                self
            }

            /// What to do if a run of the same job already waits for the concurrency key; default
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
    /// The run that this asks for, if everything about it is allowed.
    pub(crate) fn build(
        self,
        job: Arc<str>,
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
        let limit = self.limit.unwrap_or(1);
        if limit == 0 {
            return Err(Error::InvalidOption { option: "limit", value: "0".into(), rule: "at least 1" });
        }
        let concurrency = match self.concurrency_key {
            Some(key) => {
                labels::check_key("concurrency key", &key)?;
                Some(Concurrency { key, limit, on_conflict: self.on_conflict })
            }
            None => {
                needs("limit", self.limit.is_some())?;
                needs("on_conflict", self.on_conflict != OnConflict::Queue)?;
                None
            }
        };
        let fingerprint = fingerprint(&input);
        Ok(NewRun {
            job,
            input: input.into(),
            fingerprint,
            idempotency,
            concurrency,
            labels: self.labels,
            retriggered_from,
            parent: None,
            not_before: None,
            deadline: self.deadline,
        })
    }
}
