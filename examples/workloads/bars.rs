//! What each workload is to reach: one table, by the name of the row.

use std::fmt;

/// A figure that counts, and the side of it that is good.
#[derive(Debug, Clone, Copy)]
pub enum Bar {
    RatioAtLeast(f64),
    RatioAtMost(f64),
    AtLeast(f64),
    AtMost(f64),
}

impl Bar {
    pub fn is_met(self, value: f64, ratio: Option<f64>) -> bool {
        match self {
            Bar::RatioAtLeast(least) => ratio.is_some_and(|ratio| ratio >= least),
            Bar::RatioAtMost(most) => ratio.is_some_and(|ratio| ratio <= most),
            Bar::AtLeast(least) => value >= least,
            Bar::AtMost(most) => value <= most,
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bar::RatioAtLeast(least) => write!(f, ">= {least}x"),
            Bar::RatioAtMost(most) => write!(f, "<= {most}x"),
            Bar::AtLeast(least) => write!(f, ">= {least}"),
            Bar::AtMost(most) => write!(f, "<= {most}"),
        }
    }
}

use Bar::{AtLeast, AtMost, RatioAtLeast, RatioAtMost};

/// The row's name, its bar, and what would be better still. Of several bars all must be met. Figures in units of their own
/// (steps/s, ms, MiB) are meant for a quiet machine of two cores.
pub const BARS: &[(&str, &[Bar], &[Bar])] = &[
    ("W1 1,024 runs at a time", &[RatioAtLeast(0.35), AtLeast(100_000.0)], &[RatioAtLeast(0.6)]),
    ("W1 64 runs at a time", &[RatioAtLeast(0.5)], &[RatioAtLeast(0.75)]),
    // One; and redb's own where it grows the file, which are few and none of a commit's.
    ("flushes a commit", &[AtMost(1.05)], &[AtMost(1.05)]),
    ("bytes written a step", &[AtMost(800.0)], &[AtMost(650.0)]),
    ("CPU a step", &[AtMost(12.0)], &[AtMost(6.0)]),
    ("W2 trigger to result, p50", &[RatioAtMost(4.0)], &[RatioAtMost(3.2)]),
    ("W3 one run, steps in sequence", &[RatioAtLeast(0.8)], &[RatioAtLeast(0.95)]),
    ("W4 64 callers, key and label", &[AtLeast(25_000.0)], &[AtLeast(60_000.0)]),
    ("W4 a batch of 20,000", &[AtLeast(120_000.0)], &[AtLeast(250_000.0)]),
    ("keyed, many keys stored", &[RatioAtLeast(0.3)], &[RatioAtLeast(0.7)]),
    ("W5 next run, many pending", &[RatioAtLeast(0.9)], &[RatioAtLeast(1.0)]),
    ("W6 take up a run, after a crash", &[AtMost(4.0)], &[AtMost(1.0)]),
    ("W6 take up a run, after a clean stop", &[AtMost(4.0)], &[AtMost(1.0)]),
    ("W6b open after kill -9", &[RatioAtMost(1.0)], &[RatioAtMost(0.5)]),
    ("W7 pending runs in memory", &[AtMost(100.0)], &[AtMost(40.0)]),
    ("W7b suspended runs in memory", &[AtMost(30.0)], &[AtMost(10.0)]),
    ("W8 first page by status", &[AtMost(2.0)], &[AtMost(0.5)]),
    ("W8 first page by job", &[AtMost(2.0)], &[AtMost(0.5)]),
    ("W8 first page by label", &[AtMost(2.0)], &[AtMost(0.5)]),
    ("soak, file against live data", &[RatioAtMost(1.0)], &[]),
    ("p99 of a step beside a purge", &[AtMost(3.0)], &[]),
    ("p99 of a step beside a recovery", &[AtMost(3.0)], &[]),
];

/// The bars of a row: what it must reach, and what would be better still.
pub fn of(row: &str) -> (&'static [Bar], &'static [Bar]) {
    BARS.iter().find(|(name, ..)| *name == row).map_or((&[], &[]), |(_, bars, ambition)| (bars, ambition))
}
