//! A triggered run, as its trigger gave it.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::{Run, RunStatus};
use crate::durably::Core;
use crate::error::Error;
use crate::id::RunId;
use crate::store::op::Triggered;
use crate::trigger::{Disposition, WaitForRun};

/// A run that a trigger was answered with. Cheap to clone; dropping it cancels nothing.
pub struct RunHandle<O> {
    core: Arc<Core>,
    triggered: Triggered,
    output: PhantomData<fn() -> O>,
}

impl<O> Clone for RunHandle<O> {
    fn clone(&self) -> Self {
        RunHandle { core: self.core.clone(), triggered: self.triggered, output: PhantomData }
    }
}

impl<O> fmt::Debug for RunHandle<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunHandle")
            .field("id", &self.id())
            .field("disposition", &self.disposition())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl<O> RunHandle<O> {
    pub(crate) fn new(core: Arc<Core>, triggered: Triggered) -> Self {
        RunHandle { core, triggered, output: PhantomData }
    }

    /// The run's id.
    pub fn id(&self) -> RunId {
        self.triggered.run
    }

    /// Whether the run was created, or was there already.
    pub fn disposition(&self) -> Disposition {
        self.triggered.disposition
    }

    /// The run's status as the trigger's commit left it; it may be leased already.
    pub fn status(&self) -> RunStatus {
        self.triggered.status
    }

    /// Whether this was a repeat of an idempotency key with another input than the run has.
    pub fn input_differs(&self) -> bool {
        self.triggered.input_differs
    }

    /// The run as it is now.
    ///
    /// # Errors
    /// [`Error::RunNotFound`] once it was deleted, [`Error::Storage`], [`Error::Corrupted`].
    pub async fn get(&self) -> Result<Run, Error> {
        let run = self.id();
        self.core.store.get_run(run).await?.ok_or(Error::RunNotFound { run })
    }

    /// Waits for the run to complete; set a timeout or callbacks first if they are wanted.
    pub fn wait(&self) -> WaitForRun {
        WaitForRun::new(self.core.clone(), self.id())
    }

    /// Cancels the run.
    ///
    /// # Errors
    /// As [`Durably::cancel`](crate::Durably::cancel).
    pub async fn cancel(&self) -> Result<(), Error> {
        self.core.cancel(self.id()).await
    }
}

impl<O: DeserializeOwned> RunHandle<O> {
    /// Waits for the output.
    ///
    /// # Errors
    /// [`Error::RunFailed`], [`Error::RunCancelled`], [`Error::RunNotFound`] if it is deleted meanwhile, [`Error::Decode`],
    /// [`Error::WouldDeadlock`] inside a body, [`Error::ShutDown`].
    ///
    /// # Cancel safety
    /// Dropping it stops waiting; the run goes on.
    pub async fn output(&self) -> Result<O, Error> {
        self.wait().output().await
    }
}
