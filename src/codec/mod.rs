//! Bytes on disk: the envelope around every record, and order-preserving keys.
//!
//! A record is `version u8, crc32c u32 (little endian), bincode header, payload`. The header is a mirror struct of this
//! module, never a public type; the payload is the user's JSON, as given, to the end of the value. The checksum covers
//! header and payload and finds bit rot while the file is open. Nothing here panics on what it reads.

pub(crate) mod keys;
pub(crate) mod records;
pub(crate) mod segment;

use bincode::config::{Configuration, Fixint, Limit, LittleEndian, Varint};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::tables::Table;

/// The version of every record that this build writes.
pub(crate) const RECORD_VERSION: u8 = 1;
/// In place of a version: the value is a reference to a row of the blob table.
pub(crate) const BLOB_MARK: u8 = 0xff;
const ENVELOPE: usize = 5;
/// A header can't be larger than this, whatever lengths it claims; a hostile length allocates no more.
const HEADER_BYTES_MAX: usize = 16 << 20;

pub(crate) const CONFIG: Configuration<LittleEndian, Varint, Limit<HEADER_BYTES_MAX>> =
    bincode::config::standard().with_limit::<HEADER_BYTES_MAX>();
const FIXED: Configuration<LittleEndian, Fixint> = bincode::config::standard().with_fixed_int_encoding();

/// A row that can't be read: where it lies, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("row {key} of table {table} can't be read: {reason}")]
pub(crate) struct Corrupted {
    pub(crate) table: &'static str,
    pub(crate) key: String,
    pub(crate) reason: &'static str,
}

impl Corrupted {
    pub(crate) fn new(table: Table, key: &[u8], reason: &'static str) -> Self {
        Corrupted { table: table.name(), key: keys::show(key), reason }
    }
}

/// Seals a record: header, then payload, under version and checksum.
///
/// The mirror structs hold nothing that bincode can't write, so the encoder has no failure to report; should one appear,
/// the record is empty and its checksum still right, and reading it says `Corrupted`.
pub(crate) fn seal<H: Serialize>(header: &H, payload: &[u8]) -> Vec<u8> {
    // Nearly every header fits, and then the record is made in one piece of memory, just large enough.
    let mut short = [0; 256];
    match bincode::serde::encode_into_slice(header, &mut short, bincode::config::standard()) {
        Ok(length) => sealed(&short[..length], payload),
        Err(_) => {
            let encoded = bincode::serde::encode_to_vec(header, bincode::config::standard());
            debug_assert!(encoded.is_ok(), "a mirror struct that bincode can't write");
            sealed(&encoded.unwrap_or_default(), payload)
        }
    }
}

/// Seals a record into `out`, which is emptied first; `payload` appends the payload. Gives where that begins.
pub(crate) fn seal_into<H: Serialize, E>(
    out: &mut Vec<u8>,
    header: &H,
    payload: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<usize, E> {
    out.clear();
    out.extend_from_slice(&[RECORD_VERSION, 0, 0, 0, 0]);
    let written = bincode::serde::encode_into_std_write(header, out, bincode::config::standard());
    debug_assert!(written.is_ok(), "a mirror struct that bincode can't write");
    let payload_at = out.len();
    payload(out)?;
    let crc = crc32c::crc32c(&out[ENVELOPE..]);
    out[1..ENVELOPE].copy_from_slice(&crc.to_le_bytes());
    Ok(payload_at)
}

fn sealed(header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ENVELOPE + header.len() + payload.len());
    out.extend_from_slice(&[RECORD_VERSION, 0, 0, 0, 0]);
    out.extend_from_slice(header);
    out.extend_from_slice(payload);
    let crc = crc32c::crc32c(&out[ENVELOPE..]);
    out[1..ENVELOPE].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Opens a sealed record into its header and payload.
pub(crate) fn open<H: DeserializeOwned>(table: Table, key: &[u8], bytes: &Bytes) -> Result<(H, Bytes), Corrupted> {
    let corrupted = |reason| Corrupted::new(table, key, reason);
    let (envelope, body) = bytes.split_at_checked(ENVELOPE).ok_or_else(|| corrupted("too short"))?;
    if envelope[0] != RECORD_VERSION {
        return Err(corrupted("unknown record version"));
    }
    if envelope[1..] != crc32c::crc32c(body).to_le_bytes() {
        return Err(corrupted("checksum differs"));
    }
    let (header, used) =
        bincode::serde::decode_from_slice(body, CONFIG).map_err(|_| corrupted("header can't be decoded"))?;
    Ok((header, bytes.slice(ENVELOPE + used..)))
}

/// A value that lives in the blob table: what stands in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlobRef {
    pub(crate) id: u64,
    pub(crate) bytes: u32,
}

impl BlobRef {
    pub(crate) fn to_value(self) -> Vec<u8> {
        let mut out = vec![BLOB_MARK];
        let written = bincode::encode_into_std_write((self.id, self.bytes), &mut out, FIXED);
        debug_assert!(written.is_ok(), "twelve bytes into memory");
        out
    }

    /// The reference that `value` is, if it is one.
    pub(crate) fn of(value: &[u8]) -> Option<Self> {
        let (mark, rest) = value.split_first()?;
        if *mark != BLOB_MARK {
            return None;
        }
        let ((id, bytes), _) = bincode::decode_from_slice::<(u64, u32), _>(rest, FIXED).ok()?;
        Some(BlobRef { id, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_survives_and_damage_is_found() {
        let header = ("job".to_owned(), 7u32, Some(3u64));
        let sealed = seal(&header, b"{\"a\":1}");
        let bytes = Bytes::from(sealed.clone());
        let (read, payload) = open::<(String, u32, Option<u64>)>(Table::Runs, b"k", &bytes).expect("reads");
        assert_eq!((read, &payload[..]), (header, &b"{\"a\":1}"[..]));
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 0x10;
            let bad = Bytes::from(bad);
            assert!(open::<(String, u32, Option<u64>)>(Table::Runs, b"k", &bad).is_err(), "flip at {at} went unseen");
        }
    }

    proptest! {
        #[test]
        fn decoding_anything_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut sealed = vec![RECORD_VERSION, 0, 0, 0, 0];
            sealed.extend_from_slice(&bytes);
            let crc = crc32c::crc32c(&bytes);
            sealed[1..5].copy_from_slice(&crc.to_le_bytes());
            for bytes in [Bytes::from(sealed), Bytes::from(bytes)] {
                let _ = open::<records::RunRecord>(Table::Runs, b"", &bytes);
                let _ = open::<records::StateRecord>(Table::States, b"", &bytes);
                let _ = open::<records::StepRecord>(Table::Steps, b"", &bytes);
                let _ = open::<records::LogRecord>(Table::Logs, b"", &bytes);
                let _ = BlobRef::of(&bytes);
                let _ = keys::read_run(&bytes);
                let _ = keys::read_step(&bytes);
            }
        }
    }
}
