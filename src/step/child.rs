//! Steps that trigger runs of other jobs.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::StepWait;
use crate::durably::Core;
use crate::error::Error;
use crate::job::{JobHandle, JobResult, Payload};
use crate::store::op::{NewRun, Parent};
use crate::trigger::{Options, trigger_options};

/// A step that triggers a run: set its options, then await it. See [`Step::trigger`](super::Step::trigger) and
/// [`Step::call`](super::Step::call).
///
/// # Cancel safety
/// Dropped after it was polled, the run may or may not be there; the next call of its key gives that one.
#[must_use = "a step does nothing until it is awaited"]
pub struct StepCall<T> {
    wait: StepWait<'static, T>,
    asked: Option<Asked>,
    options: Options,
    parent: Parent,
}

/// The run that is asked for.
struct Asked {
    core: Arc<Core>,
    job: Arc<str>,
    input: Result<Value, Error>,
}

trigger_options!([T] StepCall<T>, options);

impl<T> fmt::Debug for StepCall<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepCall").finish_non_exhaustive()
    }
}

impl<T> StepCall<T> {
    pub(super) fn new<I: Payload, O>(
        wait: StepWait<'static, T>,
        handle: &JobHandle<I, O>,
        input: &I,
        parent: crate::id::RunId,
    ) -> Self {
        let input = serde_json::to_value(input).map_err(|error| Error::InvalidInput {
            path: String::new(),
            rule: "type".into(),
            message: error.to_string(),
        });
        let asked = Asked { core: handle.core.clone(), job: handle.definition.name.clone(), input };
        let parent = Parent { run: parent, detached: false };
        StepCall { wait, asked: Some(asked), options: Options::default(), parent }
    }

    /// The child goes on when this run is cancelled; without it, it is cancelled too.
    pub fn detached(mut self) -> Self {
        self.parent.detached = true;
        self
    }

    /// Fail the step with [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) if the child has not ended this long after its
    /// trigger. The child goes on.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.wait = self.wait.timeout(timeout);
        self
    }
}

impl Asked {
    fn build(self, options: Options, parent: Parent) -> Result<NewRun, Error> {
        let run = self.core.build_json(&self.job, &self.input?, options, None)?;
        Ok(NewRun { parent: Some(parent), ..run })
    }
}

impl<T: DeserializeOwned + Send + 'static> Future for StepCall<T> {
    type Output = JobResult<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<JobResult<T>> {
        let StepCall { wait, asked, options, parent } = self.get_mut();
        if let Some(asked) = asked.take() {
            wait.set_child(|| asked.build(std::mem::take(options), *parent));
        }
        Pin::new(wait).poll(cx)
    }
}
