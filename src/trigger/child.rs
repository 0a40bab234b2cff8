//! Steps that trigger runs of other jobs.

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::options::{Options, trigger_options};
use crate::durably::Core;
use crate::error::Error;
use crate::id::RunId;
use crate::job::{JobHandle, JobResult, Payload};
use crate::run::StepKind;
use crate::step::wait::Wanted;
use crate::step::{Step, StepKey, StepWait};
use crate::store::op::{NewRun, Parent};

/// A step that triggers a run: set its options, then await it. See [`Step::trigger`] and
/// [`Step::call`].
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
    fn new<I: Payload, O>(wait: StepWait<'static, T>, handle: &JobHandle<I, O>, input: &I, parent: RunId) -> Self {
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
    /// trigger. The child goes on. [`Step::trigger`] waits for nothing, so there it does nothing.
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

impl Step {
    /// Triggers a run of another job, exactly one however often this one is replayed, and gives its id as soon as it is on
    /// disk. The run has this one as its [`parent`](crate::Run::parent), and is cancelled with it unless it is
    /// [`detached`](StepCall::detached).
    ///
    /// # Errors
    /// [`ErrorKind::NotTriggered`](crate::ErrorKind::NotTriggered) with what a trigger would be refused with.
    ///
    /// ```
    /// # use durably::{JobHandle, JobResult, Step};
    /// # async fn body(step: Step, resize: JobHandle<u32, ()>) -> JobResult<()> {
    /// let run = step.trigger("thumbnail", &resize, 128).label("size", "small").await?;
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn trigger<I: Payload, O>(&self, key: impl Into<StepKey>, job: &JobHandle<I, O>, input: I) -> StepCall<RunId> {
        let wait = self.begin_wait(key.into(), Location::caller(), Wanted::new(StepKind::Trigger));
        StepCall::new(wait, job, &input, self.run_id())
    }

    /// Triggers a run of another job and waits for its output. See [`Step::trigger`], and [`Step::sleep`] for what becomes
    /// of this run meanwhile.
    ///
    /// # Errors
    /// Those of [`Step::trigger`]; [`ErrorKind::ChildFailed`](crate::ErrorKind::ChildFailed), with the child's error in the
    /// chain; [`ErrorKind::ChildCancelled`](crate::ErrorKind::ChildCancelled); with a timeout,
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout). A call that could never end is refused as not triggered: of a child that
    /// needs a concurrency key which this run holds, or one that waits for it; or where the idempotency key, or a policy for
    /// conflicts, gives a run that waits for this one, or is it.
    ///
    /// ```
    /// # use durably::{JobHandle, JobResult, Step};
    /// # async fn body(step: Step, price: JobHandle<String, u32>) -> JobResult<()> {
    /// let (tea, milk) = tokio::join!(
    ///     step.call(("price", "tea"), &price, "tea".into()),
    ///     step.call(("price", "milk"), &price, "milk".into()),
    /// );
    /// let sum = tea? + milk?;
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn call<I: Payload, O: Payload>(
        &self,
        key: impl Into<StepKey>,
        job: &JobHandle<I, O>,
        input: I,
    ) -> StepCall<O> {
        let wait = self.begin_wait(key.into(), Location::caller(), Wanted::new(StepKind::Call));
        StepCall::new(wait, job, &input, self.run_id())
    }
}
