//! When a group is worth waiting for.
//!
//! Bodies that were answered by one commit come back while the next is under way, in two halves that take turns and share no
//! flush. A writer that waits for both, a fraction of a commit long, makes one group of them; where what it waits for does not
//! come, since bodies do more than their steps, it waits less and less often.

use std::time::Duration;

use crate::limits::GROUP_OPS_MAX;

/// So long at most: less than a flush takes.
pub(super) const LINGER_MAX: Duration = Duration::from_micros(100);
/// After so many vain waits in a row the next is 2^n groups away, and never further.
const VAIN_MAX: u32 = 5;

#[derive(Debug, Default)]
pub(super) struct Linger {
    /// Operations of the last group, and of the one before.
    last: usize,
    before: usize,
    /// Those of the last group that were no body's.
    outside: usize,
    vain: u32,
    /// Groups that are not waited for.
    skip: u32,
}

impl Linger {
    /// How many operations to wait for; `None` where there are enough, or waiting has not paid. One body alone never waits.
    pub(super) fn wanted(&mut self, there: usize, bodies: usize) -> Option<usize> {
        if bodies <= 1 {
            // What did not pay for bodies that are gone may pay for those that come.
            (self.vain, self.skip) = (0, 0);
            return None;
        }
        let wanted = (self.last + self.before).min(bodies + self.outside).min(GROUP_OPS_MAX);
        if there == 0 || there >= wanted {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        Some(wanted)
    }

    /// Whether all that was waited for came.
    pub(super) fn lingered(&mut self, all: bool) {
        self.vain = if all { 0 } else { (self.vain + 1).min(VAIN_MAX) };
        self.skip = if all { 0 } else { 1 << self.vain };
    }

    /// Operations of the last group.
    pub(super) fn last(&self) -> usize {
        self.last
    }

    pub(super) fn took(&mut self, ops: usize, outside: usize) {
        (self.last, self.before, self.outside) = (ops, self.last, outside);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_halves_of_the_bodies_are_waited_for_and_one_body_alone_is_not() {
        let mut linger = Linger::default();
        linger.took(1, 0);
        linger.took(1, 0);
        assert_eq!(linger.wanted(1, 1), None);
        linger.took(1, 1);
        assert_eq!(linger.wanted(1, 1), None, "nor does a caller wait for a body");
        linger.took(30, 0);
        linger.took(34, 0);
        assert_eq!(linger.wanted(34, 64), Some(64));
        assert_eq!(linger.wanted(64, 64), None);
        assert_eq!(linger.wanted(0, 64), None);
        // A purge goes along, one slice a group.
        linger.took(65, 1);
        assert_eq!(linger.wanted(64, 64), Some(65));
    }

    #[test]
    fn what_does_not_come_is_waited_for_ever_more_rarely_until_it_comes() {
        let mut linger = Linger::default();
        linger.took(8, 0);
        linger.took(8, 0);
        let waits_in = |linger: &mut Linger, groups: usize| {
            let waits = (0..groups).filter(|_| linger.wanted(8, 16).inspect(|_| linger.lingered(false)).is_some());
            waits.count()
        };
        assert_eq!(waits_in(&mut linger, 1_000), 34);
        while linger.wanted(8, 16).is_none() {}
        linger.lingered(true);
        assert_eq!(linger.wanted(8, 16), Some(16));
    }

    #[test]
    fn bodies_that_begin_after_a_silence_are_waited_for_at_once() {
        let mut linger = Linger::default();
        linger.took(8, 0);
        linger.took(8, 0);
        for _ in 0..1_000 {
            if linger.wanted(8, 16).is_some() {
                linger.lingered(false);
            }
        }
        assert_eq!(linger.wanted(1, 0), None);
        assert_eq!(linger.wanted(8, 16), Some(16));
    }
}
