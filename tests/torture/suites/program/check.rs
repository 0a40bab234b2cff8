//! Whether what is there is what it should be.

use std::collections::{BTreeMap, BTreeSet};

use durably::{Disposition, Durably, Run, RunFilter};

use super::gates::{Gates, work};
use super::ledger::{Entry, Known, Ledger, Tag, What};
use crate::suites::disk::SimDisk;

/// What is wrong with what was recovered, the disk's history being cut after `at` changes; and what is known from here on.
pub async fn check(durably: &Durably, ledger: &Ledger, at: usize) -> Result<Ledger, String> {
    let found = durably.audit().await.map_err(|error| format!("can't be verified: {error}"))?;
    if !found.is_sound() {
        return Err(format!("{} ({} in all)", found.problems[0], found.problem_count));
    }
    let mut runs: BTreeMap<Tag, Run> = BTreeMap::new();
    for run in durably.get_runs(RunFilter::new().limit(1_000)).await.map_err(|error| format!("runs: {error}"))? {
        let tag = run.input.as_ref().and_then(|input| input.get(0)?.as_u64()).ok_or("an input without a tag")?;
        if let Some(twin) = runs.insert(tag, run) {
            return Err(format!("run {tag} is there twice: the other is {}", twin.id));
        }
    }
    let floor = ledger.sequences.iter().filter(|(told, _)| *told <= at).map(|(_, last)| *last).max();
    let mut kept = Ledger { next: ledger.next, floor: floor.unwrap_or(0).max(ledger.floor), ..Ledger::default() };
    let mut batches: BTreeMap<u64, BTreeSet<bool>> = BTreeMap::new();
    for (tag, known) in &ledger.runs {
        let (allowed, must, may) = known.allowed(at);
        let run = runs.remove(tag);
        let batch =
            known.entries.iter().find_map(|entry| if let What::Created { batch } = entry.what { batch } else { None });
        if let Some(batch) = batch.filter(|_| !known.entries.iter().any(|entry| entry.what == What::Deleted)) {
            batches.entry(batch).or_default().insert(run.is_some());
        }
        let Some(run) = run else {
            if must {
                return Err(format!("run {tag} is lost"));
            }
            continue;
        };
        if !may {
            return Err(format!("run {tag} was deleted, or never asked for, and is there as {}", run.status));
        }
        if known.run.is_some_and(|id| id != run.id) {
            return Err(format!("run {tag} has another id"));
        }
        if !allowed.contains(&run.status) {
            return Err(format!("run {tag} is {}, and may be {allowed:?}", run.status));
        }
        let steps = check_steps(durably, *tag, known, &run, at).await?;
        let entry = |what| Entry { begun: 0, answered: Some(0), what };
        let mut entries = vec![entry(What::Created { batch: None })];
        entries.extend(steps.into_iter().map(|(index, value)| entry(What::Step(index, value))));
        if run.status.is_terminal() {
            entries.push(entry(What::Ends(run.status)));
        }
        kept.runs.insert(*tag, Known { run: Some(run.id), key: run.idempotency_key.clone(), entries });
    }
    if let Some((tag, _)) = runs.first_key_value() {
        return Err(format!("run {tag} was never asked for"));
    }
    if batches.values().any(|there| there.len() > 1) {
        return Err("a batch is there in part".into());
    }
    Ok(kept)
}

/// Steps that were answered are there with what was handed over, and no others are but such as were asked for.
async fn check_steps(
    durably: &Durably,
    tag: Tag,
    known: &Known,
    run: &Run,
    at: usize,
) -> Result<Vec<(u32, String)>, String> {
    let found = durably.get_steps(run.id).await.map_err(|error| format!("steps of {tag}: {error}"))?;
    let found: BTreeMap<String, Option<String>> = found
        .into_iter()
        .map(|step| (step.name, step.output.and_then(|value| value.as_str().map(str::to_owned))))
        .collect();
    let mut steps = Vec::new();
    let mut asked = 0;
    for entry in known.entries.iter().filter(|entry| entry.begun <= at) {
        let What::Step(index, value) = &entry.what else { continue };
        match found.get(&format!("s[{index}]")) {
            Some(Some(output)) if output == value => {
                asked += 1;
                steps.push((*index, value.clone()));
            }
            Some(other) => return Err(format!("step {index} of run {tag} is {:?}", other.as_ref().map(String::len))),
            None if entry.answered.is_some_and(|answered| answered <= at) => {
                return Err(format!("step {index} of run {tag} is lost"));
            }
            None => {}
        }
    }
    if asked != found.len() {
        return Err(format!("run {tag} has {} steps and {asked} were asked for", found.len()));
    }
    Ok(steps)
}

/// Keys of runs that are there answer with them. Writes nothing where they do.
pub async fn check_keys(durably: &Durably, kept: &Ledger) -> Result<(), String> {
    let keyed: Vec<_> =
        kept.runs.iter().filter_map(|(tag, known)| Some((*tag, known.run?, known.key.clone()?))).collect();
    if keyed.is_empty() {
        return Ok(());
    }
    let job = durably
        .register(work(Gates::new(&SimDisk::of(Vec::new()), Ledger::default())))
        .map_err(|error| format!("registers: {error}"))?;
    for (tag, run, key) in keyed {
        let again = job.trigger((tag, "again".to_owned())).idempotency_key(key).await;
        let again = again.map_err(|error| format!("asks again: {error}"))?;
        if (again.id(), again.disposition()) != (run, Disposition::Idempotent) {
            return Err(format!("the idempotency key of run {tag} is free"));
        }
    }
    Ok(())
}
