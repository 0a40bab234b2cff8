//! Triggers of every kind, with every option.

use std::time::Duration;

use durably::{Disposition, Error, OnConflict, RunHandle, RunId, RunStatus, Trigger};
use serde_json::json;

use super::case::{Case, JOBS, Life, same};
use super::control::fits;
use super::operation::Kind;
use super::reference::{Answer, Asked, Number, Refusal};

const KEYS: [(&str, u32); 3] = [("a", 1), ("b", 2), ("b", 1)];
const IDEMPOTENCY: [&str; 3] = ["i", "j", "k"];

impl Case<'_> {
    pub fn asked(&self, random: &mut fastrand::Rng, job: usize) -> Asked {
        let mut asked = Asked { job, input: random.u64(..3), ..Asked::default() };
        if random.bool() {
            let (key, limit) = KEYS[random.usize(..KEYS.len())];
            asked.concurrency = Some((key.to_owned(), limit));
            let policies = [OnConflict::Queue, OnConflict::Reject, OnConflict::Skip, OnConflict::Replace];
            asked.on_conflict = policies[random.usize(..4)];
        }
        if random.u8(..3) == 0 {
            asked.idempotency = Some(IDEMPOTENCY[random.usize(..3)].to_owned());
            asked.ttl_ms = random.bool().then(|| random.u64(..60_000));
            asked.reject_changed = random.u8(..3) == 0;
            asked.reuse = random.u8(..3) == 0;
        }
        for key in ["x", "y"] {
            if random.bool() {
                asked.labels.insert(key.to_owned(), ["0", "1"][random.usize(..2)].to_owned());
            }
        }
        asked
    }

    pub async fn trigger(&mut self, life: &Life, kind: Kind, random: &mut fastrand::Rng) -> Result<(), String> {
        let job = random.usize(..JOBS.len());
        let asked = self.asked(random, job);
        let invalid = random.u8(..12) == 0;
        let answer = match (kind, life.jobs.get(&job)) {
            (Kind::TriggerJson, _) | (_, None) => {
                let input = if invalid { json!("no number") } else { json!(asked.input) };
                let call = with(life.durably.trigger_json(JOBS[job].0, input), &asked);
                call.await.map(|run| (run.id(), run.disposition(), run.input_differs(), run.status()))
            }
            (Kind::TryTrigger, Some(handle)) => {
                let call = with(handle.try_trigger(asked.input), &asked);
                told(if invalid { call.label("not a key!", "").await } else { call.await })
            }
            (_, Some(handle)) => {
                let call = with(handle.trigger(asked.input), &asked);
                told(if invalid { call.label("not a key!", "").await } else { call.await })
            }
        };
        self.count(kind, answer.is_ok());
        if invalid && self.model.registered.contains_key(&job) {
            return match answer {
                Err(Error::InvalidInput { .. } | Error::InvalidOption { .. }) => Ok(()),
                other => Err(format!("an invalid trigger: {other:?}")),
            };
        }
        let should = self.model.trigger(&[asked]).map_err(|(_, refusal)| refusal);
        self.answered(answer.map(|answer| vec![answer]), should)
    }

    pub async fn batch(&mut self, life: &Life, random: &mut fastrand::Rng) -> Result<(), String> {
        let jobs: Vec<usize> = life.jobs.keys().copied().collect();
        let Some(job) = random.choice(jobs) else { return Ok(()) };
        let asked: Vec<Asked> = (0..random.usize(..6)).map(|_| self.asked(random, job)).collect();
        let items = asked.iter().map(|asked| with(Trigger::new(asked.input), asked));
        let answer = life.jobs[&job].batch_trigger(items).await;
        self.count(Kind::Batch, answer.is_ok());
        let answer = answer.map(|runs| runs.into_iter().map(|run| told(Ok(run))).collect::<Result<Vec<_>, _>>());
        let answer = match answer {
            Ok(runs) => runs,
            Err(error) => Err(error),
        };
        match (answer, self.model.trigger(&asked)) {
            (Err(Error::Item { index, error }), Err((at, refusal))) => {
                same!(index, at, "the item that is refused");
                self.answered(Err(*error), Err(refusal))
            }
            (answer, should) => self.answered(answer, should.map_err(|(_, refusal)| refusal)),
        }
    }

    pub fn answered(
        &mut self,
        answer: Result<Vec<(RunId, Disposition, bool, RunStatus)>, Error>,
        should: Result<Vec<Answer>, Refusal>,
    ) -> Result<(), String> {
        match (answer, should) {
            (Ok(answers), Ok(should)) => {
                same!(answers.len(), should.len(), "answers");
                for ((id, disposition, differs, status), should) in answers.into_iter().zip(should) {
                    same!(disposition, should.disposition, "disposition of {id}");
                    same!(differs, should.differs, "input_differs of {id}");
                    if disposition == Disposition::Created {
                        self.created(id, should.run)?;
                    }
                    same!(Some(id), self.ids.get(should.run).copied(), "the run of the answer");
                    same!(status, self.model.runs[&should.run].status, "status of the answer");
                }
                Ok(())
            }
            (Err(error), Err(refusal)) if fits(&error, &refusal) => Ok(()),
            (answer, should) => Err(format!("is {answer:?}, should be {should:?}")),
        }
    }

    pub fn created(&mut self, id: RunId, number: Number) -> Result<(), String> {
        same!(self.ids.len(), number, "the number of a new run");
        if self.ids.last().is_some_and(|last| *last >= id) {
            return Err(format!("ids do not grow: {id} after {:?}", self.ids.last()));
        }
        self.ids.push(id);
        Ok(())
    }
}

fn told<O>(run: Result<RunHandle<O>, Error>) -> Result<(RunId, Disposition, bool, RunStatus), Error> {
    run.map(|run| (run.id(), run.disposition(), run.input_differs(), run.status()))
}

/// The options of a trigger, for the three builders that have them.
trait Optioned: Sized {
    fn options(self, asked: &Asked) -> Self;
}

macro_rules! optioned {
    ($($type:ty),+) => {$(
        impl Optioned for $type {
            fn options(self, asked: &Asked) -> Self {
                let mut call = self.labels(asked.labels.clone());
                if let Some(key) = &asked.idempotency {
                    call = call.idempotency_key(key);
                    if let Some(ttl) = asked.ttl_ms {
                        call = call.idempotency_ttl(Duration::from_millis(ttl));
                    }
                    if asked.reject_changed {
                        call = call.reject_changed_input();
                    }
                    if asked.reuse {
                        call = call.reuse_after_failure();
                    }
                }
                if let Some((key, limit)) = &asked.concurrency {
                    call = call.concurrency_key(key).limit(*limit).on_conflict(asked.on_conflict);
                }
                call
            }
        }
    )+};
}
optioned!(durably::JsonTrigger, durably::TriggerCall<u64, u64>, Trigger<u64>);

fn with<C: Optioned>(call: C, asked: &Asked) -> C {
    call.options(asked)
}
