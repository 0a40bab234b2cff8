//! Run ids: ULIDs that grow in trigger order, and the one source of randomness behind them.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use ulid::Ulid;

use crate::hash::SeededMap;
use crate::time::Timestamp;

/// The id of a run: a ULID, monotonic in trigger order over the whole life of a file.
///
/// Shown, parsed and serialized as its 26 characters of Crockford base 32. Comparing two ids compares the order in which
/// their triggers were committed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RunId([u8; 16]);

impl RunId {
    pub(crate) const BYTES: usize = 16;
    pub(crate) const MIN: RunId = RunId([0; 16]);
    pub(crate) const MAX: RunId = RunId([0xff; 16]);

    pub(crate) const fn from_bytes(bytes: [u8; 16]) -> Self {
        RunId(bytes)
    }

    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        Some(RunId(bytes.try_into().ok()?))
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    #[cfg(test)]
    pub(crate) const fn numbered(n: u128) -> Self {
        RunId(n.to_be_bytes())
    }
}

impl Hash for RunId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_be_bytes(self.0));
    }
}

/// A map from run ids that has no order.
pub(crate) type RunMap<V> = SeededMap<RunId, V>;

impl Ord for RunId {
    // As numbers they are compared without a call, and ids are what nearly every map is searched by.
    fn cmp(&self, other: &Self) -> Ordering {
        u128::from_be_bytes(self.0).cmp(&u128::from_be_bytes(other.0))
    }
}

impl PartialOrd for RunId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; ulid::ULID_LEN];
        f.pad(Ulid::from_bytes(self.0).array_to_str(&mut text))
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RunId({self})")
    }
}

/// A text that is not the 26 characters of a run id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a run id: expected 26 characters of Crockford base 32")]
pub struct ParseRunIdError(());

impl FromStr for RunId {
    type Err = ParseRunIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // 26 characters have 130 bits. With a first one above 7 the uppermost would be lost, and the text be another run's id.
        if text.as_bytes().first().is_some_and(|first| *first > b'7') {
            return Err(ParseRunIdError(()));
        }
        let id = Ulid::from_string(text).map_err(|_| ParseRunIdError(()))?;
        Ok(RunId(id.to_bytes()))
    }
}

impl Serialize for RunId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for RunId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            Ok(RunId(<[u8; 16]>::deserialize(deserializer)?))
        }
    }
}

/// Makes run ids that only grow, whatever the clock does.
///
/// Lives in the writer, so that the order of ids is the order of commits.
#[derive(Debug)]
pub(crate) struct IdSource {
    last: RunId,
    random: fastrand::Rng,
}

impl IdSource {
    /// `last` is the greatest id the file has ever given out; `seed` fixes the random part for a simulation.
    pub(crate) fn new(last: RunId, seed: Option<u64>) -> Self {
        let random = seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        IdSource { last, random }
    }

    /// The next id: of this millisecond, or one above the last where the clock stood still or went back.
    pub(crate) fn next(&mut self, now: Timestamp) -> RunId {
        let fresh = Ulid::from_parts(now.as_millis(), self.random.u128(..));
        // The random part keeps its top bit free, so that a millisecond has room to count up in.
        let fresh = u128::from_be_bytes(fresh.to_bytes()) & !(1 << 79);
        let last = u128::from_be_bytes(self.last.0);
        let next = if fresh >> 80 > last >> 80 { fresh } else { last.saturating_add(1) };
        self.last = RunId(next.to_be_bytes());
        self.last
    }

    pub(crate) fn last(&self) -> RunId {
        self.last
    }
}

/// A random number that belongs to one attempt of one step: the chance in it is that of the run's id, so it needs no source of
/// its own and a simulation repeats it.
pub(crate) fn chance(run: RunId, step: u32, attempt: u32) -> u32 {
    let random = u128::from_be_bytes(run.0) as u64;
    let place = u64::from(step) << 32 | u64::from(attempt);
    // Neighbours must not look alike, which one draw would leave them to.
    let seed = fastrand::Rng::with_seed(random).u64(..) ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    fastrand::Rng::with_seed(seed).u32(..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_follow_one_another_do_not_share_their_place_in_a_map() {
        use std::collections::BTreeSet;
        use std::hash::BuildHasher;

        use crate::hash::Seeded;
        const IDS: u128 = 1 << 14;
        let hasher = Seeded::default();
        for step in [1, 1 << 8, 1 << 40, 1 << 80] {
            let hashes = (0..IDS).map(|n| hasher.hash_one(RunId::numbered(0x0190_0000 << 96 | (7 + n * step))));
            let hashes: Vec<u64> = hashes.collect();
            let places: BTreeSet<u64> = hashes.iter().map(|hash| hash % (2 * IDS as u64)).collect();
            // At random, 2^14 of them take 79 % as many of 2^15 places.
            assert!(places.len() as u128 > IDS * 7 / 10, "{} places for ids {step} apart", places.len());
            let tags: BTreeSet<u64> = hashes.iter().map(|hash| hash >> 57).collect();
            assert_eq!(tags.len(), 128, "ids {step} apart");
        }
    }

    #[test]
    fn ids_grow_when_the_clock_stands_or_goes_back() {
        let mut ids = IdSource::new(RunId::MIN, Some(7));
        let mut last = RunId::MIN;
        for ms in [1_000, 1_000, 1_001, 500, 0, 2_000, 2_000] {
            let id = ids.next(Timestamp::from_millis(ms));
            assert!(id > last, "{id} after {last} at {ms} ms");
            last = id;
        }
    }

    #[test]
    fn the_chance_of_an_attempt_is_its_own_and_always_the_same() {
        let mut seen = std::collections::BTreeSet::new();
        let mut ids = IdSource::new(RunId::MIN, Some(7));
        for ms in 0..10 {
            let run = ids.next(Timestamp::from_millis(ms));
            for (step, attempt) in (0..10).flat_map(|step| (1..11).map(move |attempt| (step, attempt))) {
                assert_eq!(chance(run, step, attempt), chance(run, step, attempt));
                seen.insert(chance(run, step, attempt) >> 8);
            }
        }
        assert!(seen.len() > 990, "{} of 1,000 differ", seen.len());
        let mean = seen.iter().map(|chance| f64::from(*chance)).sum::<f64>() / seen.len() as f64;
        assert!((0.45..0.55).contains(&(mean / f64::from(1 << 24))), "{mean}");
    }

    #[test]
    fn an_id_survives_its_text() {
        let id = IdSource::new(RunId::MIN, Some(1)).next(Timestamp::from_millis(1_700_000_000_000));
        assert_eq!(id.to_string().len(), 26);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("not-an-id".parse::<RunId>().is_err());
        assert!("".parse::<RunId>().is_err());
    }

    #[test]
    fn a_text_is_the_id_of_one_run_at_most() {
        let text = RunId::numbered(u128::MAX >> 3).to_string();
        assert_eq!(text, "0ZZZZZZZZZZZZZZZZZZZZZZZZZ");
        let ids: std::collections::BTreeSet<RunId> =
            "01234567".chars().map(|first| format!("{first}{}", &text[1..]).parse().unwrap()).collect();
        assert_eq!((ids.len(), ids.last()), (8, Some(&RunId::MAX)));
        for first in "89ABCDEFGHJKMNPQRSTVWXYZagrz".chars() {
            assert!(format!("{first}{}", &text[1..]).parse::<RunId>().is_err(), "{first}");
        }
        assert_eq!(RunId::MAX.to_string().to_lowercase().parse(), Ok(RunId::MAX));
    }
}
