//! What is done to the runtime and to the reference, and how often.

use std::collections::BTreeMap;

macro_rules! operations {
    ($($name:ident $weight:literal,)+) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($name),+ }

        /// Every operation, with how often it is drawn.
        pub const KINDS: &[(Kind, u32)] = &[$((Kind::$name, $weight)),+];
    };
}
operations! {
    Trigger 14, TryTrigger 2, TriggerJson 3, Batch 5, Wait 2, Cancel 6, CancelWhere 1, Retrigger 3, RetriggerWhere 1,
    Resume 6, ResumeWhere 1, Delete 3, Purge 4, PurgeUpTo 1, GetRun 1, GetRuns 4, GetSteps 1, GetLogs 1, Stats 1,
    Subscribe 1, Register 2, Start 2, Stop 2, RunUntilIdle 2, Step 16, StepBegins 5, StepReturns 6, Returns 6, Fails 2,
    Propagates 3, Panics 1, Logs 2, Crash 3, Shutdown 2, Fault 3, Jump 2, Advance 2,
}

/// An operation with what its arguments derive from.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    pub kind: Kind,
    pub seed: u64,
}

pub type Counts = BTreeMap<(Kind, bool), u64>;

/// So many, drawn by their weights.
pub fn draw(seed: u64, count: usize) -> Vec<Operation> {
    let mut random = fastrand::Rng::with_seed(seed ^ 0x6d6f_6465_6c00);
    let all: u32 = KINDS.iter().map(|(_, weight)| weight).sum();
    let mut draw = || {
        let mut at = random.u32(..all);
        let drawn = KINDS.iter().find(|(_, weight)| {
            let found = at < *weight;
            at = at.saturating_sub(*weight);
            found
        });
        Operation { kind: drawn.map_or(Kind::Trigger, |(kind, _)| *kind), seed: random.u64(..) }
    };
    (0..count).map(|_| draw()).collect()
}
