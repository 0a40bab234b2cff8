//! Keys of every table: bytes whose order is the order that scans need.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt::{self, Debug, Write};
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use crate::id::RunId;
use crate::run::RunStatus;
use crate::time::Timestamp;

/// Bytes that a [`Key`] holds without memory of its own: every key but those with a user's text in them is shorter.
const SHORT: usize = 30;

/// The key of a row.
#[derive(Clone)]
pub(crate) struct Key(Form);

#[derive(Clone)]
enum Form {
    Short { length: u8, bytes: [u8; SHORT] },
    Long(Box<[u8]>),
}

impl Key {
    fn of(parts: &[&[u8]]) -> Key {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length > SHORT {
            return Key(Form::Long(parts.concat().into()));
        }
        let (mut bytes, mut at) = ([0; SHORT], 0);
        for part in parts {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        Key(Form::Short { length: length as u8, bytes })
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Form::Short { length, bytes } => &bytes[..usize::from(*length)],
            Form::Long(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for Key {
    fn from(bytes: &[u8]) -> Self {
        Key::of(&[bytes])
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            // What follows a short key is zeros, so where the padded bytes differ the keys do, in the same order; and where they
            // do not, one key is the other and zeros. As numbers they are compared without a call. The last of them overlaps the
            // one before: what is looked at twice is equal then.
            (Form::Short { length, bytes }, Form::Short { length: other_length, bytes: other }) => {
                for at in [0, 8, 16, SHORT - 8] {
                    let (number, other) = (number(bytes, at), self::number(other, at));
                    if number != other {
                        return number.cmp(&other);
                    }
                }
                length.cmp(other_length)
            }
            _ => (**self).cmp(&**other),
        }
    }
}

/// Eight bytes as a number, which sorts as they do.
fn number(bytes: &[u8; SHORT], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(number)
}

impl Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show(self))
    }
}

pub(crate) fn run(id: RunId) -> Key {
    Key::of(&[id.as_bytes()])
}

/// The run at the end of an index key, which is where every index has it.
pub(crate) fn read_run(key: &[u8]) -> Option<RunId> {
    RunId::from_slice(key.get(key.len().checked_sub(RunId::BYTES)?..)?)
}

/// A row that belongs to a run and is numbered within it: a step, a log line.
pub(crate) fn of_run(id: RunId, number: u32) -> Key {
    Key::of(&[id.as_bytes(), &number.to_be_bytes()])
}

pub(crate) fn read_step(key: &[u8]) -> Option<(RunId, u32)> {
    let (id, number) = key.split_at_checked(RunId::BYTES)?;
    Some((RunId::from_slice(id)?, u32::from_be_bytes(number.try_into().ok()?)))
}

pub(crate) fn by_status_prefix(status: RunStatus) -> Key {
    Key::of(&[&[stands_with(status).to_byte()]])
}

pub(crate) fn by_status(status: RunStatus, id: RunId) -> Key {
    Key::of(&[&[stands_with(status).to_byte()], id.as_bytes()])
}

/// A leased run stays where it was when it was pending, so that neither a lease nor its end moves it: which runs are leased is
/// in their states, and of those that execute in memory.
fn stands_with(status: RunStatus) -> RunStatus {
    if status == RunStatus::Leased { RunStatus::Pending } else { status }
}

pub(crate) fn by_job_prefix(job: u32) -> Key {
    Key::of(&[&job.to_be_bytes()])
}

pub(crate) fn by_job(job: u32, id: RunId) -> Key {
    Key::of(&[&job.to_be_bytes(), id.as_bytes()])
}

/// Lengths before the texts, so that no text can pass for another with a different split.
pub(crate) fn by_label_prefix(key: &str, value: &str) -> Key {
    Key::of(&[&length(key), key.as_bytes(), &length(value), value.as_bytes()])
}

pub(crate) fn by_label(key: &str, value: &str, id: RunId) -> Key {
    Key::of(&[&length(key), key.as_bytes(), &length(value), value.as_bytes(), id.as_bytes()])
}

pub(crate) fn idempotency(job: u32, key: &str) -> Key {
    Key::of(&[&job.to_be_bytes(), key.as_bytes()])
}

/// Signals of a run and a name, in order of their tickets.
pub(crate) fn signals_prefix(id: RunId, name: &str) -> Key {
    Key::of(&[id.as_bytes(), &length(name), name.as_bytes()])
}

pub(crate) fn signal(id: RunId, name: &str, ticket: RunId) -> Key {
    Key::of(&[id.as_bytes(), &length(name), name.as_bytes(), ticket.as_bytes()])
}

pub(crate) fn child(parent: RunId, child: RunId) -> Key {
    Key::of(&[parent.as_bytes(), child.as_bytes()])
}

pub(crate) fn awaiter(awaited: RunId, waiter: RunId, step: u32) -> Key {
    Key::of(&[awaited.as_bytes(), waiter.as_bytes(), &step.to_be_bytes()])
}

/// The awaited run, the one that waits, and its step.
pub(crate) fn read_awaiter(key: &[u8]) -> Option<(RunId, RunId, u32)> {
    let (awaited, rest) = key.split_at_checked(RunId::BYTES)?;
    let (waiter, step) = read_step(rest)?;
    Some((RunId::from_slice(awaited)?, waiter, step))
}

pub(crate) fn job_throttle(job: u32) -> Key {
    Key::of(&[&[0], &job.to_be_bytes()])
}

pub(crate) fn key_throttle(key: &str) -> Key {
    Key::of(&[&[1], key.as_bytes()])
}

/// The job, or the concurrency key.
pub(crate) fn read_throttle(key: &[u8]) -> Option<Result<u32, &str>> {
    match key.split_first()? {
        (0, job) => Some(Ok(u32::from_be_bytes(job.try_into().ok()?))),
        (1, key) => Some(Err(std::str::from_utf8(key).ok()?)),
        _ => None,
    }
}

/// Terminal runs in order of their end: what retention walks.
pub(crate) fn ended(at: Timestamp, id: RunId) -> Key {
    Key::of(&[&at.as_millis().to_be_bytes(), id.as_bytes()])
}

pub(crate) fn read_ended(key: &[u8]) -> Option<(Timestamp, RunId)> {
    let (at, id) = key.split_at_checked(8)?;
    Some((Timestamp::from_millis(u64::from_be_bytes(at.try_into().ok()?)), RunId::from_slice(id)?))
}

/// The first key after every key that begins with `prefix`; `None` where there is none.
pub(crate) fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string has no failure.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A key in an error message.
pub(crate) fn show(key: &[u8]) -> String {
    let mut text = hex(&key[..key.len().min(64)]);
    if key.len() > 64 {
        text.push('…');
    }
    text
}

fn length(text: &str) -> [u8; 2] {
    u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_end_of_a_prefix_is_after_all_its_keys() {
        assert_eq!(after_prefix(&[1, 2]), Some(vec![1, 3]));
        assert_eq!(after_prefix(&[1, 0xff]), Some(vec![2]));
        assert_eq!(after_prefix(&[0xff, 0xff]), None);
        assert_eq!(after_prefix(&[]), None);
    }

    proptest! {
        #[test]
        fn keys_sort_as_their_bytes_do(
            // Few values, zero among them, and lengths on both sides of what is short.
            a in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(255)], 0..40),
            b in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(255)], 0..40),
            shared in 0..40usize,
        ) {
            let mut b = b;
            let shared = shared.min(a.len()).min(b.len());
            b[..shared].copy_from_slice(&a[..shared]);
            let (left, right) = (Key::from(&a[..]), Key::from(&b[..]));
            prop_assert_eq!(left.cmp(&right), a.cmp(&b));
            prop_assert_eq!(left == right, a == b);
            prop_assert_eq!(&left[..], &a[..]);
        }

        #[test]
        fn step_keys_sort_by_run_and_then_number(a: (u128, u32), b: (u128, u32)) {
            let key = |(id, n): (u128, u32)| of_run(RunId::numbered(id), n);
            prop_assert_eq!(key(a).cmp(&key(b)), a.cmp(&b));
            prop_assert_eq!(read_step(&key(a)), Some((RunId::numbered(a.0), a.1)));
        }

        #[test]
        fn label_prefixes_never_hold_another_label(a: (String, String), b: (String, String), id: u128) {
            let id = RunId::numbered(id);
            let prefix = by_label_prefix(&a.0, &a.1);
            let other = by_label(&b.0, &b.1, id);
            prop_assert_eq!(other.len() == prefix.len() + 16 && other.starts_with(&prefix), a == b);
            prop_assert_eq!(read_run(&other), Some(id));
        }
    }
}
