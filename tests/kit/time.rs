//! Time by hand: what is due comes about, in order, and nothing else does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use durably::testing::{Stuck, TestRuntime, always, times};
use durably::{ErrorKind, Job, Received, RunFilter, RunStatus, Step, StepRetention, StepStatus, Timestamp};
use serde_json::json;

use crate::support::{Count, DAY, job_with, run_of, within};

/// Sleeps for its input in seconds, between two counted steps.
fn sleeper(calls: &Count) -> Job<u32, u32> {
    job_with("sleeper", calls.clone(), |step: Step, secs, calls| async move {
        step.run("before", || async { Ok(calls.up()) }).await?;
        step.sleep("pause", Duration::from_secs(secs.into())).await?;
        step.run("after", || async { Ok(calls.up() as u32) }).await
    })
}

async fn a_pause_ends_at_its_time_and_no_sooner() {
    let (runtime, calls) = (TestRuntime::new().await, Count::default());
    let job = runtime.register(sleeper(&calls)).unwrap();
    let run = job.trigger(86_400).await.unwrap();
    let begun = runtime.now();
    runtime.advance(DAY - Duration::from_millis(1)).await;
    assert_eq!(
        (run_of(&runtime, run.id()).await.status, calls.get()),
        (RunStatus::Suspended, 1),
        "a millisecond early"
    );
    assert_eq!(runtime.next_due(), Some(begun.saturating_add(DAY)));
    runtime.advance(Duration::from_millis(1)).await;
    assert_eq!((run_of(&runtime, run.id()).await.status, calls.get()), (RunStatus::Completed, 2));
    assert_eq!((run.output().await.unwrap(), runtime.next_due()), (2, None));
}

#[tokio::test]
async fn time_is_by_hand_on_one_thread() {
    within(a_pause_ends_at_its_time_and_no_sooner()).await;
}

#[tokio::test(start_paused = true)]
async fn time_is_by_hand_beside_a_paused_tokio_clock() {
    a_pause_ends_at_its_time_and_no_sooner().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn time_is_by_hand_on_many_threads() {
    for _ in 0..20 {
        within(a_pause_ends_at_its_time_and_no_sooner()).await;
    }
}

#[tokio::test]
async fn what_is_due_comes_about_in_order_however_far_time_moves() {
    within(async {
        let (runtime, order) = (TestRuntime::new().await, Arc::new(Mutex::new(Vec::new())));
        let job = runtime
            .register(job_with("job", order.clone(), |step: Step, secs, order| async move {
                for n in 0..3_u32 {
                    step.sleep(("pause", n), Duration::from_secs(secs.into())).await?;
                    let noted = order.clone();
                    step.run(("note", n), || async {
                        noted.lock().unwrap().push((n + 1) * secs);
                        Ok(())
                    })
                    .await?;
                }
                Ok(0)
            }))
            .unwrap();
        for secs in [700, 40, 100] {
            job.trigger(secs).await.unwrap();
        }
        runtime.advance(365 * DAY).await;
        assert_eq!(*order.lock().unwrap(), [40, 80, 100, 120, 200, 300, 700, 1_400, 2_100]);
    })
    .await;
}

#[tokio::test]
async fn a_year_of_short_pauses_takes_no_time() {
    within(async {
        let runtime = TestRuntime::new().await;
        let job = runtime.register(sleeper(&Count::default())).unwrap();
        let run = job.trigger(365 * 86_400).await.unwrap();
        let done = runtime.run_to_completion(run.id()).await.unwrap();
        assert_eq!(done.completed_at.unwrap().since(done.created_at), 365 * DAY);
    })
    .await;
}

#[tokio::test]
async fn a_short_pause_beside_a_step_follows_the_hand_too() {
    within(async {
        let runtime = TestRuntime::new().await;
        let job = runtime
            .register(Job::new("job", |step: Step, _: ()| async move {
                tokio::select! {
                    slept = step.sleep("short", Duration::from_millis(20)) => slept.map(|()| "slept".to_owned()),
                    worked = step.run("hang", std::future::pending) => worked,
                }
            }))
            .unwrap();
        let run = job.trigger(()).await.unwrap();
        runtime.advance(Duration::from_millis(19)).await;
        assert_eq!(run_of(&runtime, run.id()).await.status, RunStatus::Leased);
        runtime.advance(Duration::from_millis(1)).await;
        assert_eq!(run.output().await.unwrap(), "slept");
    })
    .await;
}

#[tokio::test]
async fn timeouts_of_steps_are_by_the_hand() {
    within(async {
        let runtime = TestRuntime::new().await;
        let job = runtime
            .register(Job::new("job", |step: Step, _: ()| async move {
                let hung = step.run("hang", std::future::pending::<durably::JobResult<()>>);
                let error = hung.timeout(Duration::from_secs(30)).await.err().ok_or("it ended")?;
                let unsigned = step.wait_signal::<()>("wait", "go").timeout(DAY).await.err().ok_or("it came")?;
                Ok(format!("{:?} {:?}", error.kind(), unsigned.kind()))
            }))
            .unwrap();
        let run = job.trigger(()).await.unwrap().id();
        let done = runtime.run_to_completion(run).await.unwrap();
        assert_eq!(done.output.unwrap(), json!(format!("{0:?} {0:?}", ErrorKind::Timeout)));
        assert_eq!(done.completed_at.unwrap().since(done.created_at), DAY + Duration::from_secs(30));
    })
    .await;
}

#[tokio::test]
async fn a_run_that_time_does_not_end_is_said_to_be_stuck_and_on_what() {
    within(async {
        let runtime = TestRuntime::new().await;
        let job = runtime
            .register(Job::new(
                "job",
                |step: Step, _: ()| async move { step.wait_signal::<u32>("ok", "approved").await },
            ))
            .unwrap();
        let run = job.trigger(()).await.unwrap().id();
        let stuck = runtime.run_to_completion(run).await.unwrap_err();
        assert!(matches!(stuck, Stuck::Waiting { .. }), "{stuck}");
        assert!(stuck.to_string().contains(r#"step \"ok\" for signal \"approved\""#), "{stuck}");
    })
    .await;
}

#[tokio::test]
async fn a_wait_that_was_dropped_is_sent_no_more_than_one_signal() {
    within(async {
        let runtime = TestRuntime::new().await;
        let job = runtime
            .register(Job::new("job", |step: Step, _: ()| async move {
                let race = step.race("first").arm("approval", step.wait_signal::<()>("approval", "approved"));
                let first = race.arm("pause", step.sleep("pause", DAY)).await?;
                step.sleep("rest", 2 * DAY).await?;
                Ok(first.arm().to_owned())
            }))
            .unwrap();
        let mut events = runtime.events();
        let run = job.trigger(()).await.unwrap().id();
        runtime.advance(DAY).await;
        runtime.signal_when_waiting("approved", ());
        let done = runtime.run_to_completion(run).await.unwrap();
        assert_eq!(done.output.unwrap(), json!("pause"));
        let mut signals = 0;
        while let Some(Received::Event(event)) = events.next().await
            && event.kind.name() != "run:complete"
        {
            signals += u32::from(event.kind.name() == "run:signal");
        }
        assert_eq!(signals, 1);
    })
    .await;
}

#[tokio::test]
async fn a_wait_that_begins_anew_after_a_resume_is_sent_its_signal_again() {
    within(async {
        let runtime = TestRuntime::builder(|builder| builder.keep_steps(StepRetention::UntilTerminal)).await.unwrap();
        let calls = Count::default();
        let job = job_with("job", calls.clone(), |step: Step, _, calls| async move {
            let by = step.wait_signal::<u32>("approval", "approved").await?;
            step.run("work", || async { if calls.up() == 1 { Err("not yet".into()) } else { Ok(()) } }).await?;
            Ok(by)
        });
        let run = runtime.register(job).unwrap().trigger(0).await.unwrap().id();
        runtime.signal_when_waiting("approved", 7);
        assert_eq!(runtime.run_to_completion(run).await.unwrap().status, RunStatus::Failed);
        runtime.resume(run).await.unwrap();
        assert_eq!(runtime.run_to_completion(run).await.unwrap().output, Some(json!(7)));
    })
    .await;
}

#[tokio::test]
async fn a_body_at_work_outside_is_waited_for_and_one_that_hangs_there_is_not() {
    within(async {
        let runtime = TestRuntime::builder(|builder| builder).patience(Duration::from_millis(100)).await.unwrap();
        let job = runtime
            .register(Job::new("job", |step: Step, hangs: bool| async move {
                step.run("outside", || async move {
                    if hangs {
                        std::future::pending::<()>().await;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Ok(())
                })
                .await?;
                step.run_blocking("thread", || Ok(())).await
            }))
            .unwrap();
        let works = job.trigger(false).await.unwrap();
        runtime.settle().await;
        assert_eq!(run_of(&runtime, works.id()).await.status, RunStatus::Completed);
        let hangs = job.trigger(true).await.unwrap();
        runtime.settle().await;
        assert_eq!(run_of(&runtime, hangs.id()).await.status, RunStatus::Leased);
    })
    .await;
}

#[tokio::test]
async fn a_runtime_of_one_slot_does_one_thing_at_a_time_and_a_sleeping_run_takes_none() {
    within(async {
        let runtime = TestRuntime::builder(|builder| builder.max_concurrent_runs(1)).await.unwrap();
        let job = runtime.register(sleeper(&Count::default())).unwrap();
        let long = job.trigger(3_600).await.unwrap();
        let short = job.trigger(60).await.unwrap();
        runtime.advance(Duration::from_secs(60)).await;
        assert_eq!(run_of(&runtime, short.id()).await.status, RunStatus::Completed);
        assert_eq!(run_of(&runtime, long.id()).await.status, RunStatus::Suspended);
    })
    .await;
}

#[tokio::test]
async fn a_crash_keeps_what_is_on_disk_and_time_may_pass_before_the_next_start() {
    within(async {
        let (runtime, calls) = (TestRuntime::new().await, Count::default());
        let job = runtime.register(sleeper(&calls)).unwrap();
        let run = job.trigger(3_600).await.unwrap().id();
        runtime.settle().await;
        let crashed = runtime.crash().await;
        crashed.clock().advance(DAY);
        let runtime = crashed.reopen().await.unwrap();
        runtime.settle().await;
        assert_eq!((run_of(&runtime, run).await.status, calls.get()), (RunStatus::Completed, 2));
        assert_eq!(runtime.handle(&job).trigger(0).await.unwrap().output().await.unwrap(), 4);
    })
    .await;
}

#[tokio::test]
async fn a_crash_in_a_step_leaves_it_done_and_not_recorded() {
    within(async {
        let (runtime, calls) = (TestRuntime::new().await, Count::default());
        let job = runtime.register(sleeper(&calls)).unwrap();
        runtime.crash_in_step("after");
        let run = job.trigger(3_600).await.unwrap().id();
        assert!(matches!(runtime.run_to_completion(run).await, Err(Stuck::Crashed)));
        assert_eq!((runtime.has_crashed(), calls.get()), (true, 2));
        let runtime = runtime.crash().await.reopen().await.unwrap();
        let steps = runtime.get_steps(run).await.unwrap();
        assert_eq!(steps.iter().map(|step| step.status).collect::<Vec<_>>(), [StepStatus::Completed; 2]);
        let done = runtime.run_to_completion(run).await.unwrap();
        assert_eq!((done.output.unwrap(), done.recoveries), (json!(3), 1));
    })
    .await;
}

#[tokio::test]
async fn steps_fail_panic_and_take_long_as_they_are_told() {
    within(async {
        let (runtime, calls) = (TestRuntime::new().await, Count::default());
        let job = runtime.register(sleeper(&calls)).unwrap();
        runtime.fail_step("before", times(1), "no");
        let failed = job.trigger(0).await.unwrap().id();
        let error = runtime.run_to_completion(failed).await.unwrap().error.unwrap();
        assert_eq!((error.message.as_str(), error.step.as_deref()), ("no", Some("before")));

        runtime.panic_step("before", times(1), "boom");
        let panicked = job.trigger(0).await.unwrap().id();
        let error = runtime.run_to_completion(panicked).await.unwrap().error.unwrap();
        assert_eq!((error.kind, error.message.as_str(), calls.get()), (ErrorKind::Panic, "boom", 0));

        runtime.delay_step("before", always(), Duration::from_secs(5));
        let slow = job.trigger(0).await.unwrap().id();
        let done = runtime.run_to_completion(slow).await.unwrap();
        assert_eq!(done.completed_at.unwrap().since(done.created_at), Duration::from_secs(5));

        runtime.clear_mocks();
        runtime.mock_step("before", json!(7));
        runtime.mock_step_with("after", |call| Ok(call.step.len()));
        let mocked = job.trigger(0).await.unwrap();
        assert_eq!((mocked.output().await.unwrap(), calls.get()), (5, 2));

        runtime.mock_step("after", json!("seven"));
        let unfit = job.trigger(0).await.unwrap().id();
        assert_eq!(runtime.run_to_completion(unfit).await.unwrap().error.unwrap().kind, ErrorKind::Mismatch);
    })
    .await;
}

#[tokio::test]
async fn a_schedule_fires_at_each_of_its_moments_on_the_way() {
    within(async {
        let start = Timestamp::from_millis(3_600_000);
        let runtime = TestRuntime::builder(|builder| builder).start_at(start).await.unwrap();
        let job = runtime.register(sleeper(&Count::default())).unwrap();
        runtime.schedule("every-minute", "* * * * *").trigger(&job, 0).await.unwrap();
        runtime.advance(Duration::from_secs(3 * 60)).await;
        let runs = runtime.get_runs(RunFilter::new()).await.unwrap();
        let begun: Vec<_> = runs.iter().map(|run| run.created_at.since(start).as_secs()).collect();
        assert_eq!(begun, [180, 120, 60]);
        assert!(runs.iter().all(|run| run.status == RunStatus::Completed));
    })
    .await;
}

#[tokio::test]
async fn the_clock_starts_where_it_is_told_to() {
    let runtime = TestRuntime::builder(|builder| builder).start_at(Timestamp::from_millis(1_000)).await.unwrap();
    runtime.advance_to(Timestamp::from_millis(500)).await;
    assert_eq!(runtime.now(), Timestamp::from_millis(1_000));
    runtime.advance_to(Timestamp::from_millis(1_500)).await;
    assert_eq!(runtime.now(), Timestamp::from_millis(1_500));
}
