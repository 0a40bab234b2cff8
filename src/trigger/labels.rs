//! What a label, a key and a name may look like.

use crate::error::Error;
use crate::limits::{
    JOB_NAME_BYTES_MAX, KEY_BYTES_MAX, LABEL_KEY_BYTES_MAX, LABEL_VALUE_BYTES_MAX, LABELS_MAX, SCHEDULE_NAME_BYTES_MAX,
};

fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-'))
}

/// Checks one label.
pub(crate) fn check(key: &str, value: &str) -> Result<(), Error> {
    within("label key", key.len(), LABEL_KEY_BYTES_MAX)?;
    within("label value", value.len(), LABEL_VALUE_BYTES_MAX)?;
    if is_plain(key) {
        return Ok(());
    }
    Err(Error::InvalidOption { option: "label key", value: shown(key), rule: "one or more of [A-Za-z0-9._/-]" })
}

/// Checks the labels of a run.
pub(crate) fn check_all(labels: &[(String, String)]) -> Result<(), Error> {
    if labels.len() > LABELS_MAX {
        return Err(Error::TooMany { what: "labels", count: labels.len(), count_max: LABELS_MAX });
    }
    labels.iter().try_for_each(|(key, value)| check(key, value))
}

/// Checks an idempotency or concurrency key.
pub(crate) fn check_key(option: &'static str, key: &str) -> Result<(), Error> {
    within(option, key.len(), KEY_BYTES_MAX)?;
    if key.is_empty() {
        return Err(Error::InvalidOption { option, value: String::new(), rule: "at least one byte" });
    }
    Ok(())
}

/// Checks a job's name.
pub(crate) fn check_job_name(name: &str) -> Result<(), Error> {
    check_name("job name", name, JOB_NAME_BYTES_MAX)
}

/// Checks a schedule's name.
pub(crate) fn check_schedule_name(name: &str) -> Result<(), Error> {
    check_name("schedule name", name, SCHEDULE_NAME_BYTES_MAX)
}

fn check_name(option: &'static str, name: &str, bytes_max: usize) -> Result<(), Error> {
    within(option, name.len(), bytes_max)?;
    if is_plain(name) {
        return Ok(());
    }
    Err(Error::InvalidOption { option, value: shown(name), rule: "1 to 128 bytes of [A-Za-z0-9._/-]" })
}

pub(crate) fn within(what: &'static str, bytes: usize, bytes_max: usize) -> Result<(), Error> {
    if bytes > bytes_max { Err(Error::TooLarge { what, bytes, bytes_max }) } else { Ok(()) }
}

/// A refused text as an error shows it: short, with control characters escaped.
fn shown(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}
