//! Runs that end and go on as another: nothing that belongs to them is lost on the way.

use std::time::Duration;

use durably::{Durably, Error, ErrorKind, EventKind, Job, JobHandle, RunFilter, RunId, RunStatus, Step, Timestamp};
use serde_json::json;

use crate::support::{
    Count, Gate, ManualClock, TempFile, echo, ended, gated, job_with, memory, next_event, paused, run_of, within,
    within_minutes,
};

/// Counts its input down, a run a number.
fn countdown() -> Job<u32, u32> {
    Job::new("countdown", |step: Step, left: u32| async move {
        let next = step.run("next", || async { Ok(left.saturating_sub(1)) }).await?;
        if left == 0 {
            return Ok(7);
        }
        step.continue_as_new(next).await
    })
}

/// The same, held up at its gate in every run.
fn gated_countdown(gate: &Gate) -> Job<u32, u32> {
    job_with("countdown", gate.clone(), |step: Step, left, gate| async move {
        gate.pass().await;
        if left == 0 { Ok(7) } else { step.continue_as_new(left - 1).await }
    })
}

/// The runs of a job, oldest first.
async fn generations(durably: &Durably) -> Vec<durably::Run> {
    let mut runs = durably.get_runs(RunFilter::new().job("countdown")).await.unwrap();
    runs.reverse();
    runs
}

#[tokio::test]
async fn the_end_and_the_successor_are_linked_and_who_waits_gets_the_last_output() {
    within(async {
        let durably = memory().await;
        let job = durably.register(countdown()).unwrap();
        let run = job.trigger(3).label("x", "y").await.unwrap();
        assert_eq!(run.output().await.unwrap(), 7);
        let runs = generations(&durably).await;
        assert_eq!(runs.iter().map(|run| run.input.clone().unwrap()).collect::<Vec<_>>(), [3, 2, 1, 0]);
        for pair in runs.windows(2) {
            assert_eq!((pair[0].continued_as, pair[1].continued_from), (Some(pair[1].id), Some(pair[0].id)));
            assert_eq!((pair[0].status, pair[0].output.clone()), (RunStatus::Completed, Some(json!(null))));
            assert_eq!(pair[0].labels, pair[1].labels);
        }
        // Waits that begin later go the whole way too, and give the run that has ended.
        assert_eq!(durably.wait_for_run(run.id()).await.unwrap().id, runs[3].id);
        let waited = job.trigger_and_wait(5).timeout(Duration::from_secs(10)).await.unwrap();
        assert_eq!(waited.output, 7);
    })
    .await;
}

#[tokio::test]
async fn its_own_stream_ends_with_the_run_that_goes_on() {
    within(async {
        let durably = memory().await;
        let job = durably.register(countdown()).unwrap();
        let run = job.trigger(1).await.unwrap();
        run.output().await.unwrap();
        let next = run_of(&durably, run.id()).await.continued_as.unwrap();
        let mut events = durably.subscribe(run.id()).await.unwrap();
        let event = events.next().await.unwrap();
        assert_eq!(event.event().unwrap().kind, EventKind::RunContinued { next });
        assert_eq!(events.next().await, None);
    })
    .await;
}

#[tokio::test]
async fn no_other_run_of_the_key_gets_in_between() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let (job, other) = durably.register((gated_countdown(&gate), echo("other"))).unwrap();
        let run = job.trigger(5).concurrency_key("key").await.unwrap();
        gate.reached().await;
        let behind = other.trigger(1).concurrency_key("key").await.unwrap();
        gate.open();
        assert_eq!(behind.output().await.unwrap(), 1);
        // The chain had ended before the other run began.
        let last = run.wait().await.unwrap();
        let began = run_of(&durably, behind.id()).await.started_at.unwrap();
        assert!(last.completed_at.unwrap() <= began, "{last:?} {began:?}");
        assert_eq!(generations(&durably).await.len(), 6);
        assert!(generations(&durably).await.iter().all(|run| run.concurrency_key.as_deref() == Some("key")));
    })
    .await;
}

#[tokio::test]
async fn the_key_is_held_over_a_crash_between_the_end_and_the_successors_start() {
    within(async {
        let (file, gate) = (TempFile::new(), Gate::new());
        let (id, other) = {
            let durably = file.open().await;
            let (job, other) = durably.register((gated_countdown(&gate), echo("other"))).unwrap();
            let run = job.trigger(1).concurrency_key("key").await.unwrap();
            gate.reached().await;
            let other = other.trigger(1).concurrency_key("key").await.unwrap();
            let mut events = durably.events();
            let stopping = durably.stop();
            gate.let_one_on();
            stopping.await.unwrap();
            next_event(&mut events, |event| matches!(event.kind, EventKind::RunContinued { .. })).await;
            (run.id(), other.id())
        };
        let durably = file.open_paused().await;
        durably.register((gated_countdown(&gate), echo("other"))).unwrap();
        let next = run_of(&durably, id).await.continued_as.unwrap();
        assert_eq!(run_of(&durably, next).await.status, RunStatus::Pending);
        durably.start().await.unwrap();
        gate.reached().await;
        assert_eq!(run_of(&durably, other).await.status, RunStatus::Pending);
        gate.open();
        assert_eq!(ended(&durably, next).await.output, Some(json!(7)));
        assert_eq!(ended(&durably, other).await.output, Some(json!(1)));
        durably.shutdown().await.unwrap();
        let found = durably::verify(file.path()).await.unwrap();
        assert!(found.is_sound(), "{:?}", found.problems);
    })
    .await;
}

#[tokio::test]
async fn a_successor_that_is_cancelled_before_it_starts_lets_the_key_go() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let (job, other) = durably.register((gated_countdown(&gate), echo("other"))).unwrap();
        let run = job.trigger(1).concurrency_key("key").await.unwrap();
        gate.reached().await;
        let other = other.trigger(1).concurrency_key("key").await.unwrap();
        let mut events = durably.events();
        let stopping = durably.stop();
        gate.let_one_on();
        stopping.await.unwrap();
        let continued = next_event(&mut events, |event| matches!(event.kind, EventKind::RunContinued { .. })).await;
        let EventKind::RunContinued { next } = continued.kind else { panic!("{continued:?}") };
        durably.cancel(next).await.unwrap();
        durably.start().await.unwrap();
        assert_eq!(other.output().await.unwrap(), 1);
        let waited = run.output().await;
        assert!(matches!(waited, Err(Error::RunCancelled { run }) if run == next), "{waited:?}");
    })
    .await;
}

#[tokio::test]
async fn the_idempotency_key_is_the_current_runs() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let gate = Gate::new();
        let job = durably.register(gated_countdown(&gate)).unwrap();
        let trigger = || job.trigger(1).idempotency_key("key").idempotency_ttl(Duration::from_secs(60));
        let first = trigger().await.unwrap();
        gate.reached().await;
        clock.advance(Duration::from_secs(40));
        gate.let_one_on();
        gate.reached().await;
        let again = trigger().await.unwrap();
        assert_eq!(Some(again.id()), run_of(&durably, first.id()).await.continued_as);
        // It was triggered with this input, whatever it goes on with.
        assert!(!again.input_differs());
        gate.let_one_on();
        again.output().await.unwrap();
        assert_eq!(trigger().await.unwrap().id(), again.id());
        // The old run has no claim on it any more, and goes with its time.
        durably.purge_runs(Timestamp::from_millis(u64::MAX)).await.unwrap();
        assert_eq!(durably.get_run(first.id()).await.unwrap(), None);
        assert_eq!(trigger().await.unwrap().id(), again.id());
        clock.advance(Duration::from_secs(21));
        assert_ne!(trigger().await.unwrap().id(), again.id());
        gate.open();
    })
    .await;
}

#[tokio::test]
async fn signals_that_nobody_has_taken_go_on_in_their_order() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let job = job_with("job", gate.clone(), |step: Step, left, gate| async move {
            gate.pass().await;
            let said: u32 = step.wait_signal("said", "say").await?;
            if left == 0 { Ok(said) } else { step.continue_as_new(left - 1).await }
        });
        let job = durably.register(job).unwrap();
        let run = job.trigger(2).await.unwrap();
        gate.reached().await;
        for said in 1..=3 {
            durably.signal(run.id(), "say", &said).await.unwrap();
        }
        gate.open();
        assert_eq!(run.output().await.unwrap(), 3);
        let refused = durably.signal(run.id(), "say", &4).await;
        assert!(matches!(refused, Err(Error::Conflict { .. })), "{refused:?}");
    })
    .await;
}

/// Calls a countdown.
fn caller(child: &JobHandle<u32, u32>) -> Job<u32, u32> {
    job_with("caller", child.clone(), |step: Step, input, child| async move {
        let (called, _) = tokio::join!(step.call("call", &child, input), step.wait_signal::<u32>("nudge", "nudge"));
        called
    })
}

#[tokio::test]
async fn a_step_that_waits_for_a_run_waits_for_its_successor_though_those_between_are_purged() {
    within(async {
        let (file, gate) = (TempFile::new(), Gate::new());
        let id = {
            let durably = file.open().await;
            let child = durably.register(gated_countdown(&gate)).unwrap();
            let mut events = durably.events();
            let run = durably.register(caller(&child)).unwrap().trigger(2).await.unwrap();
            gate.reached().await;
            let suspended = |event: &durably::Event| {
                event.run_id == run.id() && matches!(event.kind, EventKind::RunSuspended { .. })
            };
            next_event(&mut events, suspended).await;
            gate.let_one_on();
            gate.reached().await;
            durably.purge_runs(Timestamp::from_millis(u64::MAX)).await.unwrap();
            // Woken by something else, it asks again.
            durably.signal(run.id(), "nudge", &1).await.unwrap();
            next_event(&mut events, suspended).await;
            let waiting = durably.get_steps(run.id()).await.unwrap().remove(0).waiting_for.unwrap();
            let current = generations(&durably).await.pop().unwrap();
            assert_eq!((waiting.run, current.parent), (Some(current.id), Some(run.id())));
            run.id()
        };
        let durably = file.open().await;
        let child = durably.register(gated_countdown(&gate)).unwrap();
        durably.register(caller(&child)).unwrap();
        gate.open();
        assert_eq!(ended(&durably, id).await.output, Some(json!(7)));
        durably.shutdown().await.unwrap();
        let found = durably::verify(file.path()).await.unwrap();
        assert!(found.is_sound(), "{:?}", found.problems);
    })
    .await;
}

#[tokio::test]
async fn the_parents_cancel_goes_to_the_run_that_goes_on() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let child = durably.register(gated_countdown(&gate)).unwrap();
        let run = durably.register(caller(&child)).unwrap().trigger(2).await.unwrap();
        gate.reached().await;
        gate.let_one_on();
        gate.reached().await;
        durably.cancel(run.id()).await.unwrap();
        let statuses: Vec<_> = generations(&durably).await.iter().map(|run| run.status).collect();
        assert_eq!(statuses, [RunStatus::Completed, RunStatus::Cancelled]);
        gate.open();
    })
    .await;
}

#[tokio::test]
async fn an_input_that_the_job_does_not_take_fails_the_run() {
    within(async {
        let durably = memory().await;
        let job = Job::new("job", |step: Step, _: u32| async move {
            let ended: Result<u32, durably::JobError> = step.continue_as_new("a text").await;
            ended
        });
        let run = durably.register(job).unwrap().trigger(1).await.unwrap();
        let run = ended(&durably, run.id()).await;
        assert_eq!((run.status, run.continued_as), (RunStatus::Failed, None));
        assert_eq!(run.error.unwrap().kind, ErrorKind::Mismatch);
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_run_does_not_go_on() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let job = job_with("countdown", gate.clone(), |step: Step, left: u32, gate| async move {
            // It ignores its cancel.
            let _ = step.cancelled();
            gate.pass().await;
            step.continue_as_new::<_, u32>(left).await
        });
        let run = durably.register(job).unwrap().trigger(1).await.unwrap();
        gate.reached().await;
        durably.cancel(run.id()).await.unwrap();
        gate.open();
        durably.stop().await.unwrap();
        let runs = generations(&durably).await;
        assert_eq!(runs.iter().map(|run| run.status).collect::<Vec<_>>(), [RunStatus::Cancelled]);
    })
    .await;
}

#[tokio::test]
async fn inside_a_step_it_ends_the_run_as_any_step_would() {
    within(async {
        let durably = memory().await;
        let job = Job::new("job", |step: Step, (): ()| async move {
            let inner = step.clone();
            step.run("outer", || async { inner.continue_as_new::<_, u32>(()).await }).await
        });
        let run = durably.register(job).unwrap().trigger(()).await.unwrap();
        assert_eq!(ended(&durably, run.id()).await.error.unwrap().kind, ErrorKind::StepNested);
    })
    .await;
}

#[tokio::test]
async fn a_body_that_waits_for_a_run_waits_for_its_successor() {
    within(async {
        let durably = memory().await;
        let (gate, ids) = (Gate::new(), Count::default());
        let child = durably.register(gated_countdown(&gate)).unwrap();
        let parent = job_with("parent", (child, ids), |_: Step, _, (child, _)| async move {
            Ok(child.trigger(3).await?.output().await?)
        });
        let run = durably.register(parent).unwrap().trigger(0).await.unwrap();
        gate.reached().await;
        gate.open();
        assert_eq!(run.output().await.unwrap(), 7);
    })
    .await;
}

#[tokio::test]
async fn ten_thousand_generations_leave_what_retention_keeps() {
    within_minutes(async {
        let durably = Durably::builder().retain_runs(Duration::from_millis(1)).in_memory().await.unwrap();
        let (child, plain) = (countdown(), gated("plain", &Gate::new()));
        let (child, _plain) = durably.register((child, plain)).unwrap();
        let parent = durably.register(job_with("parent", child, |step: Step, input, child| async move {
            step.call("call", &child, input).concurrency_key("key").await
        }));
        let run = parent.unwrap().trigger(10_000).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 7);
        durably.purge_runs(Timestamp::from_millis(u64::MAX)).await.unwrap();
        assert_eq!(durably.get_runs(RunFilter::new()).await.unwrap(), []);
    })
    .await;
}

#[tokio::test]
async fn the_end_and_the_successor_are_one_commit() {
    within(async {
        let durably = paused().await;
        let job = durably.register(countdown()).unwrap();
        let run: RunId = job.trigger(1).await.unwrap().id();
        let mut events = durably.events();
        durably.run_until_idle(1).await.unwrap();
        let ended = next_event(&mut events, |event| matches!(event.kind, EventKind::RunContinued { .. })).await;
        let begun = next_event(&mut events, |event| matches!(event.kind, EventKind::RunTriggered { .. })).await;
        assert_eq!((ended.run_id, ended.sequence + 1), (run, begun.sequence));
    })
    .await;
}

#[tokio::test]
async fn a_parent_that_is_resumed_after_its_child_gets_the_end_of_the_run_that_goes_on() {
    within(async {
        let durably = Durably::builder().cancel_grace(Duration::ZERO).in_memory().await.unwrap();
        let gate = Gate::new();
        let child = durably.register(gated_countdown(&gate)).unwrap();
        let calls =
            job_with("calls", child, |step: Step, input, child| async move { step.call("c", &child, input).await });
        let parent = durably.register(calls).unwrap().trigger(1).await.unwrap().id();
        gate.reached().await;
        let first = generations(&durably).await.remove(0).id;
        durably.cancel(parent).await.unwrap();
        durably.resume(first).await.unwrap();
        gate.reached().await;
        gate.let_one_on();
        gate.reached().await;
        let mut events = durably.events();
        durably.resume(parent).await.unwrap();
        let told = next_event(&mut events, |event| {
            let settled = matches!(event.kind, EventKind::RunSuspended { .. });
            event.run_id == parent && (settled || event.kind.name().starts_with("run:fail"))
        });
        assert_eq!(told.await.kind.name(), "run:suspend");
        gate.open();
        assert_eq!(ended(&durably, parent).await.output, Some(json!(7)));
    })
    .await;
}

#[tokio::test]
async fn a_run_that_goes_on_does_not_take_an_idempotency_key_that_is_another_runs_by_now() {
    within(async {
        let durably = memory().await;
        let (gate, calls) = (Gate::new(), Count::default());
        let job = job_with("job", (gate.clone(), calls), |step: Step, left, (gate, calls)| async move {
            if calls.up() == 1 {
                return Err("once".into());
            }
            gate.pass().await;
            if left == 0 { Ok(7) } else { step.continue_as_new(left - 1).await }
        });
        let job = durably.register(job).unwrap();
        let first = job.trigger(1).idempotency_key("k").await.unwrap();
        ended(&durably, first.id()).await;
        let second = job.trigger(0).idempotency_key("k").reuse_after_failure().await.unwrap();
        assert_eq!(second.disposition(), durably::Disposition::Created);
        gate.reached().await;
        durably.resume(first.id()).await.unwrap();
        gate.reached().await;
        gate.let_one_on();
        gate.let_one_on();
        let mut events = durably.events().after(0);
        next_event(&mut events, |event| matches!(event.kind, EventKind::RunContinued { .. })).await;
        let again = job.trigger(0).idempotency_key("k").await.unwrap();
        assert_eq!(again.id(), second.id());
        gate.open();
        durably.wait_for_run(first.id()).await.unwrap();
    })
    .await;
}

/// A page up to the third; reading any other panics.
fn page<'de, D: serde::Deserializer<'de>>(reader: D) -> Result<u32, D::Error> {
    let page = <u32 as serde::Deserialize>::deserialize(reader)?;
    assert!(page < 3, "no such page");
    Ok(page)
}

#[derive(Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
struct Cursor {
    #[serde(deserialize_with = "page")]
    page: u32,
}

#[tokio::test]
async fn an_input_whose_reading_panics_fails_the_run_and_frees_its_key() {
    within(async {
        let durably = memory().await;
        let scan = Job::new("scan", |step: Step, cursor: Cursor| async move {
            if cursor.page == 0 {
                return Ok(());
            }
            step.continue_as_new(Cursor { page: cursor.page + 1 }).await
        });
        let scan = durably.register(scan).unwrap();
        let run = scan.trigger(Cursor { page: 1 }).concurrency_key("k").await.unwrap();
        let failed = match durably.wait_for_run(run.id()).await {
            Err(Error::RunFailed { run }) => run,
            other => panic!("{other:?}"),
        };
        let error = failed.error.unwrap();
        assert!(error.kind == ErrorKind::Panic && error.message.contains("no such page"), "{error:?}");
        scan.trigger(Cursor { page: 0 }).concurrency_key("k").await.unwrap().output().await.unwrap();
    })
    .await;
}
