//! Runs triggered by steps: exactly one however often the parent replays, and its end is never missed.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use durably::{Durably, ErrorKind, EventKind, Job, JobHandle, RunFilter, RunStatus, Step, StepRetention};
use futures::FutureExt;

use crate::support::{
    Count, Gate, TempFile, echo, ended, failing, gated, job_with, memory, next_event, run_of, within, within_minutes,
};

/// Calls a child for its input, and one more.
fn caller(child: &JobHandle<u32, u32>) -> Job<u32, u32> {
    job_with("caller", child.clone(), |step: Step, input, child| async move {
        let (a, b) = tokio::join!(step.call("a", &child, input), step.call("b", &child, input + 1));
        Ok(a? + b?)
    })
}

#[tokio::test]
async fn a_call_gives_the_childs_output_and_the_parent_takes_no_slot_meanwhile() {
    within(async {
        let durably = Durably::builder().max_concurrent_runs(1).in_memory().await.unwrap();
        let child = durably.register(echo("child")).unwrap();
        let parent = durably.register(caller(&child)).unwrap();
        let run = parent.trigger(20).label("x", "y").await.unwrap();
        assert_eq!(run.output().await.unwrap(), 41);
        let children = durably.get_runs(RunFilter::new().job("child")).await.unwrap();
        assert_eq!(children.len(), 2);
        assert!(children.iter().all(|child| child.parent == Some(run.id())));
        let steps = durably.get_steps(run.id()).await.unwrap();
        assert_eq!(steps.iter().map(|step| step.output.clone().unwrap()).collect::<Vec<_>>(), [20, 21]);
    })
    .await;
}

#[tokio::test]
async fn a_child_is_triggered_once_over_a_crash_and_its_end_is_not_missed() {
    within(async {
        let (file, gate) = (TempFile::new(), Gate::new());
        let id = {
            let durably = file.open().await;
            let mut events = durably.events();
            let child = durably.register(gated("child", &gate)).unwrap();
            let run = durably.register(caller(&child)).unwrap().trigger(1).await.unwrap();
            next_event(&mut events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
            gate.reached_by(2).await;
            run.id()
        };
        gate.open();
        {
            // The children end while nobody has the parent's code.
            let durably = file.open().await;
            durably.register(gated("child", &gate)).unwrap();
            for child in durably.get_runs(RunFilter::new().job("child")).await.unwrap() {
                ended(&durably, child.id).await;
            }
            durably.purge_runs(durably::Timestamp::from_millis(u64::MAX)).await.unwrap();
            assert_eq!(durably.get_runs(RunFilter::new().job("child")).await.unwrap(), []);
        }
        let durably = file.open().await;
        let child = durably.register(gated("child", &gate)).unwrap();
        durably.register(caller(&child)).unwrap();
        let run = ended(&durably, id).await;
        assert_eq!((run.output.unwrap(), gate.arrivals()), (3.into(), 4));
    })
    .await;
}

#[tokio::test]
async fn a_childs_failure_and_its_cancel_are_typed_errors_to_the_step() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let (fails, hangs) = durably.register((failing("fails", "no stock"), gated("hangs", &gate))).unwrap();
        let parent = job_with("parent", (fails, hangs), |step: Step, _, (fails, hangs)| async move {
            let failed = step.call("fails", &fails, 1).await.err().ok_or("it did not fail")?;
            let cancelled = step.call("hangs", &hangs, 1).await.err().ok_or("it did not fail")?;
            let chain: Vec<&str> = failed.chain().collect();
            Ok(format!("{:?} {chain:?} {:?}", failed.kind(), cancelled.kind()))
        });
        let run = durably.register(parent).unwrap().trigger(0).await.unwrap();
        gate.reached().await;
        let child = durably.get_runs(RunFilter::new().job("hangs")).await.unwrap().remove(0);
        durably.cancel(child.id).await.unwrap();
        assert_eq!(run.output().await.unwrap(), "ChildFailed [\"no stock\"] ChildCancelled");
    })
    .await;
}

#[tokio::test]
async fn a_cancel_goes_down_to_the_children_but_not_to_detached_ones() {
    within(async {
        let file = TempFile::new();
        let durably = file.open().await;
        let (gate, mut events) = (Gate::new(), durably.events());
        let child = durably.register(gated("child", &gate)).unwrap();
        let middle = durably
            .register(job_with("middle", child.clone(), |step: Step, input, child| async move {
                step.call("child", &child, input).await
            }))
            .unwrap();
        let parent = durably
            .register(job_with("parent", (child, middle), |step: Step, _, (child, middle)| async move {
                step.trigger("own-way", &child, 7).detached().await?;
                step.call("middle", &middle, 8).await
            }))
            .unwrap();
        let run = parent.trigger(0).await.unwrap();
        gate.reached_by(2).await;
        next_event(&mut events, |event| {
            event.run_id == run.id() && matches!(event.kind, EventKind::RunSuspended { .. })
        })
        .await;
        durably.cancel(run.id()).await.unwrap();
        let statuses = |job: &'static str| {
            let durably = durably.clone();
            async move {
                let runs = durably.get_runs(RunFilter::new().job(job)).await.unwrap();
                runs.into_iter().map(|run| run.status).collect::<Vec<_>>()
            }
        };
        assert_eq!(statuses("middle").await, [RunStatus::Cancelled]);
        assert_eq!(statuses("child").await, [RunStatus::Cancelled, RunStatus::Leased]);
        gate.open();
        durably.shutdown().await.unwrap();
        let found = durably::verify(file.path()).await.unwrap();
        assert!(found.is_sound(), "{found:?}");
    })
    .await;
}

#[tokio::test]
async fn a_child_that_needs_its_parents_key_is_refused_and_not_a_deadlock() {
    within(async {
        let durably = memory().await;
        let child = durably.register(echo("child")).unwrap();
        let parent = durably
            .register(job_with("parent", child, |step: Step, _, child| async move {
                let refused = step.call("child", &child, 1).concurrency_key("k").await;
                let error = refused.err().ok_or("it was triggered")?;
                // Not waited for, it goes after this one.
                step.trigger("later", &child, 2).concurrency_key("k").await?;
                Ok(format!("{:?}", error.kind()))
            }))
            .unwrap();
        let run = parent.trigger(0).concurrency_key("k").await.unwrap();
        assert_eq!(run.output().await.unwrap(), format!("{:?}", ErrorKind::NotTriggered));
        let later = durably.get_runs(RunFilter::new().job("child")).await.unwrap();
        assert_eq!(later.len(), 1);
        ended(&durably, later[0].id).await;
    })
    .await;
}

#[tokio::test]
async fn a_trigger_step_gives_the_same_child_on_every_replay() {
    within(async {
        let durably = memory().await;
        let (calls, mut events) = (Count::default(), durably.events());
        let child = durably.register(echo("child")).unwrap();
        let parent = durably
            .register(job_with("parent", (child, calls.clone()), |step: Step, _, (child, calls)| async move {
                let first = step.trigger("child", &child, 5).idempotency_key("five").await?;
                calls.up();
                step.wait_signal::<()>("go", "go").await?;
                Ok(first.to_string())
            }))
            .unwrap();
        let run = parent.trigger(0).await.unwrap();
        next_event(&mut events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
        durably.signal(run.id(), "go", &()).await.unwrap();
        let output = run.output().await.unwrap();
        let children = durably.get_runs(RunFilter::new().job("child")).await.unwrap();
        assert_eq!((children.len(), calls.get()), (1, 2));
        assert_eq!(children[0].id.to_string(), output);
    })
    .await;
}

#[tokio::test]
async fn a_trigger_dropped_before_it_was_answered_is_the_one_that_the_next_call_gives() {
    within(async {
        let durably = memory().await;
        let child = durably.register(echo("child")).unwrap();
        let parent = durably
            .register(job_with("parent", child, |step: Step, _, child| async move {
                // On a replay it is there at once.
                let id = match step.trigger("child", &child, 5).now_or_never() {
                    Some(id) => id?,
                    None => step.trigger("child", &child, 5).await?,
                };
                let six = match step.call("call", &child, 6).now_or_never() {
                    Some(six) => six?,
                    None => step.call("call", &child, 6).await?,
                };
                Ok(format!("{id} {six}"))
            }))
            .unwrap();
        let output = parent.trigger(0).await.unwrap().output().await.unwrap();
        let children = durably.get_runs(RunFilter::new().job("child")).await.unwrap();
        assert_eq!((children.len(), output), (2, format!("{} 6", children[1].id)));
    })
    .await;
}

#[tokio::test]
async fn a_call_of_a_run_that_ended_before_gives_its_output() {
    within(async {
        let durably = memory().await;
        let child = durably.register(echo("child")).unwrap();
        child.trigger(9).idempotency_key("nine").await.unwrap().output().await.unwrap();
        let parent = durably
            .register(job_with("parent", child, |step: Step, _, child| async move {
                step.call("child", &child, 9).idempotency_key("nine").await
            }))
            .unwrap();
        assert_eq!(parent.trigger(0).await.unwrap().output().await.unwrap(), 9);
    })
    .await;
}

#[tokio::test]
async fn a_call_that_takes_too_long_fails_its_step_and_the_child_goes_on() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let child = durably.register(gated("child", &gate)).unwrap();
        let parent = durably
            .register(job_with("parent", child, |step: Step, _, child| async move {
                let error = step.call("child", &child, 9).timeout(Duration::from_millis(30)).await.err();
                Ok(format!("{:?}", error.map(|error| error.kind())))
            }))
            .unwrap();
        assert_eq!(parent.trigger(0).await.unwrap().output().await.unwrap(), "Some(Timeout)");
        gate.open();
        let child = durably.get_runs(RunFilter::new().job("child")).await.unwrap().remove(0);
        assert_eq!(ended(&durably, child.id).await.status, RunStatus::Completed);
    })
    .await;
}

#[tokio::test]
async fn a_step_that_calls_anew_after_a_resume_is_told_nothing_of_the_child_before() {
    within(async {
        for goes_on_as_another in [false, true] {
            let durably = Durably::builder().keep_steps(StepRetention::UntilTerminal).in_memory().await.unwrap();
            let (gate, mut events) = (Gate::new(), durably.events());
            let child = job_with("child", gate.clone(), |step: Step, left, gate| async move {
                gate.pass().await;
                if left == 0 { Ok(7_u32) } else { step.continue_as_new(left - 1).await }
            });
            let child = durably.register(child).unwrap();
            let parent = job_with("parent", child, |step: Step, left, child| async move {
                let (called, gives_up) =
                    (step.call("child", &child, left), step.wait_signal::<()>("give-up", "give-up"));
                tokio::select! {
                    biased;
                    _ = gives_up => Err("given up".into()),
                    called = called => called,
                }
            });
            let parent = durably.register(parent).unwrap();
            let run = parent.trigger(u32::from(goes_on_as_another)).await.unwrap();
            let is_suspended = |event: &durably::Event| {
                event.run_id == run.id() && matches!(event.kind, EventKind::RunSuspended { .. })
            };
            gate.reached().await;
            next_event(&mut events, is_suspended).await;
            durably.signal(run.id(), "give-up", &()).await.unwrap();
            assert_eq!(ended(&durably, run.id()).await.status, RunStatus::Failed);
            let mut before = durably.get_runs(RunFilter::new().job("child")).await.unwrap().remove(0).id;
            durably.resume(run.id()).await.unwrap();
            gate.reached().await;
            next_event(&mut events, is_suspended).await;
            if goes_on_as_another {
                gate.let_one_on();
                gate.reached().await;
                before = run_of(&durably, before).await.continued_as.unwrap();
            }
            durably.cancel(before).await.unwrap();
            assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Suspended);
            gate.open();
            assert_eq!(run.output().await.unwrap(), 7);
        }
    })
    .await;
}

#[tokio::test]
async fn a_thousand_children_are_awaited_side_by_side() {
    within_minutes(async {
        let file = TempFile::new();
        let durably = file.open().await;
        let child = durably.register(echo("child")).unwrap();
        let parent = durably
            .register(job_with("parent", child, |step: Step, count, child| async move {
                let calls = (0..count).map(|n| step.call(("child", n), &child, n));
                Ok(futures::future::try_join_all(calls).await?.iter().sum::<u32>())
            }))
            .unwrap();
        let run = parent.trigger(1_000).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 499_500);
        let record = run_of(&durably, run.id()).await;
        assert_eq!(record.completed_step_count, 1_000);
        durably.shutdown().await.unwrap();
        let found = durably::verify(file.path()).await.unwrap();
        assert!(found.is_sound(), "{found:?}");
    })
    .await;
}

#[tokio::test]
async fn children_are_listed_by_their_parent_newest_first_and_cancelled_with_it_however_many() {
    within_minutes(async {
        let durably = Durably::builder().max_concurrent_runs(4).in_memory().await.unwrap();
        let (gate, mut events) = (Gate::new(), durably.events());
        let child = durably.register(gated("child", &gate)).unwrap();
        let parent = durably
            .register(job_with("parent", child.clone(), |step: Step, count, child| async move {
                let calls = (0..count).map(|n| step.call(("child", n), &child, n));
                Ok(futures::future::try_join_all(calls).await?.len())
            }))
            .unwrap();
        child.trigger(1).await.unwrap();
        let run = parent.trigger(2_000).await.unwrap();
        next_event(&mut events, |event| {
            event.run_id == run.id() && matches!(event.kind, EventKind::RunSuspended { .. })
        })
        .await;
        let (mut listed, mut page) = (Vec::new(), RunFilter::new().parent(run.id()).limit(700));
        loop {
            let runs = durably.get_runs(page.clone().without_payloads()).await.unwrap();
            let Some(last) = runs.last() else { break };
            page = page.after(last.id);
            listed.extend(runs);
        }
        assert_eq!(listed.len(), 2_000);
        assert!(listed.is_sorted_by(|newer, older| newer.id > older.id));
        assert!(listed.iter().all(|child| child.parent == Some(run.id())));
        let pending = RunFilter::new().parent(run.id()).status(RunStatus::Pending).limit(1_000);
        assert_eq!(durably.get_runs(pending.clone()).await.unwrap().len(), 1_000);
        durably.cancel(run.id()).await.unwrap();
        assert_eq!(durably.get_runs(pending).await.unwrap(), []);
        let left = RunFilter::new().parent(run.id()).status(RunStatus::Leased);
        assert_eq!(durably.get_runs(left).await.unwrap(), []);
        assert_eq!(durably.get_runs(RunFilter::new().parent(child.trigger(2).await.unwrap().id())).await.unwrap(), []);
        gate.open();
    })
    .await;
}

#[tokio::test]
async fn the_end_of_a_child_that_recovery_gives_up_is_told_to_the_parent() {
    within(async {
        let (file, gate) = (TempFile::new(), Gate::new());
        let open = || file.open_with(Durably::builder().max_recoveries(0));
        let id = {
            let durably = open().await;
            let mut events = durably.events();
            let child = durably.register(gated("child", &gate)).unwrap();
            let run = durably.register(caller(&child)).unwrap().trigger(1).await.unwrap();
            next_event(&mut events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
            gate.reached_by(2).await;
            run.id()
        };
        let durably = open().await;
        let child = durably.register(gated("child", &gate)).unwrap();
        durably.register(caller(&child)).unwrap();
        let run = ended(&durably, id).await;
        assert_eq!(run.error.unwrap().kind, ErrorKind::ChildFailed);
        durably.shutdown().await.unwrap();
        let found = durably::verify(file.path()).await.unwrap();
        assert!(found.is_sound(), "{:?}", found.problems);
    })
    .await;
}

/// A job that gets at its own handle.
fn with_itself<F, Fut>(durably: &Durably, name: &str, body: F) -> JobHandle<u32, u32>
where
    F: Fn(Step, u32, JobHandle<u32, u32>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = durably::JobResult<u32>> + Send + 'static,
{
    let itself = Arc::new(OnceLock::new());
    let held = itself.clone();
    let job = Job::new(name, move |step: Step, input: u32| {
        let handle: &JobHandle<u32, u32> = held.get().expect("it is registered");
        body(step, input, handle.clone())
    });
    let handle = durably.register(job).unwrap();
    itself.set(handle.clone()).expect("once");
    handle
}

#[tokio::test]
async fn calls_that_wait_for_each_other_are_refused_and_no_deadlock() {
    within(async {
        let durably = memory().await;
        // Two and three call each other, four calls itself.
        let job = with_itself(&durably, "memo", |step: Step, n, itself| async move {
            let other = if n == 4 { 4 } else { 5 - n };
            match step.call("other", &itself, other).idempotency_key(other.to_string()).await {
                Err(error) if error.kind() == ErrorKind::NotTriggered => Ok(n * 10),
                called => called,
            }
        });
        for (n, output) in [(2, 30), (4, 40)] {
            let run = job.trigger(n).idempotency_key(n.to_string()).await.unwrap();
            assert_eq!(run.output().await.unwrap(), output);
        }
    })
    .await;
}

#[tokio::test]
async fn a_call_that_is_given_a_run_which_waits_for_its_own_key_is_refused() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let child = durably.register(echo("child")).unwrap();
        let parent = durably
            .register(job_with("parent", (child.clone(), gate.clone()), |step: Step, _, (child, gate)| async move {
                gate.pass().await;
                let refused = step.call("child", &child, 1).idempotency_key("c").await;
                Ok(format!("{:?}", refused.err().map(|error| error.kind())))
            }))
            .unwrap();
        let run = parent.trigger(0).concurrency_key("k").await.unwrap();
        gate.reached().await;
        let waiting = child.trigger(1).concurrency_key("k").idempotency_key("c").await.unwrap();
        gate.open();
        assert_eq!(run.output().await.unwrap(), "Some(NotTriggered)");
        assert_eq!(waiting.output().await.unwrap(), 1);
        // It has ended by now: there is nothing to wait for, whatever its keys.
        assert_eq!(parent.trigger(0).concurrency_key("k").await.unwrap().output().await.unwrap(), "None");
    })
    .await;
}

#[tokio::test]
async fn a_key_of_a_run_whose_body_waits_for_the_caller_counts_as_well() {
    within(async {
        let durably = memory().await;
        let (gate, waits) = (Gate::new(), Gate::new());
        let last = durably.register(echo("last")).unwrap();
        let middle = durably
            .register(job_with("middle", (last, gate.clone()), |step: Step, input, (last, gate)| async move {
                gate.pass().await;
                let refused = step.call("last", &last, input).concurrency_key("k").await;
                Ok(format!("{:?}", refused.err().map(|error| error.kind())))
            }))
            .unwrap();
        let shared = (middle, durably.clone(), waits.clone());
        let first = durably
            .register(job_with("first", shared, |step: Step, input, (middle, durably, waits)| async move {
                let run = step.trigger("middle", &middle, input).await?;
                let mut waiting = durably.wait_for_run(run).into_future();
                assert!(futures::poll!(&mut waiting).is_pending());
                drop(waits.enter());
                Ok(waiting.await.map_err(|error| error.to_string())?.output)
            }))
            .unwrap();
        let run = first.trigger(1).concurrency_key("k").await.unwrap();
        waits.reached().await;
        durably.stats().await.unwrap();
        gate.open();
        assert_eq!(run.output().await.unwrap(), Some("Some(NotTriggered)".into()));
    })
    .await;
}

#[tokio::test]
async fn a_key_of_a_run_above_that_has_ended_is_in_nobodys_way() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let mail = durably.register(echo("mail")).unwrap();
        let notify = durably
            .register(job_with("notify", (mail, gate.clone()), |step: Step, input, (mail, gate)| async move {
                gate.pass().await;
                step.call("mail", &mail, input).concurrency_key("customer").await
            }))
            .unwrap();
        let order = durably
            .register(job_with("order", notify, |step: Step, input, notify| async move {
                Ok(step.trigger("notify", &notify, input).await?.to_string())
            }))
            .unwrap();
        let order = order.trigger(5).concurrency_key("customer").await.unwrap();
        let notified: durably::RunId = order.output().await.unwrap().parse().unwrap();
        gate.open();
        let run = ended(&durably, notified).await;
        assert_eq!(run.output, Some(5.into()), "{:?}", run.error);
    })
    .await;
}

#[tokio::test]
async fn a_chain_of_calls_is_cancelled_however_deep() {
    within_minutes(async {
        const DEPTH: u32 = 3_000;
        let durably = memory().await;
        let gate = Gate::new();
        let last = gate.clone();
        let job = with_itself(&durably, "chain", move |step: Step, left, itself| {
            let last = last.clone();
            async move {
                if left == 0 {
                    last.pass().await;
                    return Ok(0);
                }
                step.call("next", &itself, left - 1).await
            }
        });
        let run = job.trigger(DEPTH).await.unwrap();
        gate.reached().await;
        durably.cancel(run.id()).await.unwrap();
        let stats = durably.stats().await.unwrap();
        assert_eq!(stats.jobs[0].count(RunStatus::Cancelled), u64::from(DEPTH) + 1);
    })
    .await;
}
