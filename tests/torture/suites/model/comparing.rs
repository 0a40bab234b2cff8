//! Whether what the runtime has is what the reference has.

use std::collections::{BTreeMap, BTreeSet};

use durably::{RunFilter, RunStatus, Timestamp};
use serde_json::Value;

use super::case::{Case, JOBS, Life, same};
use super::reference::Number;

impl Case<'_> {
    pub async fn compare_steps(&self, life: &Life, number: Number) -> Result<(), String> {
        let steps = life.durably.get_steps(self.ids[number]).await.map_err(|error| error.to_string())?;
        let is: BTreeMap<u32, (String, Option<u64>, Option<String>)> = steps
            .into_iter()
            .map(|step| {
                let error = step.error.map(|error| error.message);
                (step.index, (step.name, step.output.as_ref().and_then(Value::as_u64), error))
            })
            .collect();
        let stored = self.model.runs.get(&number).into_iter().flat_map(|run| &run.steps);
        let should = stored.map(|(key, step)| {
            (step.index, (key.clone(), step.outcome.as_ref().ok().copied(), step.outcome.as_ref().err().cloned()))
        });
        same!(is, should.collect(), "steps of {}", self.ids[number]);
        Ok(())
    }

    pub async fn compare_logs(&self, life: &Life, number: Number) -> Result<(), String> {
        let lines = life.durably.get_logs(self.ids[number]).await.map_err(|error| error.to_string())?;
        let lines: Vec<String> = lines.into_iter().map(|line| line.message).collect();
        let Some(run) = self.model.runs.get(&number) else {
            same!(lines, Vec::<String>::new(), "lines of a run that is gone");
            return Ok(());
        };
        if run.status == RunStatus::Completed && !self.uncertain_logs.contains(&number) {
            same!(&lines, &run.logs, "lines of {}", self.ids[number]);
        }
        // Lines that are not flushed may be lost, never reordered.
        let mut all = run.logs.iter();
        if !lines.iter().all(|line| all.any(|other| other == line)) {
            return Err(format!("lines {lines:?} are not among {:?}", run.logs));
        }
        Ok(())
    }

    pub async fn compare(&mut self, life: &Life) -> Result<(), String> {
        if let Some(run) = self.bodies.doubled() {
            return Err(format!("P7: two bodies of {run} at once"));
        }
        let alive: BTreeSet<Option<Number>> = self.bodies.alive().into_iter().map(|id| self.number(id)).collect();
        let should: BTreeSet<Option<Number>> = self.model.bodies.keys().copied().map(Some).collect();
        same!(alive, should, "bodies that are running");
        let runs = life.durably.get_runs(RunFilter::new().limit(1_000)).await.map_err(|error| error.to_string())?;
        let numbers: Vec<Option<Number>> = runs.iter().rev().map(|run| self.number(run.id)).collect();
        same!(numbers, self.model.runs.keys().copied().map(Some).collect::<Vec<_>>(), "runs");
        for (run, (number, should)) in runs.iter().rev().zip(&self.model.runs) {
            let id = run.id;
            same!(&run.job_name, JOBS[should.job].0, "job of {id}");
            same!(run.status, should.status, "status of {id} (number {number})");
            same!(run.lease_generation, should.generation, "generation of {id}");
            same!(run.recoveries, should.recoveries, "recoveries of {id}");
            same!(run.input.as_ref().and_then(Value::as_u64), Some(should.input), "input of {id}");
            same!(&run.labels, &should.labels, "labels of {id}");
            same!(&run.idempotency_key, &should.idempotency, "idempotency key of {id}");
            let key = should.concurrency.as_ref().map(|(key, _)| key.clone());
            same!(&run.concurrency_key, &key, "concurrency key of {id}");
            same!(run.created_at.as_millis(), should.created_at, "created_at of {id}");
            same!(run.started_at.map(Timestamp::as_millis), should.started_at, "started_at of {id}");
            same!(run.completed_at.map(Timestamp::as_millis), should.completed_at, "completed_at of {id}");
            let output = (run.status == RunStatus::Completed).then_some(should.output).flatten();
            same!(run.output.as_ref().and_then(Value::as_u64), output, "output of {id}");
            same!(run.error.as_ref().map(|error| &error.message), should.error.as_ref(), "error of {id}");
            let completed = should.steps.values().filter(|step| step.outcome.is_ok()).count();
            same!(run.completed_step_count as usize, completed, "completed steps of {id}");
            same!(run.current_step_index, should.step_index, "step index of {id}");
            same!(run.retriggered_from, should.from.map(|from| self.ids[from]), "source of {id}");
            same!(run.replaced_by, should.replaced_by.map(|by| self.ids[by]), "successor of {id}");
            if run.status == RunStatus::Leased && !should.steps.is_empty() {
                self.compare_steps(life, *number).await?;
            }
        }
        Ok(())
    }
}
