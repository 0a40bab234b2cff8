//! The items of a map, as they are stored: one record a batch of items that are done.
//!
//! A segment is the payload of a record without a key of its own:
//! `map u32, completed u32, failed u32 (little endian), ranges, ranges x (gap, length), entries`. A range is of items whose
//! output is null, its gap counted from the end of the one before; an entry is
//! `item * 2 + failed, length, bytes`, of an output's JSON or of an error's. Numbers without a width are variable.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::CONFIG;
use super::records::ErrorRecord;

const HEAD: usize = 12;

/// What is stored of a map under its own key: of how many items, and which ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MapHeader {
    pub(crate) items: u64,
    /// Items that failed and were let be.
    pub(crate) failed: u64,
    /// SHA-256 of the items' JSON, 32 hex digits.
    pub(crate) fingerprint: String,
}

/// Which map a segment is of, and how many of its items it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHead {
    /// The index of the map's step.
    pub(crate) map: u32,
    pub(crate) completed: u32,
    pub(crate) failed: u32,
}

impl SegmentHead {
    pub(crate) fn of(payload: &[u8]) -> Option<SegmentHead> {
        let (head, _) = payload.split_first_chunk::<HEAD>()?;
        let number =
            |at: usize| head[at..at + 4].iter().rev().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
        Some(SegmentHead { map: number(0), completed: number(4), failed: number(8) })
    }
}

/// What a segment says.
#[derive(Debug, PartialEq)]
pub(crate) enum Stored<'a> {
    /// These items gave null.
    Nulls(Range<u64>),
    Output(u64, &'a [u8]),
    Failed(u64, ErrorRecord),
}

/// Items that are done, and not or not finally stored.
#[derive(Debug, Default)]
pub(crate) struct Segment {
    /// Starts and ends of ranges.
    nulls: BTreeMap<u64, u64>,
    entries: Vec<u8>,
    completed: u32,
    failed: u32,
}

impl Segment {
    pub(crate) fn len(&self) -> usize {
        (self.completed + self.failed) as usize
    }

    /// About as many as it will be stored in.
    pub(crate) fn bytes(&self) -> usize {
        HEAD + self.nulls.len() * 6 + self.entries.len()
    }

    pub(crate) fn push_output(&mut self, item: u64, json: &[u8]) {
        self.completed += 1;
        if json == b"null" { self.push_nulls(item, item + 1) } else { self.push_entry(item << 1, json) }
    }

    pub(crate) fn push_failure(&mut self, item: u64, error: &ErrorRecord) {
        self.failed += 1;
        let json = serde_json::to_vec(error).unwrap_or_default();
        self.push_entry(item << 1 | 1, &json);
    }

    /// Takes up what another has.
    pub(crate) fn append(&mut self, other: &Segment) {
        other.nulls.iter().for_each(|(start, end)| self.push_nulls(*start, *end));
        self.entries.extend_from_slice(&other.entries);
        self.completed += other.completed;
        self.failed += other.failed;
    }

    fn push_nulls(&mut self, mut start: u64, mut end: u64) {
        if let Some((before, upto)) = self.nulls.range(..start).next_back().map(|(start, end)| (*start, *end))
            && upto == start
        {
            start = before;
        }
        if let Some(after) = self.nulls.remove(&end) {
            end = after;
        }
        self.nulls.insert(start, end);
    }

    fn push_entry(&mut self, item: u64, bytes: &[u8]) {
        put(&mut self.entries, item);
        put(&mut self.entries, bytes.len() as u64);
        self.entries.extend_from_slice(bytes);
    }

    pub(crate) fn encode(&self, map: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes());
        [map, self.completed, self.failed].iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        put(&mut out, self.nulls.len() as u64);
        let mut last = 0;
        for (start, end) in &self.nulls {
            put(&mut out, start - last);
            put(&mut out, end - start);
            last = *end;
        }
        out.extend_from_slice(&self.entries);
        out
    }

    /// Reads a segment of a map of so many items.
    pub(crate) fn decode(payload: &[u8], items: u64, each: &mut dyn FnMut(Stored<'_>)) -> Result<(), &'static str> {
        let (_, rest) = payload.split_first_chunk::<HEAD>().ok_or("a segment is too short")?;
        let mut rest = rest;
        let mut last = 0u64;
        for _ in 0..take(&mut rest)? {
            let start = last.checked_add(take(&mut rest)?).ok_or("a range of a segment is too long")?;
            last = start.checked_add(take(&mut rest)?).ok_or("a range of a segment is too long")?;
            if last > items {
                return Err("a segment has an item beyond the last");
            }
            each(Stored::Nulls(start..last));
        }
        while !rest.is_empty() {
            let (item, length) = (take(&mut rest)?, take(&mut rest)?);
            let length = usize::try_from(length).map_err(|_| "an entry of a segment is too long")?;
            let (bytes, after) = rest.split_at_checked(length).ok_or("an entry of a segment is too long")?;
            rest = after;
            if item >> 1 >= items {
                return Err("a segment has an item beyond the last");
            }
            each(match item & 1 {
                0 => Stored::Output(item >> 1, bytes),
                _ => {
                    let error = serde_json::from_slice(bytes).map_err(|_| "an error of a segment can't be read")?;
                    Stored::Failed(item >> 1, error)
                }
            });
        }
        Ok(())
    }
}

fn put(out: &mut Vec<u8>, number: u64) {
    let written = bincode::encode_into_std_write(number, out, bincode::config::standard());
    debug_assert!(written.is_ok(), "a number into memory");
}

fn take(bytes: &mut &[u8]) -> Result<u64, &'static str> {
    let (number, used) = bincode::decode_from_slice::<u64, _>(bytes, CONFIG).map_err(|_| "a segment ends too soon")?;
    *bytes = bytes.get(used..).unwrap_or_default();
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Items as a segment has them: null, or the failure or the output of this text.
    fn check(items: &[(u64, Option<(bool, String)>)]) {
        let (mut whole, mut first) = (Segment::default(), Segment::default());
        let mut expected = BTreeMap::new();
        for (item, outcome) in items {
            if expected.contains_key(item) {
                continue;
            }
            let part = if item % 3 == 0 { &mut first } else { &mut whole };
            match outcome {
                None => part.push_output(*item, b"null"),
                Some((false, text)) => part.push_output(*item, format!("{text:?}").as_bytes()),
                Some((true, text)) => {
                    let message = text.clone();
                    let error = ErrorRecord { kind: 1, message, chain: vec![], step: None, terminal: false };
                    part.push_failure(*item, &error);
                }
            }
            expected.insert(*item, outcome.clone());
        }
        whole.append(&first);
        let payload = whole.encode(7);
        assert!(payload.len() <= whole.bytes() + whole.nulls.len() * 12 + 9);
        let head = SegmentHead::of(&payload).expect("has a head");
        assert_eq!((head.map, (head.completed + head.failed) as usize), (7, expected.len()));
        let mut read = BTreeMap::new();
        Segment::decode(&payload, 1_000, &mut |stored| match stored {
            Stored::Nulls(range) => range.for_each(|item| drop(read.insert(item, None))),
            Stored::Output(item, json) => {
                let text = serde_json::from_slice(json).expect("is JSON");
                read.insert(item, Some((false, text)));
            }
            Stored::Failed(item, error) => drop(read.insert(item, Some((true, error.message)))),
        })
        .expect("reads");
        assert_eq!(read, expected);
    }

    #[test]
    fn neighbours_without_output_are_one_range() {
        let mut segment = Segment::default();
        for item in [5, 3, 4, 0, 1, 9] {
            segment.push_output(item, b"null");
        }
        assert_eq!(segment.nulls.into_iter().collect::<Vec<_>>(), [(0, 2), (3, 6), (9, 10)]);
    }

    proptest! {
        #[test]
        fn what_is_stored_is_read(
            items in proptest::collection::vec((0u64..1_000, proptest::option::of((any::<bool>(), "[a-z]{0,9}"))), 0..80)
        ) {
            check(&items);
        }

        #[test]
        fn reading_anything_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80), items in any::<u64>()) {
            let _ = Segment::decode(&bytes, items, &mut |_| {});
            let _ = SegmentHead::of(&bytes);
        }
    }
}
