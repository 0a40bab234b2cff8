//! Hashing for maps in memory.
//!
//! The standard hash withstands an attacker who sees times, at some two hundred instructions a key. The keys that users choose are in maps
//! that live as long as a group or a run, and nobody outside learns how long a search took; so a secret seed is enough, and the
//! rest is a multiplication for every eight bytes.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

/// A map whose order means nothing.
pub(crate) type SeededMap<K, V> = HashMap<K, V, Seeded>;

/// Makes hashers that differ from map to map.
#[derive(Debug, Clone)]
pub(crate) struct Seeded(u64);

impl Default for Seeded {
    fn default() -> Self {
        Seeded(RandomState::new().hash_one(0u8))
    }
}

impl BuildHasher for Seeded {
    type Hasher = SeededHasher;

    fn build_hasher(&self) -> SeededHasher {
        SeededHasher(self.0)
    }
}

/// The hash so far.
#[derive(Debug)]
pub(crate) struct SeededHasher(u64);

impl Hasher for SeededHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            // Zeros at the end count like any other bytes.
            self.write_u64(u64::from_le_bytes(word) ^ (rest.len() as u64) << 56);
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, word: u64) {
        // The two halves of a product depend, together, on every bit of both factors; the constant is 2^64 by the golden ratio.
        let product = u128::from(self.0 ^ word) * 0x9E37_79B9_7F4A_7C15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn keys_that_look_alike_do_not_share_their_place() {
        const KEYS: u64 = 1 << 14;
        let seeded = Seeded::default();
        let numbered =
            |prefix: &str| -> Vec<u64> { (0..KEYS).map(|n| seeded.hash_one(format!("{prefix}{n}"))).collect() };
        let bytes = |at: usize, length: usize| -> Vec<u64> {
            let key = |n: u64| {
                let mut key = vec![0; length];
                key[at..at + 2].copy_from_slice(&(n as u16).to_be_bytes());
                key
            };
            (0..KEYS).map(|n| seeded.hash_one(&key(n)[..])).collect()
        };
        let all =
            [numbered("step-"), numbered("a longer name of a step, "), bytes(0, 20), bytes(14, 20), bytes(18, 20)];
        for hashes in all
            .into_iter()
            .chain([(0..KEYS).map(|n| seeded.hash_one(&vec![0u8; n as usize % 4_096][..])).take(4_096).collect()])
        {
            let room = 2 * hashes.len() as u64;
            let places: BTreeSet<u64> = hashes.iter().map(|hash| hash % room).collect();
            // At random, as many keys as half the places take 79 % as many of them.
            assert!(places.len() * 10 > hashes.len() * 7, "{} places for {} keys", places.len(), hashes.len());
            let tags: BTreeSet<u64> = hashes.iter().map(|hash| hash >> 57).collect();
            assert_eq!(tags.len(), 128);
        }
    }

    #[test]
    fn no_two_maps_hash_alike() {
        let hash = |_| Seeded::default().hash_one("step");
        assert_eq!((0..100).map(hash).collect::<BTreeSet<u64>>().len(), 100);
    }
}
