//! What the child has reported over all its lives, and what the file must therefore hold.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use durably::{Run, RunId, RunStatus, StepInfo};

use super::life::{Report, Work};

/// How often there was something to check: a plan that never comes to it proves nothing.
pub type Seen = BTreeMap<String, u64>;

#[derive(Default)]
pub struct Ledger {
    /// By name: what was asked for, whether or not it was acknowledged.
    asked: BTreeMap<String, Work>,
    acknowledged: BTreeMap<RunId, String>,
    /// The run of an idempotency key.
    holders: BTreeMap<String, RunId>,
    /// By step: what it resolved to.
    resolved: BTreeMap<(RunId, u32), u64>,
    /// Runs that have begun at least once.
    entered: BTreeSet<RunId>,
    cancelled: BTreeSet<RunId>,
    deleting: BTreeSet<RunId>,
    deleted: BTreeSet<RunId>,
    /// Those of which a body was gone, or which somebody cancelled.
    may_have_ended: BTreeSet<RunId>,
    purging: bool,
    outputs: BTreeMap<RunId, u64>,
    pub seen: Seen,
}

/// What there is to know of a life only while it lasts.
#[derive(Default)]
struct Under {
    open: BTreeMap<u32, (RunId, Work)>,
    begun: BTreeSet<(RunId, u32, u32)>,
    entered: BTreeMap<RunId, u32>,
    resumed: BTreeMap<RunId, u32>,
    /// Cancelled before this life.
    cancelled_before: BTreeSet<RunId>,
}

impl Ledger {
    pub fn acknowledged_nothing(&self) -> bool {
        self.acknowledged.is_empty()
    }

    pub fn count(&mut self, what: &str) {
        *self.seen.entry(what.to_owned()).or_default() += 1;
    }

    /// Takes a life's reports, and checks what the file could not show. `in_order`: no report was overtaken by a later deed.
    pub fn read(&mut self, in_order: bool, reports: Vec<Report>) -> Result<()> {
        let mut under = Under { cancelled_before: self.cancelled.clone(), ..Under::default() };
        for report in reports {
            self.read_one(in_order, &mut under, report)?;
        }
        for (run, _, step) in &under.begun {
            if !self.resolved.contains_key(&(*run, *step)) {
                self.count("steps cut off");
            }
        }
        Ok(())
    }

    fn read_one(&mut self, in_order: bool, under: &mut Under, report: Report) -> Result<()> {
        match report {
            Report::Asking(works) => self.asked.extend(works.into_iter().map(|work| (work.name.clone(), work))),
            Report::Bursting(work) => {
                self.count("bursts");
                self.asked.insert(work.name.clone(), work);
            }
            Report::Triggered(name, run) => {
                let known = self.acknowledged.insert(run, name.clone());
                self.count(if known.is_none() { "runs acknowledged" } else { "triggers repeated" });
                ensure!(known.is_none_or(|known| known == name), "P6: {run} for another asking");
                if self.asked.get(&name).is_some_and(|work| work.idempotent) {
                    let holder = *self.holders.entry(name.clone()).or_insert(run);
                    ensure!(holder == run, "P6: callers of {name} were given {holder} and {run}");
                }
            }
            Report::Enter(run, body, work) => {
                if let Some((key, limit)) = &work.key {
                    let holds = |(_, other): &&(RunId, Work)| other.key.as_ref().is_some_and(|(other, _)| other == key);
                    let holders = under.open.values().filter(holds).count();
                    if holders > 0 {
                        self.count("keys shared");
                    }
                    ensure!(holders < *limit as usize, "P7: {run} is one more than {limit} with {key}");
                }
                ensure!(under.open.values().all(|(other, _)| *other != run), "P7: {run} has two bodies");
                self.check_order(run, &work)?;
                under.open.insert(body, (run, work));
                let entered = under.entered.entry(run).or_default();
                *entered += 1;
                let resumed = under.resumed.get(&run).copied().unwrap_or(0);
                ensure!(*entered <= 1 + resumed, "P4: {run} has begun {entered} times in one life");
            }
            Report::Exit(run, body) => {
                ensure!(under.open.remove(&body).is_some(), "P7: {run} left twice");
                self.may_have_ended.insert(run);
            }
            Report::Begin(run, body, step) => {
                ensure!(!self.resolved.contains_key(&(run, step)), "P3: {run} step {step} began after its checkpoint");
                ensure!(under.begun.insert((run, body, step)), "P4: {run} step {step} began twice in one body");
                let cancelled = if in_order { &self.cancelled } else { &under.cancelled_before };
                ensure!(!cancelled.contains(&run), "P20: {run} step {step} began after an acknowledged cancel");
                ensure!(!self.deleted.contains(&run), "P20: {run} step {step} began after the run was deleted");
            }
            Report::Resolved(run, body, step, value, ran) => {
                if !ran {
                    self.count("steps replayed");
                }
                ensure!(ran == under.begun.contains(&(run, body, step)), "P3: {run} step {step} came from nowhere");
                let first = *self.resolved.entry((run, step)).or_insert(value);
                ensure!(first == value, "P5: {run} step {step} came back with another value");
            }
            Report::Cancelling(run) => {
                self.may_have_ended.insert(run);
            }
            Report::Cancelled(run) => {
                self.cancelled.insert(run);
                self.count("runs cancelled");
            }
            Report::Resuming(run) => {
                self.cancelled.remove(&run);
                under.cancelled_before.remove(&run);
                *under.resumed.entry(run).or_default() += 1;
                self.count("runs resumed");
            }
            Report::Deleting(run) => {
                self.deleting.insert(run);
            }
            Report::Deleted(run) => {
                self.deleted.insert(run);
                self.count("runs deleted");
            }
            Report::Purging => {
                self.purging = true;
                self.count("purges");
            }
            Report::Output(run, output) => {
                self.outputs.insert(run, output);
                self.count("outputs");
            }
            Report::Unexpected(error) => anyhow::bail!("a call was answered with {error}"),
            Report::Opened | Report::Dies(_) | Report::Closed => {}
        }
        Ok(())
    }

    /// Runs of a key that goes one at a time begin in the order in which they were triggered.
    fn check_order(&mut self, run: RunId, work: &Work) -> Result<()> {
        if !self.entered.insert(run) || work.key.as_ref().is_none_or(|(_, limit)| *limit != 1) {
            return Ok(());
        }
        for (older, name) in self.acknowledged.range(..run) {
            // One that was cancelled may have gone to the back of the line.
            let waits = self.asked[name].key == work.key && !self.may_have_ended.contains(older);
            ensure!(!waits || self.entered.contains(older), "P7: {run} has overtaken {older}, which has the same key");
        }
        Ok(())
    }

    /// Whether a run that was acknowledged need not be there any more.
    fn may_be_gone(&self, run: RunId, work: &Work) -> bool {
        let purged = self.purging && !work.idempotent && self.may_have_ended.contains(&run);
        purged || self.deleting.contains(&run)
    }

    /// Compares a file's runs and their steps with what was reported. `idle`: nothing may be left to do.
    pub fn check(&self, runs: &[Run], steps: &[Vec<StepInfo>], idle: bool) -> Result<()> {
        let by_id: BTreeMap<RunId, &Run> = runs.iter().map(|run| (run.id, run)).collect();
        for (run, name) in &self.acknowledged {
            let gone = self.may_be_gone(*run, &self.asked[name]);
            ensure!(by_id.contains_key(run) || gone, "P1: {run} ({name}) was acknowledged and is gone");
            ensure!(!by_id.contains_key(run) || !self.deleted.contains(run), "{run} was deleted and is there");
        }
        let (mut names, mut batches) = (BTreeSet::new(), BTreeMap::<String, u32>::new());
        for (run, steps) in runs.iter().zip(steps) {
            let work: Work = serde_json::from_value(run.input.clone().context("an input")?)?;
            ensure!(self.asked.get(&work.name) == Some(&work), "P2: {} was never asked for", run.id);
            ensure!(names.insert(work.name.clone()), "P6: {} has two runs", work.name);
            if let Some(acknowledged) = self.acknowledged.get(&run.id) {
                ensure!(*acknowledged == work.name, "P1: {} is another run than the one acknowledged", run.id);
            }
            if let Some(batch) = work.batch.clone() {
                *batches.entry(batch).or_default() += 1;
            }
            self.check_run(run, &work, steps)?;
            ensure!(!idle || run.is_terminal(), "P8: {} is still {}", run.id, run.status);
        }
        let whole = self.purging || batches.values().all(|runs| *runs == 3);
        ensure!(whole, "a batch is there in part: {batches:?}");
        for (run, step) in self.resolved.keys() {
            let Some(at) = runs.iter().position(|other| other.id == *run) else {
                let gone = self.deleting.contains(run) || self.purging;
                ensure!(gone, "P2: {run} step {step} was of no run");
                continue;
            };
            let name = format!("step[{step}]");
            ensure!(steps[at].iter().any(|info| info.name == name), "P3: {run} {name} resolved without a checkpoint");
        }
        Ok(())
    }

    fn check_run(&self, run: &Run, work: &Work, steps: &[StepInfo]) -> Result<()> {
        let id = run.id;
        ensure!(run.status != RunStatus::Failed, "{id} failed: {:?}", run.error);
        ensure!(run.status != RunStatus::Cancelled || run.output.is_none(), "{id} has both ends");
        ensure!(!self.cancelled.contains(&id) || run.status == RunStatus::Cancelled, "P20: {id} is {}", run.status);
        let mut sum = 0;
        for step in steps {
            let value = step.output.as_ref().and_then(serde_json::Value::as_u64).context("a value")?;
            let number = step.name.trim_start_matches("step[").trim_end_matches(']').parse()?;
            ensure!(number < work.steps, "P2: {id} has a {} that it never asked for", step.name);
            let told = self.resolved.get(&(id, number));
            ensure!(told.is_none_or(|told| *told == value), "P5: {id} {} is {value}, the body got {told:?}", step.name);
            sum += value;
        }
        if let Some(output) = self.outputs.get(&id) {
            ensure!(run.status == RunStatus::Completed, "{id} gave its output before it was on disk");
            ensure!(run.output == Some((*output).into()), "P5: {id} gave another output");
        }
        if run.status == RunStatus::Completed {
            ensure!(steps.len() == work.steps as usize, "{id} completed without some step");
            ensure!(run.output == Some(sum.into()), "P5: {id} completed with what its steps did not give");
        }
        Ok(())
    }
}
