//! The stream of every event: in commit order, dense, replayable, bounded.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use durably::limits::{EVENT_BUFFER_BYTES, EVENT_PAYLOAD_BYTES_MAX};
use durably::{Durably, Error, EventKind, Health, Received, RunId, Step};
use futures::StreamExt;
use serde_json::json;

use crate::support::{
    Count, Gate, TempFile, echo, ended, failing, gated, job_with, memory, next_event, paused, within,
};

/// Names of the events of a stream up to and with one.
async fn names_to(events: &mut durably::Events, last: &str) -> Vec<&'static str> {
    let mut names = Vec::new();
    while names.last() != Some(&last) {
        names.push(events.next().await.unwrap().event().unwrap().kind.name());
    }
    names
}

#[tokio::test]
async fn p_evt_01_the_sequence_is_dense_in_commit_order_and_goes_on_over_a_restart() {
    within(async {
        let file = TempFile::new();
        let mut last = 0;
        for round in 0..3u32 {
            let durably = if round == 1 { file.open_paused().await } else { file.open().await };
            let mut events = durably.events();
            let gate = Gate::new();
            let jobs = durably.register((gated("gated", &gate), echo("job"))).unwrap();
            let run = jobs.0.trigger(round).await.unwrap();
            for handle in jobs.1.batch_trigger(0..20).await.unwrap() {
                if round != 1 {
                    handle.output().await.unwrap();
                }
            }
            if round != 1 {
                gate.reached().await;
            }
            run.cancel().await.unwrap();
            let mut previous = None;
            loop {
                let received = events.next().await.unwrap();
                let event = received.event().unwrap();
                if event.committed {
                    assert_eq!(event.sequence, previous.unwrap_or(event.sequence - 1) + 1, "{event:?}");
                    // A restart may tell of runs found leased before anyone could listen; numbers only grow.
                    assert!(event.sequence > last, "{event:?}");
                    previous = Some(event.sequence);
                } else {
                    assert_eq!(Some(event.sequence), previous);
                }
                if event.run_id == run.id() && event.kind.name() == "run:cancel" {
                    break;
                }
            }
            last = previous.unwrap();
            drop((jobs, run, durably));
        }
    })
    .await;
}

#[tokio::test]
async fn p_evt_07_to_22_one_execution_is_told_in_order() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step: Step, input, ()| async move {
            step.log().info("hello", ());
            step.run("good", || async { Ok(json!({"n": input})) }).await?;
            step.progress(1, 2);
            step.run("bad", || async { Err::<u32, _>("no".into()) }).await.ok();
            Ok(input)
        });
        let jobs = durably.register(job).unwrap();
        let mut events = durably.events();
        let run = jobs.trigger(7).label("a", "b").await.unwrap();
        let mut told = Vec::new();
        loop {
            let received = events.next().await.unwrap();
            let event = received.event().unwrap().clone();
            assert_eq!((event.run_id, &*event.job_name), (run.id(), "job"));
            assert_eq!(*event.labels, BTreeMap::from([("a".to_owned(), "b".to_owned())]));
            told.push(event.clone());
            if event.kind.ends_run() {
                break;
            }
        }
        let names: Vec<_> = told.iter().map(|event| event.kind.name()).collect();
        assert_eq!(
            names,
            [
                "run:trigger",
                "run:leased",
                "log:write",
                "step:start",
                "step:complete",
                "run:progress",
                "step:start",
                "step:fail",
                "run:complete"
            ]
        );
        let uncommitted: Vec<_> = told.iter().filter(|event| !event.committed).map(|event| event.kind.name()).collect();
        assert_eq!(uncommitted, ["log:write", "step:start", "run:progress", "step:start"]);
        let EventKind::RunTriggered { input } = &told[0].kind else { panic!() };
        assert_eq!(input.decode::<u32>().unwrap(), 7);
        let EventKind::RunLeased { input, generation: 1, lease_owner } = &told[1].kind else { panic!() };
        assert_eq!(input.value(), Some(json!(7)));
        assert!(!lease_owner.is_empty());
        let EventKind::StepCompleted { step, index: 0, output, .. } = &told[4].kind else { panic!() };
        assert_eq!((&**step, output.value()), ("good", Some(json!({"n": 7}))));
        let EventKind::StepFailed { step, index: 1, error } = &told[7].kind else { panic!() };
        assert_eq!((&**step, error.message.as_str()), ("bad", "no"));
        let EventKind::RunCompleted { output, .. } = &told[8].kind else { panic!() };
        assert_eq!(output.value(), Some(json!(7)));
    })
    .await;
}

#[tokio::test]
async fn p_evt_07_08_what_a_trigger_tells() {
    within(async {
        let durably = paused().await;
        let jobs = durably.register(echo("job")).unwrap();
        let mut events = durably.events();
        let first = jobs.trigger(1).idempotency_key("i").concurrency_key("k").label("a", "b").await.unwrap();
        jobs.trigger(1).idempotency_key("i").await.unwrap();
        let skip = durably::OnConflict::Skip;
        jobs.trigger(2).concurrency_key("k").on_conflict(skip).label("c", "d").await.unwrap();
        jobs.trigger(3).await.unwrap();
        let mut told = Vec::new();
        for _ in 0..3 {
            told.push(events.next().await.unwrap().event().unwrap().clone());
        }
        // A repeat of an idempotency key tells nothing.
        let names: Vec<_> = told.iter().map(|event| event.kind.name()).collect();
        assert_eq!(names, ["run:trigger", "run:coalesced", "run:trigger"]);
        assert_eq!((told[1].run_id, told[1].labels["a"].as_str()), (first.id(), "b"));
        let EventKind::RunCoalesced { skipped_input, skipped_labels } = &told[1].kind else { panic!() };
        assert_eq!((skipped_input.value(), skipped_labels["c"].as_str()), (Some(json!(2)), "d"));
    })
    .await;
}

#[tokio::test]
async fn p_evt_13_a_failure_names_the_step_that_ended_the_run_and_not_one_that_was_caught() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step: Step, input, ()| async move {
            step.run("caught", || async { Err::<u32, _>("caught".into()) }).await.ok();
            if input == 0 {
                return Err("the body's own".into());
            }
            step.run("fatal", || async { Err::<u32, _>("fatal".into()) }).await
        });
        let jobs = durably.register(job).unwrap();
        let mut events = durably.events();
        for (input, wanted) in [(0, None), (1, Some("fatal"))] {
            jobs.trigger(input).await.unwrap();
            let event = next_event(&mut events, |event| event.kind.name() == "run:fail").await;
            let EventKind::RunFailed { error } = &event.kind else { panic!() };
            assert_eq!(error.step.as_deref(), wanted);
        }
    })
    .await;
}

#[tokio::test]
async fn p_evt_03_04_listeners_that_do_not_read_hold_up_nobody_and_can_go_any_time() {
    within(async {
        let durably = memory().await;
        let jobs = durably.register(echo("job")).unwrap();
        let mut idle: Vec<_> = (0..100).map(|_| durably.events()).collect();
        for input in 0..50 {
            jobs.trigger_and_wait(input).await.unwrap();
            idle.pop();
        }
        let mut events = durably.events();
        drop(idle);
        let run = jobs.trigger(0).await.unwrap();
        assert_eq!(names_to(&mut events, "run:complete").await, ["run:trigger", "run:leased", "run:complete"]);
        run.output().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn events_after_a_sequence_are_replayed() {
    within(async {
        let durably = memory().await;
        let jobs = durably.register(echo("job")).unwrap();
        let mut events = durably.events();
        for input in 0..10 {
            jobs.trigger_and_wait(input).await.unwrap();
        }
        let mut seen: Vec<(u64, RunId, &str)> = Vec::new();
        while seen.len() < 30 {
            let received = events.next().await.unwrap();
            let event = received.event().unwrap();
            seen.push((event.sequence, event.run_id, event.kind.name()));
        }
        let middle = seen[14].0;
        let mut replay = durably.events().after(middle);
        for wanted in &seen[15..] {
            let received = replay.next().await.unwrap();
            let event = received.event().unwrap();
            assert_eq!((event.sequence, event.run_id, event.kind.name()), *wanted);
        }
        // From the end on, and live from there; a number not reached yet is from now on.
        let mut live = durably.events().after(seen[29].0);
        let mut future = durably.events().after(seen[29].0 + 1_000);
        jobs.trigger(10).await.unwrap();
        for events in [&mut live, &mut future] {
            assert_eq!(events.next().await.unwrap().event().unwrap().sequence, seen[29].0 + 1);
        }
    })
    .await;
}

#[tokio::test]
async fn a_past_before_the_restart_is_reported_as_missed() {
    within(async {
        let file = TempFile::new();
        let durably = file.open_paused().await;
        let jobs = durably.register(echo("job")).unwrap();
        for input in 0..5 {
            jobs.trigger(input).await.unwrap();
        }
        let mut events = durably.events().after(0);
        let mut last = 0;
        for _ in 0..5 {
            last = events.next().await.unwrap().event().unwrap().sequence;
        }
        durably.shutdown().await.unwrap();
        assert_eq!(events.next().await, None);
        drop((jobs, durably));
        let durably = file.open_paused().await;
        let mut events = durably.events().after(last - 3);
        assert_eq!(events.next().await, Some(Received::Lagged { missed: 3 }));
        let jobs = durably.register(echo("job")).unwrap();
        jobs.trigger(9).await.unwrap();
        assert_eq!(events.next().await.unwrap().event().unwrap().sequence, last + 1);
    })
    .await;
}

#[tokio::test]
async fn a_listener_that_falls_behind_is_told_how_many_it_missed_and_the_buffer_stays_bounded() {
    within(async {
        let durably = memory().await;
        let lines = 1_000u32;
        let job = job_with("job", (), |step: Step, lines, ()| async move {
            for _ in 0..lines {
                // Small message, large fields.
                step.log().info("x", json!({"text": "y".repeat(50_000)}));
            }
            Ok(())
        });
        let jobs = durably.register(job).unwrap();
        let mut events = durably.events();
        let run = jobs.trigger(lines).await.unwrap();
        run.output().await.unwrap();
        let Some(Received::Lagged { missed }) = events.next().await else { panic!("did not lag") };
        let (mut there, mut bytes) = (0, 0);
        loop {
            let received = events.next().await.unwrap();
            let event = received.event().unwrap();
            there += 1;
            if let EventKind::LogWritten { data, .. } = &event.kind {
                bytes += data["text"].as_str().unwrap().len();
            }
            if event.kind.ends_run() {
                break;
            }
        }
        assert_eq!(missed + there, u64::from(lines) + 3);
        assert!(bytes <= EVENT_BUFFER_BYTES, "{bytes} bytes");
        assert!(bytes > EVENT_BUFFER_BYTES / 2, "{bytes} bytes");
    })
    .await;
}

#[tokio::test]
async fn a_payload_too_large_for_an_event_is_left_out_of_it() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step: Step, bytes, ()| async move {
            step.run("large", || async { Ok("x".repeat(bytes as usize)) }).await
        });
        let jobs = durably.register(job).unwrap();
        let mut events = durably.events();
        let max = EVENT_PAYLOAD_BYTES_MAX as u32 - 2;
        for (bytes, carried) in [(max, true), (max + 1, false)] {
            let run = jobs.trigger(bytes).await.unwrap();
            let event = next_event(&mut events, |event| event.kind.name() == "run:complete").await;
            let EventKind::RunCompleted { output, .. } = &event.kind else { panic!() };
            assert_eq!(output.value().is_some(), carried);
            assert_eq!(output.as_bytes().is_some(), carried);
            assert_eq!(output.decode::<String>().is_ok(), carried);
            assert_eq!(run.output().await.unwrap().len(), bytes as usize);
        }
    })
    .await;
}

#[tokio::test]
async fn a_payload_that_was_left_out_is_no_null() {
    within(async {
        let durably = memory().await;
        let large = job_with("large", (), |_: Step, bytes, ()| async move { Ok("x".repeat(bytes as usize)) });
        let null = job_with("null", (), |_: Step, _, ()| async move { Ok(()) });
        let (large, null) = durably.register((large, null)).unwrap();
        let mut events = durably.events();
        large.trigger(EVENT_PAYLOAD_BYTES_MAX as u32).await.unwrap();
        let event = next_event(&mut events, |event| event.kind.name() == "run:complete").await;
        let EventKind::RunCompleted { output, .. } = &event.kind else { panic!() };
        let left_out = output.decode::<()>();
        assert!(matches!(left_out, Err(Error::Decode { what: "event payload", .. })), "{left_out:?}");
        let left_out = output.decode::<Option<u32>>();
        assert!(matches!(left_out, Err(Error::Decode { what: "event payload", .. })), "{left_out:?}");
        null.trigger(0).await.unwrap();
        let event = next_event(&mut events, |event| event.kind.name() == "run:complete").await;
        let EventKind::RunCompleted { output, .. } = &event.kind else { panic!() };
        assert_eq!(output.decode::<Option<u32>>().unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn p_evt_23_24_every_failure_and_every_release_is_told() {
    within(async {
        let durably = Durably::builder().shutdown_grace(Duration::ZERO).in_memory().await.unwrap();
        let jobs = durably.register(failing("job", "no")).unwrap();
        let mut events = durably.events();
        jobs.trigger(1).await.unwrap();
        assert_eq!(names_to(&mut events, "run:fail").await, ["run:trigger", "run:leased", "run:fail"]);
        let gate = Gate::new();
        let jobs = durably.register(gated("gated", &gate)).unwrap();
        jobs.trigger(1).await.unwrap();
        gate.reached().await;
        names_to(&mut events, "run:leased").await;
        // The grace is over at once, and what executes is handed back.
        durably.shutdown().await.unwrap();
        let next = events.next().await.unwrap();
        let released = next.event().unwrap();
        assert!(matches!(released.kind, EventKind::RunReleased { crashed: false }), "{released:?}");
        assert_eq!(events.next().await, None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_is_whole_under_concurrency() {
    within(async {
        let durably = Durably::builder().max_concurrent_runs(16).in_memory().await.unwrap();
        let calls = Count::default();
        let job = job_with("job", calls.clone(), |step: Step, input, calls: Count| async move {
            for n in 0..3u32 {
                step.run(("s", n), || async { Ok(calls.up()) }).await?;
            }
            if input % 5 == 0 { Err("no".into()) } else { Ok(()) }
        });
        let jobs = durably.register(job).unwrap();
        let mut events = durably.events();
        let triggering: Vec<_> = (0..4u32)
            .map(|part| {
                let jobs = jobs.clone();
                tokio::spawn(async move {
                    for input in 0..50 {
                        jobs.trigger(part * 50 + input).await.unwrap();
                    }
                })
            })
            .collect();
        let mut told: BTreeMap<RunId, Vec<&str>> = BTreeMap::new();
        let (mut last, mut over) = (None, 0);
        while over < 200 {
            let received = StreamExt::next(&mut events).await.unwrap();
            let event = received.event().unwrap();
            if event.committed {
                assert!(last.is_none_or(|last| event.sequence == last + 1));
                last = Some(event.sequence);
                told.entry(event.run_id).or_default().push(event.kind.name());
                over += usize::from(event.kind.ends_run());
            }
        }
        for task in triggering {
            task.await.unwrap();
        }
        let steps = ["run:trigger", "run:leased", "step:complete", "step:complete", "step:complete"];
        for (run, names) in &told {
            let end = names.last().unwrap();
            assert!(["run:complete", "run:fail"].contains(end), "{run}: {names:?}");
            assert_eq!(names[..5], steps, "{run}");
            assert_eq!(names.len(), 6, "{run}");
        }
        assert_eq!((told.len(), calls.get()), (200, 600));
        ended(&durably, *told.keys().next().unwrap()).await;
    })
    .await;
}

/// A waker that reads before it returns, as an executor might that runs what it wakes on the spot.
struct Reading {
    durably: Durably,
    run: RunId,
    /// Told whether it could read.
    read: mpsc::Sender<bool>,
    /// Whom it wakes then.
    body: Option<Waker>,
}

impl Wake for Reading {
    #[expect(clippy::disallowed_methods, reason = "it is woken outside of any runtime, and waits")]
    fn wake(self: Arc<Self>) {
        let (sender, read) = mpsc::channel();
        let (durably, run) = (self.durably.clone(), self.run);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            sender.send(runtime.block_on(durably.get_run(run)).is_ok())
        });
        self.read.send(read.recv_timeout(Duration::from_secs(10)).unwrap_or(false)).unwrap();
        self.body.iter().for_each(Waker::wake_by_ref);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_woken_by_an_event_can_read_at_once() {
    within(async {
        let file = TempFile::new();
        let durably = file.open().await;
        let job = durably.register(echo("job")).unwrap();
        let run = job.trigger(0).await.unwrap();
        run.output().await.unwrap();
        let (sender, read) = mpsc::channel();
        let waker = Arc::new(Reading { durably: durably.clone(), run: run.id(), read: sender, body: None }).into();
        let mut events = durably.events();
        // Until it has seen everything, it is not among those who are woken.
        while let Poll::Ready(event) = events.poll_next_unpin(&mut Context::from_waker(&waker)) {
            event.unwrap();
        }
        job.trigger(1).await.unwrap();
        assert!(tokio::task::spawn_blocking(move || read.recv().unwrap()).await.unwrap());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_body_awaits_can_read_at_once_when_it_is_woken() {
    within(async {
        let file = TempFile::new();
        let durably = file.open().await;
        let gate = Gate::new();
        let (read, reads) = mpsc::channel();
        let shared = (durably.clone(), gate.clone(), read);
        let job = job_with("job", shared, |step: Step, what, (durably, gate, read)| async move {
            let waker = |body: &Waker| {
                let (durably, run, read, body) = (durably.clone(), step.run_id(), read.clone(), Some(body.clone()));
                Waker::from(Arc::new(Reading { durably, run, read, body }))
            };
            if what == 0 {
                let token = step.cancelled();
                let mut cancelled = pin!(token.cancelled());
                let mut begun = pin!(gate.pass());
                poll_fn(|cx| {
                    let polled = cancelled.as_mut().poll(&mut Context::from_waker(&waker(cx.waker())));
                    // Only after it has left its waker.
                    let _ = begun.as_mut().poll(cx);
                    polled
                })
                .await;
                return Ok(0);
            }
            let mut signal = pin!(step.wait_signal::<u32>("go", "go"));
            poll_fn(|cx| signal.as_mut().poll(&mut Context::from_waker(&waker(cx.waker())))).await
        });
        let job = durably.register(job).unwrap();
        let cancelled = job.trigger(0).await.unwrap();
        gate.reached().await;
        durably.cancel(cancelled.id()).await.unwrap();

        let mut events = durably.events();
        let signalled = job.trigger(1).await.unwrap();
        names_to(&mut events, "step:wait").await;
        durably.signal(signalled.id(), "go", &7).await.unwrap();
        assert_eq!(signalled.output().await.unwrap(), 7);
        let reads: Vec<bool> = reads.try_iter().collect();
        assert!(!reads.is_empty() && reads.iter().all(|read| *read), "{reads:?}");
    })
    .await;
}

/// As an executor that is gone: whoever wakes it panics.
struct Gone;

impl Wake for Gone {
    fn wake(self: Arc<Self>) {
        panic!("nobody is there");
    }
}

#[tokio::test]
async fn a_waker_that_panics_touches_nobody_else() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let jobs = durably.register((gated("gated", &gate), echo("job"))).unwrap();
        let run = jobs.0.trigger(1).await.unwrap();
        gate.reached().await;
        let gone = Waker::from(Arc::new(Gone));
        let mut cx = Context::from_waker(&gone);
        let mut events = durably.events();
        let mut next = pin!(async { while events.next().await.is_some() {} });
        let (mut output, mut answer) = (pin!(run.output()), pin!(async { jobs.1.trigger(1).await.map(drop) }));
        assert!(next.as_mut().poll(&mut cx).is_pending());
        assert!(output.as_mut().poll(&mut cx).is_pending());
        // Which may be there at once.
        let _ = answer.as_mut().poll(&mut cx);
        // Those of tokens, too.
        let watched = Gate::new();
        let job = job_with("watching", watched.clone(), |step: Step, _, watched| async move {
            let (cancelled, draining) = (step.cancelled(), step.draining());
            let (mut cancelled, mut draining) = (pin!(cancelled.cancelled()), pin!(draining.cancelled()));
            {
                let gone = Waker::from(Arc::new(Gone));
                let mut cx = Context::from_waker(&gone);
                assert!(cancelled.as_mut().poll(&mut cx).is_pending() && draining.as_mut().poll(&mut cx).is_pending());
            }
            watched.pass().await;
            Ok(())
        });
        let watching = durably.register(job).unwrap();
        let cancelled = watching.trigger(1).await.unwrap();
        watched.reached().await;
        cancelled.cancel().await.unwrap();
        watching.trigger(2).await.unwrap();
        watched.reached().await;
        gate.open();
        assert_eq!(jobs.1.trigger_and_wait(2).await.unwrap().output, 2);
        durably.wait_for_run(run.id()).await.unwrap();
        let ending = tokio::spawn({
            let durably = durably.clone();
            async move { durably.shutdown().await }
        });
        while durably.health() != Health::Draining {
            tokio::task::yield_now().await;
        }
        watched.open();
        ending.await.unwrap().unwrap();
        durably.shutdown().await.unwrap();
    })
    .await;
}
