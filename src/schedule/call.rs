//! The builders that register a schedule.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::{Missed, ScheduleInfo};
use crate::actor::message::{ScheduleRequest, TriggerRequest};
use crate::durably::Core;
use crate::error::Error;
use crate::job::{JobHandle, Payload};
use crate::trigger::trigger_options;

/// A schedule that has no job yet: see [`Durably::schedule`](crate::Durably::schedule).
#[must_use = "a schedule does nothing until it has a trigger, which is awaited"]
pub struct ScheduleBuilder {
    core: Arc<Core>,
    name: String,
    expression: String,
    time_zone: Option<String>,
    missed: Missed,
}

impl fmt::Debug for ScheduleBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScheduleBuilder")
            .field("name", &self.name)
            .field("expression", &self.expression)
            .finish_non_exhaustive()
    }
}

impl ScheduleBuilder {
    pub(crate) fn new(core: Arc<Core>, name: String, expression: String) -> Self {
        ScheduleBuilder { core, name, expression, time_zone: None, missed: Missed::default() }
    }

    /// Read the expression on the wall clock of this zone, by its name in the IANA database: `Europe/Berlin`; default `UTC`.
    pub fn time_zone(mut self, name: impl Into<String>) -> Self {
        self.time_zone = Some(name.into());
        self
    }

    /// What to do about due times that were missed; default [`Missed::Once`].
    pub fn missed(mut self, missed: Missed) -> Self {
        self.missed = missed;
        self
    }

    /// Trigger this job with this input whenever it is due. Options of the returned builder are those of every firing.
    pub fn trigger<I: Payload, O: Payload>(self, job: &JobHandle<I, O>, input: I) -> ScheduleCall {
        self.call(job.name().to_owned(), &input)
    }

    /// Trigger a registered job by its name with JSON input.
    pub fn trigger_json(self, job: impl Into<String>, input: Value) -> ScheduleCall {
        self.call(job.into(), &input)
    }

    fn call(self, job: String, input: &impl Serialize) -> ScheduleCall {
        let ScheduleBuilder { core, name, expression, time_zone, missed } = self;
        let (input, refused) = match serde_json::to_value(input) {
            Ok(input) => (input, None),
            Err(error) => {
                let (path, rule, message) = (String::new(), "type".into(), error.to_string());
                (Value::Null, Some(Error::InvalidInput { path, rule, message }))
            }
        };
        let request = ScheduleRequest::new(name, expression, TriggerRequest::new(job, input)).missed(missed);
        let request = match time_zone {
            Some(zone) => request.time_zone(zone),
            None => request,
        };
        ScheduleCall { core, request, refused }
    }
}

/// A schedule that is not registered yet: set the options of its firings, then await it.
///
/// A firing has an idempotency key of its own, so that options of idempotency are refused, as is a fixed moment
/// ([`at`](ScheduleCall::at)).
#[must_use = "a schedule does nothing until it is awaited"]
pub struct ScheduleCall {
    core: Arc<Core>,
    request: ScheduleRequest,
    refused: Option<Error>,
}

trigger_options!([] ScheduleCall, request.trigger.options);

impl fmt::Debug for ScheduleCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScheduleCall").field("request", &self.request).finish_non_exhaustive()
    }
}

impl IntoFuture for ScheduleCall {
    type Output = Result<ScheduleInfo, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<ScheduleInfo, Error>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let ScheduleCall { core, request, refused } = self;
        Box::pin(async move {
            match refused {
                Some(error) => Err(error),
                None => core.schedule(request).await,
            }
        })
    }
}
