//! Cases side by side: one waits for the disk while the other computes.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::suite::{Plan, Report, Violation, caught};

/// Cases at a time. The same case gives the same history whatever runs beside it.
const AT_A_TIME: usize = 3;
/// A suite that has found so much need not go on.
const VIOLATIONS: usize = 5;

/// The seeds of a plan whose cases are of several kinds: the first is the plan's own, then there is one of each kind in turn.
pub struct InTurn<'p> {
    plan: &'p Plan,
    kinds: usize,
    cases: u64,
    numbers: std::ops::RangeFrom<u64>,
}

impl<'p> InTurn<'p> {
    pub fn new(plan: &'p Plan, kinds: usize) -> Self {
        InTurn { plan, kinds, cases: 0, numbers: 0.. }
    }

    /// The kind of a case follows from its seed, so that the seed alone repeats it.
    pub fn kind_of(seed: u64, kinds: usize) -> usize {
        fastrand::Rng::with_seed(seed).usize(..kinds)
    }

    /// The seed of the next case, if there is to be another.
    pub fn next(&mut self) -> Option<u64> {
        let case = self.cases;
        self.cases += 1;
        if !self.plan.goes_on(case) {
            return None;
        }
        Some(match case.checked_sub(1) {
            None => self.plan.seed_of(self.numbers.next()?),
            Some(turn) => self.next_of(turn as usize % self.kinds),
        })
    }

    /// The next seed of that kind.
    pub fn next_of(&mut self, kind: usize) -> u64 {
        let (plan, kinds) = (self.plan, self.kinds);
        let mut seeds = self.numbers.by_ref().map(|number| plan.seed_of(number));
        seeds.find(|seed| Self::kind_of(*seed, kinds) == kind).expect("numbers do not end")
    }
}

/// The seeds of a plan, one after the other.
pub fn in_order(plan: &Plan) -> impl FnMut() -> Option<u64> + Send + '_ {
    let mut seeds = InTurn::new(plan, 1);
    move || seeds.next()
}

/// The same, where what counts as a case of the plan is counted by what is done for a seed.
pub fn until_done<'p>(plan: &'p Plan, done: &'p AtomicU64) -> impl FnMut() -> Option<u64> + Send + 'p {
    let mut numbers = 0..;
    move || numbers.next().filter(|_| plan.goes_on(done.load(Ordering::Relaxed))).map(|number| plan.seed_of(number))
}

/// What a case came to.
#[derive(Debug, Default)]
pub struct Case {
    pub faults: u64,
    pub counts: BTreeMap<String, u64>,
    pub violation: Option<String>,
}

/// Does one case after the other, several at a time, until `next` has no more seeds; with a planted bug, until it is found.
pub fn side_by_side(
    next: &mut (dyn FnMut() -> Option<u64> + Send),
    planted: bool,
    case: impl Fn(u64) -> Case + Sync,
) -> Report {
    let state = Mutex::new((next, Report::default()));
    let work = || {
        loop {
            let seed = {
                let mut state = state.lock().expect("a case's panic ends there");
                let found = state.1.violations.len();
                if found >= VIOLATIONS || (planted && found > 0) {
                    return;
                }
                let Some(seed) = (state.0)() else { return };
                seed
            };
            let done = caught(|| Ok(case(seed)));
            let done = done.unwrap_or_else(|what| Case { violation: Some(what), ..Case::default() });
            let report = &mut state.lock().expect("a case's panic ends there").1;
            report.add(Report {
                cases: 1,
                faults: done.faults,
                violations: done.violation.into_iter().map(|what| Violation { seed, what }).collect(),
                counts: done.counts.into_iter().collect(),
            });
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(work);
        }
    });
    state.into_inner().expect("a case's panic ends there").1
}

/// What a case has found. Its directory is kept, but for defects that were planted.
pub fn violation(error: &anyhow::Error, plan: &Plan, directory: tempfile::TempDir) -> String {
    match plan.bug {
        Some(_) => format!("{error:#}"),
        None => format!("{error:#}; the file is kept in {}", directory.keep().display()),
    }
}

impl Report {
    /// Takes over what another has counted.
    pub fn add(&mut self, other: Report) {
        self.cases += other.cases;
        self.faults += other.faults;
        self.violations.extend(other.violations);
        for (what, times) in other.counts {
            match self.counts.iter_mut().find(|(counted, _)| *counted == what) {
                Some((_, count)) => *count += times,
                None => self.counts.push((what, times)),
            }
        }
    }
}
