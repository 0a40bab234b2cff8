//! When to look for the next operation before going to sleep.
//!
//! A body alone goes on as soon as it is answered, and its next step is here before a thread that has gone to sleep would be awake
//! again: to sleep and to be woken takes tens of microseconds, on the way of every step. So after a small group the writer looks
//! for a moment first. Where that does not pay twice for each time that it does not, since bodies do more than their steps, it looks
//! less and less often.

use std::time::Duration;

/// So long at most. On a virtual machine a body that only takes steps was back within 100 us in 91 % of all cases, and within this
/// in 99 %.
pub(super) const LOOK_MAX: Duration = Duration::from_micros(200);
/// After larger groups there is enough to do for every core without it.
const GROUP_MAX: usize = 2;
/// After a vain look the next is 2^n groups away, n growing with each up to this.
const VAIN_MAX: u32 = 5;
/// What a vain look counts for, in looks that paid.
const VAIN: u32 = 2;

#[derive(Debug)]
pub(super) struct Look {
    /// Vain looks, each as [`VAIN`] that paid, less those that paid.
    vain: u32,
    /// Groups that are not looked after.
    skip: u32,
    /// On a single core, nothing comes while it is looked for.
    alone: bool,
}

impl Look {
    /// For a machine of so many cores.
    pub(super) fn on(cores: usize) -> Self {
        Look { vain: 0, skip: 0, alone: cores < 2 }
    }

    /// Whether to look, after a group of so many operations.
    pub(super) fn pays(&mut self, last: usize) -> bool {
        if self.alone || last == 0 || last > GROUP_MAX {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        true
    }

    /// Whether something came.
    pub(super) fn looked(&mut self, came: bool) {
        if came {
            self.vain = self.vain.saturating_sub(1);
        } else {
            self.vain = (self.vain + VAIN).min(VAIN_MAX);
            self.skip = 1 << self.vain;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of so many groups of one operation, those that are looked after.
    fn looks(look: &mut Look, groups: usize, mut comes: impl FnMut(usize) -> bool) -> usize {
        let looked = |group: &usize| {
            let pays = look.pays(1);
            if pays {
                look.looked(comes(*group));
            }
            pays
        };
        (0..groups).filter(looked).count()
    }

    #[test]
    fn it_is_looked_for_what_comes_at_once_and_ever_more_rarely_for_what_does_not() {
        let mut look = Look::on(2);
        assert_eq!(looks(&mut look, 1_000, |_| true), 1_000);
        assert_eq!(looks(&mut look, 1_000, |_| false), 32);
        assert!(looks(&mut look, 1_000, |_| true) > 900, "and again once it comes");
    }

    #[test]
    fn what_comes_every_other_time_is_hardly_looked_for() {
        let mut look = Look::on(2);
        assert!(looks(&mut look, 1_000, |group| group % 2 == 0) < 100);
        let mut look = Look::on(2);
        assert!(looks(&mut look, 1_000, |group| group % 10 > 0) > 500, "nine times out of ten pays");
    }

    #[test]
    fn neither_after_many_nor_after_none_nor_on_a_single_core() {
        let mut look = Look::on(2);
        assert!(!look.pays(3) && !look.pays(0) && look.pays(2));
        assert!(!Look::on(1).pays(1));
    }
}
