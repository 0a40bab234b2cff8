//! Runs that start at their moment, and no sooner.

use std::time::Duration;

use durably::{Clock, Disposition, Durably, Error, EventKind, Job, OnConflict, RunStatus, Step, Timestamp, Trigger};

use crate::support::{Gate, ManualClock, TempFile, echo, ended, gated, memory, next_event, run_of, within};

const HOUR: Duration = Duration::from_secs(3600);
const MS: Duration = Duration::from_millis(1);

async fn with_clock() -> (Durably, ManualClock) {
    let clock = ManualClock::new();
    (Durably::builder().clock(clock.clone()).in_memory().await.unwrap(), clock)
}

/// The writer does what is due.
async fn poke(durably: &Durably) {
    durably.stats().await.unwrap();
}

#[tokio::test]
async fn a_delayed_run_is_pending_and_visible_and_starts_at_its_moment_and_no_sooner() {
    within(async {
        let (durably, clock) = with_clock().await;
        let job = durably.register(echo("job")).unwrap();
        let run = job.trigger(1).delay(HOUR).await.unwrap();
        assert_eq!((run.status(), run.disposition()), (RunStatus::Pending, Disposition::Created));
        let record = run_of(&durably, run.id()).await;
        assert_eq!(record.not_before, Some(record.created_at.saturating_add(HOUR)));
        assert_eq!(durably.stats().await.unwrap().jobs[0].count(RunStatus::Pending), 1);
        let other = job.trigger(2).await.unwrap();
        assert_eq!(other.output().await.unwrap(), 2, "it stands in nobody's way");
        clock.advance(HOUR - MS);
        poke(&durably).await;
        assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Pending, "a millisecond early");
        clock.advance(MS);
        poke(&durably).await;
        assert_eq!(run.output().await.unwrap(), 1);
        let record = run_of(&durably, run.id()).await;
        assert!(record.started_at >= record.not_before);
    })
    .await;
}

#[tokio::test]
async fn a_delay_needs_no_poking_by_the_real_clock() {
    within(async {
        let durably = memory().await;
        let job = durably.register(echo("job")).unwrap();
        let run = job.trigger(1).delay(Duration::from_millis(30)).await.unwrap();
        run.output().await.unwrap();
        let record = run_of(&durably, run.id()).await;
        assert!(record.started_at.unwrap().since(record.created_at) >= Duration::from_millis(30));
    })
    .await;
}

#[tokio::test]
async fn a_moment_that_is_over_delays_nothing_and_the_later_option_counts() {
    within(async {
        let (durably, clock) = with_clock().await;
        let job = durably.register(echo("job")).unwrap();
        let past = job.trigger(1).at(Timestamp::from_millis(1)).await.unwrap();
        past.output().await.unwrap();
        assert_eq!(run_of(&durably, past.id()).await.not_before, None);
        job.trigger(2).delay(Duration::ZERO).await.unwrap().output().await.unwrap();
        job.trigger(3).delay(HOUR).at(clock.now()).await.unwrap().output().await.unwrap();
        let last = job.trigger(4).delay(Duration::MAX).await.unwrap();
        assert_eq!(run_of(&durably, last.id()).await.not_before, Some(Timestamp::from_millis(u64::MAX)));
        clock.advance(HOUR * 24 * 36_500);
        poke(&durably).await;
        assert_eq!(run_of(&durably, last.id()).await.status, RunStatus::Pending);
    })
    .await;
}

#[tokio::test]
async fn every_kind_of_trigger_can_be_delayed() {
    within(async {
        let (durably, clock) = with_clock().await;
        let child = durably.register(echo("child")).unwrap();
        let (inner, mut events) = (child.clone(), durably.events());
        let parent = durably
            .register(Job::new("parent", move |step: Step, n: u32| {
                let child = inner.clone();
                async move { step.call("call", &child, n).delay(HOUR).await }
            }))
            .unwrap();
        let at = clock.now().saturating_add(HOUR);
        let mut runs = vec![durably.trigger_json("child", 1.into()).at(at).await.unwrap().id()];
        runs.extend(
            child
                .batch_trigger([Trigger::new(2).at(at), Trigger::new(3).delay(HOUR)])
                .await
                .unwrap()
                .iter()
                .map(|run| run.id()),
        );
        let called = parent.trigger(4).await.unwrap();
        next_event(&mut events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
        for run in &runs {
            let run = run_of(&durably, *run).await;
            assert_eq!((run.status, run.not_before), (RunStatus::Pending, Some(at)));
        }
        clock.advance(HOUR);
        poke(&durably).await;
        for run in runs {
            assert_eq!(ended(&durably, run).await.status, RunStatus::Completed);
        }
        assert_eq!(called.output().await.unwrap(), 4);
    })
    .await;
}

#[tokio::test]
async fn a_delay_survives_restarts_and_one_that_was_missed_starts_at_the_next() {
    within(async {
        let (file, clock) = (TempFile::new(), ManualClock::new());
        let builder = || Durably::builder().clock(clock.clone());
        let id = {
            let durably = file.open_with(builder()).await;
            let id = durably.register(echo("job")).unwrap().trigger(1).delay(HOUR).await.unwrap().id();
            durably.shutdown().await.unwrap();
            id
        };
        clock.advance(HOUR - MS);
        {
            // Ended without a word.
            let durably = file.open_with(builder()).await;
            let job = durably.register(echo("job")).unwrap();
            job.trigger(2).await.unwrap().output().await.unwrap();
            assert_eq!(run_of(&durably, id).await.status, RunStatus::Pending);
        }
        clock.advance(HOUR * 24);
        let durably = file.open_with(builder()).await;
        durably.register(echo("job")).unwrap();
        let run = ended(&durably, id).await;
        assert_eq!((run.status, run.recoveries), (RunStatus::Completed, 0));
    })
    .await;
}

#[tokio::test]
async fn the_newer_delayed_run_replaces_the_older_and_starts_at_its_own_moment() {
    within(async {
        let (durably, clock) = with_clock().await;
        let job = durably.register(echo("job")).unwrap();
        let secs = Duration::from_secs;
        let edit = |n| job.trigger(n).delay(secs(5)).concurrency_key("doc").on_conflict(OnConflict::Replace);
        let mut runs = Vec::new();
        for n in 1..=3 {
            runs.push(edit(n).await.unwrap().id());
            clock.advance(secs(3));
            poke(&durably).await;
        }
        // 9 s after the first, 3 s after the last.
        for (at, run) in runs[..2].iter().enumerate() {
            let run = run_of(&durably, *run).await;
            assert_eq!((run.status, run.replaced_by), (RunStatus::Cancelled, Some(runs[at + 1])));
        }
        assert_eq!(run_of(&durably, runs[2]).await.status, RunStatus::Pending);
        clock.advance(secs(2));
        poke(&durably).await;
        assert_eq!(ended(&durably, runs[2]).await.output, Some(3.into()));
        // One without a delay starts at once in the place of one with.
        let waiting = edit(4).await.unwrap();
        let now = job.trigger(5).concurrency_key("doc").on_conflict(OnConflict::Replace).await.unwrap();
        assert_eq!(now.output().await.unwrap(), 5);
        assert_eq!(run_of(&durably, waiting.id()).await.replaced_by, Some(now.id()));
    })
    .await;
}

#[tokio::test]
async fn a_delayed_run_that_replaces_one_in_line_waits_for_its_moment() {
    within(async {
        let (durably, clock) = with_clock().await;
        let gate = Gate::new();
        let job = durably.register(gated("job", &gate)).unwrap();
        job.trigger(1).concurrency_key("k").await.unwrap();
        gate.reached().await;
        let in_line = job.trigger(2).concurrency_key("k").await.unwrap();
        let replace = job.trigger(3).concurrency_key("k").on_conflict(OnConflict::Replace);
        let delayed = replace.delay(HOUR).await.unwrap();
        gate.open();
        assert_eq!(run_of(&durably, in_line.id()).await.status, RunStatus::Cancelled);
        let behind = job.trigger(4).concurrency_key("k").await.unwrap();
        assert_eq!(behind.output().await.unwrap(), 4);
        assert_eq!(run_of(&durably, delayed.id()).await.status, RunStatus::Pending);
        clock.advance(HOUR);
        poke(&durably).await;
        assert_eq!(delayed.output().await.unwrap(), 3);
    })
    .await;
}

#[tokio::test]
async fn a_delayed_run_counts_as_waiting_for_skip_and_reject_over_a_restart_too() {
    within(async {
        let (file, clock) = (TempFile::new(), ManualClock::new());
        let builder = || Durably::builder().clock(clock.clone());
        let durably = file.open_with(builder()).await;
        let job = durably.register(echo("job")).unwrap();
        let waiting = job.trigger(1).delay(HOUR).concurrency_key("k").await.unwrap().id();
        durably.shutdown().await.unwrap();
        let durably = file.open_with(builder()).await;
        let job = durably.register(echo("job")).unwrap();
        let skipped = job.trigger(2).concurrency_key("k").on_conflict(OnConflict::Skip).await.unwrap();
        assert_eq!((skipped.id(), skipped.disposition()), (waiting, Disposition::Coalesced));
        let refused = job.trigger(3).concurrency_key("k").on_conflict(OnConflict::Reject).await;
        assert!(matches!(refused, Err(Error::KeyConflict { run: Some(run), .. }) if run == waiting), "{refused:?}");
        // The key is free until then.
        let queued = job.trigger(4).concurrency_key("k").await.unwrap();
        assert_eq!(queued.output().await.unwrap(), 4);
    })
    .await;
}

#[tokio::test]
async fn a_delayed_run_can_be_cancelled_deleted_and_triggered_again_without_its_delay() {
    within(async {
        let (durably, clock) = with_clock().await;
        let job = durably.register(echo("job")).unwrap();
        let run = job.trigger(1).delay(HOUR).idempotency_key("i").concurrency_key("k").await.unwrap().id();
        let again = job.trigger(1).idempotency_key("i").await.unwrap();
        assert_eq!((again.id(), again.disposition()), (run, Disposition::Idempotent));
        assert!(matches!(durably.delete_run(run).await, Err(Error::Conflict { .. })));
        durably.cancel(run).await.unwrap();
        assert_eq!(run_of(&durably, run).await.status, RunStatus::Cancelled);
        clock.advance(HOUR);
        poke(&durably).await;
        let retriggered = durably.retrigger(run).await.unwrap().id();
        let new = ended(&durably, retriggered).await;
        assert_eq!((new.not_before, new.status), (None, RunStatus::Completed));
        assert_eq!(run_of(&durably, run).await.status, RunStatus::Cancelled);
        // A resume asks for it now.
        let resumed = job.trigger(2).delay(HOUR).await.unwrap().id();
        durably.cancel(resumed).await.unwrap();
        durably.resume(resumed).await.unwrap();
        let resumed = ended(&durably, resumed).await;
        assert_eq!((resumed.status, resumed.not_before), (RunStatus::Completed, None));
        durably.delete_run(run).await.unwrap();
        assert_eq!(durably.get_run(run).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn working_the_queue_off_leaves_delayed_runs_for_their_moment() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).paused(true).in_memory().await.unwrap();
        let job = durably.register(echo("job")).unwrap();
        let delayed = job.trigger(1).delay(HOUR).await.unwrap();
        job.trigger(2).await.unwrap();
        assert_eq!(durably.run_until_idle(None).await.unwrap(), 1);
        clock.advance(HOUR);
        poke(&durably).await;
        assert_eq!(run_of(&durably, delayed.id()).await.status, RunStatus::Pending, "paused");
        assert_eq!(durably.run_until_idle(None).await.unwrap(), 1);
    })
    .await;
}

#[tokio::test]
async fn delayed_runs_of_a_batch_stand_in_no_line_as_single_ones_do_not() {
    within(async {
        let durably = memory().await;
        let job = durably.register(echo("job")).unwrap();
        let later = || Trigger::new(1).concurrency_key("k").delay(Duration::from_secs(3_600)).max_queued(0);
        for _ in 0..2 {
            job.trigger(1).concurrency_key("k").delay(Duration::from_secs(3_600)).max_queued(0).await.unwrap();
        }
        assert_eq!(job.batch_trigger([later(), later(), later()]).await.unwrap().len(), 3);
    })
    .await;
}
