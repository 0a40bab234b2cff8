//! A client that draws lots.

use std::sync::Arc;
use std::time::Duration;

use durably::{Clock, Disposition, Error, OnConflict, RunFilter, RunId, Trigger};

use super::ledger::Ledger;
use super::world::{Handles, JOBS, World};

const IDEMPOTENCY: [&str; 4] = ["i", "j", "k", "l"];

pub struct Client {
    pub world: World,
    pub handles: Arc<Handles>,
    pub random: fastrand::Rng,
}

impl Client {
    pub async fn work(mut self, ops: u64) {
        for _ in 0..ops {
            self.world.noise().await;
            self.act().await;
            if self.random.u8(..3) == 0 {
                tokio::time::sleep(Duration::from_millis(self.random.u64(..120))).await;
            }
        }
    }

    fn any_run(&mut self) -> Option<RunId> {
        let ledger = self.world.ledger.lock().expect("whole");
        let runs: Vec<_> = ledger.runs.keys().rev().take(40).copied().collect();
        drop(ledger);
        self.random.choice(runs)
    }

    async fn act(&mut self) {
        let durably = self.handles.durably.clone();
        let world = self.world.clone();
        match self.random.u8(..40) {
            0..17 => self.trigger().await,
            17..19 => self.batch().await,
            19..23 => {
                let Some(run) = self.any_run() else { return };
                let ended = durably.cancel(run).await;
                world.note(format_args!("cancel {run}: {}", told(&ended)));
                if ended.is_ok() {
                    // Resumed meanwhile, it would not be: nobody can tell, so only an undisturbed cancel counts.
                    let status = durably.get_run(run).await.ok().flatten().map(|run| run.status);
                    if let Some(status) = status {
                        world.tell(|ledger| ledger.seen(run, status));
                    }
                }
            }
            23..26 => {
                let Some(run) = self.any_run() else { return };
                world.tell(|ledger| ledger.resumes(run));
                let resumed = durably.resume(run).await;
                world.note(format_args!("resume {run}: {}", told(&resumed)));
            }
            26..28 => {
                let Some(run) = self.any_run() else { return };
                let Ok(Some(old)) = durably.get_run(run).await else { return };
                let nonce = old.input.as_ref().and_then(serde_json::Value::as_u64).unwrap_or(u64::MAX);
                world.tell(|ledger| ledger.requests(nonce));
                let again = durably.retrigger(run).await;
                world.note(format_args!("retrigger {run}: {}", told(&again)));
                if let Ok(again) = again {
                    world.tell(|ledger| ledger.acked(again.id()));
                }
            }
            28 => {
                let Some(run) = self.any_run() else { return };
                world.tell(|ledger| ledger.maybe_deleted(run));
                let deleted = durably.delete_run(run).await;
                world.note(format_args!("delete {run}: {}", told(&deleted)));
            }
            29 => {
                let before = world.clock.now().saturating_sub(Duration::from_secs(self.random.u64(..20)));
                if self.random.u8(..4) == 0 {
                    world.tell(Ledger::all_ended_maybe_deleted);
                    let purged = durably.purge_runs(before).await;
                    world.note(format_args!("purge: {purged:?}"));
                }
            }
            30 => {
                let Some(run) = self.any_run() else { return };
                let value = self.random.u64(..);
                world.tell(|ledger| ledger.signal_is_sent(run, value));
                let sent = durably.signal(run, "go", &value).await;
                world.note(format_args!("signal {run}: {}", told(&sent)));
            }
            31..33 => {
                let Some(run) = self.any_run() else { return };
                if let Ok(Some(run)) = durably.get_run(run).await {
                    world.tell(|ledger| ledger.seen(run.id, run.status));
                    let steps = durably.get_steps(run.id).await.map(|steps| steps.len());
                    world.note(format_args!("{} is {} with {steps:?}", run.id, run.status));
                }
            }
            33..36 => {
                let Some(run) = self.any_run() else { return };
                let patience = Duration::from_millis(self.random.u64(..2_000));
                let waited = durably.wait_for_run(run).timeout(patience).await;
                world.note(format_args!("wait {run}: {}", told(&waited)));
            }
            36 => {
                let years = i64::from(self.random.i8(-10..=10));
                world.clock.jump(years * 365 * 86_400_000);
                world.note(format_args!("the wall jumps {years} years"));
            }
            37 => {
                let patience = Duration::from_millis(self.random.u64(..500));
                let stopped = tokio::time::timeout(patience, durably.stop()).await;
                world.note(format_args!("stop: {stopped:?}"));
                self.world.noise().await;
                let _ = durably.start().await;
            }
            38 => {
                let filter = RunFilter::new().label("kind", ["x", "y"][self.random.usize(..2)]).limit(5);
                let found = durably.get_runs(filter).await;
                world.note(format_args!("filter: {:?}", found.map(|runs| runs.len()).ok()));
            }
            _ => {
                let stats = durably.stats().await;
                world.note(format_args!("stats: {:?}", stats.map(|stats| stats.jobs).ok()));
            }
        }
    }

    fn next(&mut self) -> (usize, Trigger<u64>, Option<&'static str>) {
        let at = self.random.usize(..JOBS.len());
        let nonce = self.random.u64(..1 << 30);
        self.world.tell(|ledger| ledger.requests(nonce));
        let mut trigger = Trigger::new(nonce).label("kind", ["x", "y"][self.random.usize(..2)]);
        if let Some((key, limit)) = self.world.key_of(nonce) {
            let policies = [OnConflict::Queue, OnConflict::Queue, OnConflict::Skip, OnConflict::Replace];
            trigger = trigger.concurrency_key(key).limit(limit);
            trigger = trigger.on_conflict(policies[self.random.usize(..4)]);
        }
        let idempotency = (self.random.u8(..4) == 0).then(|| IDEMPOTENCY[self.random.usize(..4)]);
        if let Some(key) = idempotency {
            trigger = trigger.idempotency_key(key);
        }
        (at, trigger, idempotency)
    }

    async fn trigger(&mut self) {
        let (at, trigger, idempotency) = self.next();
        let answer = self.handles.jobs[at].batch_trigger([trigger]).await;
        let world = self.world.clone();
        let Ok(mut runs) = answer else {
            return world.note(format_args!("trigger: {}", told(&answer)));
        };
        if let Some(run) = runs.pop() {
            world.note(format_args!("trigger {}: {} {:?}", JOBS[at], run.id(), run.disposition()));
            world.tell(|ledger| {
                ledger.acked(run.id());
                if let Some(key) = idempotency
                    && run.disposition() != Disposition::Coalesced
                {
                    ledger.keyed(JOBS[at], key, run.id(), run.disposition() == Disposition::Created);
                }
            });
        }
    }

    async fn batch(&mut self) {
        let items: Vec<_> = (0..self.random.u8(1..6)).map(|_| self.next().1).collect();
        let at = self.random.usize(..JOBS.len());
        let answer = self.handles.jobs[at].batch_trigger(items).await;
        self.world.note(format_args!("batch: {}", told(&answer)));
        for run in answer.into_iter().flatten() {
            self.world.tell(|ledger| ledger.acked(run.id()));
        }
    }
}

fn told<T>(answer: &Result<T, Error>) -> String {
    match answer {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.to_string(),
    }
}
