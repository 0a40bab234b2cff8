//! What a world was promised, outside of it: it survives every crash and is told nothing by the dead.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use durably::{Run, RunId, RunStatus};

use crate::suites::clock::Walls;

/// A step's outcome as its body got it.
pub type Outcome = Result<u64, String>;

#[derive(Debug, Default)]
pub struct Known {
    /// The trigger was answered.
    acked: bool,
    /// Somebody asked for it to be deleted, or purged what it may have been among.
    maybe_deleted: bool,
    /// Resumes asked for so far.
    resumes: u64,
    /// How it ended, and after how many resumes.
    ended: Option<(RunStatus, u64)>,
    steps: BTreeMap<String, Outcome>,
    /// The last attempt of a step that began.
    attempts: BTreeMap<String, u32>,
    /// When a pause was first begun.
    pauses: BTreeMap<String, Walls>,
    /// Signals, each with the step that took it.
    signals: BTreeMap<u64, Option<String>>,
}

#[derive(Debug, Default)]
pub struct Ledger {
    pub violations: Vec<String>,
    pub runs: BTreeMap<RunId, Known>,
    /// How often each input was asked for.
    requested: BTreeMap<u64, u64>,
    keys: BTreeMap<(String, String), RunId>,
    /// Bodies that are running, by key, with the limit each asked for.
    active: BTreeMap<String, Vec<(RunId, u32)>>,
    bodies: BTreeSet<RunId>,
    /// Bodies that wait for their cancel, and for nothing else.
    pub hanging: BTreeSet<RunId>,
    pub last_sequence: u64,
    pub events: u64,
}

impl Ledger {
    pub fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    pub fn requests(&mut self, nonce: u64) {
        *self.requested.entry(nonce).or_default() += 1;
    }

    pub fn acked(&mut self, run: RunId) {
        self.runs.entry(run).or_default().acked = true;
    }

    /// An idempotency key was answered with a run. The key of a run that may be gone is forgotten.
    pub fn keyed(&mut self, job: &str, key: &str, run: RunId, created: bool) {
        let name = (job.to_owned(), key.to_owned());
        if let Some(holder) = self.keys.get(&name).copied() {
            let lives = self.runs.get(&holder).is_some_and(|known| !known.maybe_deleted);
            if lives && (holder != run || created) {
                self.violation(format!("P6: key {key:?} of {job} is of {holder} and was answered with {run}"));
            }
        }
        self.keys.insert(name, run);
    }

    pub fn maybe_deleted(&mut self, run: RunId) {
        self.runs.entry(run).or_default().maybe_deleted = true;
    }

    pub fn all_ended_maybe_deleted(&mut self) {
        // Whether a run has ended is not always known here.
        self.runs.values_mut().for_each(|known| known.maybe_deleted = true);
    }

    pub fn resumes(&mut self, run: RunId) {
        self.runs.entry(run).or_default().resumes += 1;
    }

    /// A run was seen in this state.
    pub fn seen(&mut self, run: RunId, status: RunStatus) {
        let known = self.runs.entry(run).or_default();
        if let Some((ended, resumes)) = known.ended
            && resumes == known.resumes
            && ended != status
        {
            let promise = if ended == RunStatus::Cancelled { "P20" } else { "P1" };
            self.violations.push(format!("{promise}: {run} was {ended} and is {status}"));
            return;
        }
        if status.is_terminal() {
            known.ended = Some((status, known.resumes));
        }
    }

    pub fn begins(&mut self, run: RunId, key: Option<(&str, u32)>) {
        if !self.bodies.insert(run) {
            self.violation(format!("P7: two bodies of {run} at once"));
        }
        let Some((key, limit)) = key else { return };
        let active = self.active.entry(key.to_owned()).or_default();
        active.push((run, limit));
        let most = active.iter().map(|(_, limit)| *limit).min().unwrap_or(limit);
        if active.len() > most as usize {
            let what = format!("P7: {} bodies of key {key:?}, limit {most}: {active:?}", active.len());
            self.violation(what);
        }
    }

    pub fn stops(&mut self, run: RunId, key: Option<&str>) {
        self.bodies.remove(&run);
        self.hanging.remove(&run);
        if let Some(active) = key.and_then(|key| self.active.get_mut(key)) {
            active.retain(|(other, _)| *other != run);
        }
    }

    pub fn step_begins(&mut self, run: RunId, step: &str) {
        let known = self.runs.entry(run).or_default();
        let outcome = known.steps.get(step);
        // A resume clears the failure that ended the run.
        if outcome.is_some_and(|outcome| outcome.is_ok() || known.resumes == 0) {
            let what = format!("P3: step {step} of {run} runs again though its outcome was {outcome:?}");
            self.violations.push(what);
        } else if known.ended == Some((RunStatus::Cancelled, known.resumes)) {
            self.violations.push(format!("P20: step {step} of {run} starts after its cancel was answered"));
        }
    }

    /// An attempt begins: the one before it is on disk as failed, so the number does not go back over any crash.
    pub fn attempt_begins(&mut self, run: RunId, step: &str, number: u32) {
        let known = self.runs.entry(run).or_default();
        let last = known.attempts.insert(step.to_owned(), number).unwrap_or(0);
        // A resume clears what was counted before a failure.
        if known.resumes == 0 && number != last && number != last + 1 {
            self.violations.push(format!("P4: attempt {number} of step {step} of {run} after attempt {last}"));
        }
    }

    pub fn pause_begins(&mut self, run: RunId, step: &str, now: Walls) {
        let known = self.runs.entry(run).or_default();
        // After a resume it may be another one of that name.
        if known.resumes > 0 {
            known.pauses.remove(step);
        } else {
            known.pauses.entry(step.to_owned()).or_insert(now);
        }
    }

    /// Not before its time by the wall clock, unless that was set to another time meanwhile.
    pub fn pause_is_over(&mut self, run: RunId, step: &str, pause: Duration, now: Walls) {
        let known = self.runs.entry(run).or_default();
        if let Some(began) = known.pauses.get(step)
            && began.jumps == now.jumps
            && now.now.since(began.now) < pause
        {
            let took = now.now.since(began.now);
            self.violations.push(format!("P19: pause {step} of {run} took {took:?} of {pause:?}"));
        }
    }

    pub fn signal_is_sent(&mut self, run: RunId, value: u64) {
        self.runs.entry(run).or_default().signals.insert(value, None);
    }

    /// A signal is for one step, however often that takes it.
    pub fn signal_is_taken(&mut self, run: RunId, step: &str, outcome: &Outcome) {
        let Ok(value) = outcome else { return };
        let taken = match self.runs.entry(run).or_default().signals.get_mut(value) {
            None => Some(format!("P2: step {step} of {run} took a signal that was not sent")),
            Some(Some(taker)) if taker != step => Some(format!("P3: {step} and {taker} of {run} took one signal")),
            Some(taker) => {
                *taker = Some(step.to_owned());
                None
            }
        };
        self.violations.extend(taken);
    }

    pub fn step_gives(&mut self, run: RunId, step: &str, outcome: Outcome) {
        let known = self.runs.entry(run).or_default();
        match known.steps.get(step) {
            Some(before) if *before != outcome && (before.is_ok() || known.resumes == 0) => {
                let what = format!("P5: step {step} of {run} gave {before:?} and now gives {outcome:?}");
                self.violations.push(what);
            }
            _ => drop(known.steps.insert(step.to_owned(), outcome)),
        }
    }

    /// A committed event, in the order in which they were told.
    pub fn event(&mut self, sequence: u64, first_of_life: bool) {
        self.events += 1;
        let expected = self.last_sequence + 1;
        // What a life committed while the power went was told to nobody.
        if sequence != expected && !(first_of_life && sequence > expected) {
            self.violation(format!("P23: event {sequence} after {}", self.last_sequence));
        }
        self.last_sequence = sequence;
    }

    /// All runs that there are.
    pub fn compare(&mut self, runs: &[Run]) {
        let there: BTreeMap<RunId, &Run> = runs.iter().map(|run| (run.id, run)).collect();
        let lost =
            self.runs.iter().filter(|(run, known)| known.acked && !known.maybe_deleted && !there.contains_key(run));
        let mut found: Vec<String> = lost.map(|(run, _)| format!("P1: {run} was acknowledged and is gone")).collect();
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        for run in runs {
            let nonce = run.input.as_ref().and_then(serde_json::Value::as_u64);
            *counts.entry(nonce.unwrap_or(u64::MAX)).or_default() += 1;
        }
        for (nonce, count) in counts {
            let requested = self.requested.get(&nonce).copied().unwrap_or(0);
            if count > requested {
                found.push(format!("P2: {count} runs of input {nonce}, asked for {requested} times"));
            }
        }
        self.violations.append(&mut found);
        for run in runs {
            self.seen(run.id, run.status);
        }
    }
}
