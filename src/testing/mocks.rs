//! What happens in the place of a step, and the signals that a test sends by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::codec::records::ErrorRecord;
use crate::id::RunId;
use crate::job::{JobError, JobResult, not_storable};

/// How often something happens: [`times`], or always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times(Option<u32>);

/// So often, then no more.
pub fn times(count: u32) -> Times {
    Times(Some(count))
}

/// Every time.
pub fn always() -> Times {
    Times(None)
}

impl Times {
    /// Takes one of them; says whether there was one.
    fn take(&mut self) -> bool {
        match &mut self.0 {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }
}

/// A try of a step, as a mock sees it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StepCallInfo {
    /// The job's name.
    pub job: String,
    /// The run.
    pub run: RunId,
    /// The step's key.
    pub step: String,
    /// Which try of the step it is, from 1.
    pub attempt: u32,
}

type Giver = Arc<dyn Fn(&StepCallInfo) -> JobResult<Value> + Send + Sync>;

/// What happens in the place of a step's body.
pub(super) enum Act {
    Give(Giver),
    Fail(JobError),
    Panic(String),
    /// The body, later.
    Delay(Duration),
    /// The body, and then the end of the process.
    Crash,
}

#[derive(Clone)]
enum Play {
    Give(Giver),
    Fail(ErrorRecord),
    Panic(String),
    Delay(Duration),
    Crash,
}

struct Rule {
    step: String,
    times: Times,
    play: Play,
}

/// What a test has said about steps and signals. It outlives crashes.
#[derive(Default)]
pub(super) struct Mocks {
    rules: Mutex<Vec<Rule>>,
    signals: Mutex<Vec<SignalRule>>,
    /// Steps that were sent one, by run and index: one that was dropped goes on waiting on disk, and is to get no other.
    signalled: Mutex<BTreeSet<(RunId, u32)>>,
}

#[derive(Clone)]
pub(super) struct SignalRule {
    pub(super) name: String,
    pub(super) value: Value,
}

impl Mocks {
    /// What is to happen instead of a step's body. The rule that was set last goes first.
    pub(super) fn act(&self, call: &StepCallInfo) -> Option<Act> {
        let mut rules = lock(&self.rules);
        let of_step = |rule: &&mut Rule| names(&rule.step, &call.step);
        let rule = rules.iter_mut().rev().filter(of_step).find_map(|rule| rule.times.take().then_some(rule))?;
        Some(match rule.play.clone() {
            Play::Give(giver) => Act::Give(giver),
            Play::Fail(record) => Act::Fail(JobError::from_record(record)),
            Play::Panic(message) => Act::Panic(message),
            Play::Delay(duration) => Act::Delay(duration),
            Play::Crash => Act::Crash,
        })
    }

    pub(super) fn signals(&self) -> Vec<SignalRule> {
        lock(&self.signals).clone()
    }

    /// The runs that were sent one.
    pub(super) fn signalled(&self) -> BTreeSet<RunId> {
        lock(&self.signalled).iter().map(|(run, _)| *run).collect()
    }

    /// What was sent to a run that is over does not count, should it be resumed.
    pub(super) fn forget_signalled(&self, over: RunId) {
        lock(&self.signalled).retain(|(run, _)| *run != over);
    }

    pub(super) fn is_signalled(&self, run: RunId, index: u32) -> bool {
        lock(&self.signalled).contains(&(run, index))
    }

    pub(super) fn set_signalled(&self, run: RunId, index: u32) {
        lock(&self.signalled).insert((run, index));
    }

    fn add(&self, step: &str, times: Times, play: Play) {
        lock(&self.rules).push(Rule { step: step.to_owned(), times, play });
    }

    pub(super) fn give<T: Serialize>(
        &self,
        step: &str,
        give: impl Fn(&StepCallInfo) -> JobResult<T> + Send + Sync + 'static,
    ) {
        let giver = move |call: &StepCallInfo| serde_json::to_value(give(call)?).map_err(|error| not_storable(&error));
        self.add(step, always(), Play::Give(Arc::new(giver)));
    }

    pub(super) fn fail(&self, step: &str, times: Times, error: JobError) {
        self.add(step, times, Play::Fail(error.into_record()));
    }

    pub(super) fn panic(&self, step: &str, times: Times, message: String) {
        self.add(step, times, Play::Panic(message));
    }

    pub(super) fn delay(&self, step: &str, times: Times, duration: Duration) {
        self.add(step, times, Play::Delay(duration));
    }

    pub(super) fn crash(&self, step: &str) {
        self.add(step, times(1), Play::Crash);
    }

    pub(super) fn signal(&self, name: &str, value: Value) {
        lock(&self.signals).push(SignalRule { name: name.to_owned(), value });
    }

    /// Everything is as written again.
    pub(super) fn clear(&self) {
        lock(&self.rules).clear();
        lock(&self.signals).clear();
        lock(&self.signalled).clear();
    }
}

impl fmt::Debug for Mocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: BTreeMap<_, _> = lock(&self.rules).iter().map(|rule| (rule.step.clone(), rule.times)).collect();
        f.debug_struct("Mocks").field("steps", &steps).finish_non_exhaustive()
    }
}

/// Whether a rule is about a step: its key, or the name of a key for loops (`sync` is every `sync[..]`).
fn names(rule: &str, step: &str) -> bool {
    rule == step || step.strip_prefix(rule).is_some_and(|rest| rest.starts_with('[') && rest.ends_with(']'))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_names_a_step_or_all_of_a_loop() {
        for (rule, step, named) in [
            ("sync", "sync", true),
            ("sync", "sync[42]", true),
            ("sync[42]", "sync[42]", true),
            ("sync[42]", "sync[43]", false),
            ("sync", "sync-all", false),
            ("sync", "sync-all[1]", false),
        ] {
            assert_eq!(names(rule, step), named, "{rule} {step}");
        }
    }

    #[test]
    fn the_newest_rule_goes_first_for_as_often_as_it_says() {
        let mocks = Mocks::default();
        let call = StepCallInfo { job: "j".into(), run: RunId::MIN, step: "s".into(), attempt: 1 };
        mocks.give("s", |_| Ok(1));
        mocks.fail("s", times(2), JobError::msg("no"));
        for _ in 0..2 {
            assert!(matches!(mocks.act(&call), Some(Act::Fail(_))));
        }
        assert!(matches!(mocks.act(&call), Some(Act::Give(_))));
    }
}
