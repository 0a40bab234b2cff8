//! What a program does with its runtime, one act at a time.

/// What a user does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Trigger {
        idempotency: Option<u8>,
        concurrency: Option<u8>,
        large: bool,
    },
    Batch(u8),
    /// Of the runs that execute, the one of this rank.
    Checkpoint {
        nth: usize,
        large: bool,
    },
    Finish {
        nth: usize,
        ok: bool,
    },
    /// Of all runs.
    Cancel(usize),
    Resume(usize),
    Delete(usize),
    Purge,
}

/// The acts of which small workloads are all the words.
pub const ALPHABET: [Act; 9] = [
    Act::Trigger { idempotency: Some(1), concurrency: Some(1), large: false },
    Act::Trigger { idempotency: None, concurrency: Some(1), large: true },
    Act::Batch(2),
    Act::Checkpoint { nth: 0, large: true },
    Act::Finish { nth: 0, ok: true },
    Act::Cancel(0),
    Act::Resume(0),
    Act::Delete(0),
    Act::Purge,
];

impl Act {
    pub fn random(rng: &mut fastrand::Rng) -> Act {
        match rng.u32(..20) {
            0..=4 => Act::Trigger {
                idempotency: rng.bool().then(|| rng.u8(..6)),
                concurrency: rng.bool().then(|| rng.u8(..3)),
                large: rng.u32(..4) == 0,
            },
            5 => Act::Batch(rng.u8(2..5)),
            6..=10 => Act::Checkpoint { nth: rng.usize(..8), large: rng.u32(..3) == 0 },
            11..=13 => Act::Finish { nth: rng.usize(..8), ok: rng.u32(..3) > 0 },
            14..=15 => Act::Cancel(rng.usize(..)),
            16 => Act::Resume(rng.usize(..)),
            17..=18 => Act::Delete(rng.usize(..)),
            _ => Act::Purge,
        }
    }
}
