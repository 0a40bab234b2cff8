//! How much folding rides on a commit.
//!
//! Whoever waits for a commit waits for its slice of folding too, so a slice takes less than a small commit does: how many rows
//! that is, is learned from the slices before. A group of many rows carries as much folding as keeps up with it. Where a commit
//! carries nothing else, nobody waits, and it may do twice as much as the one before.

use std::time::Duration;

use super::fold::Size;
use crate::limits::FOLD_ROWS_MAX;

/// What a slice is to take beside a group that is waited for, nanoseconds.
const SLICE_NS: u64 = 60_000;
const ROWS_MIN: usize = 16;
/// What a row is taken to cost before anything is known, nanoseconds.
const ROW_NS_AT_FIRST: u64 = 1_500;

#[derive(Debug)]
pub(super) struct Pace {
    /// What a row costs, nanoseconds; by a clock that stands still it costs nothing.
    row_ns: u64,
    /// Commits in a row that carried nothing else.
    alone: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { row_ns: ROW_NS_AT_FIRST, alone: 0 }
    }
}

impl Pace {
    /// What the next slice may do beside a group of so many rows. `behind`: how often the length at which folding begins is in
    /// the tail. Never more than `most`.
    pub(super) fn next(&mut self, group_rows: usize, behind: usize, most: Size) -> Size {
        self.alone = if group_rows > 0 { 0 } else { (self.alone + 1).min(16) };
        let in_time = usize::try_from(SLICE_NS / self.row_ns.max(1)).unwrap_or(FOLD_ROWS_MAX);
        let in_time = in_time.clamp(ROWS_MIN, FOLD_ROWS_MAX) << self.alone;
        let keeping_up = group_rows + group_rows / 4;
        Size { rows: (in_time.max(keeping_up) * behind.max(1)).min(most.rows), bytes: most.bytes }
    }

    /// So long took a slice of so many rows.
    pub(super) fn took(&mut self, took: Duration, rows: usize) {
        let Ok(rows @ 1..) = u64::try_from(rows) else { return };
        let row_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX) / rows;
        // A thread that had to wait for its core says little about rows.
        let row_ns = row_ns.min(self.row_ns.saturating_mul(4).max(1));
        self.row_ns = (self.row_ns * 7 + row_ns) / 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Size = Size { rows: 10_000, bytes: 1 };

    fn learned(ns: u64) -> Pace {
        let mut pace = Pace::default();
        (0..100).for_each(|_| pace.took(Duration::from_nanos(ns * 50), 50));
        pace
    }

    #[test]
    fn beside_a_small_group_a_slice_takes_its_time_and_no_longer() {
        assert!((27..=36).contains(&learned(2_000).next(10, 1, MOST).rows));
        assert!((54..=72).contains(&learned(1_000).next(10, 1, MOST).rows));
        assert_eq!(learned(1_000_000).next(10, 1, MOST).rows, ROWS_MIN);
        assert_eq!(learned(0).next(10, 1, MOST).rows, FOLD_ROWS_MAX);
    }

    #[test]
    fn a_large_group_carries_more_than_it_brings_and_a_long_tail_more_still() {
        assert_eq!(learned(2_000).next(1_000, 1, MOST).rows, 1_250);
        assert_eq!(learned(2_000).next(1_000, 3, MOST).rows, 3_750);
        assert_eq!(learned(2_000).next(1_000_000, 8, MOST).rows, MOST.rows);
    }

    #[test]
    fn where_nobody_waits_slices_grow_until_somebody_does() {
        let mut pace = learned(2_000);
        let small = pace.next(1, 1, MOST).rows;
        assert_eq!([pace.next(0, 1, MOST).rows, pace.next(0, 1, MOST).rows], [2 * small, 4 * small]);
        assert_eq!((0..20).map(|_| pace.next(0, 1, MOST).rows).last(), Some(MOST.rows));
        assert_eq!(pace.next(1, 1, MOST).rows, small);
    }
}
