//! Deadlines: a run that has not ended by its moment fails, wherever it stands, and nothing of it is recorded after that.

use std::time::Duration;

use durably::{Durably, ErrorKind, EventKind, Job, Retry, Run, RunId, RunStatus, Step, StepStatus};

use crate::support::{
    Count, Gate, ManualClock, OnDrop, TempFile, echo, ended, gated, job_with, next_event, run_of, told_so_far, within,
};

const HOUR: Duration = Duration::from_secs(3600);

async fn with_clock(clock: &ManualClock) -> Durably {
    let grace = Duration::from_millis(50);
    Durably::builder().cancel_grace(grace).clock(clock.clone()).in_memory().await.unwrap()
}

/// What is due is looked at with the next operation.
async fn pass(durably: &Durably, clock: &ManualClock, time: Duration) {
    clock.advance(time);
    durably.stats().await.unwrap();
}

async fn failed_of_its_deadline(durably: &Durably, run: RunId) -> Run {
    let run = run_of(durably, run).await;
    let error = run.error.clone().unwrap();
    assert_eq!((run.status, error.kind, error.step), (RunStatus::Failed, ErrorKind::DeadlineExceeded, None));
    assert_eq!(run.completed_at.unwrap(), run.deadline.unwrap(), "at its moment");
    run
}

/// Sleeps for a day.
fn sleeper() -> Job<u32, u32> {
    Job::new("sleeper", |step: Step, input: u32| async move {
        step.sleep("day", 24 * HOUR).await?;
        Ok(input)
    })
}

#[tokio::test]
async fn a_pending_run_fails_at_its_moment_and_no_sooner() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().paused(true).clock(clock.clone()).in_memory().await.unwrap();
        let job = durably.register(echo("echo")).unwrap();
        let run = job.trigger(1).deadline(HOUR).concurrency_key("k").await.unwrap();
        let record = run_of(&durably, run.id()).await;
        assert_eq!(record.deadline.unwrap().since(record.created_at), HOUR);
        let next = job.trigger(2).concurrency_key("k").await.unwrap();
        pass(&durably, &clock, HOUR - Duration::from_millis(1)).await;
        assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Pending, "a millisecond early");
        let mut events = durably.events();
        pass(&durably, &clock, Duration::from_millis(1)).await;
        failed_of_its_deadline(&durably, run.id()).await;
        assert_eq!(told_so_far(&durably, &mut events).await, [(run.id(), "run:fail")]);
        let stats = durably.stats().await.unwrap();
        let echoes = stats.jobs.iter().find(|job| job.name == "echo").unwrap();
        assert_eq!((echoes.count(RunStatus::Pending), echoes.count(RunStatus::Failed)), (1, 1));
        durably.start().await.unwrap();
        assert_eq!(next.output().await.unwrap(), 2, "its place in the key's line is free");
    })
    .await;
}

#[tokio::test]
async fn a_suspended_run_fails_at_its_moment_and_its_key_is_free() {
    within(async {
        let clock = ManualClock::new();
        let durably = with_clock(&clock).await;
        let mut events = durably.events();
        let (job, other) = durably.register((sleeper(), echo("other"))).unwrap();
        let run = job.trigger(1).deadline(HOUR).concurrency_key("k").await.unwrap();
        next_event(&mut events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
        let next = other.trigger(2).concurrency_key("k").await.unwrap();
        pass(&durably, &clock, HOUR).await;
        failed_of_its_deadline(&durably, run.id()).await;
        assert_eq!(next.output().await.unwrap(), 2);
        assert_eq!(durably.get_steps(run.id()).await.unwrap()[0].status, StepStatus::Waiting);
        pass(&durably, &clock, 48 * HOUR).await;
        failed_of_its_deadline(&durably, run.id()).await;
    })
    .await;
}

#[tokio::test]
async fn an_executing_body_is_told_and_nothing_of_it_is_recorded_any_more() {
    within(async {
        let clock = ManualClock::new();
        let durably = with_clock(&clock).await;
        let (gate, told) = (Gate::new(), Count::default());
        let job = durably
            .register(job_with("job", (gate.clone(), told.clone()), |step: Step, _, (gate, told)| async move {
                let cancelled = step.cancelled();
                step.run("before", || async { Ok(()) }).await?;
                step.run("during", || async {
                    gate.enter();
                    cancelled.cancelled().await;
                    told.up();
                    Ok(())
                })
                .await?;
                told.up();
                Ok(7)
            }))
            .unwrap();
        let run = job.trigger(0).deadline(HOUR).await.unwrap();
        gate.reached().await;
        pass(&durably, &clock, HOUR).await;
        let failed = failed_of_its_deadline(&durably, run.id()).await;
        durably.stop().await.unwrap();
        assert_eq!(told.get(), 1, "it was told, and got no further");
        assert_eq!(run_of(&durably, run.id()).await, failed);
        assert_eq!(durably.get_steps(run.id()).await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_body_that_does_not_listen_is_dropped_and_holds_its_key_until_then() {
    within(async {
        let clock = ManualClock::new();
        let durably = with_clock(&clock).await;
        let (gate, dropped) = (Gate::new(), Count::default());
        let job = durably
            .register(job_with("job", (gate.clone(), dropped.clone()), |step: Step, _, (gate, dropped)| async move {
                let _watched = step.cancelled();
                let _guard = OnDrop(dropped);
                gate.pass().await;
                Ok(7)
            }))
            .unwrap();
        let other = durably.register(echo("other")).unwrap();
        let run = job.trigger(0).deadline(HOUR).concurrency_key("k").await.unwrap();
        gate.reached().await;
        let next = other.trigger(2).concurrency_key("k").await.unwrap();
        pass(&durably, &clock, HOUR).await;
        failed_of_its_deadline(&durably, run.id()).await;
        assert_eq!(next.output().await.unwrap(), 2);
        assert_eq!(dropped.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_jobs_deadline_is_for_triggers_that_have_none_of_their_own() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().paused(true).clock(clock.clone()).in_memory().await.unwrap();
        let job = durably.register(echo("echo").deadline(HOUR)).unwrap();
        let default = job.trigger(1).await.unwrap();
        let own = job.trigger(2).deadline(2 * HOUR).await.unwrap();
        let batch = job.batch_trigger([durably::Trigger::new(3).deadline(3 * HOUR)]).await.unwrap();
        let again = durably.trigger_json("echo", 4.into()).await.unwrap();
        let mut hours = Vec::new();
        for run in [default.id(), own.id(), batch[0].id(), again.id()] {
            let run = run_of(&durably, run).await;
            hours.push(run.deadline.unwrap().since(run.created_at).as_secs() / 3600);
        }
        assert_eq!(hours, [1, 2, 3, 1]);
        pass(&durably, &clock, HOUR).await;
        failed_of_its_deadline(&durably, default.id()).await;
        assert_eq!(run_of(&durably, own.id()).await.status, RunStatus::Pending);
        // A retriggered run has as long as the old one had.
        let id = durably.retrigger(default.id()).await.unwrap().id();
        let new = run_of(&durably, id).await;
        assert_eq!(new.deadline.unwrap().since(new.created_at), HOUR);
    })
    .await;
}

#[tokio::test]
async fn one_that_has_ended_has_no_deadline_to_miss() {
    within(async {
        let clock = ManualClock::new();
        let durably = with_clock(&clock).await;
        let job = durably.register(echo("echo")).unwrap();
        let done = job.trigger(1).deadline(HOUR).await.unwrap();
        done.output().await.unwrap();
        let gate = Gate::new();
        let cancelled = durably.register(gated("gated", &gate)).unwrap().trigger(1).deadline(HOUR).await.unwrap();
        gate.reached().await;
        durably.cancel(cancelled.id()).await.unwrap();
        pass(&durably, &clock, 2 * HOUR).await;
        assert_eq!(run_of(&durably, done.id()).await.status, RunStatus::Completed);
        assert_eq!(run_of(&durably, cancelled.id()).await.status, RunStatus::Cancelled);
    })
    .await;
}

#[tokio::test]
async fn a_deadline_survives_a_crash_and_counts_also_where_nobody_was_there() {
    within(async {
        let (file, clock, gate) = (TempFile::new(), ManualClock::new(), Gate::new());
        let builder = || Durably::builder().clock(clock.clone());
        let (asleep, pending, executing, later) = {
            let durably = file.open_with(builder().max_concurrent_runs(1)).await;
            let mut events = durably.events();
            let (job, other) = durably.register((sleeper(), gated("gated", &gate))).unwrap();
            let asleep = job.trigger(1).deadline(HOUR).await.unwrap();
            next_event(&mut events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
            let executing = other.trigger(1).deadline(HOUR).await.unwrap();
            gate.reached().await;
            let pending = other.trigger(2).deadline(HOUR).await.unwrap();
            let later = job.trigger(3).deadline(3 * HOUR).await.unwrap();
            (asleep.id(), pending.id(), executing.id(), later.id())
        };
        clock.advance(2 * HOUR);
        let durably = file.open_with(builder()).await;
        durably.stats().await.unwrap();
        for run in [asleep, pending, executing] {
            let run = run_of(&durably, run).await;
            let kind = run.error.as_ref().map(|error| error.kind);
            assert_eq!((run.status, kind), (RunStatus::Failed, Some(ErrorKind::DeadlineExceeded)));
        }
        pass(&durably, &clock, HOUR).await;
        failed_of_its_deadline(&durably, later).await;
    })
    .await;
}

#[tokio::test]
async fn a_resumed_run_has_no_deadline_any_more() {
    within(async {
        let (file, clock) = (TempFile::new(), ManualClock::new());
        let builder = || Durably::builder().clock(clock.clone());
        let id = {
            let durably = file.open_with(builder()).await;
            let mut events = durably.events();
            let run = durably.register(sleeper()).unwrap().trigger(7).deadline(HOUR).await.unwrap();
            next_event(&mut events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
            pass(&durably, &clock, HOUR).await;
            failed_of_its_deadline(&durably, run.id()).await;
            durably.resume(run.id()).await.unwrap();
            next_event(&mut events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
            pass(&durably, &clock, HOUR).await;
            let record = run_of(&durably, run.id()).await;
            assert_eq!((record.status, record.deadline), (RunStatus::Suspended, None));
            run.id()
        };
        let durably = file.open_with(builder()).await;
        durably.register(sleeper()).unwrap();
        pass(&durably, &clock, HOUR).await;
        assert_eq!(run_of(&durably, id).await.status, RunStatus::Suspended);
        pass(&durably, &clock, 24 * HOUR).await;
        assert_eq!(ended(&durably, id).await.output.unwrap(), 7);
    })
    .await;
}

#[tokio::test]
async fn a_deadline_ends_a_run_between_two_attempts() {
    within(async {
        let clock = ManualClock::new();
        let durably = with_clock(&clock).await;
        let (calls, mut events) = (Count::default(), durably.events());
        let job = durably
            .register(job_with("job", calls.clone(), |step: Step, _, calls| async move {
                let down = step.run("down", || async {
                    calls.up();
                    Err::<u32, _>("down".into())
                });
                down.retry(Retry::fixed(9, 2 * HOUR)).await
            }))
            .unwrap();
        let run = job.trigger(0).deadline(4 * HOUR).await.unwrap();
        for calls_so_far in 1..=2 {
            next_event(&mut events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
            assert_eq!(calls.get(), calls_so_far);
            pass(&durably, &clock, 2 * HOUR).await;
        }
        let run = run_of(&durably, run.id()).await;
        assert_eq!(run.error.unwrap().kind, ErrorKind::DeadlineExceeded);
        durably.stop().await.unwrap();
        assert_eq!(calls.get(), 2, "due at the same moment, the deadline wins");
    })
    .await;
}

#[tokio::test]
async fn children_end_with_a_run_whose_deadline_is_over_unless_they_are_detached() {
    within(async {
        let clock = ManualClock::new();
        let durably = with_clock(&clock).await;
        let mut events = durably.events();
        let child = durably.register(sleeper()).unwrap();
        let handle = child.clone();
        let job = durably
            .register(Job::new("parent", move |step: Step, _: u32| {
                let child = handle.clone();
                async move {
                    step.trigger("detached", &child, 1).detached().await?;
                    step.call("child", &child, 2).await
                }
            }))
            .unwrap();
        let run = job.trigger(0).deadline(HOUR).await.unwrap();
        for _ in 0..3 {
            next_event(&mut events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
        }
        pass(&durably, &clock, HOUR).await;
        failed_of_its_deadline(&durably, run.id()).await;
        let mut children = child.get_runs(durably::RunFilter::new()).await.unwrap();
        children.sort_by_key(|run| run.id);
        let statuses: Vec<_> = children.iter().map(|run| run.status).collect();
        assert_eq!(statuses, [RunStatus::Suspended, RunStatus::Cancelled]);
    })
    .await;
}

#[tokio::test]
async fn a_parent_is_told_of_a_child_that_missed_its_deadline() {
    within(async {
        let clock = ManualClock::new();
        let durably = with_clock(&clock).await;
        let mut events = durably.events();
        let handle = durably.register(sleeper()).unwrap();
        let job = durably
            .register(Job::new("parent", move |step: Step, _: u32| {
                let child = handle.clone();
                async move { step.call("child", &child, 2).deadline(HOUR).await }
            }))
            .unwrap();
        let run = job.trigger(0).await.unwrap();
        for _ in 0..2 {
            next_event(&mut events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
        }
        pass(&durably, &clock, HOUR).await;
        let error = ended(&durably, run.id()).await.error.unwrap();
        assert_eq!(error.kind, ErrorKind::ChildFailed);
        assert!(error.chain[0].contains("had not ended by"), "{:?}", error.chain);
    })
    .await;
}

#[tokio::test]
async fn a_retrigger_of_a_run_that_went_on_for_another_has_the_jobs_time_and_not_what_was_left() {
    within(async {
        let clock = ManualClock::new();
        let durably = with_clock(&clock).await;
        let gate = Gate::new();
        let job: Job<u32, u32> = job_with("loop", gate.clone(), |step: Step, left, gate: Gate| async move {
            gate.pass().await;
            if left == 0 { Err("over".into()) } else { step.continue_as_new(left - 1).await }
        });
        let job = durably.register(job.deadline(HOUR)).unwrap();
        let first = job.trigger(1).await.unwrap();
        gate.reached().await;
        pass(&durably, &clock, HOUR - Duration::from_secs(5)).await;
        gate.open();
        let last = run_of(&durably, first.id()).await;
        let last = ended(&durably, last.continued_as.unwrap_or(last.id)).await;
        let last = ended(&durably, last.continued_as.unwrap_or(last.id)).await;
        assert_eq!(last.deadline.unwrap().since(last.created_at), Duration::from_secs(5));
        let again = run_of(&durably, durably.retrigger(last.id).await.unwrap().id()).await;
        assert_eq!(again.deadline.unwrap().since(again.created_at), HOUR);
    })
    .await;
}
