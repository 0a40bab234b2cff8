//! Pauses: never early, not begun anew by a restart, and a run that only waits is a row.

use std::time::Duration;

use durably::{Durably, ErrorKind, EventKind, Job, RunStatus, Step, StepKind, StepStatus, Timestamp};

use crate::support::{Count, Gate, ManualClock, TempFile, ended, gated, job_with, memory, next_event, run_of, within};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Sleeps for its input in seconds, between two counted steps.
fn sleeper(calls: &Count) -> Job<u32, String> {
    job_with("sleeper", calls.clone(), |step: Step, secs, calls| async move {
        let before: usize = step.run("before", || async { Ok(calls.up()) }).await?;
        step.sleep("pause", Duration::from_secs(secs.into())).await?;
        let after: usize = step.run("after", || async { Ok(calls.up()) }).await?;
        Ok(format!("{before} {after}"))
    })
}

async fn suspended(durably: &Durably, events: &mut durably::Events) {
    next_event(events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
    // What is told is on disk.
    let stats = durably.stats().await.unwrap();
    assert_eq!(stats.jobs.iter().map(|job| job.count(RunStatus::Suspended)).sum::<u64>(), 1);
}

#[tokio::test]
async fn a_run_that_sleeps_is_suspended_and_goes_on_at_its_time_and_no_sooner() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let (calls, mut events) = (Count::default(), durably.events());
        let job = durably.register(sleeper(&calls)).unwrap();
        let run = job.trigger(24 * 3600).await.unwrap();
        suspended(&durably, &mut events).await;
        let record = run_of(&durably, run.id()).await;
        assert_eq!((record.status, record.lease_owner, record.completed_step_count), (RunStatus::Suspended, None, 1));
        let steps = durably.get_steps(run.id()).await.unwrap();
        let due = steps[1].waiting_for.clone().unwrap().until.unwrap();
        assert_eq!((steps[1].kind, steps[1].status), (StepKind::Sleep, StepStatus::Waiting));
        assert_eq!(due.since(record.created_at), DAY);
        clock.advance(DAY - Duration::from_millis(1));
        durably.stats().await.unwrap();
        assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Suspended, "a millisecond early");
        clock.advance(Duration::from_millis(1));
        durably.stats().await.unwrap();
        assert_eq!(run.output().await.unwrap(), "1 2");
        let steps = durably.get_steps(run.id()).await.unwrap();
        assert_eq!((steps[1].status, steps[1].waiting_for.clone()), (StepStatus::Completed, None));
        assert_eq!(run_of(&durably, run.id()).await.completed_step_count, 3);
    })
    .await;
}

#[tokio::test]
async fn a_restart_does_not_begin_a_pause_anew() {
    within(async {
        let (file, clock, calls) = (TempFile::new(), ManualClock::new(), Count::default());
        let id = {
            let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
            let mut events = durably.events();
            let run = durably.register(sleeper(&calls)).unwrap().trigger(3600).await.unwrap();
            suspended(&durably, &mut events).await;
            durably.shutdown().await.unwrap();
            run.id()
        };
        clock.advance(Duration::from_secs(3599));
        let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
        durably.register(sleeper(&calls)).unwrap();
        assert_eq!(run_of(&durably, id).await.status, RunStatus::Suspended);
        clock.advance(Duration::from_secs(1));
        durably.stats().await.unwrap();
        let run = ended(&durably, id).await;
        assert_eq!((run.output.unwrap(), calls.get()), ("1 2".into(), 2));
    })
    .await;
}

#[tokio::test]
async fn what_came_due_while_nobody_was_there_goes_on_at_the_next_start() {
    within(async {
        let (file, clock, calls) = (TempFile::new(), ManualClock::new(), Count::default());
        let id = {
            let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
            let mut events = durably.events();
            let run = durably.register(sleeper(&calls)).unwrap().trigger(3600).await.unwrap();
            suspended(&durably, &mut events).await;
            run.id()
        };
        clock.advance(DAY);
        let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
        durably.register(sleeper(&calls)).unwrap();
        assert_eq!(ended(&durably, id).await.status, RunStatus::Completed);
    })
    .await;
}

#[tokio::test]
async fn a_short_pause_and_one_that_is_over_keep_the_run_in_memory() {
    within(async {
        let durably = memory().await;
        let job = durably
            .register(Job::new("short", |step: Step, _: u32| async move {
                step.sleep("short", Duration::from_millis(20)).await?;
                step.sleep_until("past", Timestamp::from_millis(1)).await?;
                step.sleep("none", Duration::ZERO).await
            }))
            .unwrap();
        let run = job.trigger(0).await.unwrap();
        run.output().await.unwrap();
        let record = run_of(&durably, run.id()).await;
        assert_eq!((record.lease_generation, record.completed_step_count), (1, 3));
        assert!(record.completed_at.unwrap().since(record.created_at) >= Duration::from_millis(20));
    })
    .await;
}

#[tokio::test]
async fn a_suspended_run_keeps_its_key_and_takes_no_slot() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().max_concurrent_runs(1).clock(clock.clone()).in_memory().await.unwrap();
        let (calls, gate, mut events) = (Count::default(), Gate::new(), durably.events());
        let (job, other) = durably.register((sleeper(&calls), gated("other", &gate))).unwrap();
        let asleep = job.trigger(3600).concurrency_key("k").await.unwrap();
        suspended(&durably, &mut events).await;
        let same_key = other.trigger(1).concurrency_key("k").await.unwrap();
        let free = other.trigger(2).await.unwrap();
        gate.open();
        assert_eq!(free.output().await.unwrap(), 2, "there is a slot for it");
        assert_eq!(run_of(&durably, same_key.id()).await.status, RunStatus::Pending, "the key is held");
        clock.advance(DAY);
        durably.stats().await.unwrap();
        asleep.output().await.unwrap();
        same_key.output().await.unwrap();
        let record = run_of(&durably, same_key.id()).await;
        assert!(record.started_at >= run_of(&durably, asleep.id()).await.completed_at);
    })
    .await;
}

#[tokio::test]
async fn a_suspended_run_that_holds_its_key_still_holds_it_after_a_restart() {
    within(async {
        let (file, clock, calls, gate) = (TempFile::new(), ManualClock::new(), Count::default(), Gate::new());
        gate.open();
        let (asleep, waiting) = {
            let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
            let mut events = durably.events();
            let (job, other) = durably.register((sleeper(&calls), gated("other", &gate))).unwrap();
            let asleep = job.trigger(3600).concurrency_key("k").await.unwrap();
            suspended(&durably, &mut events).await;
            (asleep.id(), other.trigger(1).concurrency_key("k").await.unwrap().id())
        };
        let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
        let (_, other) = durably.register((sleeper(&calls), gated("other", &gate))).unwrap();
        other.trigger(5).await.unwrap().output().await.unwrap();
        assert_eq!(run_of(&durably, waiting).await.status, RunStatus::Pending);
        clock.advance(DAY);
        durably.stats().await.unwrap();
        ended(&durably, asleep).await;
        assert_eq!(ended(&durably, waiting).await.status, RunStatus::Completed);
    })
    .await;
}

#[tokio::test]
async fn a_suspended_run_is_cancelled_at_once_and_its_key_is_free() {
    within(async {
        let durably = memory().await;
        let (calls, gate, mut events) = (Count::default(), Gate::new(), durably.events());
        let (job, other) = durably.register((sleeper(&calls), gated("other", &gate))).unwrap();
        gate.open();
        let asleep = job.trigger(3600).concurrency_key("k").await.unwrap();
        suspended(&durably, &mut events).await;
        let next = other.trigger(1).concurrency_key("k").await.unwrap();
        durably.cancel(asleep.id()).await.unwrap();
        assert_eq!(run_of(&durably, asleep.id()).await.status, RunStatus::Cancelled);
        assert_eq!(next.output().await.unwrap(), 1);
        assert_eq!(calls.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn steps_beside_a_pause_keep_the_run_in_memory_and_a_dropped_pause_does_not_wake_it() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let job = durably
            .register(job_with("job", gate.clone(), |step: Step, _, gate| async move {
                let winner = tokio::select! {
                    slept = step.sleep("long", DAY) => { slept?; "pause" }
                    worked = step.run("work", || async { gate.pass().await; Ok(()) }) => { worked?; "work" }
                };
                Ok(winner.to_owned())
            }))
            .unwrap();
        let run = job.trigger(0).await.unwrap();
        gate.reached().await;
        assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Leased);
        gate.let_one_on();
        assert_eq!(run.output().await.unwrap(), "work");
    })
    .await;
}

#[tokio::test]
async fn what_only_gives_way_is_not_suspended() {
    within(async {
        let durably = memory().await;
        let job = durably
            .register(Job::new("job", |step: Step, _: u32| async move {
                let work = async {
                    tokio::task::yield_now().await;
                    step.run("work", || async { Ok(()) }).await
                };
                tokio::select! {
                    biased;
                    slept = step.sleep("long", DAY) => slept,
                    worked = work => worked,
                }
            }))
            .unwrap();
        let run = job.trigger(0).await.unwrap();
        run.output().await.unwrap();
        assert_eq!(run_of(&durably, run.id()).await.lease_generation, 1);
    })
    .await;
}

#[tokio::test]
async fn a_key_that_held_another_sort_of_step_ends_the_run_and_a_fix_goes_on() {
    within(async {
        let file = TempFile::new();
        let id = {
            let durably = file.open().await;
            let mut events = durably.events();
            let job = durably.register(sleeper(&Count::default())).unwrap();
            let run = job.trigger(3600).await.unwrap();
            suspended(&durably, &mut events).await;
            durably.shutdown().await.unwrap();
            run.id()
        };
        let durably = file.open().await;
        let waits = |kind: &'static str| {
            Job::new("sleeper", move |step: Step, _: u32| async move {
                if kind == "signal" {
                    return step.wait_signal::<String>("pause", "go").await;
                }
                step.run("pause", || async { Ok("run".to_owned()) }).await
            })
        };
        durably.register(waits("signal")).unwrap();
        // Something wakes it: the pause itself would take an hour.
        durably.cancel(id).await.unwrap();
        durably.resume(id).await.unwrap();
        let error = ended(&durably, id).await.error.unwrap();
        assert_eq!(error.kind, ErrorKind::CheckpointMismatch);
        assert!(error.message.contains("was a sleep and is a signal"), "{}", error.message);
    })
    .await;
}

const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[tokio::test]
async fn p19_a_clock_that_is_set_back_delays_a_pause_by_as_much_and_loses_nothing() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let (calls, mut events) = (Count::default(), durably.events());
        let job = durably.register(sleeper(&calls)).unwrap();
        let run = job.trigger(3600).await.unwrap();
        suspended(&durably, &mut events).await;
        clock.set_back(TEN_YEARS);
        // What else there is to do goes on by the clock as it reads now.
        assert_eq!(job.trigger(0).await.unwrap().output().await.unwrap(), "2 3");
        clock.advance(Duration::from_secs(3600));
        durably.stats().await.unwrap();
        assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Suspended, "its moment is ten years away");
        clock.advance(TEN_YEARS);
        durably.stats().await.unwrap();
        assert_eq!(run.output().await.unwrap(), "1 4");
    })
    .await;
}

#[tokio::test]
async fn p19_a_clock_that_leaps_ahead_ends_the_pauses_that_are_over_by_it() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let mut events = durably.events();
        let job = durably.register(sleeper(&Count::default())).unwrap();
        let run = job.trigger(3600).await.unwrap();
        suspended(&durably, &mut events).await;
        let later = job.trigger(u32::MAX).await.unwrap();
        next_event(&mut events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
        clock.advance(TEN_YEARS);
        durably.stats().await.unwrap();
        run.output().await.unwrap();
        assert_eq!(run_of(&durably, later.id()).await.status, RunStatus::Suspended, "136 years are not over");
        // And back: what has ended stays ended, and what sleeps goes on sleeping.
        clock.set_back(TEN_YEARS);
        durably.stats().await.unwrap();
        assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Completed);
        assert_eq!(run_of(&durably, later.id()).await.status, RunStatus::Suspended);
    })
    .await;
}

#[tokio::test]
async fn p19_a_pause_in_memory_whose_moment_moves_away_is_suspended_then() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let mut events = durably.events();
        let job = durably
            .register(Job::new("job", |step: Step, _: u32| async move {
                step.sleep("short", Duration::from_millis(200)).await
            }))
            .unwrap();
        let run = job.trigger(0).await.unwrap();
        next_event(&mut events, |event| matches!(event.kind, EventKind::StepWaiting { .. })).await;
        clock.set_back(TEN_YEARS);
        suspended(&durably, &mut events).await;
        clock.advance(TEN_YEARS + Duration::from_millis(200));
        durably.stats().await.unwrap();
        run.output().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn p19_a_restart_with_a_clock_that_was_set_back_is_not_early() {
    within(async {
        let (file, clock, calls) = (TempFile::new(), ManualClock::new(), Count::default());
        let id = {
            let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
            let mut events = durably.events();
            let run = durably.register(sleeper(&calls)).unwrap().trigger(3600).await.unwrap();
            suspended(&durably, &mut events).await;
            run.id()
        };
        clock.set_back(TEN_YEARS);
        let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
        durably.register(sleeper(&calls)).unwrap();
        clock.advance(DAY);
        durably.stats().await.unwrap();
        assert_eq!(run_of(&durably, id).await.status, RunStatus::Suspended);
        clock.advance(TEN_YEARS);
        durably.stats().await.unwrap();
        assert_eq!(ended(&durably, id).await.output.unwrap(), "1 2");
    })
    .await;
}

#[tokio::test]
async fn a_timeout_does_not_shorten_a_pause() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let mut events = durably.events();
        let job = Job::new("job", |step: Step, _: u32| async move {
            step.sleep("pause", DAY).timeout(Duration::from_secs(60)).await
        });
        let run = durably.register(job).unwrap().trigger(0).await.unwrap();
        suspended(&durably, &mut events).await;
        clock.advance(Duration::from_secs(3_600));
        durably.stats().await.unwrap();
        assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Suspended);
        clock.advance(DAY);
        durably.stats().await.unwrap();
        run.output().await.unwrap();
    })
    .await;
}
