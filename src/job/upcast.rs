//! Conversions of what older code has stored.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{JobError, JobResult, not_storable, schema};

/// A conversion, as it is called.
pub(crate) type Convert<'f> = dyn Fn(Value) -> JobResult<Value> + 'f;
/// One that a definition keeps.
pub(crate) type Upcast = dyn Fn(Value) -> JobResult<Value> + Send + Sync;

/// Applies those that are for what `version` has stored, in the order of their versions.
pub(crate) fn apply<'f>(
    upcasts: impl Iterator<Item = (u32, &'f Convert<'f>)>,
    version: u32,
    value: Value,
) -> JobResult<Value> {
    let mut wanted: Vec<_> = upcasts.filter(|(from, _)| version <= *from).collect();
    wanted.sort_by_key(|(from, _)| *from);
    wanted.into_iter().try_fold(value, |value, (_, convert)| convert(value))
}

/// Converts a value by its types.
pub(crate) fn typed<A: DeserializeOwned, B: Serialize>(
    old: Value,
    convert: &impl Fn(A) -> JobResult<B>,
) -> JobResult<Value> {
    let old = schema::decode_value::<A>(&old)
        .map_err(|error| JobError::msg(format!("{} at {:?}", error.message, error.path)))?;
    serde_json::to_value(convert(old)?).map_err(|error| not_storable(&error))
}
