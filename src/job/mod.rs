//! Jobs: their definition, registration and handles, and what their bodies fail with.

mod error;
mod handle;
mod rate;
mod register;
mod retry;
pub(crate) mod schema;
pub(crate) mod upcast;

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub(crate) use error::cut;
pub use error::{ErrorKind, JobError, JobResult};
pub use handle::JobHandle;
pub use rate::RateLimit;
pub use register::Register;
#[cfg(feature = "testing")]
pub(crate) use register::register_again;
pub(crate) use register::{Registry, register};
pub use retry::Retry;

use crate::error::Error;
use crate::step::Step;
use crate::store::op::Terms;
use schema::{Contract, ContractError, DecodeError};

/// What a job takes and gives: serde types with a JSON Schema. Implemented for every type that is all of it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be the input or output of a job",
    label = "not a job payload",
    note = "inputs and outputs need `#[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]` and must be `Send + 'static`"
)]
pub trait Payload: Serialize + DeserializeOwned + JsonSchema + Send + 'static {}

impl<T: Serialize + DeserializeOwned + JsonSchema + Send + 'static> Payload for T {}

/// The body's future; gives the output as JSON.
pub(crate) type BodyFuture = Pin<Box<dyn Future<Output = JobResult<Value>> + Send>>;
type StartBody = dyn Fn(Step, &[u8]) -> Result<BodyFuture, DecodeError> + Send + Sync;
type Normalise = dyn Fn(&Value) -> Result<Vec<u8>, DecodeError> + Send + Sync;

/// A job's definition: a name, an input type, an output type and an async body made of steps.
///
/// A definition is inert until it is [registered](crate::Durably::register). Clones are the same definition; another one of
/// the same name is another definition, and registering it is refused.
pub struct Job<I, O> {
    pub(crate) definition: Arc<Definition>,
    types: PhantomData<fn(I) -> O>,
}

impl<I, O> Clone for Job<I, O> {
    fn clone(&self) -> Self {
        Job { definition: self.definition.clone(), types: PhantomData }
    }
}

impl<I, O> fmt::Debug for Job<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("name", &self.definition.name).finish_non_exhaustive()
    }
}

type Check = dyn Fn(&[u8]) -> Result<(), DecodeError> + Send + Sync;

/// What a definition says about the stored outputs of a step.
#[derive(Clone)]
pub(crate) struct Expectation {
    key: String,
    /// The first version that it is true of.
    since: u32,
    check: Arc<Check>,
}

impl Expectation {
    /// Whether it says something about this step.
    pub(crate) fn is_about(&self, key: &str) -> bool {
        let rest = key.strip_prefix(&*self.key);
        rest.is_some_and(|rest| rest.is_empty() || (rest.starts_with('[') && rest.ends_with(']')))
    }

    pub(crate) fn check(&self, version: u32, output: &[u8]) -> Result<(), DecodeError> {
        if version < self.since { Ok(()) } else { (self.check)(output) }
    }
}

/// A definition with its types erased.
#[derive(Clone)]
pub(crate) struct Definition {
    pub(crate) name: Arc<str>,
    pub(crate) limit: Option<u32>,
    /// For its steps that have none of their own.
    pub(crate) retry: Option<Retry>,
    /// For its runs that have none of their own.
    pub(crate) deadline: Option<Duration>,
    pub(crate) version: u32,
    upcasts: Vec<(u32, Arc<upcast::Upcast>)>,
    pub(crate) expectations: Vec<Expectation>,
    rate: Option<RateLimit>,
    fair: bool,
    input: Result<Arc<Contract>, Arc<ContractError>>,
    output: Result<Arc<Contract>, Arc<ContractError>>,
    normalise: Arc<Normalise>,
    start: Arc<StartBody>,
}

impl<I: Payload, O: Payload> Job<I, O> {
    /// Defines a job. Names are 1 to 128 bytes of `[A-Za-z0-9._/-]`, checked when it is registered.
    ///
    /// The body is started from the top in every execution; steps that have completed give their stored output again.
    pub fn new<F, Fut>(name: impl Into<String>, body: F) -> Self
    where
        F: Fn(Step, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = JobResult<O>> + Send + 'static,
    {
        let body = Arc::new(body);
        let definition = Definition {
            name: name.into().into(),
            limit: None,
            retry: None,
            deadline: None,
            version: 0,
            upcasts: Vec::new(),
            expectations: Vec::new(),
            rate: None,
            fair: false,
            input: Contract::input_of::<I>().map(Arc::new).map_err(Arc::new),
            output: Contract::output_of::<O>().map(Arc::new).map_err(Arc::new),
            normalise: Arc::new(|value| {
                let typed: I = schema::decode_value(value)?;
                encode_input(&typed)
            }),
            start: Arc::new(move |step, input| {
                let input: I = schema::decode(input)?;
                let body = body.clone();
                Ok(Box::pin(async move {
                    let output = body(step, input).await?;
                    serde_json::to_value(&output).map_err(|error| not_storable(&error))
                }))
            }),
        };
        Job { definition: Arc::new(definition), types: PhantomData }
    }

    /// At most this many runs of the job execute at a time, from 1; without it, only the runtime's `max_concurrent_runs`
    /// bounds them.
    pub fn concurrency(self, limit: u32) -> Self {
        self.with(|definition| definition.limit = Some(limit))
    }

    /// The version of this code; default 0. It is recorded on runs when they are triggered, and on steps when their outcome
    /// is, so that [`upcast`](crate::StepRun::upcast) can tell by which code an output was stored. It only grows, by hand,
    /// where a change makes stored values mean something else.
    pub fn version(self, version: u32) -> Self {
        self.with(|definition| definition.version = version)
    }

    /// Converts stored inputs of old runs: what versions up to `from_version` took, into what the next one takes. Several are
    /// applied in the order of their versions, so each goes one step only. Nothing is rewritten on disk. An input that can't
    /// be converted leaves its run pending and reported.
    ///
    /// ```
    /// # use durably::{Job, Step};
    /// # use serde::{Serialize, Deserialize};
    /// # use schemars::JsonSchema;
    /// #[derive(Serialize, Deserialize, JsonSchema)]
    /// struct Mail { to: Vec<String> }
    ///
    /// let mail = Job::new("mail", |_: Step, mail: Mail| async move { Ok(mail.to.len()) })
    ///     .version(1)
    ///     .upcast_input(0, |to: String| Ok(Mail { to: vec![to] }));
    /// ```
    pub fn upcast_input<A, B, F>(self, from_version: u32, convert: F) -> Self
    where
        A: DeserializeOwned,
        B: Serialize,
        F: Fn(A) -> JobResult<B> + Send + Sync + 'static,
    {
        let convert: Arc<upcast::Upcast> = Arc::new(move |old| upcast::typed(old, &convert));
        self.with(|definition| definition.upcasts.push((from_version, convert)))
    }

    /// Says what type this code reads from the stored output of a step, for [`Durably::check_pending`](crate::Durably::check_pending):
    /// nothing else looks at it. A key of one part stands for all its items too: `"sync"` for `sync[42]`.
    ///
    /// Only outputs stored by code of the version `since` or later are checked; those of older code are for the
    /// [`upcast`](crate::StepRun::upcast)s of the body.
    pub fn expects<T: DeserializeOwned>(self, key: impl Into<crate::step::StepKey>, since: u32) -> Self {
        let key = key.into().to_string();
        let check: Arc<Check> = Arc::new(|json| schema::decode::<T>(json).map(drop));
        self.with(|definition| definition.expectations.push(Expectation { key, since, check }))
    }

    fn with(self, change: impl FnOnce(&mut Definition)) -> Self {
        let mut definition = (*self.definition).clone();
        change(&mut definition);
        Job { definition: Arc::new(definition), types: PhantomData }
    }

    /// At most this many runs of the job start in a time, from 1 run and 1 ms. See [`RateLimit`] for what counts.
    pub fn rate_limit(self, starts: u32, per: Duration) -> Self {
        let definition = Definition { rate: Some(RateLimit::new(starts, per)), ..(*self.definition).clone() };
        Job { definition: Arc::new(definition), types: PhantomData }
    }

    /// Lets the concurrency keys of the job's runs take turns where there is not room for all, so that one key with many runs
    /// in line delays a run of another key by one start and not by all of them. Runs without a key are one group, which
    /// takes turns as a key does. Recovered and woken runs, and those of a higher priority, go before turns. Without this, runs
    /// start in order of trigger. Turns are among the runs of this job; between jobs it is the order of trigger.
    ///
    /// ```
    /// use durably::{Job, Step};
    ///
    /// let sync = Job::new("sync", |step: Step, org: String| async move {
    ///     step.run("fetch", || async { Ok(()) }).await?;
    ///     Ok(org)
    /// })
    /// .concurrency(4)
    /// .rate_limit(100, std::time::Duration::from_secs(60))
    /// .fair();
    /// # let _ = sync;
    /// ```
    pub fn fair(self) -> Self {
        let definition = Definition { fair: true, ..(*self.definition).clone() };
        Job { definition: Arc::new(definition), types: PhantomData }
    }

    /// How the job's [`Step::run`] steps are tried again that say nothing themselves; without it, they are not. A step's own
    /// [`retry`](crate::StepRun::retry) wins, so [`Retry::none`] turns it off there.
    ///
    /// ```
    /// # use durably::{Job, Retry, Step};
    /// # use std::time::Duration;
    /// let job = Job::new("mail", |step: Step, to: String| async move {
    ///     step.run("send", || async { Ok(println!("to {to}")) }).await
    /// })
    /// .retry(Retry::exponential(8).max(Duration::from_secs(600)))
    /// .deadline(Duration::from_secs(24 * 3600));
    /// ```
    pub fn retry(self, retry: Retry) -> Self {
        let definition = Definition { retry: Some(retry), ..(*self.definition).clone() };
        Job { definition: Arc::new(definition), types: PhantomData }
    }

    /// Runs of the job that have not ended this long after their trigger fail with
    /// [`ErrorKind::DeadlineExceeded`]; in milliseconds. A trigger's own deadline wins; without either, there is none.
    ///
    /// The moment is stored with the run. One that is pending, delayed or suspended fails at once; the body of one that
    /// executes is stopped as a cancel stops it, and nothing of it is recorded any more. Its children that are not detached
    /// are cancelled. A run that is [resumed](crate::Durably::resume) has no deadline from then on.
    pub fn deadline(self, deadline: Duration) -> Self {
        let definition = Definition { deadline: Some(deadline), ..(*self.definition).clone() };
        Job { definition: Arc::new(definition), types: PhantomData }
    }

    /// The job's name.
    pub fn name(&self) -> &str {
        &self.definition.name
    }
}

impl Definition {
    /// The JSON Schema of the input, as it is taken.
    pub(crate) fn input_schema(&self) -> &Value {
        self.input.as_ref().map_or(&Value::Null, |contract| contract.schema())
    }

    /// The JSON Schema of the output, as it is given.
    pub(crate) fn output_schema(&self) -> &Value {
        self.output.as_ref().map_or(&Value::Null, |contract| contract.schema())
    }

    /// On what terms its runs start.
    pub(crate) fn terms(&self) -> Terms {
        let rate = self.rate.map(RateLimit::to_engine);
        Terms { limit: self.limit.unwrap_or(u32::MAX), rate, fair: self.fair }
    }

    /// Checks what can't be checked by types.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        crate::trigger::labels::check_job_name(&self.name)?;
        if self.limit == Some(0) {
            return Err(Error::InvalidOption { option: "job concurrency", value: "0".into(), rule: "at least 1" });
        }
        if let Some(rate) = self.rate {
            rate.validate()?;
        }
        let unusable = |side, error: &ContractError| Error::InvalidSchema {
            job: self.name.to_string(),
            side,
            // The message is all that is kept of it, so it has what the compiler says too.
            message: format!("{error}: {}", error.source),
        };
        self.input.as_ref().map_err(|error| unusable("input", error))?;
        self.output.as_ref().map_err(|error| unusable("output", error))?;
        Ok(())
    }

    /// Checks an input and gives it as it is stored: typed, with defaults, as JSON.
    pub(crate) fn admit(&self, input: &Value) -> Result<Vec<u8>, Error> {
        if let Ok(contract) = &self.input {
            contract.check(input).map_err(|violation| Error::InvalidInput {
                path: violation.path,
                rule: violation.rule,
                message: violation.message,
            })?;
        }
        (self.normalise)(input).map_err(|error| Error::InvalidInput {
            path: error.path,
            rule: "type".into(),
            message: error.message,
        })
    }

    /// Starts the body on an input that was stored by code of this version.
    pub(crate) fn start(&self, step: Step, input: &[u8], version: u32) -> Result<BodyFuture, DecodeError> {
        if !self.upcasts.iter().any(|(from, _)| version <= *from) {
            return (self.start)(step, input);
        }
        let input = self.upcast(version, schema::decode(input)?)?;
        (self.start)(step, &serde_json::to_vec(&input).unwrap_or_default())
    }

    /// Whether an input that was stored by code of this version can be read.
    pub(crate) fn check_input(&self, version: u32, input: &[u8]) -> Result<(), DecodeError> {
        let input = self.upcast(version, schema::decode(input)?)?;
        (self.normalise)(&input).map(drop)
    }

    /// An input that was stored by code of this version, as this code takes it.
    pub(crate) fn upcast(&self, version: u32, input: Value) -> Result<Value, DecodeError> {
        let upcasts = self.upcasts.iter().map(|(from, convert)| (*from, &**convert as &upcast::Convert<'_>));
        upcast::apply(upcasts, version, input).map_err(|error| DecodeError {
            path: String::new(),
            message: format!("it can't be converted from version {version}: {error}"),
            expected: "an input",
        })
    }

    /// Checks an output and gives it as it is stored.
    pub(crate) fn conclude(&self, output: &Value, bytes_max: usize) -> JobResult<Bytes> {
        if let Ok(contract) = &self.output {
            contract.check(output).map_err(|violation| {
                let message = format!("invalid output at {:?}: {}", violation.path, violation.message);
                JobError::of_kind(ErrorKind::InvalidOutput, message)
            })?;
        }
        if !is_readable(output) {
            let message = format!("the output is nested over {NESTING_MAX} levels, so it can't be read back");
            return Err(JobError::of_kind(ErrorKind::NotStorable, message));
        }
        let bytes = serde_json::to_vec(output).map_err(|error| not_storable(&error))?;
        if bytes.len() > bytes_max {
            let message = format!("output of {} bytes is over the limit of {bytes_max}", bytes.len());
            return Err(JobError::of_kind(ErrorKind::OverLimit, message));
        }
        Ok(bytes.into())
    }
}

/// A typed input as JSON, if it can be read back.
fn encode_input<I: Payload>(input: &I) -> Result<Vec<u8>, DecodeError> {
    let bytes = serde_json::to_vec(input).map_err(|error| DecodeError {
        path: String::new(),
        message: error.to_string(),
        expected: std::any::type_name::<I>(),
    })?;
    schema::decode::<I>(&bytes)?;
    Ok(bytes)
}

/// Levels of arrays and objects that JSON can have and still be read: serde_json stops at 128.
const NESTING_MAX: usize = 127;

/// Whether a value can be read back once it is written. Deeper, its row would be as good as corrupted.
pub(crate) fn is_readable(value: &Value) -> bool {
    fn fits(value: &Value, left: usize) -> bool {
        match value {
            Value::Array(items) => left > 0 && items.iter().all(|item| fits(item, left - 1)),
            Value::Object(fields) => left > 0 && fields.values().all(|field| fits(field, left - 1)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
        }
    }
    fits(value, NESTING_MAX)
}

pub(crate) fn not_storable(error: &serde_json::Error) -> JobError {
    JobError::of_kind(ErrorKind::NotStorable, format!("can't be stored as JSON: {error}"))
}

/// The same for every order of an object's keys.
pub(crate) fn fingerprint(input: &[u8]) -> [u8; 16] {
    use sha2::{Digest, Sha256};
    fn feed(hasher: &mut Sha256, value: &Value) {
        match value {
            Value::Array(items) => {
                hasher.update(b"[");
                items.iter().for_each(|item| feed(hasher, item));
                hasher.update(b"]");
            }
            Value::Object(fields) => {
                // Sorted here: another crate of the program can turn serde_json's own sorting off.
                let mut fields: Vec<_> = fields.iter().collect();
                fields.sort_unstable_by_key(|(key, _)| *key);
                hasher.update(b"{");
                for (key, value) in fields {
                    hasher.update((key.len() as u64).to_le_bytes());
                    hasher.update(key);
                    feed(hasher, value);
                }
                hasher.update(b"}");
            }
            plain => {
                let text = plain.to_string();
                hasher.update((text.len() as u64).to_le_bytes());
                hasher.update(text);
            }
        }
    }
    let mut hasher = Sha256::new();
    feed(&mut hasher, &serde_json::from_slice(input).unwrap_or(Value::Null));
    let mut print = [0; 16];
    print.copy_from_slice(&hasher.finalize()[..16]);
    print
}
