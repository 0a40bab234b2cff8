//! A row of the journal: all records of one commit.
//!
//! `version u8, crc32c u32, next sequence u64, last run id 16 bytes`, then records: `tag u8, key length u16, key`, and
//! for a put `value length u32, value`. Numbers are little endian; the tag is the table, with [`DELETE`] set for a
//! tombstone. A step's key is its run and index; the run alone, with a tombstone, stands for all of its steps. The checksum
//! covers everything after itself.
//!
//! On disk a row stands in *pieces*, ascending, which fill their pages: redb gives a value pages in powers of two, and writes what
//! is not used too. The group's number is in the keys of the pieces and is not repeated.

use std::ops::Range;

use bytes::Bytes;

use super::steps::Change;
use super::tables::Table;
use crate::codec::keys;
use crate::hooks::{Bug, Hooks};
use crate::id::RunId;

const VERSION: u8 = 1;
const CRC_END: usize = 5;
const HEADER: usize = CRC_END + 8 + RunId::BYTES;
const DELETE: u8 = 0x80;

/// Where one record lies in the row's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) table: Table,
    pub(crate) key: Range<usize>,
    /// `None` is a tombstone.
    pub(crate) value: Option<Range<usize>>,
    /// The key was in no table and in no tail before: should it be deleted before it is folded, nothing is left to fold.
    pub(crate) fresh: bool,
}

/// A commit's records, as one row.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) bytes: Bytes,
    pub(crate) entries: Vec<Entry>,
    /// The sequence of the first event after this commit.
    pub(crate) next_sequence: u64,
    /// The greatest run id given out so far.
    pub(crate) last_id: RunId,
}

impl Row {
    /// Where the record lies that the change number `at` of the row's `steps` changes to steps puts. They are the last of the row.
    pub(crate) fn step(&self, steps: usize, at: usize) -> Option<Range<usize>> {
        self.entries.get(self.entries.len().checked_sub(steps)? + at)?.value.clone()
    }

    /// The values that the row puts.
    pub(crate) fn values(&self) -> impl Iterator<Item = Bytes> + '_ {
        self.entries.iter().filter_map(|entry| Some(self.bytes.slice(entry.value.clone()?)))
    }
}

/// Writes a row, record by record.
pub(crate) struct RowBuilder {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl RowBuilder {
    pub(crate) fn with_capacity(bytes: usize, entries: usize) -> Self {
        let mut row = Vec::with_capacity(HEADER + bytes);
        row.resize(HEADER, 0);
        RowBuilder { bytes: row, entries: Vec::with_capacity(entries) }
    }

    pub(crate) fn push(&mut self, table: Table, key: &[u8], value: Option<&[u8]>, fresh: bool) {
        let tag = table as u8 | if value.is_none() { DELETE } else { 0 };
        self.bytes.push(tag);
        // Limits keep keys under 2 KiB and inline values at 16 KiB, so neither length can be cut.
        self.bytes.extend_from_slice(&(key.len() as u16).to_le_bytes());
        let key_at = self.extend(key);
        let value = value.map(|value| {
            self.bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
            self.extend(value)
        });
        self.entries.push(Entry { table, key: key_at, value, fresh });
    }

    fn extend(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }

    pub(crate) fn finish(mut self, next_sequence: u64, last_id: RunId) -> Row {
        self.bytes[0] = VERSION;
        self.bytes[CRC_END..CRC_END + 8].copy_from_slice(&next_sequence.to_le_bytes());
        self.bytes[CRC_END + 8..HEADER].copy_from_slice(last_id.as_bytes());
        let crc = crc32c::crc32c(&self.bytes[CRC_END..]);
        self.bytes[1..CRC_END].copy_from_slice(&crc.to_le_bytes());
        Row { bytes: self.bytes.into(), entries: self.entries, next_sequence, last_id }
    }
}

/// What a record of a step says; `None` where its key is none of a step.
pub(crate) fn step_change<V>(key: &[u8], value: Option<V>) -> Option<(RunId, Change<V>)> {
    if value.is_none()
        && let Some(run) = RunId::from_slice(key)
    {
        return Some((run, Change::Clear));
    }
    let (run, index) = keys::read_step(key)?;
    Some((run, value.map_or(Change::Remove(index), |value| Change::Put(index, value))))
}

/// What a page of redb's holds of a value, if it holds nothing else; bytes for keys and offsets are left generously.
const PAGE: usize = 4_096;
const PAGE_OVERHEAD: usize = 64;

/// A row cut into pieces, with the key of each.
pub(crate) fn pieces(group: u64, row: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let mut rest = row;
    (0u64..).map_while(move |number| {
        let mut length = PAGE - PAGE_OVERHEAD;
        while rest.len() >= (length + PAGE_OVERHEAD) * 2 - PAGE_OVERHEAD {
            length = (length + PAGE_OVERHEAD) * 2 - PAGE_OVERHEAD;
        }
        let (piece, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        rest = after;
        (!piece.is_empty()).then_some((keys_of(group).start() + number, piece))
    })
}

/// The keys of a group's pieces. A piece takes half of what is left at least, so a row has far fewer than there are keys.
pub(crate) fn keys_of(group: u64) -> std::ops::RangeInclusive<u64> {
    group << PIECE_BITS..=(group << PIECE_BITS) | ((1 << PIECE_BITS) - 1)
}

/// The group that a piece is of.
pub(crate) fn group_of(key: u64) -> u64 {
    key >> PIECE_BITS
}

const PIECE_BITS: u32 = 8;

/// The last group whose pieces have keys.
pub(crate) const GROUP_MAX: u64 = u64::MAX >> PIECE_BITS;

/// Reads a row back; the reason where it can't be.
pub(crate) fn read(bytes: Vec<u8>, hooks: &Hooks) -> Result<Row, &'static str> {
    let bytes = Bytes::from(bytes);
    let (header, _) = bytes.split_at_checked(HEADER).ok_or("too short")?;
    if header[0] != VERSION {
        return Err("unknown version");
    }
    let crc = crc32c::crc32c(&bytes[CRC_END..]).to_le_bytes();
    if header[1..CRC_END] != crc && !hooks.plants(Bug::JournalUnchecked) {
        return Err("checksum differs");
    }
    let (sequence, last_id) = header[CRC_END..].split_at(8);
    let next_sequence = u64::from_le_bytes(sequence.try_into().map_err(|_| "header cut")?);
    let last_id = RunId::from_slice(last_id).ok_or("header cut")?;
    let mut reader = Reader { bytes: &bytes, at: HEADER };
    let mut entries = Vec::new();
    while reader.at < bytes.len() {
        let tag = bytes[reader.take(1).ok_or("record cut")?][0];
        let table = Table::from_byte(tag & !DELETE).ok_or("unknown table")?;
        let length = reader.take(2).map(|at| u16::from_le_bytes([bytes[at.start], bytes[at.start + 1]]));
        let key = reader.take(length.ok_or("record cut")?.into()).ok_or("key cut")?;
        let value = if tag & DELETE != 0 {
            None
        } else {
            let at = reader.take(4).ok_or("record cut")?;
            let length = u32::from_le_bytes(bytes[at].try_into().map_err(|_| "record cut")?);
            Some(reader.take(length as usize).ok_or("value cut")?)
        };
        if table == Table::Steps && step_change(&bytes[key.clone()], value.clone()).is_none() {
            return Err("a step without run and index");
        }
        // What stands in a row found on disk may have been folded in part already.
        entries.push(Entry { table, key, value, fresh: false });
    }
    Ok(Row { bytes, entries, next_sequence, last_id })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, length: usize) -> Option<Range<usize>> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len())?;
        let range = self.at..end;
        self.at = end;
        Some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_row_reads_back_as_written(
            mut records in proptest::collection::vec(
                (0u8..12, proptest::collection::vec(any::<u8>(), 0..40), proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300))),
                0..20,
            ),
            sequence: u64,
            last: u128,
        ) {
            let mut builder = RowBuilder::with_capacity(0, 0);
            for (table, key, value) in &mut records {
                if *table == Table::Steps as u8 {
                    key.resize(if value.is_none() && key.len() < 16 { 16 } else { 20 }, 0);
                }
                builder.push(Table::from_byte(*table).expect("in range"), key, value.as_deref(), false);
            }
            let row = builder.finish(sequence, RunId::numbered(last));
            let stored: Vec<u8> = pieces(7, &row.bytes).flat_map(|(key, piece)| {
                assert_eq!(group_of(key), 7);
                piece.to_vec()
            }).collect();
            let found = read(stored, &Hooks::default()).expect("reads back");
            prop_assert_eq!(&found.entries, &row.entries);
            prop_assert_eq!((found.next_sequence, found.last_id), (sequence, RunId::numbered(last)));
        }

        #[test]
        fn reading_any_bytes_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(bytes.clone(), &Hooks::default());
            if bytes.len() > HEADER {
                bytes[0] = VERSION;
                let crc = crc32c::crc32c(&bytes[CRC_END..]);
                bytes[1..CRC_END].copy_from_slice(&crc.to_le_bytes());
                let _ = read(bytes.clone(), &Hooks::default());
            }
        }
    }
}
