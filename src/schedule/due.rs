//! Which due times of a schedule fire, and when it is due next: pure arithmetic.
//!
//! A clock may jump, forward or back, by years. So a schedule remembers which due times have fired, as ranges without a gap:
//! what was passed over by a jump is due again if the clock comes back to it, and what has fired is not.

use super::{Missed, Timetable};
use crate::limits::{SCHEDULE_ON_TIME, SCHEDULE_RANGES_MAX};
use crate::time::Timestamp;

/// How a schedule stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// `None`: never again.
    pub(crate) next: Option<Timestamp>,
    /// First and last of due times that have fired one after the other, in order of time; the newest few.
    pub(crate) fired: Vec<(Timestamp, Timestamp)>,
}

impl Standing {
    /// One that begins now: nothing before is due.
    pub(crate) fn begin(timetable: &Timetable, now: Timestamp) -> Self {
        Standing { next: timetable.next_after(now), fired: Vec::new() }
    }

    /// The first due time after a moment that has not fired.
    pub(crate) fn next_unfired(&self, timetable: &Timetable, after: Timestamp) -> Option<Timestamp> {
        let mut next = timetable.next_after(after)?;
        while let Some((_, last)) = self.fired.iter().find(|(first, last)| (*first..=*last).contains(&next)) {
            next = timetable.next_after(*last)?;
        }
        Some(next)
    }

    /// Whether the clock has gone back behind what was due next: then it is due again from there.
    pub(crate) fn rewound(&self, timetable: &Timetable, now: Timestamp) -> Option<Standing> {
        let next = self.next_unfired(timetable, now);
        let is_earlier = next.is_some_and(|next| self.next.is_none_or(|known| next < known));
        is_earlier.then(|| Standing { next, fired: self.fired.clone() })
    }

    /// What fires now, in order, and how the schedule stands then. Of what was missed, as much as the policy says; a due
    /// time is not missed for [`SCHEDULE_ON_TIME`].
    pub(crate) fn fire(&self, timetable: &Timetable, missed: Missed, now: Timestamp) -> (Vec<Timestamp>, Standing) {
        // What lies before the last that has fired was passed over when that fired.
        let passed = self.fired.iter().rev().map(|(_, last)| *last).find(|last| *last <= now);
        let next = match (self.next, passed) {
            (Some(next), Some(passed)) if next <= passed => self.next_unfired(timetable, passed),
            (next, _) => next,
        };
        let Some(first) = next.filter(|next| *next <= now) else {
            return (Vec::new(), Standing { next, fired: self.fired.clone() });
        };
        let count = match missed {
            Missed::All(count) => count as usize,
            Missed::Skip | Missed::Once => 1,
        };
        let mut due = newest(timetable, first, now, count);
        // Ranges before the clock's own place are behind `first`; one within it ends behind `now`, and begins in what is due.
        due.retain(|at| !self.fired.iter().any(|(first, last)| (*first..=*last).contains(at)));
        if missed == Missed::Skip {
            due.retain(|at| now.since(*at) <= SCHEDULE_ON_TIME);
        }
        let mut standing = Standing { next: self.next_unfired(timetable, now), fired: self.fired.clone() };
        if let (Some(from), Some(to)) = (due.first(), due.last()) {
            standing.note(*from, *to, first);
        }
        (due, standing)
    }

    /// Notes a range that has fired; `first`: the first that was due.
    fn note(&mut self, from: Timestamp, to: Timestamp, first: Timestamp) {
        let before = self.fired.iter().rposition(|(_, last)| *last < from);
        match before {
            // Nothing was passed over since.
            Some(at) if from == first => self.fired[at].1 = to,
            before => self.fired.insert(before.map_or(0, |at| at + 1), (from, to)),
        }
        if self.fired.len() > SCHEDULE_RANGES_MAX {
            self.fired.remove(0);
        }
    }
}

/// The newest due times from `first` to `now`, up to `count`, in order.
///
/// There may be millions, so they are looked for from the end, in a stretch that is doubled until it holds enough.
fn newest(timetable: &Timetable, first: Timestamp, now: Timestamp, count: usize) -> Vec<Timestamp> {
    let mut stretch = std::time::Duration::from_secs(1);
    loop {
        let from = now.saturating_sub(stretch);
        let whole = from < first;
        let mut due = std::collections::VecDeque::with_capacity(count.min(64) + 1);
        let mut next = if whole { Some(first) } else { timetable.next_after(from) };
        let mut seen = 0usize;
        while let Some(at) = next.filter(|at| *at <= now) {
            seen += 1;
            due.push_back(at);
            if due.len() > count {
                due.pop_front();
            }
            next = timetable.next_after(at);
        }
        if whole || seen >= count {
            return due.into();
        }
        stretch = stretch.saturating_mul(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;
    const YEAR: u64 = 365 * 24 * 60 * MINUTE;
    /// Some midnight.
    const START: u64 = 1_770_076_800_000;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(START + ms)
    }

    fn minutes(numbers: impl IntoIterator<Item = u64>) -> Vec<Timestamp> {
        numbers.into_iter().map(|minute| at(minute * MINUTE)).collect()
    }

    fn every_minute() -> Timetable {
        Timetable::parse("* * * * *", "UTC").expect("is allowed")
    }

    /// Moves the clock from one moment to the next, as a writer does that is woken there; gives what fired at each.
    fn play(missed: Missed, nows: &[u64]) -> Vec<Vec<Timestamp>> {
        let timetable = every_minute();
        let mut standing = Standing::begin(&timetable, at(0));
        let mut all = Vec::new();
        let fired = nows.iter().map(|now| {
            let now = at(*now);
            if let Some(rewound) = standing.rewound(&timetable, now) {
                standing = rewound;
            }
            let (due, next) = standing.fire(&timetable, missed, now);
            standing = next;
            assert!(due.iter().all(|at| *at <= now), "early");
            assert!(standing.next.is_some_and(|next| next > now), "it is due and did not fire");
            all.extend(due.iter().copied());
            due
        });
        let fired = fired.collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count, "a due time fired twice");
        fired
    }

    #[test]
    fn what_is_due_fires_once_and_nothing_that_was_due_before_the_beginning() {
        for missed in [Missed::Skip, Missed::Once, Missed::All(5)] {
            let fired = play(missed, &[0, MINUTE - 1, MINUTE, MINUTE + 1, 2 * MINUTE + 59_000, 2 * MINUTE + 59_999]);
            assert_eq!(fired, [vec![], vec![], minutes([1]), vec![], minutes([2]), vec![]], "{missed:?}");
        }
    }

    #[test]
    fn of_what_was_missed_as_much_fires_as_the_policy_says() {
        let last = 10 * MINUTE + 1;
        assert_eq!(play(Missed::Skip, &[MINUTE, last]), [minutes([1]), minutes([10])], "the last is on time");
        assert_eq!(play(Missed::Once, &[MINUTE, last]), [minutes([1]), minutes([10])]);
        assert_eq!(play(Missed::All(3), &[MINUTE, last]), [minutes([1]), minutes(8..=10)]);
        assert_eq!(play(Missed::All(100), &[MINUTE, last]), [minutes([1]), minutes(2..=10)]);
        let hourly = Timetable::parse("0 * * * *", "UTC").expect("is allowed");
        let standing = Standing::begin(&hourly, at(0));
        let late = at(3 * 60 * MINUTE + MINUTE + 1);
        let fire = |missed| standing.fire(&hourly, missed, late);
        assert_eq!(fire(Missed::Skip).0, []);
        assert_eq!(fire(Missed::Skip).1.next, Some(at(4 * 60 * MINUTE)));
        assert_eq!(fire(Missed::Once).0, [at(3 * 60 * MINUTE)]);
    }

    #[test]
    fn a_jump_of_ten_years_is_looked_at_from_its_end() {
        let there = 10 * YEAR;
        let fired = play(Missed::All(1_000), &[MINUTE, there, there + MINUTE]);
        assert_eq!(fired[1].len(), 1_000);
        assert_eq!(fired[1].last(), Some(&at(there)));
        assert_eq!(fired[2], [at(there + MINUTE)]);
    }

    #[test]
    fn after_a_jump_and_back_what_was_passed_over_is_due_and_what_fired_is_not() {
        let there = 10 * YEAR;
        for missed in [Missed::Skip, Missed::Once, Missed::All(3)] {
            let nows =
                [MINUTE, there, there + MINUTE, MINUTE + 5, 2 * MINUTE, 3 * MINUTE, there + MINUTE, there + 2 * MINUTE];
            let fired = play(missed, &nows);
            assert_eq!(fired[4..6], [minutes([2]), minutes([3])], "it goes on where the clock is");
            assert_eq!(fired[6], [], "fired in the first visit");
            assert_eq!(fired[7], [at(there + 2 * MINUTE)]);
        }
    }

    #[test]
    fn a_clock_that_goes_back_behind_the_beginning_goes_on_there_and_comes_back() {
        let back = 10 * YEAR;
        let timetable = every_minute();
        let begin = at(back);
        let mut standing = Standing::begin(&timetable, begin);
        let mut fired = Vec::new();
        for now in [back + MINUTE, MINUTE, 2 * MINUTE, back + MINUTE, back + MINUTE + 1, back + 2 * MINUTE] {
            let now = at(now);
            standing = standing.rewound(&timetable, now).unwrap_or(standing);
            let (due, next) = standing.fire(&timetable, Missed::Once, now);
            standing = next;
            fired.push(due);
        }
        assert_eq!(fired, [vec![at(back + MINUTE)], vec![], minutes([2]), vec![], vec![], vec![at(back + 2 * MINUTE)]]);
    }

    #[test]
    fn no_due_time_fires_twice_however_the_clock_jumps() {
        let mut random = 7u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        for _ in 0..200 {
            let missed = [Missed::Skip, Missed::Once, Missed::All(4)][next(3) as usize];
            let mut now = 5 * YEAR;
            // Fewer jumps than ranges are remembered.
            let nows: Vec<u64> = (0..24)
                .map(|_| {
                    now = match next(10) {
                        0 => next(10 * YEAR),
                        _ => now + next(3 * MINUTE),
                    };
                    now
                })
                .collect();
            if nows.windows(2).filter(|pair| pair[1].abs_diff(pair[0]) > 3 * MINUTE).count() < SCHEDULE_RANGES_MAX / 2 {
                play(missed, &nows);
            }
        }
    }
}
