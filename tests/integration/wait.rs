//! Waiting for a run to end, from outside and from a body.

use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use durably::{Disposition, Durably, Error, Job, JobError, JobHandle, Run, RunFilter, RunId, Step};
use futures::FutureExt;

use crate::support::{Gate, echo, ended, failing, gated, job_with, memory, paused, within};

#[tokio::test]
async fn p_wait_01_02_a_wait_gives_the_run_or_says_how_it_ended() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let (good, bad, slow) =
            durably.register((echo("good"), failing("bad", "no luck"), gated("slow", &gate))).unwrap();
        let run = good.trigger(1).await.unwrap();
        assert_eq!(durably.wait_for_run(run.id()).await.unwrap().output_as::<u32>().unwrap(), 1);
        let run = bad.trigger(1).await.unwrap();
        let error = durably.wait_for_run(run.id()).await.unwrap_err();
        assert!(matches!(&error, Error::RunFailed { run: failed } if failed.id == run.id()));
        assert_eq!(error.to_string(), "run failed: no luck");
        let run = slow.trigger(1).await.unwrap();
        gate.reached().await;
        let (cancelled, waited) = tokio::join!(run.cancel(), run.output());
        cancelled.unwrap();
        assert_eq!(waited.unwrap_err().to_string(), format!("run was cancelled: {}", run.id()));
        durably.delete_run(run.id()).await.unwrap();
        let error = durably.wait_for_run(run.id()).await.unwrap_err();
        assert_eq!(error.to_string(), format!("run not found: {}", run.id()));
    })
    .await;
}

#[tokio::test]
async fn p_wait_03_what_has_ended_settles_at_once_without_callbacks() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step: Step, input, ()| async move {
            step.progress(1, 1);
            step.log().info("hello", ());
            Ok(input)
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(3).await.unwrap();
        ended(&durably, run.id()).await;
        let wait = run.wait().on_progress(|_| panic!("no replay")).on_log(|_| panic!("no replay"));
        assert_eq!(wait.await.unwrap().output_as::<u32>().unwrap(), 3);
    })
    .await;
}

#[tokio::test]
async fn p_wait_04_any_number_of_waits_settle_with_the_end() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let jobs = durably.register(gated("job", &gate)).unwrap();
        let run = jobs.trigger(3).await.unwrap();
        gate.reached().await;
        let mut waits: Vec<_> = (0..50).map(|_| Box::pin(run.output())).collect();
        for wait in &mut waits {
            assert!(futures::poll!(wait).is_pending());
        }
        waits.truncate(40);
        gate.open();
        assert_eq!(futures::future::try_join_all(waits).await.unwrap(), [3; 40]);
    })
    .await;
}

#[tokio::test]
async fn p_wait_06_a_timeout_ends_the_wait_and_not_the_run() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let jobs = durably.register(gated("job", &gate)).unwrap();
        let run = jobs.trigger(3).await.unwrap();
        for timeout in [Duration::ZERO, Duration::from_millis(3)] {
            let error = run.wait().timeout(timeout).await.unwrap_err();
            assert!(
                matches!(error, Error::WaitTimeout { run: id, timeout: told } if id == run.id() && told == timeout)
            );
            assert_eq!(error.advice(), durably::Advice::Retry);
        }
        let error = jobs.trigger_and_wait(4).timeout(Duration::ZERO).await.unwrap_err();
        assert!(matches!(error, Error::WaitTimeout { .. }), "{error}");
        gate.open();
        assert_eq!(run.output().await.unwrap(), 3);
    })
    .await;
}

#[tokio::test]
async fn p_wait_08_callbacks_get_progress_and_lines_of_that_run() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step: Step, input, ()| async move {
            step.progress(input as usize, 9).message("so far");
            step.run("a", || async {
                step.log().warn("hello", input);
                Ok(())
            })
            .await?;
            Ok(input)
        });
        let jobs = durably.register(job).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let (progress, lines) = (told.clone(), told.clone());
        let wait = jobs
            .trigger_and_wait(4)
            .on_progress(move |p| progress.lock().unwrap().push(format!("{} {:?} {:?}", p.current, p.total, p.message)))
            .on_log(move |l| {
                lines.lock().unwrap().push(format!("{:?} {} {} {:?}", l.level, l.message, l.data, l.step_name));
            });
        let (finished, other) = tokio::join!(wait, jobs.trigger_and_wait(5));
        assert_eq!((finished.unwrap().output, other.unwrap().output), (4, 5));
        assert_eq!(*told.lock().unwrap(), [r#"4 Some(9) Some("so far")"#, r#"Warn hello 4 Some("a")"#]);
    })
    .await;
}

#[tokio::test]
async fn p_wait_08_a_run_that_is_over_before_the_wait_begins_still_tells_what_it_told() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step: Step, input, ()| async move {
            step.progress(input as usize, None);
            Ok(input)
        });
        let jobs = durably.register(job).unwrap();
        for input in 0..200 {
            let told = Arc::new(Mutex::new(Vec::new()));
            let telling = told.clone();
            let wait = jobs.trigger_and_wait(input).on_progress(move |p| telling.lock().unwrap().push(p.current));
            wait.await.unwrap();
            assert_eq!(*told.lock().unwrap(), [u64::from(input)]);
        }
    })
    .await;
}

#[tokio::test]
async fn p_wait_09_trigger_and_wait_takes_every_option_and_gives_id_output_disposition() {
    within(async {
        let durably = memory().await;
        let jobs = durably.register(echo("job")).unwrap();
        let first = jobs
            .trigger_and_wait(1)
            .idempotency_key("i")
            .concurrency_key("k")
            .label("a", "b")
            .timeout(Duration::from_secs(10))
            .await
            .unwrap();
        assert_eq!((first.output, first.disposition), (1, Disposition::Created));
        let again = jobs.trigger_and_wait(1).idempotency_key("i").await.unwrap();
        assert_eq!((again.id, again.output, again.disposition), (first.id, 1, Disposition::Idempotent));
    })
    .await;
}

#[tokio::test]
async fn a_wait_ends_with_the_runtime() {
    within(async {
        let durably = paused().await;
        let jobs = durably.register(echo("job")).unwrap();
        let run = jobs.trigger(1).await.unwrap();
        let mut wait = Box::pin(run.output());
        assert!(futures::poll!(&mut wait).is_pending());
        let (shut, waited) = tokio::join!(durably.shutdown(), wait);
        shut.unwrap();
        assert!(matches!(waited, Err(Error::ShutDown)));
    })
    .await;
}

#[tokio::test]
async fn an_output_of_another_type_is_a_decode_error() {
    within(async {
        let durably = memory().await;
        let jobs = durably.register(echo("job")).unwrap();
        let run = jobs.trigger(1).await.unwrap();
        let record = durably.wait_for_run(run.id()).await.unwrap();
        assert!(matches!(record.output_as::<String>(), Err(Error::Decode { what: "output", .. })));
    })
    .await;
}

#[tokio::test]
async fn an_output_that_is_not_there_is_no_null() {
    fn assert_absent(run: &Run) {
        let nothing = run.output_as::<()>();
        assert!(matches!(nothing, Err(Error::Decode { what: "output", .. })), "{nothing:?}");
        let optional = run.output_as::<Option<u32>>();
        assert!(matches!(optional, Err(Error::Decode { what: "output", .. })), "{optional:?}");
    }
    within(async {
        let durably = paused().await;
        let jobs = durably.register(job_with("job", (), |_: Step, _, ()| async move { Ok(()) })).unwrap();
        let run = jobs.trigger(1).await.unwrap();
        assert_absent(&run.get().await.unwrap());
        durably.run_until_idle(None).await.unwrap();
        assert_absent(&jobs.get_runs(RunFilter::new().without_payloads()).await.unwrap()[0]);
        let record = run.get().await.unwrap();
        record.output_as::<()>().expect("is null");
        assert_eq!(record.output_as::<Option<u32>>().unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn a_body_that_fails_with_a_run_it_waited_for_has_the_chain_of_that_ones_error() {
    within(async {
        let durably = memory().await;
        let child = Job::new("child", |_: Step, input: u32| async move {
            Err::<u32, _>(JobError::msg(format!("disk {input}")).context("reading"))
        });
        let child = durably.register(child).unwrap();
        let parent = job_with("parent", child, |_: Step, input, child: JobHandle<u32, u32>| async move {
            Ok(child.trigger_and_wait(input).await?.output)
        });
        let run = durably.register(parent).unwrap().trigger(7).await.unwrap();
        let error = ended(&durably, run.id()).await.error.unwrap();
        assert_eq!((error.message.as_str(), error.chain), ("run failed: reading", vec!["disk 7".to_owned()]));
    })
    .await;
}

/// A job that triggers a run of another and waits for it, with a key for that one if there is one.
fn parent(name: &str, children: JobHandle<u32, u32>, key: Option<&'static str>) -> durably::Job<u32, String> {
    job_with(name, children, move |_: Step, input, children: JobHandle<u32, u32>| async move {
        let child = match key {
            Some(key) => children.trigger(input).concurrency_key(key).await?,
            None => children.trigger(input).await?,
        };
        Ok(match child.output().await {
            Ok(output) => output.to_string(),
            Err(error @ Error::WouldDeadlock { .. }) => {
                child.cancel().await.ok();
                format!("{:?}", error.advice())
            }
            Err(error) => return Err(error.into()),
        })
    })
}

#[tokio::test]
async fn waiting_inside_a_body_for_its_own_key_is_a_typed_error() {
    within(async {
        let durably = memory().await;
        let children = durably.register(echo("child")).unwrap();
        let parents = durably.register(parent("parent", children, Some("k"))).unwrap();
        let own = parents.trigger(1).concurrency_key("k").await.unwrap();
        assert_eq!(own.output().await.unwrap(), "Change");
        let other = parents.trigger(1).concurrency_key("other").await.unwrap();
        assert_eq!(other.output().await.unwrap(), "1");
    })
    .await;
}

#[tokio::test]
async fn waiting_inside_a_body_for_the_last_slot_is_a_typed_error() {
    within(async {
        for (slots, wanted) in [(1, "Change"), (2, "1")] {
            let durably = Durably::builder().max_concurrent_runs(slots).in_memory().await.unwrap();
            let children = durably.register(echo("child")).unwrap();
            let parents = durably.register(parent("parent", children, None)).unwrap();
            assert_eq!(parents.trigger_and_wait(1).await.unwrap().output, wanted);
        }
    })
    .await;
}

#[tokio::test]
async fn the_last_of_several_parents_that_fill_every_slot_is_told() {
    within(async {
        let durably = Durably::builder().max_concurrent_runs(3).in_memory().await.unwrap();
        let children = durably.register(echo("child")).unwrap();
        let gate = Gate::new();
        let job = job_with("parent", (children, gate.clone()), |_: Step, input, (children, gate)| async move {
            let child = children.trigger(input).await?;
            gate.pass().await;
            Ok(match child.output().await {
                Ok(_) => 0,
                Err(Error::WouldDeadlock { .. }) => 1,
                Err(error) => return Err(error.into()),
            })
        });
        let parents = durably.register(job).unwrap();
        let runs = parents.batch_trigger([1, 2, 3]).await.unwrap();
        gate.reached_by(3).await;
        gate.open();
        let mut refused = 0;
        for run in runs {
            refused += run.output().await.unwrap();
        }
        assert_eq!(refused, 1);
    })
    .await;
}

#[tokio::test]
async fn waiting_in_a_circle_is_a_typed_error_for_the_one_that_closes_it() {
    within(async {
        let durably = memory().await;
        let ids: Arc<Mutex<Vec<RunId>>> = Arc::default();
        let gate = Gate::new();
        let (weak, ids_of, gate_of) = (durably.clone(), ids.clone(), gate.clone());
        let job = job_with("job", (weak, ids_of, gate_of), |_: Step, input, (durably, ids, gate)| async move {
            gate.pass().await;
            // Each waits for the next, the last for the first; the input 3 is one that waits for itself.
            let awaited =
                if input == 3 { ids.lock().unwrap()[3] } else { ids.lock().unwrap()[(input as usize + 1) % 3] };
            Ok(match durably.wait_for_run(awaited).await {
                Ok(_) => 0,
                Err(Error::WouldDeadlock { run }) if run == awaited => 1,
                Err(error) => return Err(error.into()),
            })
        });
        let jobs = durably.register(job).unwrap();
        let runs = jobs.batch_trigger(0..4).await.unwrap();
        *ids.lock().unwrap() = runs.iter().map(durably::RunHandle::id).collect();
        gate.reached_by(4).await;
        gate.open();
        assert_eq!(runs[3].output().await.unwrap(), 1);
        let mut refused = 0;
        for run in &runs[..3] {
            refused += run.output().await.unwrap();
        }
        assert_eq!(refused, 1);
        durably.shutdown().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_body_may_wait_for_two_runs_of_which_one_ends_later() {
    within(async {
        let durably = Durably::builder().max_concurrent_runs(2).in_memory().await.unwrap();
        let gate = Gate::new();
        let children = durably.register(gated("child", &gate)).unwrap();
        let job = job_with("parent", children, |_: Step, _, children: JobHandle<u32, u32>| async move {
            let (a, b) = (children.trigger(1).await?, children.trigger(2).await?);
            let (a, b) = tokio::try_join!(a.output(), b.output())?;
            Ok(a + b)
        });
        let parents = durably.register(job).unwrap();
        let run = parents.trigger(0).await.unwrap();
        gate.reached().await;
        gate.open();
        assert_eq!(run.output().await.unwrap(), 3);
    })
    .await;
}

#[tokio::test]
async fn a_wait_that_another_body_can_bring_to_its_end_is_not_refused() {
    within(async {
        // `free` goes on, so `first` gets its child, so `second` goes on, so the key comes free for `third`'s child.
        let durably = Durably::builder().max_concurrent_runs(4).in_memory().await.unwrap();
        let (free, ready) = (Gate::new(), Gate::new());
        let (children, frees) = durably.register((echo("child"), gated("free", &free))).unwrap();
        let first =
            job_with("first", (children.clone(), ready.clone()), |_: Step, input, (children, ready)| async move {
                ready.pass().await;
                Ok(children.trigger(input).await?.output().await?)
            });
        let firsts = durably.register(first).unwrap();
        let ids: Arc<Mutex<Option<RunId>>> = Arc::default();
        let second =
            job_with("second", (durably.clone(), ids.clone()), |step: Step, input, (durably, ids)| async move {
                let first = ids.lock().unwrap().unwrap_or(step.run_id());
                durably.wait_for_run(first).await?;
                Ok(input)
            });
        let seconds = durably.register(second).unwrap();
        let thirds = durably.register(parent("third", children, Some("k"))).unwrap();
        let run = firsts.trigger(1).await.unwrap();
        *ids.lock().unwrap() = Some(run.id());
        ready.reached().await;
        seconds.trigger(2).concurrency_key("k").await.unwrap();
        frees.trigger(3).await.unwrap();
        free.reached().await;
        let mut events = durably.events();
        let third = thirds.trigger(4).await.unwrap();
        // The child of `third` is there, so it is about to wait, or waits.
        crate::support::next_event(&mut events, |event| {
            event.kind.name() == "run:trigger" && event.run_id > third.id()
        })
        .await;
        ready.open();
        free.open();
        assert_eq!(third.output().await.unwrap(), "4");
        run.output().await.unwrap();
        durably.shutdown().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_wait_that_was_dropped_before_its_answer_is_in_no_other_waits_way() {
    within(async {
        let durably = Durably::builder().max_concurrent_runs(2).in_memory().await.unwrap();
        let (ready, asked, dropped) = (Gate::new(), Gate::new(), Gate::new());
        let children = durably.register(echo("child")).unwrap();
        let awaited: Arc<Mutex<Option<RunId>>> = Arc::default();
        let shared = (durably.clone(), awaited.clone(), ready.clone(), asked.clone());
        let waits = job_with("waits", shared, |_, input, (durably, awaited, ready, asked)| async move {
            ready.pass().await;
            let run = awaited.lock().unwrap().expect("it is triggered");
            let mut waiting = durably.wait_for_run(run).into_future();
            let polled = futures::poll!(&mut waiting);
            drop(asked.enter());
            match polled {
                Poll::Ready(ended) => ended?,
                Poll::Pending => waiting.await?,
            };
            Ok(input)
        });
        let drops = job_with("drops", (children, dropped.clone()), |_, input, (children, dropped)| async move {
            let child = children.trigger(input).await?;
            // There is no slot for it, so it can't have ended.
            assert!(child.output().now_or_never().is_none());
            dropped.pass().await;
            Ok(input)
        });
        let (waits, drops) = durably.register((waits, drops)).unwrap();
        let waits = waits.trigger(1).await.unwrap();
        ready.reached().await;
        let drops = drops.trigger(2).await.unwrap();
        *awaited.lock().unwrap() = Some(drops.id());
        dropped.reached().await;
        ready.open();
        asked.reached().await;
        dropped.open();
        assert_eq!((waits.output().await.unwrap(), drops.output().await.unwrap()), (1, 2));
    })
    .await;
}
