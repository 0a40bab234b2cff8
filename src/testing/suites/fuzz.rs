//! Where bytes and JSON from outside come in, one function each: the same for the seeded suite and for `cargo fuzz`.
//!
//! Each panics where something does not hold, and says whether what it was given was accepted.

use std::sync::OnceLock;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::codec::records::{
    ErrorRecord, JobRecord, LineRecord, LogRecord, ProgressRecord, RunRecord, ScheduleRecord, StandingRecord,
    StateRecord, StepRecord, TallyRecord, ThrottleRecord, TryRecord, WaitRecord,
};
use crate::codec::segment::{Segment, SegmentHead, Stored};
use crate::codec::{self, BlobRef, keys};
use crate::id::RunId;
use crate::job::{Job, fingerprint};
use crate::run::{RunFilter, RunStatus};
use crate::schedule::Timetable;
use crate::store::tables::Table;
use crate::store::{is_block_of_steps, is_journal_row};
use crate::time::Timestamp;
use crate::trigger::labels;

/// Tables with records, numbered as [`record`] takes them.
pub const TABLES: u8 = 12;
/// A block of steps, which has no envelope of its own.
const BLOCK: u8 = 11;

/// Reads bytes as the record of a table. `checksummed`: they get the envelope that makes them look whole. What can be read is
/// the same once it is written again.
#[expect(clippy::expect_used, reason = "a harness: what does not hold is to be loud")]
pub fn record(table: u8, bytes: &[u8], checksummed: bool) -> bool {
    fn check<H: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(table: Table, bytes: &Bytes) -> bool {
        let Ok((header, payload)) = codec::open::<H>(table, b"key", bytes) else { return false };
        let again = Bytes::from(codec::seal(&header, &payload));
        let (other, rest) = codec::open::<H>(table, b"key", &again).expect("what was sealed opens");
        assert_eq!((&other, &rest), (&header, &payload));
        true
    }
    let has_envelope = table % TABLES != BLOCK;
    let bytes: Bytes =
        if checksummed && has_envelope { enveloped(bytes).into() } else { Bytes::copy_from_slice(bytes) };
    let blob = BlobRef::of(&bytes);
    assert!(blob.is_none_or(|blob| BlobRef::of(&blob.to_value()) == Some(blob)));
    match table % TABLES {
        0 => check::<JobRecord>(Table::Jobs, &bytes),
        1 => check::<RunRecord>(Table::Runs, &bytes),
        2 => check::<StateRecord>(Table::States, &bytes),
        3 => check::<()>(Table::Outputs, &bytes),
        4 => check::<StepRecord>(Table::Steps, &bytes),
        5 => check::<LogRecord>(Table::Logs, &bytes),
        6 => check::<LineRecord>(Table::ByStatus, &bytes),
        7 => check::<TallyRecord>(Table::Tallies, &bytes),
        8 => check::<ThrottleRecord>(Table::Throttles, &bytes),
        9 => check::<ScheduleRecord>(Table::Schedules, &bytes),
        10 => check::<StandingRecord>(Table::Standings, &bytes),
        _ => is_block_of_steps(&bytes),
    }
}

/// Bytes as the body of a record, under version and checksum.
fn enveloped(body: &[u8]) -> Vec<u8> {
    let mut out = vec![codec::RECORD_VERSION];
    out.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
    out.extend_from_slice(body);
    out
}

/// A whole record of a table without its envelope, to be damaged and given to [`record`].
pub fn sample(table: u8, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut text = || "x".repeat(random.usize(..40));
    let error =
        ErrorRecord { kind: 3, message: text(), chain: vec![text(), text()], step: Some(text()), terminal: true };
    let keys = vec![(text(), 3), (text(), 1)];
    let at = Timestamp::from_millis(seed);
    let run = Some(RunId::from_bytes([seed as u8; 16]));
    let sealed = match table % TABLES {
        0 => codec::seal(&JobRecord { number: seed as u32 }, &[]),
        1 => {
            let record = RunRecord {
                job: 1,
                created_at: at,
                idempotency_key: Some(text()),
                idempotency_ttl_ms: Some(seed),
                keys,
                priority: -3,
                labels: vec![(text(), text()), (text(), text())],
                fingerprint: [7; 16],
                retriggered_from: run,
                forked_from: run,
                continued_from: None,
                version: seed as u32,
                parent: run,
                not_before: Some(at),
                deadline: Some(at),
                ticket: None,
                schedule: Some((text(), Some(at))),
            };
            codec::seal(&record, b"{\"a\":1}")
        }
        2 => {
            let progress = Some(ProgressRecord { current: seed, total: Some(9), message: Some(text()) });
            let state = StateRecord {
                status: 4,
                completed_at: Some(at),
                progress,
                error: Some(error),
                continued_as: run,
                unused: vec![1, seed as u32],
                ..Default::default()
            };
            codec::seal(&state, &[])
        }
        3 => codec::seal(&(), b"[1,2,3]"),
        4 => {
            let (key, tries) =
                (text(), vec![TryRecord { number: 7, error: error.clone(), started_at: at, failed_at: at }]);
            let open = Some(WaitRecord { due: Some(at), signal: Some(text()), run });
            let step = StepRecord {
                key,
                kind: 1,
                version: 2,
                generation: seed,
                started_at: at,
                completed_at: at,
                attempts: 1,
                error: Some(error),
                open,
                tries,
            };
            codec::seal(&step, b"7")
        }
        5 => codec::seal(&LogRecord { level: 1, at, step: Some(text()), message: text() }, b"null"),
        6 => {
            let line = LineRecord {
                job: 1,
                keys,
                priority: 7,
                generation: seed,
                crashes: 1,
                front: true,
                ticket: run,
                blocked: false,
                touched: true,
                holds: true,
                not_before: Some(at),
                deadline: Some(at),
            };
            codec::seal(&line, &[])
        }
        7 => codec::seal(&TallyRecord { completed: seed, failed: 1, cancelled: 2 }, &[]),
        8 => {
            let (rate, window) = (Some((2, seed)), Some((at, 3)));
            codec::seal(&ThrottleRecord { paused_at: Some(at), rate, window }, &[])
        }
        9 => {
            let record = ScheduleRecord {
                job: 1,
                expression: text(),
                time_zone: text(),
                missed: 2,
                missed_max: 9,
                keys: vec![(text(), 2)],
                on_conflict: 3,
                max_queued: Some(4),
                priority: -1,
                labels: vec![(text(), text())],
                delay_ms: Some(seed),
                deadline_ms: Some(seed),
                version: 1,
                fingerprint: [7; 16],
                created_at: at,
            };
            codec::seal(&record, b"{\"a\":1}")
        }
        10 => {
            let (next, last_due) = (Some(at), Some(at));
            let standing = StandingRecord { paused: false, next, last_due, last_run: run, fired: vec![(at, at); 3] };
            codec::seal(&standing, &[])
        }
        _ => {
            let record = text();
            let length = (record.len() as u32).to_le_bytes();
            let step = |index: u32| [&index.to_le_bytes()[..], &length, record.as_bytes()].concat();
            [vec![0; 5], step(1), step(seed as u32)].concat()
        }
    };
    sealed.get(5..).unwrap_or_default().to_vec()
}

/// Reads bytes as a segment of a map's items.
pub fn segment(bytes: &[u8], items: u64) -> bool {
    let mut stored = 0;
    let read = Segment::decode(bytes, items, &mut |part| {
        match part {
            Stored::Nulls(range) => assert!(range.end <= items),
            Stored::Output(item, _) | Stored::Failed(item, _) => assert!(item < items),
        }
        stored += 1;
    });
    assert!(read.is_err() || SegmentHead::of(bytes).is_some());
    read.is_ok() && stored > 0
}

/// Reads bytes as a row of the journal. `checksummed`: their checksum is made right first.
pub fn journal(bytes: &[u8], checksummed: bool) -> bool {
    let mut bytes = bytes.to_vec();
    if checksummed && bytes.len() > 5 {
        bytes[0] = 1;
        let crc = crc32c::crc32c(&bytes[5..]);
        bytes[1..5].copy_from_slice(&crc.to_le_bytes());
    }
    is_journal_row(&bytes)
}

/// The two halves of `bytes` as what keys are made of: keys sort as their parts do, read back, and never pass for another's.
pub fn keys(bytes: &[u8]) {
    let (a, b) = bytes.split_at(bytes.len() / 2);
    let (a, b) = (Parts::of(a), Parts::of(b));
    let sorts = |what: &str, keys: [keys::Key; 2], order: std::cmp::Ordering| {
        assert_eq!(keys[0].cmp(&keys[1]), order, "order of {what}");
    };
    sorts("runs", [keys::run(a.run), keys::run(b.run)], a.run.cmp(&b.run));
    sorts(
        "steps",
        [keys::of_run(a.run, a.number), keys::of_run(b.run, b.number)],
        (a.run, a.number).cmp(&(b.run, b.number)),
    );
    sorts("ends", [keys::ended(a.at, a.run), keys::ended(b.at, b.run)], (a.at, a.run).cmp(&(b.at, b.run)));
    sorts("jobs", [keys::by_job(a.number, a.run), keys::by_job(b.number, b.run)], {
        (a.number, a.run).cmp(&(b.number, b.run))
    });
    // Leased runs stand with the pending ones.
    sorts("statuses", [keys::by_status(a.status, a.run), keys::by_status(b.status, b.run)], {
        let place = |status: RunStatus| if status == RunStatus::Leased { RunStatus::Pending } else { status };
        (place(a.status).to_byte(), a.run).cmp(&(place(b.status).to_byte(), b.run))
    });
    sorts("idempotency keys", [keys::idempotency(a.number, &a.text), keys::idempotency(b.number, &b.text)], {
        (a.number, a.text.as_bytes()).cmp(&(b.number, b.text.as_bytes()))
    });
    assert_eq!(keys::read_step(&keys::of_run(a.run, a.number)), Some((a.run, a.number)));
    assert_eq!(keys::read_ended(&keys::ended(a.at, a.run)), Some((a.at, a.run)));
    assert_eq!(keys::read_run(&keys::by_job(a.number, a.run)), Some(a.run));
    // A label's rows are under its own prefix and under no other's.
    let (key, value) = a.text.split_at(a.middle());
    let (other_key, other_value) = b.text.split_at(b.middle());
    let row = keys::by_label(key, value, a.run);
    let prefix = keys::by_label_prefix(other_key, other_value);
    let same = (key, value) == (other_key, other_value);
    assert_eq!(row.starts_with(&prefix) && row.len() == prefix.len() + RunId::BYTES, same);
    assert_eq!(keys::read_run(&row), Some(a.run));
    for key in [&row[..], &keys::run(a.run)[..]] {
        let after = keys::after_prefix(key);
        assert!(after.is_none_or(|after| &after[..] > key && !after.starts_with(key)));
    }
    let _ = (keys::read_run(bytes), keys::read_step(bytes), keys::read_ended(bytes), keys::show(bytes));
}

struct Parts {
    run: RunId,
    number: u32,
    at: Timestamp,
    status: RunStatus,
    text: String,
}

impl Parts {
    fn of(bytes: &[u8]) -> Parts {
        let mut fixed = [0; 29];
        let (head, rest) = bytes.split_at(bytes.len().min(fixed.len()));
        fixed[..head.len()].copy_from_slice(head);
        let number = |at: usize| fixed[at..at + 4].iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
        let run = RunId::from_slice(&fixed[..16]).unwrap_or(RunId::MIN);
        let at = Timestamp::from_millis(u64::from(number(20)) << 32 | u64::from(number(24)));
        let status = RunStatus::ALL[usize::from(fixed[28]) % RunStatus::ALL.len()];
        let text = String::from_utf8_lossy(rest).chars().take(200).collect();
        Parts { run, number: number(16), at, status, text }
    }

    /// A place to split the text at.
    fn middle(&self) -> usize {
        let middle = self.text.len() / 2;
        (0..=middle).rev().find(|at| self.text.is_char_boundary(*at)).unwrap_or(0)
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Order {
    #[schemars(length(min = 1, max = 8))]
    items: Vec<Item>,
    #[serde(default)]
    note: Option<String>,
    #[serde(default)]
    factor: f64,
    #[serde(flatten)]
    rest: std::collections::BTreeMap<String, Value>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Item {
    Piece {
        qty: u32,
    },
    Weight {
        grams: i64,
        #[serde(default)]
        deep: Option<Box<Item>>,
    },
}

/// Takes text as the input of a trigger, once as a typed job's and once as that of a job that takes any JSON. What is accepted
/// is stored as JSON that is accepted again and then stays as it is.
pub fn json_input(text: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<Value>(text) else { return false };
    json_value(&value)
}

/// As [`json_input`], for a value that is parsed already and may be nested deeper than any text.
#[expect(clippy::expect_used, reason = "a harness: what does not hold is to be loud")]
pub fn json_value(value: &Value) -> bool {
    static TYPED: OnceLock<Job<Order, ()>> = OnceLock::new();
    static ANY: OnceLock<Job<Value, ()>> = OnceLock::new();
    let typed = TYPED.get_or_init(|| Job::new("typed", |_, _: Order| async { Ok(()) }));
    let any = ANY.get_or_init(|| Job::new("any", |_, _: Value| async { Ok(()) }));
    let mut accepted = false;
    for definition in [&typed.definition, &any.definition] {
        let Ok(stored) = definition.admit(value) else { continue };
        accepted = true;
        let read: Value = serde_json::from_slice(&stored).expect("what is stored can be read");
        let again = definition.admit(&read).expect("what was accepted is accepted again");
        assert_eq!(stored, again, "what is stored does not stay as it is");
        assert_eq!(fingerprint(&stored), fingerprint(&again));
    }
    accepted
}

/// Takes bytes as a filter: limits, offset, labels. One that is refused is so for its size or its labels.
pub fn filter(bytes: &[u8]) -> bool {
    let number = |at: usize| bytes.get(at).map_or(0, |byte| usize::from(*byte));
    let text = String::from_utf8_lossy(bytes.get(4..).unwrap_or_default());
    let mut filter = RunFilter::new().limit(number(0) << (number(1) % 8)).offset(number(2) << (number(3) % 10));
    let pairs: Vec<(&str, &str)> = text.split('\n').filter_map(|line| line.split_once('=')).take(8).collect();
    for (key, value) in &pairs {
        filter = filter.label(*key, *value);
    }
    let sizes =
        filter.limit_or_default() <= crate::limits::QUERY_LIMIT_MAX && filter.offset <= crate::limits::QUERY_OFFSET_MAX;
    let valid = filter.validate().is_ok();
    assert_eq!(valid, sizes && pairs.iter().all(|(key, value)| labels::check(key, value).is_ok()));
    if valid {
        for (key, value) in pairs {
            assert!(keys::by_label(key, value, RunId::MIN).starts_with(&keys::by_label_prefix(key, value)));
        }
    }
    valid
}

/// Takes text as the expression and the zone of a schedule, two lines, and numbers as a moment. What is accepted is due after
/// every moment that calendars reach, later each time, and named the same by whatever is asked for it.
#[expect(clippy::expect_used, reason = "a harness: what does not hold is to be loud")]
pub fn schedule(text: &str, after: u64) -> bool {
    let (expression, zone) = text.split_once('\n').unwrap_or((text, "UTC"));
    let Ok(timetable) = Timetable::parse(expression, zone) else { return false };
    let mut at = Timestamp::from_millis(after);
    for _ in 0..3 {
        let Some(next) = timetable.next_after(at) else {
            assert!(at.as_millis() > 240_000_000_000_000, "{expression} in {zone} is not due after {at}");
            break;
        };
        assert!(next > at, "{expression} in {zone} is due at {next}, asked for what is after {at}");
        // Asked from just before it, it is due then.
        let before = Timestamp::from_millis(next.as_millis() - 1);
        assert_eq!(timetable.next_after(before.max(at)), Some(next), "{expression} in {zone} after {before}");
        at = next;
    }
    let again = Timetable::parse(expression, zone).expect("what was accepted is accepted again");
    assert_eq!(again.next_after(at), timetable.next_after(at));
    true
}
