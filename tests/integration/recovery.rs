//! Crashes: dropping the runtime without a shutdown while bodies execute, and opening the file again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use durably::{Durably, Error, ErrorKind, EventKind, Job, RunFilter, RunStatus, Step};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::support::{Count, Gate, TempFile, echo, ended, gated, job_with, next_event, run_of, within};

/// Stops at its gate before its first step.
fn crasher(name: &str, gate: &Gate) -> Job<u32, u32> {
    job_with(name, gate.clone(), |step: Step, input, gate| async move {
        gate.pass().await;
        step.run("a", || async { Ok(()) }).await?;
        gate.pass().await;
        Ok(input)
    })
}

#[tokio::test]
async fn a_crashed_run_goes_on_after_its_last_step() {
    within(async {
        let file = TempFile::new();
        let (gate, calls) = (Gate::new(), Count::default());
        let job = job_with("job", (gate.clone(), calls.clone()), |step: Step, _, (gate, calls)| async move {
            let a = step.run("a", || async { Ok(calls.up()) }).await?;
            let b = step
                .run("b", || async {
                    let call = calls.up();
                    gate.pass().await;
                    Ok(call)
                })
                .await?;
            Ok((a, b))
        });
        let durably = file.open().await;
        let jobs = durably.register(job.clone()).unwrap();
        let run = jobs.trigger(0).label("x", "y").await.unwrap().id();
        gate.reached().await;
        let before = run_of(&durably, run).await;
        drop(durably);
        assert!(matches!(jobs.trigger(1).await, Err(Error::ShutDown)));

        gate.open();
        let durably = file.open().await;
        let pending = run_of(&durably, run).await;
        assert_eq!((pending.status, pending.recoveries, pending.lease_owner), (RunStatus::Pending, 1, None));
        assert_eq!((pending.completed_step_count, pending.current_step_index), (1, 1));
        durably.register(job).unwrap();
        let record = durably.wait_for_run(run).await.unwrap();
        // The step that was cut off ran again; the one that was stored did not.
        assert_eq!(record.output_as::<(usize, usize)>().unwrap(), (1, 3));
        assert_eq!((record.recoveries, record.lease_generation, record.started_at), (1, 2, before.started_at));
        assert_eq!((calls.get(), record.labels), (3, before.labels));
    })
    .await;
}

#[tokio::test]
async fn p_evt_24_a_recovery_is_told() {
    within(async {
        let file = TempFile::new();
        let gate = Gate::new();
        let durably = file.open().await;
        let run = durably.register(gated("job", &gate)).unwrap().trigger(0).await.unwrap().id();
        gate.reached().await;
        let mut events = durably.events().after(0);
        let leased = next_event(&mut events, |event| event.kind.name() == "run:leased").await.sequence;
        drop((events, durably));
        gate.open();
        let durably = file.open().await;
        let mut events = durably.events().after(leased);
        durably.register(gated("job", &gate)).unwrap();
        let released = events.next().await.unwrap();
        let event = released.event().unwrap();
        assert_eq!(
            (event.run_id, event.sequence, &event.kind),
            (run, leased + 1, &EventKind::RunReleased { crashed: true })
        );
        next_event(&mut events, |event| event.kind.name() == "run:complete").await;
    })
    .await;
}

#[tokio::test]
async fn recovered_runs_go_first() {
    within(async {
        let file = TempFile::new();
        let gate = Gate::new();
        let order = Arc::new(Mutex::new(Vec::new()));
        let job = job_with("job", (gate.clone(), order.clone()), |_: Step, input, (gate, order)| async move {
            order.lock().unwrap().push(input);
            gate.pass().await;
            Ok(())
        });
        let one = || Durably::builder().max_concurrent_runs(1);
        let durably = file.open_with(one().paused(true)).await;
        let jobs = durably.register(job.clone()).unwrap();
        for input in 0..4 {
            jobs.trigger(input).concurrency_key(if input % 2 == 0 { "even" } else { "odd" }).await.unwrap();
        }
        // The youngest is made to be the one that executes.
        for run in durably.get_runs(RunFilter::new()).await.unwrap().iter().skip(1) {
            durably.cancel(run.id).await.unwrap();
            durably.resume(run.id).await.unwrap();
        }
        durably.start().await.unwrap();
        gate.reached().await;
        drop((jobs, durably));
        assert_eq!(order.lock().unwrap().drain(..).collect::<Vec<_>>(), [3]);
        let durably = file.open_with(one()).await;
        durably.register(job).unwrap();
        gate.open();
        durably.run_until_idle(None).await.unwrap();
        assert_eq!(*order.lock().unwrap(), [3, 2, 1, 0]);
    })
    .await;
}

#[tokio::test]
async fn a_recovered_run_keeps_its_key() {
    within(async {
        let file = TempFile::new();
        let gate = Gate::new();
        let jobs = || (gated("job", &gate), echo("other"));
        let durably = file.open().await;
        let (job, _) = durably.register(jobs()).unwrap();
        let first = job.trigger(0).concurrency_key("k").await.unwrap().id();
        gate.reached().await;
        let second = job.trigger(1).concurrency_key("k").await.unwrap().id();
        drop((job, durably));
        let durably = file.open().await;
        let (_, other) = durably.register(jobs()).unwrap();
        gate.reached().await;
        other.trigger_and_wait(1).await.unwrap();
        assert_eq!(run_of(&durably, first).await.status, RunStatus::Leased);
        assert_eq!(run_of(&durably, second).await.status, RunStatus::Pending);
        gate.open();
        ended(&durably, second).await;
        assert_eq!(gate.most_inside(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_run_that_crashes_again_and_again_without_a_checkpoint_is_poisoned() {
    within(async {
        let file = TempFile::new();
        let gate = Gate::new();
        let durably = file.open().await;
        let run = durably.register(crasher("job", &gate)).unwrap().trigger(7).await.unwrap().id();
        gate.reached().await;
        drop(durably);
        for crashes in 1..=3u32 {
            let durably = file.open().await;
            assert_eq!(run_of(&durably, run).await.recoveries, crashes);
            durably.register(crasher("job", &gate)).unwrap();
            gate.reached().await;
            drop(durably);
        }
        let durably = file.open().await;
        durably.register(crasher("job", &gate)).unwrap();
        let record = run_of(&durably, run).await;
        let error = record.error.clone().unwrap();
        assert_eq!((record.status, error.kind, record.recoveries), (RunStatus::Failed, ErrorKind::Poisoned, 4));
        assert!(error.message.contains("4 times"), "{}", error.message);
        assert!(record.completed_at.is_some());
        // It does not start by itself; a resume gives it another chance.
        gate.open();
        assert_eq!(durably.run_until_idle(None).await.unwrap(), 0);
        durably.resume(run).await.unwrap();
        assert_eq!(durably.wait_for_run(run).await.unwrap().output, Some(7.into()));
    })
    .await;
}

#[tokio::test]
async fn max_recoveries_is_how_often_a_run_may_crash() {
    within(async {
        let file = TempFile::new();
        let gate = Gate::new();
        let open = || file.open_with(Durably::builder().max_recoveries(0));
        let durably = open().await;
        let run = durably.register(crasher("job", &gate)).unwrap().trigger(7).await.unwrap().id();
        gate.reached().await;
        drop(durably);
        let durably = open().await;
        assert_eq!(run_of(&durably, run).await.error.unwrap().kind, ErrorKind::Poisoned);
    })
    .await;
}

#[tokio::test]
async fn a_checkpoint_sets_the_count_of_crashes_to_zero() {
    within(async {
        let file = TempFile::new();
        let gate = Gate::new();
        let job = job_with("job", gate.clone(), |step: Step, input, gate| async move {
            for n in 0..input {
                step.run(("s", n), || async { Ok(()) }).await?;
                gate.pass().await;
            }
            Ok(input)
        });
        let durably = file.open().await;
        let run = durably.register(job.clone()).unwrap().trigger(8).await.unwrap().id();
        gate.reached().await;
        drop(durably);
        for crashes in 1..=6u32 {
            let durably = file.open().await;
            let record = run_of(&durably, run).await;
            assert_eq!((record.status, record.recoveries), (RunStatus::Pending, crashes));
            // Past the steps of before, and one further.
            durably.register(job.clone()).unwrap();
            for _ in 0..crashes {
                gate.reached().await;
                gate.let_one_on();
            }
            gate.reached().await;
            drop(durably);
        }
        gate.open();
        let durably = file.open().await;
        durably.register(job).unwrap();
        assert_eq!(durably.wait_for_run(run).await.unwrap().recoveries, 7);
    })
    .await;
}

#[tokio::test]
async fn runs_on_probation_start_one_at_a_time_beside_normal_work() {
    within(async {
        let file = TempFile::new();
        let gate = Gate::new();
        let jobs = || (crasher("crasher", &gate), echo("normal"));
        let durably = file.open().await;
        let (job, _) = durably.register(jobs()).unwrap();
        let runs: Vec<_> = job.batch_trigger([1, 2, 3]).await.unwrap().iter().map(durably::RunHandle::id).collect();
        gate.reached_by(3).await;
        drop((job, durably));
        // After one crash they start side by side.
        let durably = file.open().await;
        durably.register(jobs()).unwrap();
        gate.reached_by(3).await;
        drop(durably);
        // After the second, one at a time.
        let durably = file.open().await;
        let (_, normal) = durably.register(jobs()).unwrap();
        gate.reached().await;
        normal.trigger_and_wait(1).await.unwrap();
        let statuses = async || {
            let mut statuses = Vec::new();
            for run in &runs {
                statuses.push(run_of(&durably, *run).await.status);
            }
            statuses
        };
        assert_eq!(statuses().await, [RunStatus::Leased, RunStatus::Pending, RunStatus::Pending]);
        // A checkpoint clears it, and the next is let in.
        gate.let_one_on();
        gate.reached_by(2).await;
        assert_eq!(statuses().await, [RunStatus::Leased, RunStatus::Leased, RunStatus::Pending]);
        // So does its end.
        durably.cancel(runs[1]).await.unwrap();
        gate.reached().await;
        assert_eq!(statuses().await, [RunStatus::Leased, RunStatus::Cancelled, RunStatus::Leased]);
        gate.open();
        ended(&durably, runs[0]).await;
        ended(&durably, runs[2]).await;
    })
    .await;
}

#[tokio::test]
async fn a_run_on_probation_that_is_cancelled_in_line_makes_room_for_the_next() {
    within(async {
        let file = TempFile::new();
        let gate = Gate::new();
        let durably = file.open().await;
        let job = durably.register(crasher("crasher", &gate)).unwrap();
        let runs: Vec<_> = job.batch_trigger([1, 2, 3]).await.unwrap().iter().map(durably::RunHandle::id).collect();
        gate.reached_by(3).await;
        drop((job, durably));
        let durably = file.open().await;
        durably.register(crasher("crasher", &gate)).unwrap();
        gate.reached_by(3).await;
        drop(durably);
        let durably = file.open_paused().await;
        durably.register(crasher("crasher", &gate)).unwrap();
        durably.cancel(runs[0]).await.unwrap();
        durably.cancel(runs[1]).await.unwrap();
        gate.open();
        durably.start().await.unwrap();
        assert_eq!(durably.wait_for_run(runs[2]).await.unwrap().output, Some(3.into()));
    })
    .await;
}

#[tokio::test]
async fn a_graceful_shutdown_counts_nothing() {
    within(async {
        let file = TempFile::new();
        let gate = Gate::new();
        let open = || file.open_with(Durably::builder().shutdown_grace(Duration::ZERO));
        let durably = open().await;
        let run = durably.register(crasher("job", &gate)).unwrap().trigger(7).await.unwrap().id();
        gate.reached().await;
        durably.shutdown().await.unwrap();
        for generation in 2..=8u64 {
            let durably = open().await;
            durably.register(crasher("job", &gate)).unwrap();
            gate.reached().await;
            let record = run_of(&durably, run).await;
            assert_eq!((record.status, record.recoveries, record.lease_generation), (RunStatus::Leased, 0, generation));
            durably.shutdown().await.unwrap();
        }
        gate.open();
        let durably = open().await;
        durably.register(crasher("job", &gate)).unwrap();
        assert_eq!(durably.wait_for_run(run).await.unwrap().recoveries, 0);
    })
    .await;
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Old {
    name: String,
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct New {
    count: u32,
}

#[tokio::test]
async fn a_stored_input_that_the_code_cannot_decode_leaves_the_run_pending_and_reported() {
    within(async {
        let file = TempFile::new();
        let durably = file.open_paused().await;
        let old = || Job::new("job", |_: Step, input: Old| async move { Ok(input.name) });
        let run = durably.register(old()).unwrap().trigger(Old { name: "n".into() }).await.unwrap().id();
        durably.shutdown().await.unwrap();

        let durably = file.open().await;
        let mut events = durably.events();
        let news = durably.register(Job::new("job", |_: Step, input: New| async move { Ok(input.count) })).unwrap();
        let event = next_event(&mut events, |event| event.kind.name() == "run:blocked").await;
        let EventKind::RunBlocked { reason } = &event.kind else { panic!() };
        assert!(event.run_id == run && reason.contains("count"), "{reason}");
        let record = run_of(&durably, run).await;
        assert_eq!((record.status, record.error.clone(), record.recoveries), (RunStatus::Pending, None, 0));
        assert_eq!(record.blocked.as_ref(), Some(reason));
        // Others of the job go on, and it can be cancelled and resumed.
        assert_eq!(news.trigger_and_wait(New { count: 3 }).await.unwrap().output, 3);
        durably.shutdown().await.unwrap();

        let durably = file.open().await;
        durably.register(old()).unwrap();
        let record = durably.wait_for_run(run).await.unwrap();
        assert_eq!((record.output, record.blocked), (Some("n".into()), None));
    })
    .await;
}

#[tokio::test]
async fn a_blocked_run_can_be_cancelled_and_holds_no_slot_and_no_key() {
    within(async {
        let file = TempFile::new();
        let durably = file.open_paused().await;
        let old = Job::new("job", |_: Step, input: Old| async move { Ok(input.name) });
        let jobs = durably.register(old).unwrap();
        let run = jobs.trigger(Old { name: "n".into() }).concurrency_key("k").await.unwrap().id();
        drop((jobs, durably));
        let durably = file.open_with(Durably::builder().max_concurrent_runs(1)).await;
        let mut events = durably.events();
        let news = durably.register(Job::new("job", |_: Step, input: New| async move { Ok(input.count) })).unwrap();
        next_event(&mut events, |event| event.kind.name() == "run:blocked").await;
        let other = news.trigger(New { count: 3 }).concurrency_key("k").await.unwrap();
        assert_eq!(other.output().await.unwrap(), 3);
        durably.cancel(run).await.unwrap();
        let record = run_of(&durably, run).await;
        assert_eq!((record.status, record.blocked), (RunStatus::Cancelled, None));
        let stats = durably.stats().await.unwrap();
        assert_eq!(stats.jobs[0].counts, [0, 0, 0, 1, 0, 1]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_acknowledged_is_lost_over_many_crashes() {
    within(async {
        let file = TempFile::new();
        let calls: Arc<Mutex<std::collections::BTreeMap<(u32, u32), u32>>> = Arc::default();
        let job = job_with("job", calls.clone(), |step: Step, input, calls| async move {
            for n in 0..4u32 {
                step.run(("s", n), || async {
                    *calls.lock().unwrap().entry((input, n)).or_default() += 1;
                    tokio::task::yield_now().await;
                    Ok(n)
                })
                .await?;
            }
            Ok(input)
        });
        let mut acknowledged = Vec::new();
        let mut recorded = std::collections::BTreeSet::new();
        for round in 0..12u32 {
            let durably = file.open_with(Durably::builder().max_concurrent_runs(8).max_recoveries(100)).await;
            let jobs = durably.register(job.clone()).unwrap();
            let mut events = durably.events();
            for input in round * 10..round * 10 + 10 {
                acknowledged.push((jobs.trigger(input).await.unwrap().id(), input));
            }
            for _ in 0..20 {
                let received = events.next().await.unwrap();
                if let EventKind::StepCompleted { index, .. } = received.event().unwrap().kind {
                    recorded.insert((received.event().unwrap().run_id, index));
                }
            }
            drop((events, jobs, durably));
        }
        let before = calls.lock().unwrap().clone();
        let durably = file.open_with(Durably::builder().max_recoveries(100)).await;
        let mut stored = std::collections::BTreeSet::new();
        for (run, input) in &acknowledged {
            for step in durably.get_steps(*run).await.unwrap() {
                stored.insert((*run, step.index));
                assert!(before.contains_key(&(*input, step.index)));
            }
        }
        assert!(recorded.is_subset(&stored));
        durably.register(job).unwrap();
        for (run, input) in &acknowledged {
            assert_eq!(durably.wait_for_run(*run).await.unwrap().output, Some((*input).into()));
        }
        // What was stored at the last crash did not run again.
        let after = calls.lock().unwrap();
        for (run, index) in stored {
            let input = acknowledged.iter().find(|(id, _)| *id == run).unwrap().1;
            assert_eq!(after[&(input, index)], before[&(input, index)]);
        }
    })
    .await;
}
