//! What the sagas told over all lives, and what must follow from it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use durably::{Run, RunId, RunStatus, StepInfo, StepKind};

use super::Told;
use super::child::{ITEMS, SIGNALS, Saga, TRIES};

#[derive(Default)]
pub struct Ledger {
    asked: BTreeSet<String>,
    acknowledged: BTreeMap<RunId, String>,
    holders: BTreeMap<String, RunId>,
    /// By step: the value that its body got.
    resolved: BTreeMap<(RunId, String), u64>,
    /// Signals in the order in which they were sent, and whether that was acknowledged.
    signals: BTreeMap<RunId, BTreeMap<u64, bool>>,
    /// By saga: its newest try, and when tries failed.
    tries: BTreeMap<RunId, (u32, BTreeMap<u32, u64>)>,
    /// By saga: when tries began.
    tried: BTreeMap<(RunId, u32), u64>,
    items: BTreeMap<RunId, Items>,
    /// When a pause was first called.
    pauses: BTreeMap<RunId, u64>,
    paused: BTreeMap<RunId, u64>,
    cancelling: BTreeSet<RunId>,
    cancelled: BTreeSet<RunId>,
    outputs: BTreeMap<RunId, u64>,
    pub seen: BTreeMap<String, u64>,
}

/// The items of a saga's map.
#[derive(Default)]
struct Items {
    /// Done on disk when the last life began.
    stored: u64,
    /// Begun since then.
    begun: BTreeSet<u64>,
    /// The values that their bodies came to.
    values: BTreeMap<u64, BTreeSet<u64>>,
    given: Option<Vec<u64>>,
}

impl Items {
    fn begins(&mut self, item: u64) -> Result<()> {
        self.begun.insert(item);
        let (begun, stored) = (self.begun.len() as u64, self.stored);
        ensure!(begun + stored <= ITEMS as u64, "P3: {stored} items were on disk and {begun} began");
        ensure!(self.given.is_none(), "P3: item {item} began after the map was done");
        Ok(())
    }

    fn are_given(&mut self, values: Vec<u64>) -> Result<()> {
        ensure!(values.len() == ITEMS, "a map of {ITEMS} items gave {}", values.len());
        for (item, value) in values.iter().enumerate() {
            let known = self.values.get(&(item as u64)).is_some_and(|known| known.contains(value));
            ensure!(known, "item {item} never was {value}");
        }
        let first = self.given.get_or_insert_with(|| values.clone());
        ensure!(*first == values, "P5: a map gave other values");
        Ok(())
    }
}

impl Ledger {
    pub fn count(&mut self, what: &str) {
        *self.seen.entry(what.to_owned()).or_default() += 1;
    }

    pub fn read(&mut self, told: Vec<Told>) -> Result<()> {
        told.into_iter().try_for_each(|told| self.read_one(told))
    }

    fn read_one(&mut self, told: Told) -> Result<()> {
        match told {
            Told::Asking(name) => drop(self.asked.insert(name)),
            Told::Triggered(name, run) => {
                let holder = *self.holders.entry(name.clone()).or_insert(run);
                ensure!(holder == run, "P6: callers of {name} were given {holder} and {run}");
                self.acknowledged.insert(run, name);
            }
            Told::Signalling(run, value) => drop(self.signals.entry(run).or_default().insert(value, false)),
            Told::Signalled(run, value) => drop(self.signals.entry(run).or_default().insert(value, true)),
            Told::Cancelling(run) => drop(self.cancelling.insert(run)),
            Told::Cancelled(run) => drop(self.cancelled.insert(run)),
            Told::Begin(run, key, _) => {
                ensure!(
                    !self.resolved.contains_key(&(run, key.clone())),
                    "P3: {run} step {key} began after its checkpoint"
                );
            }
            Told::Resolved(run, key, value) => {
                self.count("steps resolved");
                match self.resolved.insert((run, key.clone()), value) {
                    None => {}
                    Some(first) if first == value => self.count("steps replayed"),
                    Some(first) => anyhow::bail!("P5: {run} step {key} was {first} and is {value}"),
                }
            }
            Told::Trying(run, attempt, at) => self.tries_again(run, attempt, at)?,
            Told::Failing(run, attempt, at) => drop(self.tries.entry(run).or_default().1.insert(attempt, at)),
            Told::ItemsStored(run, stored) => {
                self.count("maps gone on with");
                let items = self.items.entry(run).or_default();
                ensure!(items.stored <= stored, "P3: {run} had {} items on disk and has {stored}", items.stored);
                (items.stored, items.begun) = (stored, BTreeSet::new());
            }
            Told::ItemBegins(run, item) => {
                self.items.entry(run).or_default().begins(item).with_context(|| run.to_string())?;
            }
            Told::Item(run, item, value) => {
                self.items.entry(run).or_default().values.entry(item).or_default().insert(value);
            }
            Told::Items(run, values) => {
                self.items.entry(run).or_default().are_given(values).with_context(|| run.to_string())?;
            }
            Told::Pausing(run, at) => drop(self.pauses.entry(run).or_insert(at)),
            Told::Paused(run, at) => drop(self.paused.entry(run).or_insert(at)),
            Told::Output(run, output) => drop(self.outputs.insert(run, output)),
            Told::Unexpected(error) => anyhow::bail!("a call was answered with {error}"),
            Told::Opened | Told::Dies(_) | Told::Closed => {}
        }
        Ok(())
    }

    /// A try is one more than the last, once that has failed, or that one again.
    fn tries_again(&mut self, run: RunId, attempt: u32, at: u64) -> Result<()> {
        let (last, failed) = self.tries.entry(run).or_default();
        let again = *last == attempt;
        let next = *last + 1 == attempt && (*last == 0 || failed.contains_key(last));
        ensure!((again || next) && attempt <= TRIES, "P3: {run} was tried {last} times, and is for the {attempt}th");
        *last = attempt;
        self.tried.entry((run, attempt)).or_insert(at);
        if again {
            self.count("tries begun again");
        }
        Ok(())
    }

    /// Nothing was tried again before it was time.
    fn check_tries(&self, run: RunId, saga: &Saga) -> Result<()> {
        let Some((last, failed)) = self.tries.get(&run) else { return Ok(()) };
        for attempt in 2..=*last {
            let pause = saga.pause_after(attempt - 1).as_millis() as u64;
            let (failed, tried) = (failed[&(attempt - 1)], self.tried[&(run, attempt)]);
            ensure!(failed + pause <= tried, "P19: try {attempt} of {run} came after {} ms of {pause}", tried - failed);
        }
        Ok(())
    }

    /// Compares the file, in which everything has ended, with what was told.
    pub fn check(&mut self, runs: &[Run], steps: &[Vec<StepInfo>]) -> Result<()> {
        let by_id: BTreeMap<RunId, &Run> = runs.iter().map(|run| (run.id, run)).collect();
        for (run, name) in &self.acknowledged {
            ensure!(by_id.contains_key(run), "P1: {run} ({name}) was acknowledged and is gone");
        }
        let (mut names, mut parts) = (BTreeSet::new(), BTreeSet::new());
        for (run, steps) in runs.iter().zip(steps) {
            ensure!(run.is_terminal(), "P8: {} is still {}", run.id, run.status);
            ensure!(run.status != RunStatus::Failed, "{} failed: {:?}", run.id, run.error);
            let input = run.input.clone().context("an input")?;
            if run.job_name == "part" {
                let name: String = serde_json::from_value(input)?;
                ensure!(parts.insert(name.clone()), "{name} has two parts");
                let parent = run.parent.and_then(|parent| by_id.get(&parent));
                ensure!(parent.is_some(), "{} has no parent", run.id);
                continue;
            }
            let saga: Saga = serde_json::from_value(input)?;
            ensure!(self.asked.contains(&saga.name), "P2: {} was never asked for", run.id);
            ensure!(names.insert(saga.name.clone()), "P6: {} has two runs", saga.name);
            self.check_saga(run, &saga, steps)?;
        }
        for (run, steps) in runs.iter().zip(steps) {
            let waits = steps.iter().any(|step| step.kind == StepKind::Call);
            ensure!(!waits || parts.iter().any(|name| run.input.as_ref().is_some_and(|input| input["name"] == **name)));
        }
        Ok(())
    }

    fn check_saga(&mut self, run: &Run, saga: &Saga, steps: &[StepInfo]) -> Result<()> {
        let id = run.id;
        if let (Some(called), Some(over)) = (self.pauses.get(&id), self.paused.get(&id)) {
            let pause = saga.pause().as_millis() as u64;
            ensure!(called + pause <= *over, "P19: the pause of {id} took {} ms of {pause}", over - called);
        }
        self.check_tries(id, saga)?;
        self.check_signals(id)?;
        for step in steps {
            let Some(value) = step.output.as_ref().and_then(serde_json::Value::as_u64) else { continue };
            let told = self.resolved.get(&(id, step.name.clone()));
            ensure!(told.is_none_or(|told| *told == value), "P5: {id} {} is {value}, not {told:?}", step.name);
        }
        match run.status {
            RunStatus::Cancelled => {
                ensure!(self.cancelling.contains(&id), "{id} was cancelled by nobody");
                self.count("sagas cancelled");
            }
            _ => {
                ensure!(!self.cancelled.contains(&id), "P20: {id} was cancelled and is {}", run.status);
                let tries =
                    steps.iter().find(|step| step.name == "flaky").map(|step| (step.attempts, step.tries.len()));
                ensure!(tries == Some((TRIES, TRIES as usize - 1)), "{id} lists {tries:?} tries");
                let mapped = self.resolved.get(&(id, "items".to_owned())).context("a map was done and not told")?;
                let sum = steps.iter().filter_map(|step| step.output.as_ref()?.as_u64()).sum::<u64>() + mapped;
                ensure!(run.output == Some(sum.into()), "P5: {id} completed with what its steps did not give");
                ensure!(self.outputs.get(&id).is_none_or(|told| *told == sum), "P5: {id} gave another output");
                self.count("sagas completed");
            }
        }
        Ok(())
    }

    /// Signals are taken in the order in which they came, each once, and none that was acknowledged is passed over.
    fn check_signals(&self, run: RunId) -> Result<()> {
        let of = |number| self.resolved.get(&(run, format!("signal[{number}]"))).copied();
        let taken: Vec<u64> = (0..SIGNALS).map_while(of).collect();
        let none = BTreeMap::new();
        let sent = self.signals.get(&run).unwrap_or(&none);
        ensure!(taken.iter().all(|value| sent.contains_key(value)), "{run} took {taken:?}, sent were {sent:?}");
        ensure!(taken.is_sorted_by(|a, b| a < b), "{run} took {taken:?}");
        let Some(last) = taken.last() else { return Ok(()) };
        let passed_over = sent.range(..last).find(|(value, acknowledged)| **acknowledged && !taken.contains(value));
        ensure!(passed_over.is_none(), "{run} took {taken:?} and passed over one of {sent:?}");
        Ok(())
    }
}
