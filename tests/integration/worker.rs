//! Executing: what starts when, start and stop, and what ends a body.

use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::Duration;

use durably::{
    Clock, Durably, Error, ErrorKind, Health, Job, JobError, JobResult, RunFilter, RunStatus, Step, SystemClock, Timer,
    Timestamp,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::support::{Count, Gate, echo, ended, failing, gated, job_with, memory, paused, run_of, within};

#[tokio::test]
async fn p_work_01_02_a_paused_runtime_works_off_what_it_is_told_to() {
    within(async {
        let durably = paused().await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let job = job_with("job", order.clone(), |_: Step, input, order| async move {
            order.lock().unwrap().push(input);
            Ok(input)
        })
        .concurrency(1);
        let jobs = durably.register(job).unwrap();
        jobs.batch_trigger(0..5).await.unwrap();
        assert_eq!(durably.run_until_idle(0).await.unwrap(), 0);
        assert_eq!(durably.run_until_idle(2).await.unwrap(), 2);
        // P-LEASE-01: oldest first.
        assert_eq!(*order.lock().unwrap(), [0, 1]);
        assert_eq!(durably.run_until_idle(None).await.unwrap(), 3);
        assert_eq!(durably.run_until_idle(None).await.unwrap(), 0);
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4]);
        // It is paused again afterwards.
        let run = jobs.trigger(9).await.unwrap();
        assert_eq!(durably.stats().await.unwrap().jobs[0].count(RunStatus::Pending), 1);
        assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Pending);
    })
    .await;
}

#[tokio::test]
async fn run_until_idle_counts_every_way_to_end_and_what_bodies_trigger() {
    within(async {
        let durably = paused().await;
        let (bad, child) = durably.register((failing("bad", "no"), echo("child"))).unwrap();
        let parent = job_with("parent", child, |_: Step, input, child: durably::JobHandle<u32, u32>| async move {
            child.trigger(input).await?;
            Ok(())
        });
        let parents = durably.register(parent).unwrap();
        bad.trigger(1).await.unwrap();
        parents.trigger(1).await.unwrap();
        assert_eq!(durably.run_until_idle(None).await.unwrap(), 3);
    })
    .await;
}

#[tokio::test]
async fn p_work_05_no_more_runs_than_slots_execute_at_once() {
    within(async {
        let durably = Durably::builder().max_concurrent_runs(3).in_memory().await.unwrap();
        let gate = Gate::new();
        let jobs = durably.register(gated("job", &gate)).unwrap();
        let runs = jobs.batch_trigger(0..9).await.unwrap();
        gate.reached_by(3).await;
        let stats = durably.stats().await.unwrap();
        assert_eq!(stats.jobs[0].count(RunStatus::Leased), 3);
        assert_eq!(stats.jobs[0].count(RunStatus::Pending), 6);
        gate.open();
        for run in runs {
            run.output().await.unwrap();
        }
        assert_eq!(gate.most_inside(), 3);
    })
    .await;
}

#[tokio::test]
async fn p_work_06_07_a_trigger_starts_at_once_and_an_end_makes_room_at_once() {
    within(async {
        let durably = Durably::builder().max_concurrent_runs(1).in_memory().await.unwrap();
        let jobs = durably.register(echo("job")).unwrap();
        jobs.trigger_and_wait(0).await.unwrap();
        let commits = durably.stats().await.unwrap().commits;
        let run = jobs.trigger(0).await.unwrap();
        // The claim rode on the trigger.
        assert_eq!(run_of(&durably, run.id()).await.lease_generation, 1);
        run.output().await.unwrap();
        assert_eq!(durably.stats().await.unwrap().commits, commits + 2);
        for handle in jobs.batch_trigger(0..10).await.unwrap() {
            handle.output().await.unwrap();
        }
        // Each next claim rides on the end of the run before.
        assert_eq!(durably.stats().await.unwrap().commits, commits + 2 + 11);
    })
    .await;
}

#[tokio::test]
async fn p_work_03_10_stop_waits_for_what_executes_and_start_goes_on() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let jobs = durably.register(gated("job", &gate)).unwrap();
        let first = jobs.trigger(1).await.unwrap();
        gate.reached().await;
        let mut stopping = Box::pin(durably.stop());
        assert!(futures::poll!(&mut stopping).is_pending());
        // Triggers, queries and cancels go on meanwhile.
        let second = jobs.trigger(2).await.unwrap();
        let third = jobs.trigger(3).await.unwrap();
        third.cancel().await.unwrap();
        assert_eq!(run_of(&durably, second.id()).await.status, RunStatus::Pending);
        assert!(futures::poll!(&mut stopping).is_pending());
        gate.open();
        stopping.await.unwrap();
        assert_eq!(run_of(&durably, first.id()).await.status, RunStatus::Completed);
        assert_eq!(run_of(&durably, second.id()).await.status, RunStatus::Pending);
        durably.stop().await.unwrap();
        durably.start().await.unwrap();
        durably.start().await.unwrap();
        assert_eq!(second.output().await.unwrap(), 2);
        assert_eq!(durably.health(), Health::Ok);
    })
    .await;
}

#[tokio::test]
async fn a_stop_that_is_dropped_stops_all_the_same() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let jobs = durably.register(gated("job", &gate)).unwrap();
        jobs.trigger(1).await.unwrap();
        gate.reached().await;
        {
            let mut stopping = Box::pin(durably.stop());
            assert!(futures::poll!(&mut stopping).is_pending());
        }
        let second = jobs.trigger(2).await.unwrap();
        assert_eq!(second.status(), RunStatus::Pending);
        gate.open();
        durably.stop().await.unwrap();
        assert_eq!(run_of(&durably, second.id()).await.status, RunStatus::Pending);
    })
    .await;
}

#[tokio::test]
async fn p_work_14_runs_of_a_job_without_code_wait_for_it_and_hold_up_nobody() {
    within(async {
        let file = crate::support::TempFile::new();
        let durably = file.open_paused().await;
        let early = durably.register(echo("early")).unwrap().trigger(5).concurrency_key("k").await.unwrap().id();
        durably.shutdown().await.unwrap();
        let durably = file.open_with(Durably::builder().max_concurrent_runs(1)).await;
        let others = durably.register(echo("other")).unwrap();
        assert_eq!(others.trigger_and_wait(1).await.unwrap().output, 1);
        let record = run_of(&durably, early).await;
        assert_eq!(
            (record.status, record.job_name.as_str(), record.lease_generation),
            (RunStatus::Pending, "early", 0)
        );
        assert_eq!(durably.get_runs(RunFilter::new().job("early")).await.unwrap().len(), 1);
        assert_eq!(durably.run_until_idle(None).await.unwrap(), 0);
        durably.register(echo("early")).unwrap();
        assert_eq!(durably.wait_for_run(early).await.unwrap().output, Some(5.into()));
    })
    .await;
}

#[tokio::test]
async fn p_work_15_an_error_of_the_body_fails_its_run() {
    within(async {
        let durably = memory().await;
        let job = Job::<u32, u32>::new("job", |_: Step, _: u32| async move {
            Err(JobError::from(std::io::Error::other("disk")).context("saving"))
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(1).await.unwrap();
        let error = ended(&durably, run.id()).await.error.unwrap();
        assert_eq!((error.kind, error.message.as_str(), error.step), (ErrorKind::Error, "saving", None));
        assert_eq!(error.chain, ["disk"]);
    })
    .await;
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Small {
    #[schemars(range(max = 10))]
    count: u32,
}

#[tokio::test]
async fn p_work_16_an_output_that_its_schema_refuses_fails_the_run() {
    within(async {
        let durably = memory().await;
        let jobs = durably.register(Job::new("job", |_: Step, count: u32| async move { Ok(Small { count }) })).unwrap();
        let run = jobs.trigger(11).await.unwrap();
        let record = ended(&durably, run.id()).await;
        let error = record.error.unwrap();
        assert_eq!((record.status, record.output, error.kind), (RunStatus::Failed, None, ErrorKind::InvalidOutput));
        assert!(error.message.contains("/count"), "{}", error.message);
        assert_eq!(jobs.trigger_and_wait(10).await.unwrap().output.count, 10);
    })
    .await;
}

#[tokio::test]
async fn an_output_over_its_limit_fails_the_run() {
    within(async {
        let durably = Durably::builder().payload_bytes_max(64).in_memory().await.unwrap();
        let job = job_with("job", (), |_: Step, bytes, ()| async move { Ok("x".repeat(bytes as usize)) });
        let jobs = durably.register(job).unwrap();
        assert_eq!(jobs.trigger_and_wait(62).await.unwrap().output.len(), 62);
        let run = jobs.trigger(63).await.unwrap();
        let error = ended(&durably, run.id()).await.error.unwrap();
        assert_eq!(error.kind, ErrorKind::OverLimit);
        assert!(error.message.contains("65") && error.message.contains("64"), "{}", error.message);
    })
    .await;
}

/// Panics when it is dropped.
struct Bomb(&'static str);

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("{}", self.0);
    }
}

/// A future of one's own, whose fields are dropped with it and not when it ends.
struct Armed(Bomb);

impl Future for Armed {
    type Output = durably::JobResult<u32>;

    fn poll(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        assert!(!self.0.0.is_empty());
        std::task::Poll::Ready(Ok(1))
    }
}

/// Panics where it is read back.
#[derive(Serialize)]
struct Unreadable(u32);

impl<'de> Deserialize<'de> for Unreadable {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("in deserialize")
    }
}

#[tokio::test]
async fn a_panic_in_user_code_fails_its_run_and_nothing_else() {
    within(async {
        let durably = Durably::builder().max_concurrent_runs(2).in_memory().await.unwrap();
        let gate = Gate::new();
        let job = job_with("job", (), |step: Step, input, ()| async move {
            match input {
                0 => panic!("in body"),
                1 => {
                    let said = input.to_string();
                    step.run("a", || async { if said.is_empty() { Ok(1) } else { panic!("in step {said}") } }).await
                }
                2 => {
                    let _bomb = Bomb("in drop");
                    Ok(1)
                }
                3 => Armed(Bomb("in drop of the future")).await,
                4 => Ok(step.run("a", || async { Ok(Unreadable(1)) }).await?.0),
                5 => std::panic::panic_any(7u32),
                6 => std::panic::panic_any(Bomb("in drop of the payload")),
                7 => {
                    let throws = || -> JobResult<u32> { std::panic::panic_any(Bomb("in drop of a step's payload")) };
                    step.run_blocking("a", throws).await
                }
                _ => Ok(input),
            }
        });
        let (jobs, other) = durably.register((job, gated("other", &gate))).unwrap();
        let untouched = other.trigger(1).await.unwrap();
        gate.reached().await;
        let without = "a panic without a message";
        let messages =
            ["in body", "in step 1", "in drop", "in drop of the future", "in deserialize", without, without, without];
        for (input, message) in (0u32..).zip(messages) {
            let run = jobs.trigger(input).await.unwrap();
            let record = ended(&durably, run.id()).await;
            let error = record.error.unwrap();
            assert_eq!(
                (record.status, error.kind, error.message.as_str()),
                (RunStatus::Failed, ErrorKind::Panic, message)
            );
        }
        gate.open();
        assert_eq!(untouched.output().await.unwrap(), 1);
        assert_eq!(jobs.trigger_and_wait(8).await.unwrap().output, 8);
    })
    .await;
}

/// The system's clock. Armed on a thread, it fails the next time that it is asked from there.
#[derive(Debug, Clone, Default)]
struct Failing {
    system: SystemClock,
    armed: Arc<Mutex<Option<ThreadId>>>,
}

impl Failing {
    fn arm(&self) {
        *self.armed.lock().unwrap() = Some(thread::current().id());
    }

    fn ask(&self) {
        let fails = self.armed.lock().unwrap().take_if(|on| *on == thread::current().id());
        assert!(fails.is_none(), "the clock fails");
    }
}

impl Clock for Failing {
    fn now(&self) -> Timestamp {
        self.system.now()
    }

    fn monotonic(&self) -> Duration {
        self.ask();
        self.system.monotonic()
    }

    fn sleep(&self, duration: Duration) -> Timer {
        self.ask();
        self.system.sleep(duration)
    }
}

#[tokio::test]
async fn a_panic_beside_the_body_lets_go_of_its_run() {
    within(async {
        let (clock, gate, bodies) = (Failing::default(), Gate::new(), Count::default());
        let shared = (clock.clone(), gate.clone(), bodies.clone());
        let job = job_with("job", shared, |step: Step, input, (clock, gate, bodies)| async move {
            match input {
                // How long it took is asked for at its end.
                0 if bodies.up() == 1 => clock.arm(),
                // The grace is timed once it is cancelled.
                1 => {
                    let cancelled = step.cancelled();
                    drop(gate.enter());
                    cancelled.cancelled().await;
                    clock.arm();
                    std::future::pending::<()>().await;
                }
                _ => {}
            }
            Ok(input)
        });
        let durably = Durably::builder().clock(clock).max_concurrent_runs(1).in_memory().await.unwrap();
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 0);
        let record = run_of(&durably, run.id()).await;
        assert_eq!((record.status, record.lease_generation, bodies.get()), (RunStatus::Completed, 2, 2));
        let run = jobs.trigger(1).concurrency_key("k").await.unwrap();
        gate.reached().await;
        run.cancel().await.unwrap();
        assert_eq!(jobs.trigger(2).concurrency_key("k").await.unwrap().output().await.unwrap(), 2);
        assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Cancelled);
    })
    .await;
}

#[tokio::test]
async fn a_panic_before_the_body_is_a_future_fails_the_run() {
    within(async {
        let durably = memory().await;
        let job = Job::<u32, u32>::new("job", |_: Step, input: u32| {
            assert!(input != 1, "before the future");
            async move { Ok(input) }
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(1).await.unwrap();
        let error = ended(&durably, run.id()).await.error.unwrap();
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Panic, "before the future"));
        assert_eq!(jobs.trigger_and_wait(2).await.unwrap().output, 2);
    })
    .await;
}

#[tokio::test]
async fn a_panic_in_the_drop_of_a_cancelled_body_leaves_it_cancelled_and_the_runtime_well() {
    within(async {
        let durably = Durably::builder().max_concurrent_runs(1).in_memory().await.unwrap();
        let gate = Gate::new();
        let job = job_with("job", gate.clone(), |_: Step, input, gate| async move {
            if input == 0 {
                let _bomb = Bomb("in drop");
                gate.pass().await;
                std::future::pending::<()>().await;
            }
            Ok(input)
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).concurrency_key("k").await.unwrap();
        gate.reached().await;
        run.cancel().await.unwrap();
        assert_eq!(jobs.trigger(1).concurrency_key("k").await.unwrap().output().await.unwrap(), 1);
        assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Cancelled);
    })
    .await;
}

#[tokio::test]
async fn stats_count_runs_by_job_and_status() {
    within(async {
        let durably = Durably::builder().max_concurrent_runs(4).in_memory().await.unwrap();
        let gate = Gate::new();
        let (good, bad, slow) =
            durably.register((echo("good"), failing("bad", "no"), gated("slow", &gate).concurrency(1))).unwrap();
        good.trigger_and_wait(1).await.unwrap();
        let failed = bad.trigger(1).await.unwrap().id();
        ended(&durably, failed).await;
        slow.trigger(1).await.unwrap();
        gate.reached().await;
        let pending = slow.trigger(2).await.unwrap();
        slow.trigger(3).await.unwrap().cancel().await.unwrap();
        let stats = durably.stats().await.unwrap();
        let named: Vec<_> = stats.jobs.iter().map(|job| (job.name.as_str(), job.counts)).collect();
        assert_eq!(named, [("bad", [0, 0, 0, 0, 1, 0]), ("good", [0, 0, 0, 1, 0, 0]), ("slow", [1, 1, 0, 0, 0, 1])]);
        assert_eq!(stats.jobs[2].count(RunStatus::Leased), 1);
        assert!(stats.commits > 0 && stats.bytes_written > 0);
        gate.open();
        pending.output().await.unwrap();
        durably.delete_run(failed).await.unwrap();
        assert_eq!(durably.stats().await.unwrap().jobs[0].counts, [0; 6]);
    })
    .await;
}

#[tokio::test]
async fn p_lease_03_18_a_stale_body_writes_nothing_and_the_generation_only_grows() {
    within(async {
        let durably = memory().await;
        let (gate, stale, calls) = (Gate::new(), Gate::new(), Count::default());
        let shared = (gate.clone(), stale.clone(), calls.clone());
        let job = job_with("job", shared, |step: Step, _, (gate, stale, calls)| async move {
            let call = calls.up();
            if call < 3 {
                // What is left of this body hands in a result long after its run was cancelled.
                let (step, stale) = (step.clone(), stale.clone());
                tokio::spawn(async move {
                    stale.pass().await;
                    step.run("a", || async { Ok(call) }).await.ok();
                    step.log().info("stale", ());
                    drop(stale.enter());
                });
                gate.pass().await;
                std::future::pending::<()>().await;
            }
            step.run("a", || async { Ok(call) }).await
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        for generation in 1..3u64 {
            gate.reached().await;
            stale.reached().await;
            assert_eq!(run_of(&durably, run.id()).await.lease_generation, generation);
            run.cancel().await.unwrap();
            durably.stop().await.unwrap();
            durably.resume(run.id()).await.unwrap();
            stale.let_one_on();
            stale.reached().await;
            assert_eq!(durably.get_steps(run.id()).await.unwrap(), []);
            durably.start().await.unwrap();
        }
        assert_eq!(run.output().await.unwrap(), 3);
        let record = run_of(&durably, run.id()).await;
        assert_eq!((record.lease_generation, record.completed_step_count), (3, 1));
        assert_eq!(durably.get_logs(run.id()).await.unwrap(), []);
        assert!(matches!(durably.cancel(run.id()).await, Err(Error::Conflict { .. })));
    })
    .await;
}
