//! Bodies that draw lots.

use std::time::Duration;

use durably::{Error, JobError, JobResult, Retry, RunId, RunStatus, Step};

use super::ledger::Outcome;
use super::world::World;

impl World {
    async fn step(&self, step: &Step, name: String, fails: bool) -> Outcome {
        let run = step.run_id();
        let (world, key) = (self.clone(), name.clone());
        let done = step.run(name.as_str(), move || {
            let (world, key) = (world.clone(), key.clone());
            async move {
                world.tell(|ledger| ledger.step_begins(run, &key));
                world.noise().await;
                let value = world.draw(1 << 40);
                if fails { Err(JobError::msg(format!("no {value}"))) } else { Ok(value) }
            }
        });
        let outcome = done.await.map_err(|error| error.message().to_owned());
        self.note(format_args!("{run} {name} gives {outcome:?}"));
        self.tell(|ledger| ledger.step_gives(run, &name, outcome.clone()));
        self.noise().await;
        outcome
    }

    /// A step that fails so often and is tried three times.
    async fn retried(&self, step: &Step, name: String, failures: u32, delay: Duration) -> Outcome {
        let run = step.run_id();
        let (world, key) = (self.clone(), name.clone());
        let done = step.run_with(name.as_str(), move |cx| {
            let (world, key) = (world.clone(), key.clone());
            async move {
                world.tell(|ledger| {
                    ledger.step_begins(run, &key);
                    ledger.attempt_begins(run, &key, cx.attempt());
                });
                world.noise().await;
                if cx.attempt() <= failures { Err("again".into()) } else { Ok(world.draw(1 << 40)) }
            }
        });
        let done = done.retry(Retry::exponential(3).initial(delay));
        let outcome = done.await.map_err(|error| error.message().to_owned());
        self.note(format_args!("{run} {name} gives {outcome:?} at last"));
        self.tell(|ledger| ledger.step_gives(run, &name, outcome.clone()));
        outcome
    }

    async fn pause(&self, step: &Step, name: String, pause: Duration) -> JobResult<()> {
        let run = step.run_id();
        self.tell(|ledger| ledger.pause_begins(run, &name, self.clock.walls()));
        step.sleep(name.as_str(), pause).await?;
        self.note(format_args!("{run} {name} is over"));
        self.tell(|ledger| ledger.pause_is_over(run, &name, pause, self.clock.walls()));
        Ok(())
    }

    /// Takes a signal, if one comes soon enough.
    async fn signal(&self, step: &Step, name: String, patience: Duration) -> Outcome {
        let run = step.run_id();
        let taken = step.wait_signal::<u64>(name.as_str(), "go").timeout(patience).await;
        let outcome = taken.map_err(|error| error.message().to_owned());
        self.note(format_args!("{run} {name} takes {outcome:?}"));
        self.tell(|ledger| {
            ledger.signal_is_taken(run, &name, &outcome);
            ledger.step_gives(run, &name, outcome.clone());
        });
        outcome
    }

    pub async fn body(self, step: Step, nonce: u64, parent: bool) -> JobResult<u64> {
        let run = step.run_id();
        let _running = Running::new(&self, run, self.key_of(nonce));
        let mut script = self.script(nonce);
        let _ = script.u64(..7);
        let mut sum = nonce;
        for number in 0..script.u64(1..7) {
            let name = format!("s{number}");
            match script.u64(..24) {
                0 => drop(self.step(&step, name, true).await),
                1 => {
                    let error = self.step(&step, name, true).await;
                    return Err(JobError::msg(error.expect_err("it fails")));
                }
                2 => std::panic::panic_any("a body panics".to_owned()),
                3 => tokio::time::sleep(Duration::from_millis(script.u64(..20_000))).await,
                4 => {
                    let (a, b) = tokio::join!(
                        self.step(&step, format!("{name}a"), false),
                        self.step(&step, format!("{name}b"), script.bool())
                    );
                    sum = sum.wrapping_add(a.unwrap_or(1)).wrapping_add(b.unwrap_or(2));
                }
                5 => {
                    tokio::select! {
                        biased;
                        _ = self.step(&step, name, false) => {}
                        () = tokio::time::sleep(Duration::from_millis(2)) => {}
                    }
                }
                6 => {
                    step.progress(number as usize, 7).message("on the way");
                    step.log().info("a line", number);
                }
                7 | 8 if parent => {
                    let child = self.child(&step, &name, nonce).await;
                    self.note(format_args!("{run} waited: {child:?}"));
                }
                9 => {
                    self.tell(|ledger| {
                        ledger.hanging.insert(run);
                    });
                    step.cancelled().cancelled().await;
                }
                10 => {
                    let (failures, delay) = (script.u32(..4), Duration::from_millis(script.u64(..3_000)));
                    sum = sum.wrapping_add(self.retried(&step, name, failures, delay).await.unwrap_or(3));
                }
                11 => self.pause(&step, name, Duration::from_millis(script.u64(..5_000))).await?,
                12 => {
                    let patience = Duration::from_millis(script.u64(..4_000));
                    sum = sum.wrapping_add(self.signal(&step, name, patience).await.unwrap_or(5));
                }
                _ => sum = sum.wrapping_add(self.step(&step, name, false).await.unwrap_or_default()),
            }
            self.noise().await;
        }
        Ok(sum & 0xffff_ffff)
    }

    /// Triggers a run inside a step and waits for its end outside of it.
    async fn child(&self, step: &Step, name: &str, nonce: u64) -> Result<RunStatus, String> {
        let held = self.durably.lock().expect("whole").clone();
        let Some(handles) = held.and_then(|weak| weak.upgrade()) else { return Err("too late".to_owned()) };
        let input = nonce + (1 << 32);
        let world = self.clone();
        let (job, key) = (handles.jobs[0].clone(), self.key_of(input));
        let child = step
            .run((name, "child"), move || {
                let (job, world) = (job.clone(), world.clone());
                async move {
                    world.tell(|ledger| ledger.requests(input));
                    let mut call = job.trigger(input);
                    if let Some((key, limit)) = key {
                        call = call.concurrency_key(key).limit(limit);
                    }
                    let child = call.idempotency_key(format!("child-{input}")).await?.id();
                    world.tell(|ledger| ledger.acked(child));
                    Ok(child)
                }
            })
            .await
            .map_err(|error| error.to_string())?;
        match handles.durably.wait_for_run(child).await {
            Ok(run) => Ok(run.status),
            Err(Error::RunFailed { .. }) => Ok(RunStatus::Failed),
            Err(Error::RunCancelled { .. }) => Ok(RunStatus::Cancelled),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Says when a body has really stopped.
struct Running {
    world: World,
    run: RunId,
    key: Option<&'static str>,
    began: bool,
}

impl Running {
    fn new(world: &World, run: RunId, key: Option<(&'static str, u32)>) -> Self {
        let began = world.tell(|ledger| ledger.begins(run, key));
        world.note(format_args!("{run} begins"));
        Running { world: world.clone(), run, key: key.map(|(key, _)| key), began }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.began {
            self.world.note(format_args!("{} stops", self.run));
            // Also of the dead, whose bodies have stopped with them.
            self.world.ledger.lock().expect("whole").stops(self.run, self.key);
        }
    }
}
