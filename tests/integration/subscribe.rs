//! One run's stream: where it stands first, then what happens, up to its end.

use durably::{Durably, Error, EventKind, Received, RunEvents, Step};
use futures::StreamExt;
use serde_json::json;

use crate::support::{Gate, echo, ended, failing, gated, job_with, memory, paused, within};

async fn all(mut events: RunEvents) -> Vec<&'static str> {
    let mut names = Vec::new();
    while let Some(received) = events.next().await {
        names.push(received.event().unwrap().kind.name());
    }
    names
}

#[tokio::test]
async fn p_sub_01_02_a_stream_has_its_runs_events_only_and_ends_with_it() {
    within(async {
        let durably = paused().await;
        let job = job_with("job", (), |step: Step, input, ()| async move {
            step.log().info("hello", ());
            step.run("a", || async { Ok(()) }).await?;
            step.progress(1, 1);
            Ok(input)
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(1).await.unwrap().id();
        jobs.trigger(2).await.unwrap();
        let stream = durably.subscribe(run).await.unwrap();
        durably.run_until_idle(None).await.unwrap();
        let names = all(stream).await;
        let wanted = ["run:leased", "log:write", "step:start", "step:complete", "run:progress", "run:complete"];
        assert_eq!(names, wanted);
    })
    .await;
}

#[tokio::test]
async fn p_sub_03_a_terminal_run_tells_its_end_and_that_is_all() {
    within(async {
        let durably = memory().await;
        let (good, bad) = durably.register((echo("good"), failing("bad", "no"))).unwrap();
        let completed = good.trigger(4).await.unwrap().id();
        let failed = bad.trigger(4).await.unwrap().id();
        ended(&durably, completed).await;
        ended(&durably, failed).await;
        durably.stop().await.unwrap();
        let cancelled = good.trigger(4).await.unwrap();
        cancelled.cancel().await.unwrap();
        for (run, name) in [(completed, "run:complete"), (failed, "run:fail"), (cancelled.id(), "run:cancel")] {
            let mut stream = durably.subscribe(run).await.unwrap();
            let received = stream.next().await.unwrap();
            let event = received.event().unwrap();
            assert_eq!((event.kind.name(), event.sequence, event.run_id), (name, 0, run));
            match &event.kind {
                EventKind::RunCompleted { output, .. } => assert_eq!(output.value(), Some(json!(4))),
                EventKind::RunFailed { error } => assert_eq!(error.message, "no"),
                _ => {}
            }
            assert_eq!(stream.next().await, None);
            assert_eq!(stream.next().await, None);
        }
    })
    .await;
}

#[tokio::test]
async fn p_sub_03_an_executing_run_tells_its_lease_and_its_progress_first() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let job = job_with("job", gate.clone(), |step: Step, input, gate| async move {
            step.progress(3, 4);
            step.run("flush", || async { Ok(()) }).await?;
            gate.pass().await;
            Ok(input)
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(5).label("a", "b").await.unwrap();
        gate.reached().await;
        let mut stream = durably.subscribe(run.id()).await.unwrap();
        let received = stream.next().await.unwrap();
        let first = received.event().unwrap();
        let EventKind::RunLeased { input, generation, .. } = &first.kind else { panic!("{first:?}") };
        assert_eq!((input.value(), *generation, first.sequence), (Some(json!(5)), 1, 0));
        assert_eq!((&*first.job_name, first.labels["a"].as_str()), ("job", "b"));
        let received = stream.next().await.unwrap();
        let EventKind::RunProgress { progress } = &received.event().unwrap().kind else { panic!("{received:?}") };
        assert_eq!((progress.current, progress.total), (3, Some(4)));
        gate.open();
        assert_eq!(all(stream).await, ["run:complete"]);
    })
    .await;
}

#[tokio::test]
async fn p_sub_06_a_run_that_is_not_there_is_an_error() {
    within(async {
        let durably = memory().await;
        let jobs = durably.register(echo("job")).unwrap();
        let run = jobs.trigger(1).await.unwrap().id();
        ended(&durably, run).await;
        durably.delete_run(run).await.unwrap();
        assert!(matches!(durably.subscribe(run).await, Err(Error::RunNotFound { run: id }) if id == run));
    })
    .await;
}

#[tokio::test]
async fn p_sub_09_a_stream_that_lags_says_so_and_still_learns_of_the_end() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let (jobs, flood) = {
            let flood = job_with("flood", (), |step: Step, lines, ()| async move {
                for _ in 0..lines {
                    step.log().info("x", "y".repeat(50_000));
                }
                Ok(())
            });
            durably.register((gated("job", &gate), flood)).unwrap()
        };
        let run = jobs.trigger(5).await.unwrap();
        gate.reached().await;
        let mut stream = durably.subscribe(run.id()).await.unwrap();
        assert_eq!(stream.next().await.unwrap().event().unwrap().kind.name(), "run:leased");
        gate.open();
        run.output().await.unwrap();
        // The end is pushed out of the buffer by others' events.
        flood.trigger_and_wait(1_000).await.unwrap();
        assert!(matches!(stream.next().await, Some(Received::Lagged { .. })));
        let received = stream.next().await.unwrap();
        let EventKind::RunCompleted { output, .. } = &received.event().unwrap().kind else { panic!("{received:?}") };
        assert_eq!(output.value(), Some(json!(5)));
        assert_eq!(stream.next().await, None);
    })
    .await;
}

#[tokio::test]
async fn a_stream_ends_with_the_runtime() {
    within(async {
        let durably = paused().await;
        let jobs = durably.register(echo("job")).unwrap();
        let run = jobs.trigger(1).await.unwrap().id();
        let stream = durably.subscribe(run).await.unwrap();
        durably.shutdown().await.unwrap();
        assert_eq!(all(stream).await, Vec::<&str>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p_sub_04_no_gap_and_no_duplicate_under_concurrency() {
    within(async {
        let durably = Durably::builder().max_concurrent_runs(8).in_memory().await.unwrap();
        let job = job_with("job", (), |step: Step, _, ()| async move {
            for n in 0..6u32 {
                step.run(("s", n), || async { Ok(n) }).await?;
            }
            Ok(())
        });
        let jobs = durably.register(job).unwrap();
        let mut readers = Vec::new();
        for _ in 0..150 {
            let run = jobs.trigger(0).await.unwrap().id();
            // Several begin at different moments of the run's life.
            for reader in 0..3 {
                let durably = durably.clone();
                readers.push(tokio::spawn(async move {
                    for _ in 0..reader * 3 {
                        tokio::task::yield_now().await;
                    }
                    let mut stream = durably.subscribe(run).await.unwrap();
                    let (mut indexes, mut leased, mut end, mut last) = (Vec::new(), 0, None, 0);
                    while let Some(received) = StreamExt::next(&mut stream).await {
                        let event = received.event().unwrap();
                        if event.committed {
                            assert!(event.sequence == 0 || event.sequence > last, "{event:?} after {last}");
                            last = event.sequence;
                        }
                        match &event.kind {
                            EventKind::RunLeased { .. } => leased += 1,
                            EventKind::StepCompleted { index, .. } => indexes.push(*index),
                            kind if kind.ends_run() => end = Some(kind.name()),
                            _ => {}
                        }
                    }
                    assert_eq!(end, Some("run:complete"));
                    // From wherever it began, each step once and none left out.
                    let from = indexes.first().copied().unwrap_or(6);
                    assert_eq!(indexes, (from..6).collect::<Vec<_>>());
                    assert!(leased == 1 || indexes.is_empty(), "{leased} leases, {indexes:?}");
                }));
            }
        }
        for reader in readers {
            reader.await.unwrap();
        }
    })
    .await;
}
