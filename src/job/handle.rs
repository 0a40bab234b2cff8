//! A registered job: what triggers runs of it.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde_json::Value;

use super::{Definition, Payload};
use crate::durably::Core;
use crate::error::Error;
use crate::id::RunId;
use crate::run::{Run, RunFilter, RunHandle};
use crate::trigger::{Trigger, TriggerAndWait, TriggerCall, batch};

/// A registered job. Handles are cheap to clone; dropping them cancels nothing.
pub struct JobHandle<I, O> {
    pub(crate) core: Arc<Core>,
    pub(crate) definition: Arc<Definition>,
    pub(crate) types: PhantomData<fn(I) -> O>,
}

impl<I, O> Clone for JobHandle<I, O> {
    fn clone(&self) -> Self {
        JobHandle { core: self.core.clone(), definition: self.definition.clone(), types: PhantomData }
    }
}

impl<I, O> fmt::Debug for JobHandle<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobHandle").field("name", &self.definition.name).finish_non_exhaustive()
    }
}

/// Handles of the same definition in the same runtime are equal.
impl<I, O> PartialEq for JobHandle<I, O> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.core, &other.core) && Arc::ptr_eq(&self.definition, &other.definition)
    }
}

impl<I, O> Eq for JobHandle<I, O> {}

impl<I: Payload, O: Payload> JobHandle<I, O> {
    /// The job's name.
    pub fn name(&self) -> &str {
        &self.definition.name
    }

    /// The JSON Schema that inputs must satisfy.
    pub fn input_schema(&self) -> &Value {
        self.definition.input_schema()
    }

    /// The JSON Schema that outputs satisfy.
    pub fn output_schema(&self) -> &Value {
        self.definition.output_schema()
    }

    /// Asks for a run. Await the returned builder: it answers when the run is on disk.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] and other refusals before anything is written, [`Error::KeyConflict`],
    /// [`Error::IdempotencyMismatch`], [`Error::Overloaded`], [`Error::Indeterminate`], [`Error::ShutDown`].
    ///
    /// # Cancel safety
    /// Dropped before it was awaited, nothing happens; dropped while it is awaited, the run may or may not be created. With
    /// an idempotency key, asking again is safe.
    #[must_use = "a trigger does nothing until it is awaited"]
    pub fn trigger(&self, input: I) -> TriggerCall<I, O> {
        TriggerCall::new(self.clone(), Trigger::new(input), true)
    }

    /// Like [`JobHandle::trigger`], but never waits for room: [`Error::Overloaded`] at once instead.
    #[must_use = "a trigger does nothing until it is awaited"]
    pub fn try_trigger(&self, input: I) -> TriggerCall<I, O> {
        TriggerCall::new(self.clone(), Trigger::new(input), false)
    }

    /// Asks for a run and waits for its output.
    ///
    /// # Errors
    /// Those of [`JobHandle::trigger`] and of [`Durably::wait_for_run`](crate::Durably::wait_for_run).
    ///
    /// # Cancel safety
    /// Dropping it stops waiting; the run goes on.
    #[must_use = "a trigger does nothing until it is awaited"]
    pub fn trigger_and_wait(&self, input: I) -> TriggerAndWait<I, O> {
        TriggerAndWait::new(self.clone(), Trigger::new(input))
    }

    /// Asks for many runs at once: all are checked before any is written, and all are created in one transaction or none.
    /// Answers in the order of the items; items are inputs, or [`Trigger`]s with options.
    ///
    /// # Errors
    /// [`Error::Item`] with the first refused item, [`Error::TooMany`], [`Error::TooLarge`], and those of
    /// [`JobHandle::trigger`].
    ///
    /// # Cancel safety
    /// As of [`JobHandle::trigger`].
    pub async fn batch_trigger<T: Into<Trigger<I>>>(
        &self,
        items: impl IntoIterator<Item = T>,
    ) -> Result<Vec<RunHandle<O>>, Error> {
        batch::trigger(self, items.into_iter().map(Into::into)).await
    }

    /// A run of this job; `None` if there is none of this id, or it is another job's.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::Corrupted`].
    pub async fn get_run(&self, run: RunId) -> Result<Option<Run>, Error> {
        let found = self.core.store.get_run(run).await?;
        Ok(found.filter(|run| *run.job_name == *self.definition.name))
    }

    /// Runs of this job, newest first; jobs named in the filter are replaced by this one.
    ///
    /// # Errors
    /// [`Error::TooMany`] and [`Error::InvalidOption`] for the filter, [`Error::Storage`], [`Error::Corrupted`].
    pub async fn get_runs(&self, mut filter: RunFilter) -> Result<Vec<Run>, Error> {
        filter.jobs = vec![self.name().to_owned()];
        self.core.store.get_runs(filter).await
    }
}
