//! Questions of every kind.

use durably::{Error, RunStatus};
use futures::FutureExt;

use super::case::{Case, JOBS, Life, same};
use super::operation::Kind;
use super::reference::Number;

impl Case<'_> {
    pub async fn read(&mut self, life: &Life, kind: Kind, random: &mut fastrand::Rng) -> Result<(), String> {
        let durably = &life.durably;
        if kind == Kind::GetRuns {
            let (mut filter, mut asked) = self.filter(random);
            for _ in 0..random.usize(..3) {
                let status = RunStatus::ALL[random.usize(..6)];
                filter.statuses.push(status);
                asked = asked.status(status);
            }
            let mut should = self.model.find(&filter);
            if random.bool()
                && let Some((number, id)) = self.any(random)
            {
                should.retain(|found| *found < number);
                asked = asked.after(id);
            }
            let (offset, limit) = (random.usize(..4), random.usize(..8));
            let should: Vec<Number> = should.into_iter().skip(offset).take(limit).collect();
            let found = durably.get_runs(asked.offset(offset).limit(limit)).await;
            let found = found.map_err(|error| error.to_string())?;
            let found: Vec<_> = found.iter().map(|run| self.number(run.id)).collect();
            let should: Vec<_> = should.into_iter().map(Some).collect();
            same!(found, should, "get_runs");
            self.count(kind, true);
            return Ok(());
        }
        if kind == Kind::Stats {
            let stats = durably.stats().await.map_err(|error| error.to_string())?;
            for (job, (name, _)) in JOBS.iter().enumerate() {
                let counts = stats.jobs.iter().find(|counts| counts.name == *name);
                let [pending, leased, completed, failed, cancelled] = self.model.counts(job);
                let should = [pending, leased, 0, completed, failed, cancelled];
                same!(counts.map_or([0; 6], |counts| counts.counts), should, "stats of {name}");
            }
            self.count(kind, true);
            return Ok(());
        }
        let Some((number, id)) = self.any(random) else { return Ok(()) };
        let there = self.model.runs.contains_key(&number);
        match kind {
            Kind::GetRun => same!(durably.get_run(id).await.ok().map(|run| run.is_some()), Some(there), "get_run"),
            Kind::GetSteps => self.compare_steps(life, number).await?,
            Kind::GetLogs => self.compare_logs(life, number).await?,
            _ => {
                let subscribed = durably.subscribe(id).await;
                self.count(kind, subscribed.is_ok());
                match subscribed {
                    Ok(mut events) => {
                        let first = events.next().now_or_never().flatten();
                        let first = first.as_ref().and_then(|first| first.event().map(|event| event.run_id));
                        // One that waits for its first start has no past.
                        same!(first.unwrap_or(id), id, "the run of a subscription");
                    }
                    Err(Error::RunNotFound { .. }) if !there => {}
                    Err(error) => return Err(format!("subscribe: {error}")),
                }
                return Ok(());
            }
        }
        self.count(kind, true);
        Ok(())
    }
}
