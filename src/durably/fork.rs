//! Forks: what is asked of one.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;

use serde_json::Value;

use super::Core;
use crate::error::Error;
use crate::id::RunId;
use crate::run::RunHandle;
use crate::step::StepKey;
use crate::store::fork::Edits;

/// A fork as a message carries it. See [`Durably::fork`](crate::Durably::fork).
#[derive(Debug, Clone)]
pub struct ForkRequest {
    pub(crate) run: RunId,
    pub(crate) input: Option<Value>,
    pub(crate) edits: Edits,
    pub(crate) idempotency_key: Option<String>,
}

impl ForkRequest {
    /// A fork of a run, with all its checkpoints.
    pub fn new(run: RunId) -> Self {
        ForkRequest { run, input: None, edits: Edits::default(), idempotency_key: None }
    }
}

/// A fork that has not been sent: say from where, then await it. See [`Durably::fork`](crate::Durably::fork).
#[must_use = "a fork does nothing until it is awaited"]
pub struct ForkRun {
    core: Arc<Core>,
    request: ForkRequest,
}

impl fmt::Debug for ForkRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForkRun").field("request", &self.request).finish_non_exhaustive()
    }
}

impl ForkRun {
    pub(super) fn new(core: Arc<Core>, run: RunId) -> Self {
        ForkRun { core, request: ForkRequest::new(run) }
    }
}

macro_rules! fork_options {
    ($type:ty, $($edits:tt).+, $($input:tt).+, $($key:tt).+) => {
        impl $type {
            /// Go on from this step: checkpoints with a lower index than its are taken over, its own and those above run again.
            /// Without it, all are taken over.
            ///
            /// An index is given where a step is first called. Of steps that were called beside this one, as in `join!`, those
            /// called before it keep their outputs, and those called after it run again.
            pub fn from_step(mut self, key: impl Into<StepKey>) -> Self {
                self.$($edits).+.from_step = Some(key.into().to_string());
                self
            }

            /// Begin with this input instead of the old one: JSON that satisfies the job's schema. Outputs that are taken over
            /// stay as they are, though another input might have led to others.
            pub fn input(mut self, input: Value) -> Self {
                self.$($input).+ = Some(input);
                self
            }

            /// Let this step have completed with this output, whatever became of it in the old run. It must be a step that the
            /// old run has recorded. Whether the output fits is found where the code asks for it.
            pub fn with_output(mut self, key: impl Into<StepKey>, output: Value) -> Self {
                self.$($edits).+.outputs.insert(key.into().to_string(), output.to_string().into());
                self
            }

            /// Let this step have completed with null, without being run. As [`with_output`](Self::with_output).
            pub fn skip(self, key: impl Into<StepKey>) -> Self {
                self.with_output(key, Value::Null)
            }

            /// The new run's idempotency key: 1 to 512 bytes, unique per job.
            pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
                self.$($key).+ = Some(key.into());
                self
            }
        }
    };
}

fork_options!(ForkRequest, edits, input, idempotency_key);
fork_options!(ForkRun, request.edits, request.input, request.idempotency_key);

impl IntoFuture for ForkRun {
    type Output = Result<RunHandle<Value>, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let triggered = self.core.fork(self.request).await?;
            Ok(RunHandle::new(self.core, triggered))
        })
    }
}
