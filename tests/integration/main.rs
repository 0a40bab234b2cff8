//! The public API as a program uses it, rule by rule: what a test holds is in its name, and the id of the rule beside it.

mod batch;
mod coalesce;
mod concurrency;
mod definition;
mod errors;
mod idempotency;
mod labels;
mod limits;
mod opening;
mod query;
mod support;
mod trigger;
mod validation;
