//! Resume: on under the same id, from the checkpoints, with only the culprit cleared.

use std::time::Duration;

use durably::{Durably, Error, RunFilter, RunStatus, Step};

use crate::support::{Count, Gate, TempFile, echo, ended, job_with, memory, paused, run_of, within};

/// Fails in its step `bad` as long as the switch says so; a caught failure and two good steps come before.
fn mixed(calls: &Count, fails: &Count) -> durably::Job<u32, String> {
    job_with("job", (calls.clone(), fails.clone()), |step: Step, _, (calls, fails)| async move {
        let good: usize = step.run("good", || async { Ok(calls.up()) }).await?;
        let caught = step
            .run("caught", || async {
                calls.up();
                if fails.get() < 2 { Err::<u32, _>("caught".into()) } else { Ok(5) }
            })
            .await;
        let bad = step
            .run("bad", || async {
                calls.up();
                if fails.get() == 0 { Err::<u32, _>("bad".into()) } else { Ok(6) }
            })
            .await?;
        if fails.get() == 1 {
            return Err("later".into());
        }
        Ok(format!("{good} {:?} {bad}", caught.ok()))
    })
}

#[tokio::test]
async fn a_failed_run_goes_on_under_its_id_and_only_the_failure_that_ended_it_is_cleared() {
    within(async {
        let durably = memory().await;
        let (calls, fails) = (Count::default(), Count::default());
        let jobs = durably.register(mixed(&calls, &fails)).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        let failed = ended(&durably, run.id()).await;
        let error = failed.error.unwrap();
        assert_eq!((error.message.as_str(), error.step.as_deref(), calls.get()), ("bad", Some("bad"), 3));
        fails.up();
        durably.resume(run.id()).await.unwrap();
        let failed = ended(&durably, run.id()).await;
        // `bad` ran again; `caught` did not, since what followed it is recorded.
        assert_eq!((failed.error.unwrap().message.as_str(), calls.get()), ("later", 4));
        fails.up();
        durably.resume(run.id()).await.unwrap();
        assert_eq!(run.output().await.unwrap(), "1 None 6");
        assert_eq!(calls.get(), 4);
        let record = run_of(&durably, run.id()).await;
        assert_eq!((record.lease_generation, record.error), (3, None));
    })
    .await;
}

#[tokio::test]
async fn clear_failures_widens_what_runs_again() {
    within(async {
        let durably = memory().await;
        let (calls, fails) = (Count::default(), Count::default());
        let jobs = durably.register(mixed(&calls, &fails)).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        ended(&durably, run.id()).await;
        fails.up();
        fails.up();
        // A completed step that is named stays as it is.
        durably.resume(run.id()).clear_failures(["caught", "good"]).await.unwrap();
        assert_eq!(run.output().await.unwrap(), "1 Some(5) 6");
        assert_eq!(calls.get(), 5);
    })
    .await;
}

#[tokio::test]
async fn a_failure_that_was_passed_on_with_context_is_cleared_as_the_culprit() {
    within(async {
        let durably = memory().await;
        let calls = Count::default();
        async fn helper(step: &Step, calls: &Count) -> anyhow::Result<usize> {
            use anyhow::Context;
            let value = step.run("bad", || async { if calls.up() == 1 { Err("no".into()) } else { Ok(2) } }).await;
            value.map_err(durably::JobError::into_boxed).map_err(anyhow::Error::from_boxed).context("helping")
        }
        let job =
            job_with("job", calls.clone(), |step: Step, _, calls| async move { Ok(helper(&step, &calls).await?) });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        let error = ended(&durably, run.id()).await.error.unwrap();
        assert_eq!((error.message.as_str(), error.step.as_deref()), ("helping", Some("bad")));
        durably.resume(run.id()).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_run_goes_on_from_its_checkpoints() {
    within(async {
        let durably = memory().await;
        let (gate, calls) = (Gate::new(), Count::default());
        let job = job_with("job", (gate.clone(), calls.clone()), |step: Step, _, (gate, calls)| async move {
            let a = step.run("a", || async { Ok(calls.up()) }).await?;
            gate.pass().await;
            Ok(a)
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        gate.reached().await;
        run.cancel().await.unwrap();
        gate.open();
        durably.resume(run.id()).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 1);
        let record = run_of(&durably, run.id()).await;
        assert_eq!((calls.get(), record.lease_generation, record.recoveries), (1, 2, 0));
    })
    .await;
}

#[tokio::test]
async fn a_resumed_run_goes_to_the_back_of_the_line() {
    within(async {
        let durably = Durably::builder().max_concurrent_runs(1).paused(true).in_memory().await.unwrap();
        let order = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let job = job_with("job", order.clone(), |_, input, order| async move {
            order.lock().unwrap().push(input);
            Ok(())
        });
        let jobs = durably.register(job).unwrap();
        let first = jobs.trigger(1).concurrency_key("k").await.unwrap();
        jobs.trigger(2).concurrency_key("k").await.unwrap();
        first.cancel().await.unwrap();
        durably.resume(first.id()).await.unwrap();
        jobs.trigger(3).concurrency_key("k").await.unwrap();
        durably.run_until_idle(None).await.unwrap();
        assert_eq!(*order.lock().unwrap(), [2, 1, 3]);
    })
    .await;
}

#[tokio::test]
async fn a_resumed_run_keeps_its_place_over_a_restart() {
    within(async {
        let file = TempFile::new();
        let order = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let job = job_with("job", order.clone(), |_, input, order| async move {
            order.lock().unwrap().push(input);
            Ok(())
        })
        .concurrency(1);
        let durably = file.open_paused().await;
        let jobs = durably.register(job.clone()).unwrap();
        let first = jobs.trigger(1).await.unwrap().id();
        jobs.trigger(2).await.unwrap();
        durably.cancel(first).await.unwrap();
        durably.resume(first).await.unwrap();
        jobs.trigger(3).await.unwrap();
        drop((jobs, durably));
        let durably = file.open_paused().await;
        durably.register(job).unwrap();
        durably.run_until_idle(None).await.unwrap();
        assert_eq!(*order.lock().unwrap(), [2, 1, 3]);
    })
    .await;
}

#[tokio::test]
async fn what_can_not_be_resumed_says_why() {
    within(async {
        let durably = paused().await;
        let jobs = durably.register(echo("job")).unwrap();
        let run = jobs.trigger(1).await.unwrap().id();
        let error = durably.resume(run).await.unwrap_err();
        assert_eq!(error.to_string(), format!("cannot resume pending run: {run}"));
        durably.run_until_idle(None).await.unwrap();
        let error = durably.resume(run).await.unwrap_err();
        assert!(matches!(error, Error::Conflict { action: "resume", status: RunStatus::Completed, .. }), "{error}");
        durably.delete_run(run).await.unwrap();
        assert!(matches!(durably.resume(run).await, Err(Error::RunNotFound { .. })));
    })
    .await;
}

#[tokio::test]
async fn a_resume_clears_the_end_and_tells_it() {
    within(async {
        let durably = paused().await;
        let jobs = durably.register(echo("job")).unwrap();
        let run = jobs.trigger(1).await.unwrap().id();
        durably.cancel(run).await.unwrap();
        let mut events = durably.events();
        durably.resume(run).await.unwrap();
        let record = run_of(&durably, run).await;
        assert_eq!((record.status, record.completed_at, record.error), (RunStatus::Pending, None, None));
        let told = events.next().await.unwrap();
        assert_eq!(told.event().unwrap().kind.name(), "run:resume");
        // What has ended no more is not purged as if it had.
        assert_eq!(durably.purge_runs(durably::Timestamp::from_millis(u64::MAX)).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_run_may_be_cancelled_and_resumed_over_and_over() {
    within(async {
        let file = TempFile::new();
        let durably = file.open_paused().await;
        let jobs = durably.register(echo("job")).unwrap();
        let run = jobs.trigger(1).concurrency_key("k").await.unwrap().id();
        for _ in 0..5 {
            durably.cancel(run).await.unwrap();
            durably.resume(run).await.unwrap();
        }
        durably.shutdown().await.unwrap();
        drop((jobs, durably));
        let durably = file.open_paused().await;
        durably.register(echo("job")).unwrap();
        for status in [RunStatus::Cancelled, RunStatus::Failed, RunStatus::Leased] {
            let runs = durably.get_runs(RunFilter::new().status(status)).await.unwrap();
            assert_eq!(runs, [], "{status}");
        }
        for _ in 0..5 {
            durably.cancel(run).await.unwrap();
            durably.resume(run).await.unwrap();
        }
        assert_eq!(durably.run_until_idle(None).await.unwrap(), 1);
        let stats = durably.stats().await.unwrap();
        let counts: Vec<u64> = RunStatus::ALL.into_iter().map(|status| stats.jobs[0].count(status)).collect();
        assert_eq!(counts, [0, 0, 0, 1, 0, 0]);
    })
    .await;
}

#[tokio::test]
async fn a_filter_resumes_what_failed_or_was_cancelled() {
    within(async {
        let durably = memory().await;
        let fails = Count::default();
        let job = job_with("job", fails.clone(), |_, input, fails| async move {
            if fails.up() <= 3 { Err("down".into()) } else { Ok(input) }
        });
        let (jobs, _) = durably.register((job, echo("other"))).unwrap();
        let runs = jobs.batch_trigger([1, 2, 3]).await.unwrap();
        for run in &runs {
            ended(&durably, run.id()).await;
        }
        assert_eq!(durably.resume_where(RunFilter::new().job("other")).await.unwrap(), 0);
        assert_eq!(durably.resume_where(RunFilter::new().status(RunStatus::Failed)).await.unwrap(), 3);
        for run in &runs {
            run.output().await.unwrap();
        }
        assert_eq!(durably.resume_where(RunFilter::new()).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn resuming_at_once_after_a_cancel_never_runs_two_bodies() {
    within(async {
        let durably = Durably::builder().cancel_grace(Duration::from_millis(5)).in_memory().await.unwrap();
        let gate = Gate::new();
        let job = job_with("job", gate.clone(), |step: Step, _, gate| async move {
            let _token = step.cancelled();
            let _inside = gate.enter();
            step.run("a", || async { Ok(()) }).await?;
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            Ok(())
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        for _ in 0..50 {
            if durably.cancel(run.id()).await.is_ok() {
                durably.resume(run.id()).await.unwrap();
            } else {
                break;
            }
        }
        run.output().await.unwrap();
        assert_eq!(gate.most_inside(), 1);
    })
    .await;
}
