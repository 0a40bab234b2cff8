//! Cancel: the commit decides, the token fires at once, a body that watches gets its grace.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use durably::{Durably, Error, Health, Job, RunFilter, RunStatus, Step};

use crate::support::{
    Count, Gate, OnDrop, Stalling, echo, ended, failing, gated, job_with, memory, next_event, paused, run_of, within,
};

/// Longer than any test.
const FOREVER: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn p_canc_01_a_pending_run_is_cancelled_at_once_and_never_starts() {
    within(async {
        let durably = paused().await;
        let gate = Gate::new();
        let jobs = durably.register(gated("job", &gate)).unwrap();
        let run = jobs.trigger(1).concurrency_key("k").await.unwrap();
        run.cancel().await.unwrap();
        let record = run_of(&durably, run.id()).await;
        assert_eq!(record.status, RunStatus::Cancelled);
        assert!(record.completed_at.is_some() && record.started_at.is_none());
        // Its key is free in the same commit.
        gate.open();
        let next = jobs.trigger(2).concurrency_key("k").await.unwrap();
        durably.start().await.unwrap();
        assert_eq!(next.output().await.unwrap(), 2);
        assert_eq!(gate.arrivals(), 1);
    })
    .await;
}

#[tokio::test]
async fn p_canc_02_a_leased_run_is_cancelled_at_once_and_its_token_fires() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let heard = Gate::new();
        let job = job_with("job", (gate.clone(), heard.clone()), |step: Step, _, (gate, heard)| async move {
            let cancelled = step.cancelled();
            let _inside = gate.enter();
            cancelled.cancelled().await;
            drop(heard.enter());
            Ok(1)
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(1).await.unwrap();
        gate.reached().await;
        run.cancel().await.unwrap();
        let record = run_of(&durably, run.id()).await;
        assert_eq!((record.status, record.lease_owner), (RunStatus::Cancelled, None));
        heard.reached().await;
    })
    .await;
}

#[tokio::test]
async fn a_token_that_is_asked_for_after_the_cancel_has_fired() {
    within(async {
        let durably = Durably::builder().cancel_grace(FOREVER).in_memory().await.unwrap();
        let (gate, heard) = (Gate::new(), Gate::new());
        let job = job_with("job", (gate.clone(), heard.clone()), |step: Step, _, (gate, heard)| async move {
            gate.pass().await;
            step.cancelled().cancelled().await;
            drop(heard.enter());
            Ok(1)
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(1).await.unwrap();
        gate.reached().await;
        run.cancel().await.unwrap();
        gate.open();
        heard.reached().await;
    })
    .await;
}

#[tokio::test]
async fn p_canc_03_what_can_not_be_cancelled_says_why() {
    within(async {
        let durably = memory().await;
        let (good, bad) = durably.register((echo("good"), failing("bad", "no"))).unwrap();
        let completed = good.trigger(1).await.unwrap().id();
        let failed = bad.trigger(1).await.unwrap().id();
        ended(&durably, completed).await;
        ended(&durably, failed).await;
        durably.stop().await.unwrap();
        let cancelled = good.trigger(1).await.unwrap().id();
        durably.cancel(cancelled).await.unwrap();
        for (run, text) in [(completed, "completed"), (failed, "failed"), (cancelled, "cancelled")] {
            let error = durably.cancel(run).await.unwrap_err();
            assert!(matches!(error, Error::Conflict { action: "cancel", .. }), "{error:?}");
            assert_eq!(error.to_string(), format!("cannot cancel {text} run: {run}"));
        }
        durably.delete_run(completed).await.unwrap();
        let error = durably.cancel(completed).await.unwrap_err();
        assert_eq!(error.to_string(), format!("run not found: {completed}"));
    })
    .await;
}

#[tokio::test]
async fn p_canc_05_a_cancelled_run_is_not_overwritten_by_a_late_completion_or_failure() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let job = job_with("job", gate.clone(), |step: Step, input, gate| async move {
            let _token = step.cancelled();
            gate.pass().await;
            if input == 0 { Ok(input) } else { Err("late".into()) }
        });
        let jobs = durably.register(job).unwrap();
        let runs = jobs.batch_trigger([0, 1]).await.unwrap();
        gate.reached_by(2).await;
        let mut events = durably.events();
        for run in &runs {
            run.cancel().await.unwrap();
        }
        gate.open();
        durably.stop().await.unwrap();
        for run in &runs {
            let record = run_of(&durably, run.id()).await;
            assert_eq!((record.status, record.output, record.error), (RunStatus::Cancelled, None, None));
        }
        // P-CANC-07, P-CANC-09: the cancel is all there is to tell.
        let told: Vec<_> = crate::support::told_so_far(&paused_again(&durably).await, &mut events).await;
        assert_eq!(told.iter().map(|(_, name)| *name).collect::<Vec<_>>(), ["run:cancel"; 2]);
    })
    .await;
}

async fn paused_again(durably: &Durably) -> Durably {
    durably.start().await.unwrap();
    durably.clone()
}

#[tokio::test]
async fn p_canc_06_the_step_in_progress_is_not_stored_and_no_later_one_starts() {
    within(async {
        let durably = memory().await;
        let (gate, later) = (Gate::new(), Count::default());
        let job = job_with("job", (gate.clone(), later.clone()), |step: Step, _, (gate, later)| async move {
            let _token = step.cancelled();
            step.run("before", || async { Ok(()) }).await?;
            tokio::join!(
                async {
                    let _ = step
                        .run("in-progress", || async {
                            gate.pass().await;
                            Ok(())
                        })
                        .await;
                    later.up();
                },
                async {
                    step.cancelled().cancelled().await;
                    let _ = step.run("later", || async { Ok(later.up()) }).await;
                    later.up();
                }
            );
            Ok(())
        });
        let builder = Durably::builder().cancel_grace(Duration::from_millis(20));
        drop(durably);
        let durably = builder.in_memory().await.unwrap();
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        gate.reached().await;
        run.cancel().await.unwrap();
        gate.open();
        durably.stop().await.unwrap();
        assert_eq!(later.get(), 0);
        let steps = durably.get_steps(run.id()).await.unwrap();
        assert_eq!(steps.iter().map(|step| step.name.as_str()).collect::<Vec<_>>(), ["before"]);
    })
    .await;
}

#[tokio::test]
async fn p_canc_07_one_step_cancel_is_told_when_the_interrupted_step_returns() {
    within(async {
        for fails in [false, true] {
            let durably = memory().await;
            let gate = Gate::new();
            let job = job_with("job", gate.clone(), move |step: Step, _, gate: Gate| async move {
                step.run_with("a", |cx| {
                    let gate = gate.clone();
                    async move {
                        let cancelled = cx.cancelled();
                        drop(gate.enter());
                        cancelled.cancelled().await;
                        if fails { Err("stopped".into()) } else { Ok(()) }
                    }
                })
                .await
            });
            let jobs = durably.register(job).unwrap();
            let mut events = durably.events();
            let run = jobs.trigger(0).await.unwrap();
            gate.reached().await;
            run.cancel().await.unwrap();
            let told = next_event(&mut events, |event| event.kind.name() == "step:cancel").await;
            assert_eq!((told.run_id, told.committed), (run.id(), false));
            assert_eq!(durably.get_steps(run.id()).await.unwrap(), []);
        }
    })
    .await;
}

#[tokio::test]
async fn p_canc_11_a_body_that_does_not_watch_is_dropped_after_the_grace() {
    within(async {
        let grace = Duration::from_millis(50);
        let durably = Durably::builder().cancel_grace(grace).max_concurrent_runs(1).in_memory().await.unwrap();
        let (gate, dropped) = (Gate::new(), Count::default());
        let job = job_with("job", (gate.clone(), dropped.clone()), |_, input, (gate, dropped)| async move {
            let _guard = OnDrop(dropped);
            if input == 0 {
                drop(gate.enter());
                std::future::pending::<()>().await;
            }
            Ok(input)
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        gate.reached().await;
        run.cancel().await.unwrap();
        assert_eq!(jobs.trigger_and_wait(7).await.unwrap().output, 7);
        assert_eq!(dropped.get(), 2);
    })
    .await;
}

#[tokio::test]
async fn p_canc_11_a_step_in_progress_may_finish_and_its_body_is_dropped_then() {
    within(async {
        let durably = Durably::builder().cancel_grace(FOREVER).in_memory().await.unwrap();
        let (gate, finished, dropped) = (Gate::new(), Count::default(), Count::default());
        let shared = (gate.clone(), finished.clone(), dropped.clone());
        let job = job_with("job", shared, |step, _, (gate, finished, dropped)| async move {
            let _guard = OnDrop(dropped);
            step.run("a", || async {
                gate.pass().await;
                finished.up();
                Ok(())
            })
            .await
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        gate.reached().await;
        run.cancel().await.unwrap();
        gate.open();
        durably.stop().await.unwrap();
        // Nothing of it is recorded, and without anyone who watches the grace is not waited for.
        assert_eq!((finished.get(), dropped.get()), (1, 1));
        assert_eq!(durably.get_steps(run.id()).await.unwrap(), []);
    })
    .await;
}

#[tokio::test]
async fn p_canc_06_a_stored_step_is_not_given_to_a_cancelled_body_either() {
    within(async {
        let durably = Durably::builder().cancel_grace(FOREVER).in_memory().await.unwrap();
        let (gate, began, went_on) = (Gate::new(), Count::default(), Count::default());
        let shared = (gate.clone(), began.clone(), went_on.clone());
        let job = job_with("job", shared, |step, _, (gate, began, went_on)| async move {
            if began.up() > 1 {
                gate.pass().await;
            }
            step.run("a", || async { Ok(()) }).await?;
            went_on.up();
            Err::<(), _>(durably::JobError::msg("not yet"))
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        assert_eq!(ended(&durably, run.id()).await.status, RunStatus::Failed);
        durably.resume(run.id()).await.unwrap();
        gate.reached().await;
        run.cancel().await.unwrap();
        gate.open();
        durably.stop().await.unwrap();
        assert_eq!((began.get(), went_on.get()), (2, 1));
    })
    .await;
}

#[tokio::test]
async fn a_body_that_watches_gets_its_grace_and_is_dropped_after_it() {
    within(async {
        let durably = Durably::builder().cancel_grace(Duration::from_millis(100)).in_memory().await.unwrap();
        let (gate, cleaned, dropped) = (Gate::new(), Count::default(), Count::default());
        let shared = (gate.clone(), cleaned.clone(), dropped.clone());
        let job = job_with("job", shared, |step: Step, _, (gate, cleaned, dropped)| async move {
            let _guard = OnDrop(dropped);
            let cancelled = step.cancelled();
            drop(gate.enter());
            cancelled.cancelled().await;
            // Cleaning up takes a few polls.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            cleaned.up();
            std::future::pending::<()>().await;
            Ok(())
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        gate.reached().await;
        run.cancel().await.unwrap();
        durably.stop().await.unwrap();
        assert_eq!((cleaned.get(), dropped.get()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn p_canc_11_a_cancelled_run_holds_key_and_slot_until_its_body_has_stopped() {
    within(async {
        let durably = Durably::builder().cancel_grace(FOREVER).in_memory().await.unwrap();
        let (gate, stopping) = (Gate::new(), Gate::new());
        let job = job_with("job", (gate.clone(), stopping.clone()), |step: Step, _, (gate, stopping)| async move {
            let _inside = gate.enter();
            let cancelled = step.cancelled();
            if step.run("first", || async { Ok(()) }).await.is_ok() {
                cancelled.cancelled().await;
            }
            stopping.pass().await;
            Ok(())
        });
        let other = gated("other", &gate);
        let (jobs, others) = durably.register((job, other)).unwrap();
        let run = jobs.trigger(0).concurrency_key("k").await.unwrap();
        gate.reached().await;
        let next = others.trigger(0).concurrency_key("k").await.unwrap();
        run.cancel().await.unwrap();
        stopping.reached().await;
        // A free run of later goes ahead of the one that waits for the key.
        assert_eq!(run_of(&durably, next.id()).await.status, RunStatus::Pending);
        gate.open();
        others.trigger_and_wait(1).await.unwrap();
        assert_eq!(run_of(&durably, next.id()).await.status, RunStatus::Pending);
        stopping.open();
        next.output().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_cancel_in_the_group_in_which_a_step_begins_to_wait_frees_key_and_slot() {
    within(async {
        let (clock, runtime) = (Stalling::default(), Arc::new(OnceLock::<Durably>::new()));
        let job = job_with("job", (clock.clone(), runtime.clone()), |step: Step, input, (clock, runtime)| async move {
            if input == 1 {
                return Ok(input);
            }
            let durably = runtime.get().expect("is set");
            // The writer is held up while both come, so it finds them together.
            clock.stall(true);
            let mut anything = Box::pin(durably.stats());
            assert!(futures::poll!(&mut anything).is_pending());
            clock.reached().await;
            let mut waiting = step.wait_signal::<u32>("wait", "go");
            assert!(futures::poll!(&mut waiting).is_pending());
            let mut cancelling = Box::pin(durably.cancel(step.run_id()));
            assert!(futures::poll!(&mut cancelling).is_pending());
            clock.stall(false);
            waiting.await
        });
        let durably = Durably::builder().clock(clock).cancel_grace(FOREVER).in_memory().await.unwrap();
        runtime.set(durably.clone()).unwrap();
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).concurrency_key("k").await.unwrap();
        let next = jobs.trigger(1).concurrency_key("k").await.unwrap();
        assert_eq!(next.output().await.unwrap(), 1);
        assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Cancelled);
        durably.shutdown().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn no_run_starts_while_an_older_body_of_it_is_alive() {
    within(async {
        let durably = Durably::builder().cancel_grace(FOREVER).in_memory().await.unwrap();
        let gate = Gate::new();
        let job = job_with("job", gate.clone(), |step: Step, _, gate| async move {
            let _token = step.cancelled();
            gate.pass().await;
            Ok(gate.most_inside() as u32)
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        gate.reached().await;
        run.cancel().await.unwrap();
        durably.resume(run.id()).await.unwrap();
        assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Pending);
        // Another run gets through meanwhile, so there is room.
        let other = jobs.trigger(1).await.unwrap();
        gate.reached().await;
        assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Pending);
        gate.let_one_on();
        gate.let_one_on();
        gate.open();
        other.output().await.unwrap();
        run.output().await.unwrap();
        let record = run_of(&durably, run.id()).await;
        assert_eq!((record.status, record.lease_generation), (RunStatus::Completed, 2));
        assert_eq!(gate.most_inside(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_cancel_between_lease_and_body_leaves_no_body_behind() {
    within(async {
        let durably = Durably::builder().max_concurrent_runs(4).in_memory().await.unwrap();
        let job = job_with("job", (), |step: Step, input, ()| async move {
            step.run("a", || async { Ok(()) }).await?;
            Ok(input)
        });
        let jobs = durably.register(job).unwrap();
        for round in 0..200 {
            let run = jobs.trigger(round).await.unwrap();
            match run.cancel().await {
                Ok(()) => assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Cancelled),
                Err(Error::Conflict { status: RunStatus::Completed, .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
        // Every slot is free again.
        durably.stop().await.unwrap();
        durably.start().await.unwrap();
        for handle in jobs.batch_trigger(0..8).await.unwrap() {
            handle.output().await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn dropping_handles_never_cancels() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let jobs = durably.register(gated("job", &gate)).unwrap();
        let run = jobs.trigger(3).await.unwrap();
        let id = run.id();
        gate.reached().await;
        {
            // A wait that is begun and dropped, a stream, and the handle itself.
            let mut waiting = Box::pin(run.output());
            assert!(futures::poll!(&mut waiting).is_pending());
        }
        drop(durably.subscribe(id).await.unwrap());
        drop((run, jobs));
        gate.open();
        assert_eq!(durably.wait_for_run(id).await.unwrap().output, Some(3.into()));
    })
    .await;
}

#[tokio::test]
async fn p_canc_13_a_filter_cancels_what_has_not_ended() {
    within(async {
        let durably = Durably::builder().max_concurrent_runs(1).in_memory().await.unwrap();
        let gate = Gate::new();
        let (jobs, others) = durably.register((gated("job", &gate), gated("other", &gate))).unwrap();
        let executing = jobs.trigger(0).label("tenant", "a").await.unwrap();
        gate.reached().await;
        let pending = jobs.trigger(1).label("tenant", "a").await.unwrap();
        let other_tenant = jobs.trigger(2).label("tenant", "b").await.unwrap();
        let other_job = others.trigger(3).label("tenant", "a").await.unwrap();
        let filter = || RunFilter::new().job("job").label("tenant", "a");
        assert_eq!(durably.cancel_where(filter()).await.unwrap(), 2);
        assert_eq!(durably.cancel_where(filter()).await.unwrap(), 0);
        for run in [&executing, &pending] {
            assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Cancelled);
        }
        gate.open();
        assert_eq!(other_tenant.output().await.unwrap(), 2);
        assert_eq!(other_job.output().await.unwrap(), 3);
    })
    .await;
}

#[tokio::test]
async fn a_filter_that_names_ended_runs_cancels_none_of_them() {
    within(async {
        let durably = memory().await;
        let jobs = durably.register(echo("job")).unwrap();
        jobs.trigger_and_wait(1).await.unwrap();
        let filter = RunFilter::new().status(RunStatus::Completed);
        assert_eq!(durably.cancel_where(filter).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_filter_covers_more_than_a_page() {
    within(async {
        let durably = paused().await;
        let jobs = durably.register(echo("job")).unwrap();
        jobs.batch_trigger(0..1_700).await.unwrap();
        assert_eq!(durably.cancel_where(RunFilter::new()).await.unwrap(), 1_700);
        assert_eq!(durably.run_until_idle(None).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_body_that_cancels_the_tokens_it_was_given_ends_nothing_but_its_own_watch() {
    within(async {
        let durably = memory().await;
        let job = Job::new("job", |step: Step, n: u32| async move {
            let (cancelled, draining) = (step.cancelled(), step.draining());
            cancelled.cancel();
            draining.cancel();
            let items = step.map("items", 0..n).run(|item| async move { Ok(item) }).await?;
            if items.len() == 1 { Err("no".into()) } else { Ok(items.iter().sum::<u32>()) }
        });
        let jobs = durably.register(job).unwrap();
        assert_eq!(jobs.trigger(3).await.unwrap().output().await.unwrap(), 3);
        let failed = jobs.trigger(1).await.unwrap().id();
        ended(&durably, failed).await;
        let run = run_of(&durably, failed).await;
        assert_eq!((run.status, run.lease_generation), (RunStatus::Failed, 1));
        assert_eq!(durably.health(), Health::Ok);
        durably.start().await.unwrap();
    })
    .await;
}
