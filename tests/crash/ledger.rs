//! What the child has reported over all its lives, and what the file must therefore hold.

use std::collections::{BTreeMap, BTreeSet};

use durably::{Run, RunId, RunStatus, StepInfo};

use crate::child::{Life, Report, Work};

#[derive(Default)]
pub(crate) struct Ledger {
    /// By name: what was asked for, whether or not it was acknowledged.
    asked: BTreeMap<String, Work>,
    acknowledged: BTreeMap<RunId, Work>,
    /// By step: what it resolved to.
    resolved: BTreeMap<(RunId, u32), u64>,
    cancelled: BTreeSet<RunId>,
    outputs: BTreeMap<RunId, u64>,
    pub(crate) seen: Seen,
}

/// How often there was something to check: a plan that never comes to it proves nothing.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) acknowledged: usize,
    pub(crate) repeated: usize,
    pub(crate) cut_off: usize,
    pub(crate) replayed: usize,
    pub(crate) cancelled: usize,
    pub(crate) outputs: usize,
    pub(crate) shared_key: usize,
}

impl Seen {
    pub(crate) fn add(&mut self, other: &Seen) {
        self.acknowledged += other.acknowledged;
        self.repeated += other.repeated;
        self.cut_off += other.cut_off;
        self.replayed += other.replayed;
        self.cancelled += other.cancelled;
        self.outputs += other.outputs;
        self.shared_key += other.shared_key;
    }

    pub(crate) fn is_all(&self) -> bool {
        let Seen { acknowledged, repeated, cut_off, replayed, cancelled, outputs, shared_key } = self;
        [acknowledged, repeated, cut_off, replayed, cancelled, outputs, shared_key].iter().all(|times| **times > 0)
    }
}

impl Ledger {
    pub(crate) fn acknowledged_nothing(&self) -> bool {
        self.acknowledged.is_empty()
    }

    /// Takes a life's reports, and checks what the file could not show.
    pub(crate) fn read(&mut self, life: &Life, reports: Vec<Report>) {
        let (mut open, mut begun) = (BTreeMap::<RunId, Work>::new(), BTreeSet::new());
        let cancelled_before = self.cancelled.clone();
        for report in reports {
            match report {
                Report::Asking(works) => self.asked.extend(works.into_iter().map(|work| (work.name.clone(), work))),
                Report::Triggered(work, run) => {
                    let known = self.acknowledged.insert(run, work.clone());
                    self.seen.acknowledged += usize::from(known.is_none());
                    self.seen.repeated += usize::from(known.is_some());
                    assert!(
                        known.is_none_or(|known| known.idempotent && known == work),
                        "P6: {run} for another asking"
                    );
                }
                Report::Enter(run, work) => {
                    if let Some((key, limit)) = &work.key {
                        let holds = |other: &&Work| other.key.as_ref().is_some_and(|(other, _)| other == key);
                        let holders = open.values().filter(holds).count();
                        self.seen.shared_key += usize::from(holders > 0);
                        assert!(holders < *limit as usize, "P7: {run} is one more than {limit} with {key}");
                    }
                    assert!(open.insert(run, work).is_none(), "P7: {run} has two bodies");
                }
                Report::Exit(run) => assert!(open.remove(&run).is_some(), "P7: {run} left twice"),
                Report::Begin(run, step) => {
                    assert!(
                        !self.resolved.contains_key(&(run, step)),
                        "P3: {run} step {step} began after its checkpoint"
                    );
                    assert!(begun.insert((run, step)), "P4: {run} step {step} began twice without a kill");
                    let cancelled = if life.on_one_thread() { &self.cancelled } else { &cancelled_before };
                    assert!(!cancelled.contains(&run), "P20: {run} step {step} began after an acknowledged cancel");
                }
                Report::Resolved(run, step, value, ran) => {
                    self.seen.replayed += usize::from(!ran);
                    assert_eq!(ran, begun.contains(&(run, step)), "P3: {run} step {step} came from nowhere");
                    let first = *self.resolved.entry((run, step)).or_insert(value);
                    assert_eq!(first, value, "P5: {run} step {step} came back with another value");
                }
                Report::Cancelled(run) => {
                    self.cancelled.insert(run);
                    self.seen.cancelled += 1;
                }
                Report::Output(run, output) => {
                    self.outputs.insert(run, output);
                    self.seen.outputs += 1;
                }
            }
        }
        self.seen.cut_off += begun.iter().filter(|step| !self.resolved.contains_key(step)).count();
    }

    /// Compares a file's runs and their steps with what was reported. `idle`: nothing may be left to do.
    pub(crate) fn check(&self, runs: &[Run], steps: &[Vec<StepInfo>], idle: bool) {
        let by_id: BTreeMap<RunId, &Run> = runs.iter().map(|run| (run.id, run)).collect();
        for run in self.acknowledged.keys() {
            assert!(by_id.contains_key(run), "P1: {run} was acknowledged and is gone");
        }
        let (mut names, mut batches) = (BTreeSet::new(), BTreeMap::<String, u32>::new());
        for (run, steps) in runs.iter().zip(steps) {
            let work: Work = serde_json::from_value(run.input.clone().expect("an input")).expect("work");
            assert_eq!(self.asked.get(&work.name), Some(&work), "P2: {} was never asked for", run.id);
            assert!(names.insert(work.name.clone()), "P6: {} has two runs", work.name);
            if let Some(acknowledged) = self.acknowledged.get(&run.id) {
                assert_eq!(*acknowledged, work, "P1: {} is another run than the one acknowledged", run.id);
            }
            if let Some(batch) = work.batch.clone() {
                *batches.entry(batch).or_default() += 1;
            }
            self.check_run(run, &work, steps);
            assert!(!idle || run.is_terminal(), "P8: {} is still {}", run.id, run.status);
        }
        assert!(batches.values().all(|runs| *runs == 3), "a batch is there in part: {batches:?}");
        for (run, step) in self.resolved.keys() {
            let at = runs.iter().position(|other| other.id == *run).expect("P2: a step of no run");
            let name = format!("step[{step}]");
            assert!(steps[at].iter().any(|info| info.name == name), "P3: {run} {name} resolved without a checkpoint");
        }
    }

    fn check_run(&self, run: &Run, work: &Work, steps: &[StepInfo]) {
        let id = run.id;
        assert_ne!(run.status, RunStatus::Failed, "{id} failed: {:?}", run.error);
        assert!(run.status != RunStatus::Cancelled || run.output.is_none(), "{id} has both ends");
        assert!(!self.cancelled.contains(&id) || run.status == RunStatus::Cancelled, "P20: {id} is {}", run.status);
        let mut sum = 0;
        for step in steps {
            let value = step.output.as_ref().and_then(serde_json::Value::as_u64).expect("a value");
            let number = step.name.trim_start_matches("step[").trim_end_matches(']').parse().expect("a number");
            assert!(number < work.steps, "P2: {id} has a {} that it never asked for", step.name);
            let told = self.resolved.get(&(id, number));
            assert!(told.is_none_or(|told| *told == value), "P5: {id} {} is {value}, the body got {told:?}", step.name);
            sum += value;
        }
        if let Some(output) = self.outputs.get(&id) {
            assert_eq!(run.status, RunStatus::Completed, "{id} gave its output before it was on disk");
            assert_eq!(run.output, Some((*output).into()), "P5: {id} gave another output");
        }
        if run.status == RunStatus::Completed {
            assert_eq!(steps.len(), work.steps as usize, "{id} completed without some step");
            assert_eq!(run.output, Some(sum.into()), "P5: {id} completed with what its steps did not give");
        }
    }
}
