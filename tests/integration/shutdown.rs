//! Shutdown: drain, hand back, close.

use std::time::Duration;

use durably::{Durably, Error, Health, Job, RunFilter, RunStatus, Step, Timestamp};

use crate::support::{Count, Gate, OnDrop, TempFile, echo, gated, job_with, memory, paused, run_of, within};

/// The runtime's shutdown, begun.
async fn begin_shutdown(durably: &Durably) -> tokio::task::JoinHandle<Result<(), Error>> {
    let shutting = tokio::spawn({
        let durably = durably.clone();
        async move { durably.shutdown().await }
    });
    while durably.health() != Health::Draining {
        tokio::task::yield_now().await;
    }
    shutting
}

#[tokio::test]
async fn draining_fires_and_cancelled_never_does() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let job = job_with("job", gate.clone(), |step: Step, _, gate| async move {
            let (draining, cancelled) = (step.draining(), step.cancelled());
            drop(gate.enter());
            draining.cancelled().await;
            step.run("after", || async { Ok(()) }).await?;
            Ok(cancelled.is_cancelled())
        });
        let jobs = durably.register(job).unwrap();
        let mut events = durably.events();
        let run = jobs.trigger(0).await.unwrap().id();
        gate.reached().await;
        durably.shutdown().await.unwrap();
        // A body that drains in time ends as it would have.
        let event = crate::support::next_event(&mut events, |event| event.kind.name() == "run:complete").await;
        let durably::EventKind::RunCompleted { output, .. } = &event.kind else { panic!() };
        assert_eq!((event.run_id, output.decode::<bool>().unwrap()), (run, false));
    })
    .await;
}

#[tokio::test]
async fn p_work_11_what_does_not_end_in_time_is_handed_back_and_goes_on_after_the_next_start() {
    within(async {
        let file = TempFile::new();
        let (gate, calls, dropped) = (Gate::new(), Count::default(), Count::default());
        let shared = (gate.clone(), calls.clone(), dropped.clone());
        let job = job_with("job", shared, |step: Step, _, (gate, calls, dropped)| async move {
            let _guard = OnDrop(dropped);
            let a = step.run("a", || async { Ok(calls.up()) }).await?;
            gate.pass().await;
            Ok(a)
        });
        let durably = file.open_with(Durably::builder().shutdown_grace(Duration::from_millis(20))).await;
        let jobs = durably.register(job.clone()).unwrap();
        let run = jobs.trigger(0).await.unwrap().id();
        gate.reached().await;
        durably.shutdown().await.unwrap();
        assert_eq!(dropped.get(), 1);
        gate.open();
        let durably = file.open().await;
        let record = run_of(&durably, run).await;
        assert_eq!((record.status, record.recoveries, record.error), (RunStatus::Pending, 0, None));
        durably.register(job).unwrap();
        assert_eq!(durably.wait_for_run(run).await.unwrap().output, Some(1.into()));
        assert_eq!(calls.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn after_draining_an_ok_is_recorded_and_an_error_is_not() {
    within(async {
        let file = TempFile::new();
        let (gate, restarted) = (Gate::new(), Count::default());
        // 0: a step that fails; 1: a body that fails; 2: a step that succeeds and a body that fails; 3: all well.
        let job =
            job_with("job", (gate.clone(), restarted.clone()), |step: Step, input, (gate, restarted)| async move {
                if restarted.get() > 0 {
                    return Ok(input);
                }
                let draining = step.draining();
                drop(gate.enter());
                draining.cancelled().await;
                if input != 1 {
                    step.run("a", || async { if input == 0 { Err("told to stop".into()) } else { Ok(()) } }).await?;
                }
                if input == 3 { Ok(input) } else { Err("told to stop".into()) }
            });
        let durably = file.open().await;
        let jobs = durably.register(job.clone()).unwrap();
        let runs: Vec<_> = jobs.batch_trigger(0..4).await.unwrap().iter().map(durably::RunHandle::id).collect();
        gate.reached_by(4).await;
        durably.shutdown().await.unwrap();
        restarted.up();
        let durably = file.open().await;
        let pending = (RunStatus::Pending, 0);
        for (run, wanted) in runs.iter().zip([pending, pending, (RunStatus::Pending, 1), (RunStatus::Completed, 1)]) {
            let record = run_of(&durably, *run).await;
            assert_eq!((record.status, durably.get_steps(*run).await.unwrap().len()), wanted);
            assert_eq!(record.error, None);
        }
        durably.register(job).unwrap();
        for run in runs {
            assert_eq!(durably.wait_for_run(run).await.unwrap().recoveries, 0);
        }
    })
    .await;
}

#[tokio::test]
async fn nothing_starts_while_draining_but_triggers_still_work() {
    within(async {
        let file = TempFile::new();
        let gate = Gate::new();
        let durably = file.open().await;
        let jobs = durably.register(gated("job", &gate)).unwrap();
        let executing = jobs.trigger(0).await.unwrap().id();
        gate.reached().await;
        let shutting = begin_shutdown(&durably).await;
        let late = jobs.trigger(1).await.unwrap();
        assert_eq!(late.status(), RunStatus::Pending);
        let cancelled = jobs.trigger(2).await.unwrap();
        cancelled.cancel().await.unwrap();
        assert!(matches!(durably.start().await, Err(Error::ShutDown)));
        assert!(matches!(durably.run_until_idle(None).await, Err(Error::ShutDown)));
        assert_eq!(run_of(&durably, executing).await.status, RunStatus::Leased);
        gate.open();
        shutting.await.unwrap().unwrap();
        assert_eq!(gate.arrivals(), 1);
        let durably = file.open_paused().await;
        let mut statuses = Vec::new();
        for run in [executing, late.id(), cancelled.id()] {
            statuses.push(run_of(&durably, run).await.status);
        }
        assert_eq!(statuses, [RunStatus::Completed, RunStatus::Pending, RunStatus::Cancelled]);
    })
    .await;
}

#[tokio::test]
async fn a_second_shutdown_is_fine_also_at_once() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let jobs = durably.register(gated("job", &gate)).unwrap();
        jobs.trigger(0).await.unwrap();
        gate.reached().await;
        let both = async { tokio::join!(durably.shutdown(), durably.shutdown()) };
        let ((first, second), ()) = tokio::join!(both, async { gate.open() });
        first.unwrap();
        second.unwrap();
        durably.shutdown().await.unwrap();
        assert_eq!(durably.health(), Health::Closed);
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_that_is_dropped_leaves_it_draining_until_it_is_called_again() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let jobs = durably.register(gated("job", &gate)).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        gate.reached().await;
        let shutting = begin_shutdown(&durably).await;
        shutting.abort();
        assert!(shutting.await.unwrap_err().is_cancelled());
        assert_eq!(durably.health(), Health::Draining);
        gate.open();
        assert_eq!(run.output().await.unwrap(), 0);
        durably.shutdown().await.unwrap();
        assert_eq!(durably.health(), Health::Closed);
    })
    .await;
}

#[tokio::test]
async fn calls_after_it_are_told_so() {
    within(async {
        let durably = paused().await;
        let jobs = durably.register(echo("job")).unwrap();
        let run = jobs.trigger(1).await.unwrap();
        let id = run.id();
        let mut events = durably.events();
        durably.shutdown().await.unwrap();
        assert_eq!(events.next().await, None);
        assert!(durably.actor_ref().is_none());
        macro_rules! shut_down {
            ($($call:expr),+ $(,)?) => {$(
                let answer = $call.await;
                assert!(matches!(answer, Err(Error::ShutDown)), "{}: {answer:?}", stringify!($call));
            )+};
        }
        shut_down!(
            jobs.trigger(1),
            jobs.try_trigger(1),
            jobs.batch_trigger([1, 2]),
            durably.trigger_json("job", 1.into()),
            durably.cancel(id),
            durably.retrigger(id),
            durably.resume(id),
            durably.delete_run(id),
            durably.purge_runs(Timestamp::from_millis(0)),
            durably.get_run(id),
            durably.get_runs(RunFilter::new()),
            durably.get_steps(id),
            durably.get_logs(id),
            durably.subscribe(id),
            durably.wait_for_run(id),
            durably.stats(),
            durably.start(),
            durably.stop(),
            durably.run_until_idle(None),
            run.output(),
            run.cancel(),
        );
        assert_eq!(Error::ShutDown.advice(), durably::Advice::Finished);
    })
    .await;
}

#[tokio::test]
async fn a_blocking_step_is_left_behind_after_the_grace_and_its_run_handed_back() {
    within(async {
        let file = TempFile::new();
        let gate = Gate::new();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(held));
        let shared = (gate.clone(), held);
        let job = job_with("job", shared, |step: Step, input, (gate, held)| async move {
            step.run_blocking("block", move || {
                drop(gate.enter());
                held.lock().unwrap().recv().ok();
                Ok(input)
            })
            .await
        });
        let durably = file.open_with(Durably::builder().shutdown_grace(Duration::from_millis(10))).await;
        let run = durably.register(job.clone()).unwrap().trigger(4).await.unwrap().id();
        gate.reached().await;
        durably.shutdown().await.unwrap();
        let durably = file.open().await;
        let record = run_of(&durably, run).await;
        assert_eq!((record.status, record.recoveries), (RunStatus::Pending, 0));
        drop(release);
        durably.register(job).unwrap();
        assert_eq!(durably.wait_for_run(run).await.unwrap().output, Some(4.into()));
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_at_rest_is_at_once_and_the_file_is_free() {
    within(async {
        let file = TempFile::new();
        for _ in 0..5 {
            let durably = file.open_with(Durably::builder().lock_wait(Duration::ZERO)).await;
            durably.register(echo("job")).unwrap().trigger_and_wait(1).await.unwrap();
            durably.shutdown().await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn what_bodies_hold_goes_with_the_runtime_though_it_is_a_handle_of_the_runtimes() {
    within(async {
        let held = std::sync::Arc::new(());
        let durably = memory().await;
        let child = durably.register(echo("child")).unwrap();
        let (captured, child) = (held.clone(), child.clone());
        let parent = Job::new("parent", move |step: Step, n: u32| {
            let (_captured, child) = (captured.clone(), child.clone());
            async move { step.call("child", &child, n).await }
        });
        let parent = durably.register(parent).unwrap();
        assert_eq!(parent.trigger(3).await.unwrap().output().await.unwrap(), 3);
        durably.shutdown().await.unwrap();
        drop((durably, parent));
        // Its actors end by themselves.
        while std::sync::Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
