//! What is asked of a disk that changes it, and what of that a loss of power leaves.

use std::sync::Arc;

const SECTOR: usize = 512;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Write(u64, Arc<[u8]>),
    Length(u64),
    Flush,
}

/// Does a change to bytes. A write beyond the end, its change of length being lost, lengthens them.
pub fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(offset, data) => {
            let (start, end) = (*offset as usize, *offset as usize + data.len());
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[start..end].copy_from_slice(data);
        }
        Change::Length(len) => bytes.resize(*len as usize, 0),
        Change::Flush => {}
    }
}

/// What of the unflushed changes survives, by the bits of a number.
pub fn subset(pending: &[Change], which: u64) -> impl Iterator<Item = Change> + '_ {
    let kept = move |at: &usize| at < &64 && which >> at & 1 == 1;
    pending.iter().enumerate().filter(move |(at, _)| kept(at)).map(|(_, change)| change.clone())
}

/// A random part of the unflushed changes: each kept, dropped, torn at sectors, or cut before or after a byte.
pub fn torn(pending: &[Change], rng: &mut fastrand::Rng) -> Vec<Change> {
    let keeps = [0, 20, 50, 80, 100][rng.usize(..5)];
    let tears = rng.u32(..3) > 0;
    let mut left = Vec::new();
    for change in pending {
        let Change::Write(offset, data) = change else {
            if rng.u32(..100) < keeps {
                left.push(change.clone());
            }
            continue;
        };
        match if tears { rng.u32(..6) } else { 0 } {
            0..=2 => {
                if rng.u32(..100) < keeps {
                    left.push(change.clone());
                }
            }
            3 => {
                for (at, sector) in data.chunks(SECTOR).enumerate() {
                    if rng.u32(..100) < keeps {
                        left.push(Change::Write(offset + (at * SECTOR) as u64, sector.into()));
                    }
                }
            }
            4 => left.push(Change::Write(*offset, data[..rng.usize(..=data.len())].into())),
            _ => {
                let from = rng.usize(..=data.len());
                left.push(Change::Write(offset + from as u64, data[from..].into()));
            }
        }
    }
    left
}
