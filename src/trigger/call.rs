//! The builders that are awaited.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::options::{Options, Trigger, trigger_options};
use super::wait::{Callbacks, Finished, WaitForRun};
use crate::durably::Core;
use crate::error::Error;
use crate::job::{JobHandle, Payload};
use crate::run::{LogLine, Progress, RunHandle};
use crate::store::op::{NewRun, Op, Triggered};

type Boxed<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// A trigger that has not been sent: set its options, then await it.
#[must_use = "a trigger does nothing until it is awaited"]
pub struct TriggerCall<I, O> {
    handle: JobHandle<I, O>,
    trigger: Trigger<I>,
    wait: bool,
}

impl<I, O> TriggerCall<I, O> {
    pub(crate) fn new(handle: JobHandle<I, O>, trigger: Trigger<I>, wait: bool) -> Self {
        TriggerCall { handle, trigger, wait }
    }
}

trigger_options!([I, O] TriggerCall<I, O>, trigger.options);

impl<I, O> fmt::Debug for TriggerCall<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TriggerCall").field("job", &self.handle).finish_non_exhaustive()
    }
}

impl<I: Payload, O: Payload> IntoFuture for TriggerCall<I, O> {
    type Output = Result<RunHandle<O>, Error>;
    type IntoFuture = Boxed<RunHandle<O>>;

    fn into_future(self) -> Self::IntoFuture {
        // Checked here and not inside the future, so that the input need not be `Sync` or live across an await.
        let TriggerCall { handle, trigger, wait } = self;
        let checked = build(&handle, trigger);
        Box::pin(async move {
            let core = handle.core.clone();
            let triggered = send(&core, vec![checked?], wait).await?;
            let first = triggered.first().copied().ok_or(Error::ShutDown)?;
            Ok(RunHandle::new(core, first))
        })
    }
}

/// A trigger that waits for the run's output: set its options, then await it.
#[must_use = "a trigger does nothing until it is awaited"]
pub struct TriggerAndWait<I, O> {
    call: TriggerCall<I, O>,
    timeout: Option<Duration>,
    callbacks: Callbacks,
}

impl<I, O> TriggerAndWait<I, O> {
    pub(crate) fn new(handle: JobHandle<I, O>, trigger: Trigger<I>) -> Self {
        TriggerAndWait { call: TriggerCall::new(handle, trigger, true), timeout: None, callbacks: Callbacks::default() }
    }

    /// Wait no longer than this, from the trigger's answer on; without it, as long as it takes. The run goes on after a
    /// timeout.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Call this with every progress that the run reports while it is waited for.
    /// A callback that panics ends the wait with that panic; the run goes on.
    pub fn on_progress(mut self, callback: impl FnMut(&Progress) + Send + 'static) -> Self {
        self.callbacks.progress = Some(Box::new(callback));
        self
    }

    /// Call this with every log line that the run writes while it is waited for.
    pub fn on_log(mut self, callback: impl FnMut(&LogLine) + Send + 'static) -> Self {
        self.callbacks.log = Some(Box::new(callback));
        self
    }
}

trigger_options!([I, O] TriggerAndWait<I, O>, call.trigger.options);

impl<I, O> fmt::Debug for TriggerAndWait<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TriggerAndWait").field("call", &self.call).finish_non_exhaustive()
    }
}

impl<I: Payload, O: Payload> IntoFuture for TriggerAndWait<I, O> {
    type Output = Result<Finished<O>, Error>;
    type IntoFuture = Boxed<Finished<O>>;

    fn into_future(self) -> Self::IntoFuture {
        let TriggerAndWait { call, timeout, callbacks } = self;
        let core = call.handle.core.clone();
        let triggering = call.into_future();
        Box::pin(async move {
            // Listening begins before the trigger, so that a short run's progress is not missed.
            let events = callbacks.listens().then(|| core.store.events().subscribe());
            let run = triggering.await?;
            let wait = WaitForRun::new(core, run.id()).with(timeout, callbacks, events);
            let output = wait.output::<O>().await?;
            Ok(Finished { id: run.id(), output, disposition: run.disposition() })
        })
    }
}

/// A trigger by name with JSON input, for servers and command lines: set its options, then await it.
#[must_use = "a trigger does nothing until it is awaited"]
pub struct JsonTrigger {
    core: Arc<Core>,
    job: String,
    input: Value,
    options: Options,
    wait: bool,
}

impl JsonTrigger {
    pub(crate) fn new(core: Arc<Core>, job: String, input: Value, wait: bool) -> Self {
        JsonTrigger { core, job, input, options: Options::default(), wait }
    }

    /// Waits for no room: refused at once if there is none.
    pub fn without_waiting(mut self) -> Self {
        self.wait = false;
        self
    }
}

trigger_options!([] JsonTrigger, options);

impl fmt::Debug for JsonTrigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonTrigger").field("job", &self.job).finish_non_exhaustive()
    }
}

impl IntoFuture for JsonTrigger {
    type Output = Result<RunHandle<Value>, Error>;
    type IntoFuture = Boxed<RunHandle<Value>>;

    fn into_future(self) -> Self::IntoFuture {
        let JsonTrigger { core, job, input, options, wait } = self;
        Box::pin(async move {
            let run = core.build_json(&job, &input, options, None)?;
            let triggered = send(&core, vec![run], wait).await?;
            let first = triggered.first().copied().ok_or(Error::ShutDown)?;
            Ok(RunHandle::new(core, first))
        })
    }
}

/// Checks a typed trigger whole.
pub(super) fn build<I: Payload, O>(handle: &JobHandle<I, O>, trigger: Trigger<I>) -> Result<NewRun, Error> {
    let input = serde_json::to_value(&trigger.input).map_err(|error| Error::InvalidInput {
        path: String::new(),
        rule: "type".into(),
        message: error.to_string(),
    })?;
    handle.core.build_json(&handle.definition.name, &input, trigger.options, None)
}

/// Sends checked runs and waits for their commit.
pub(crate) async fn send(core: &Core, runs: Vec<NewRun>, wait: bool) -> Result<Vec<Triggered>, Error> {
    let bytes = runs.iter().map(NewRun::bytes).sum();
    let admitted = core.store.admit(bytes, wait).await?;
    let triggered = core.store.submit(Op::Trigger, runs, admitted).answer().await?;
    for repeat in triggered.iter().filter(|triggered| triggered.input_differs) {
        tracing::warn!(run = %repeat.run, "a repeated idempotency key came with another input");
    }
    Ok(triggered)
}
