//! Steps: what is recorded, what is matched, what a body gets.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use durably::{Durably, ErrorKind, JobError, JobResult, RunStatus, Step, StepRetention, StepStatus, Won};
use futures::TryFutureExt;
use futures::future::{join, try_join_all};

use crate::support::{Count, Gate, TempFile, ended, job_with, memory, run_of, within};

#[tokio::test]
async fn p_step_01_a_step_runs_once_is_stored_and_gives_its_result() {
    within(async {
        let durably = memory().await;
        let calls = Count::default();
        let job = job_with("job", calls.clone(), |step, input, calls| async move {
            step.run("double", || async { Ok(input * 2 + calls.up() as u32) }).await
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(4).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 9);
        let steps = durably.get_steps(run.id()).await.unwrap();
        assert_eq!((steps.len(), steps[0].name.as_str(), steps[0].output.clone()), (1, "double", Some(9.into())));
        assert_eq!(calls.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn p_step_01_a_failed_step_is_stored_and_its_error_reaches_the_body_as_data() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step, _, ()| async move {
            let error = step
                .run("bad", || async {
                    let io = std::io::Error::other("disk");
                    Err::<u32, _>(JobError::from(anyhow::Error::new(io).context("reading")).context("loading"))
                })
                .await
                .unwrap_err();
            Ok(format!("{:?} {} {:?} {:?}", error.kind(), error, error.chain().collect::<Vec<_>>(), error.step()))
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        assert_eq!(run.output().await.unwrap(), r#"Error loading ["reading", "disk"] Some("bad")"#);
        let step = &durably.get_steps(run.id()).await.unwrap()[0];
        let error = step.error.clone().unwrap();
        assert_eq!((step.status, error.message.as_str()), (StepStatus::Failed, "loading"));
        assert_eq!((error.chain, error.step.as_deref()), (vec!["reading".into(), "disk".into()], Some("bad")));
    })
    .await;
}

#[tokio::test]
async fn p_step_02_a_completed_step_is_not_run_again_and_tells_nothing() {
    within(async {
        let durably = memory().await;
        let (calls, tries) = (Count::default(), Count::default());
        let job = job_with("job", (calls.clone(), tries.clone()), |step, _, (calls, tries)| async move {
            let a: usize = step.run("a", || async { Ok(calls.up()) }).await?;
            if tries.up() == 1 {
                return Err("not yet".into());
            }
            Ok(a)
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        assert_eq!(ended(&durably, run.id()).await.status, RunStatus::Failed);
        let mut events = durably.subscribe(run.id()).await.unwrap();
        drop(events.next().await);
        let mut all = durably.events();
        durably.resume(run.id()).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 1);
        assert_eq!((calls.get(), tries.get()), (1, 2));
        let mut names = Vec::new();
        while names.last() != Some(&"run:complete") {
            names.extend(all.next().await.unwrap().event().map(|event| event.kind.name()));
        }
        assert_eq!(names, ["run:resume", "run:leased", "run:complete"]);
    })
    .await;
}

#[tokio::test]
async fn p_step_03_steps_are_matched_by_key_and_never_by_position() {
    within(async {
        let durably = memory().await;
        let (calls, tries) = (Count::default(), Count::default());
        let job = job_with("job", (calls.clone(), tries.clone()), |step, _, (calls, tries)| async move {
            let count = |key: &'static str| {
                let calls = calls.clone();
                step.run(key, move || {
                    let calls = calls.clone();
                    async move {
                        calls.up();
                        Ok(key.to_owned())
                    }
                })
            };
            if tries.up() == 1 {
                count("a").await?;
                count("b").await?;
                return Err("again".into());
            }
            Ok([count("new").await?, count("b").await?, count("a").await?].concat())
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        ended(&durably, run.id()).await;
        durably.resume(run.id()).await.unwrap();
        assert_eq!(run.output().await.unwrap(), "newba");
        assert_eq!(calls.get(), 3);
        let steps = durably.get_steps(run.id()).await.unwrap();
        let steps: Vec<_> = steps.iter().map(|step| (step.index, step.name.as_str())).collect();
        assert_eq!(steps, [(0, "a"), (1, "b"), (2, "new")]);
    })
    .await;
}

#[tokio::test]
async fn p_step_04_a_final_failure_is_a_checkpoint_and_fails_again_without_running() {
    within(async {
        let durably = memory().await;
        let (calls, tries) = (Count::default(), Count::default());
        let job = job_with("job", (calls.clone(), tries.clone()), |step, _, (calls, tries)| async move {
            let caught = step
                .run("flaky", || async {
                    calls.up();
                    Err::<u32, _>("down".into())
                })
                .await
                .unwrap_err();
            if tries.up() == 1 {
                return Err("later".into());
            }
            Ok(format!("{:?} {} {:?}", caught.kind(), caught, caught.step()))
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        ended(&durably, run.id()).await;
        durably.resume(run.id()).await.unwrap();
        assert_eq!(run.output().await.unwrap(), r#"Error down Some("flaky")"#);
        assert_eq!(calls.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn p_step_05_a_step_record_says_what_where_when() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step, _, ()| async move {
            step.run(("sync", 42), || async { Ok(1) }).await?;
            step.run("bad", || async { Err::<(), _>("no".into()) }).await.ok();
            Ok(())
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        run.output().await.unwrap();
        let steps = durably.get_steps(run.id()).await.unwrap();
        let names: Vec<_> = steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(names, ["sync[42]", "bad"]);
        let record = run_of(&durably, run.id()).await;
        for step in &steps {
            assert_eq!((step.run_id, step.attempts), (run.id(), 1));
            assert!(record.started_at.unwrap() <= step.started_at && step.started_at <= step.completed_at);
            assert!(step.completed_at <= record.completed_at.unwrap());
        }
        assert_eq!((steps[0].status, steps[1].status), (StepStatus::Completed, StepStatus::Failed));
        assert_eq!((&steps[0].error, &steps[1].output), (&None, &None));
    })
    .await;
}

#[tokio::test]
async fn p_step_06_an_index_is_given_at_the_call_also_in_join() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let job = job_with("job", gate.clone(), |step, _, gate| async move {
            // The first of the two ends last.
            let slow = step.run("slow", || async {
                gate.pass().await;
                Ok(())
            });
            let (slow, quick) = tokio::join!(slow, step.run("quick", || async { Ok(()) }));
            slow?;
            quick?;
            step.run("last", || async { Ok(()) }).await
        });
        let jobs = durably.register(job).unwrap();
        let mut events = durably.events();
        let run = jobs.trigger(0).await.unwrap();
        gate.reached().await;
        crate::support::next_event(&mut events, |event| event.kind.name() == "step:complete").await;
        let half = run_of(&durably, run.id()).await;
        assert_eq!((half.current_step_index, half.completed_step_count), (2, 1));
        gate.open();
        run.output().await.unwrap();
        let steps = durably.get_steps(run.id()).await.unwrap();
        let steps: Vec<_> = steps.iter().map(|step| (step.index, step.name.as_str())).collect();
        assert_eq!(steps, [(0, "slow"), (1, "quick"), (2, "last")]);
        let whole = run_of(&durably, run.id()).await;
        assert_eq!((whole.current_step_index, whole.completed_step_count), (3, 3));
    })
    .await;
}

#[tokio::test]
async fn p_step_06_a_failed_step_counts_for_neither_counter() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step, _, ()| async move {
            step.run("a", || async { Ok(()) }).await?;
            step.run("b", || async { Err::<(), _>("no".into()) }).await.ok();
            Ok(())
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        run.output().await.unwrap();
        let record = run_of(&durably, run.id()).await;
        assert_eq!((record.current_step_index, record.completed_step_count), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn p_step_07_indexes_do_not_drift_over_resumes_and_recoveries() {
    within(async {
        let file = TempFile::new();
        let (tries, parked) = (Count::default(), Gate::new());
        let job = job_with("job", (tries.clone(), parked.clone()), |step, _, (tries, parked)| async move {
            step.run("a", || async { Ok(()) }).await?;
            match tries.up() {
                1 => return Err("again".into()),
                2 => {
                    step.run("b", || async { Ok(()) }).await?;
                    parked.pass().await;
                }
                _ => {}
            }
            step.run("b", || async { Ok(()) }).await?;
            step.run("c", || async { Ok(()) }).await
        });
        let durably = file.open().await;
        let run = durably.register(job.clone()).unwrap().trigger(0).await.unwrap().id();
        ended(&durably, run).await;
        durably.resume(run).await.unwrap();
        parked.reached().await;
        drop(durably);
        let durably = file.open().await;
        durably.register(job).unwrap();
        let record = durably.wait_for_run(run).await.unwrap();
        assert_eq!((record.current_step_index, record.completed_step_count), (3, 3));
        let steps = durably.get_steps(run).await.unwrap();
        let steps: Vec<_> = steps.iter().map(|step| (step.index, step.name.as_str())).collect();
        assert_eq!(steps, [(0, "a"), (1, "b"), (2, "c")]);
    })
    .await;
}

#[tokio::test]
async fn p_step_08_a_key_used_twice_names_both_call_sites_and_the_body_learns_nothing() {
    within(async {
        let durably = memory().await;
        let went_on = Count::default();
        let first = line!() + 2;
        let job = job_with("job", went_on.clone(), |step, _, went_on| async move {
            step.run("same", || async { Ok(1) }).await?;
            let caught = step.run("same", || async { Ok(2) }).await;
            went_on.up();
            Ok(caught.unwrap_or(3))
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        let record = ended(&durably, run.id()).await;
        let error = record.error.unwrap();
        assert_eq!((record.status, error.kind), (RunStatus::Failed, ErrorKind::StepReused));
        for line in [first, first + 1] {
            assert!(error.message.contains(&format!("steps.rs:{line}:")), "{line}: {}", error.message);
        }
        assert!(error.message.contains("\"same\""), "{}", error.message);
        assert_eq!(went_on.get(), 0);
    })
    .await;
}

#[tokio::test]
async fn p_step_09_two_parallel_steps_of_one_key_are_a_key_used_twice() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step, _, ()| async move {
            let (a, b) = join(step.run("same", || async { Ok(1) }), step.run("same", || async { Ok(2) })).await;
            Ok(a.unwrap_or(0) + b.unwrap_or(0))
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        assert_eq!(ended(&durably, run.id()).await.error.unwrap().kind, ErrorKind::StepReused);
    })
    .await;
}

#[tokio::test]
async fn p_step_09_steps_side_by_side_over_borrowed_items() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let job = job_with("job", gate.clone(), |step, count, gate| async move {
            let items: Vec<u32> = (0..count).collect();
            let gate = &gate;
            let all = items.iter().map(|item| {
                step.run(("item", item), move || async move {
                    gate.pass().await;
                    Ok(item * 2)
                })
            });
            Ok(try_join_all(all).await?.into_iter().sum::<u32>())
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(8).await.unwrap();
        gate.reached_by(8).await;
        gate.open();
        assert_eq!(run.output().await.unwrap(), 56);
        assert_eq!(durably.get_steps(run.id()).await.unwrap().len(), 8);
    })
    .await;
}

#[tokio::test]
async fn p_step_13_tokens_are_not_fired_at_the_start() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step, _, ()| async move {
            let (cancelled, draining) = (step.cancelled(), step.draining());
            let inside = step.run_with("a", |cx| async move { Ok(cx.cancelled().is_cancelled()) }).await?;
            Ok([cancelled.is_cancelled(), draining.is_cancelled(), inside])
        });
        let jobs = durably.register(job).unwrap();
        assert_eq!(jobs.trigger(0).await.unwrap().output().await.unwrap(), [false; 3]);
    })
    .await;
}

#[tokio::test]
async fn p_step_15_a_body_may_catch_a_step_error_and_complete() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step, _, ()| async move {
            let failed = step.run("a", || async { Err::<u32, _>("no".into()) }).await.is_err();
            Ok((failed, step.run("b", || async { Ok(7) }).await?))
        });
        let jobs = durably.register(job).unwrap();
        assert_eq!(jobs.trigger(0).await.unwrap().output().await.unwrap(), (true, 7));
    })
    .await;
}

#[tokio::test]
async fn p_step_16_steps_are_kept_as_long_as_their_run_or_until_it_ends() {
    within(async {
        for (retention, kept) in [(StepRetention::WithRun, 2), (StepRetention::UntilTerminal, 0)] {
            let durably = Durably::builder().keep_steps(retention).in_memory().await.unwrap();
            let gate = Gate::new();
            let job = job_with("job", gate.clone(), |step, input, gate| async move {
                step.run("a", || async { Ok(()) }).await?;
                step.run("b", || async { Ok(()) }).await?;
                gate.pass().await;
                if input == 0 { Err("no".into()) } else { Ok(()) }
            });
            let jobs = durably.register(job).unwrap();
            let runs = jobs.batch_trigger([0, 1, 2]).await.unwrap();
            gate.reached_by(3).await;
            // P-STEP-17: on every way to end, a cancel included.
            durably.cancel(runs[2].id()).await.unwrap();
            gate.open();
            for run in &runs {
                ended(&durably, run.id()).await;
                assert_eq!(durably.get_steps(run.id()).await.unwrap().len(), kept, "{retention:?}");
                assert_eq!(run_of(&durably, run.id()).await.completed_step_count, 2, "{retention:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn p_step_16_a_run_resumed_without_its_steps_starts_from_the_first() {
    within(async {
        let durably = Durably::builder().keep_steps(StepRetention::UntilTerminal).in_memory().await.unwrap();
        let calls = Count::default();
        let job = job_with("job", calls.clone(), |step, _, calls| async move {
            let call = step.run("a", || async { Ok(calls.up()) }).await?;
            if call == 1 { Err("again".into()) } else { Ok(call) }
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        ended(&durably, run.id()).await;
        durably.resume(run.id()).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 2);
        let record = run_of(&durably, run.id()).await;
        assert_eq!((record.completed_step_count, record.current_step_index), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn p_step_21_a_body_knows_its_run() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step: Step, _, ()| async move { Ok(step.run_id().to_string()) });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        assert_eq!(run.output().await.unwrap(), run.id().to_string());
    })
    .await;
}

#[tokio::test]
async fn a_step_dropped_in_select_releases_its_key_and_stores_nothing() {
    within(async {
        let durably = memory().await;
        let calls = Count::default();
        let job = job_with("job", calls.clone(), |step, _, calls| async move {
            tokio::select! {
                biased;
                _ = step.run("a", || async { calls.up(); std::future::pending::<durably::JobResult<u32>>().await }) => {}
                () = tokio::task::yield_now() => {}
            }
            step.run("a", || async { Ok(calls.up()) }).await
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 2);
        assert_eq!(durably.get_steps(run.id()).await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_step_dropped_before_its_first_poll_leaves_its_key_free() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step, _, ()| async move {
            drop(step.run("a", || async { Ok(1) }));
            step.run("a", || async { Ok(2) }).await
        });
        let jobs = durably.register(job).unwrap();
        assert_eq!(jobs.trigger(0).await.unwrap().output().await.unwrap(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_result_handed_over_and_then_dropped_is_given_to_the_next_call() {
    within(async {
        let durably = memory().await;
        let calls = Count::default();
        let job = job_with("job", calls.clone(), |step, _, calls| async move {
            // One poll runs the body and hands its result to the writer; what comes after waits for the disk.
            for _ in 0..3 {
                let mut dropped = step.run("a", || async { Ok(calls.up()) });
                if let std::task::Poll::Ready(value) = futures::poll!(&mut dropped) {
                    return value;
                }
            }
            step.run("a", || async { Ok(calls.up()) }).await
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 1);
        assert_eq!((calls.get(), durably.get_steps(run.id()).await.unwrap().len()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn a_step_inside_a_step_is_a_typed_error_and_the_body_learns_nothing() {
    within(async {
        let durably = memory().await;
        let went_on = Count::default();
        let job = job_with("job", went_on.clone(), |step, _, went_on| async move {
            let inner = step.clone();
            let caught = step.run("outer", || async { inner.run("inner", || async { Ok(1) }).await }).await;
            went_on.up();
            Ok(caught.unwrap_or(0))
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        let error = ended(&durably, run.id()).await.error.unwrap();
        assert_eq!((error.kind, went_on.get()), (ErrorKind::StepNested, 0));
        assert!(error.message.contains("\"inner\"") && error.message.contains("\"outer\""), "{}", error.message);
    })
    .await;
}

#[tokio::test]
async fn a_step_kept_beyond_its_body_is_a_typed_error() {
    within(async {
        let durably = memory().await;
        let (sender, mut kept) = tokio::sync::mpsc::unbounded_channel::<Step>();
        let job = job_with("job", sender, |step, _, sender| async move {
            sender.send(step).ok();
            Ok(())
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        run.output().await.unwrap();
        let step = kept.recv().await.unwrap();
        let calls = Count::default();
        let error = step.run("late", || async { Ok(calls.up()) }).await.unwrap_err();
        assert_eq!((error.kind(), calls.get()), (ErrorKind::Detached, 0));
        step.log().info("late", ());
        let _ = step.progress(1, None);
        assert_eq!(durably.get_steps(run.id()).await.unwrap().len(), 0);
        assert_eq!(durably.get_logs(run.id()).await.unwrap().len(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_step_key_of_no_or_too_many_bytes_ends_the_run() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step, bytes, ()| async move {
            step.run("k".repeat(bytes as usize), || async { Ok(()) }).await.ok();
            Ok(())
        });
        let jobs = durably.register(job).unwrap();
        for (bytes, status) in [(0, RunStatus::Failed), (1_024, RunStatus::Completed), (1_025, RunStatus::Failed)] {
            let run = jobs.trigger(bytes).await.unwrap();
            let record = ended(&durably, run.id()).await;
            assert_eq!(record.status, status, "{bytes} bytes");
            if let Some(error) = record.error {
                assert_eq!(error.kind, ErrorKind::OverLimit);
                assert!(error.message.contains(&format!("{bytes} bytes")), "{}", error.message);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_checkpoint_over_its_limit_is_a_step_error_that_names_size_and_limit() {
    within(async {
        let durably = Durably::builder().payload_bytes_max(100).in_memory().await.unwrap();
        let job = job_with("job", (), |step, _, ()| async move {
            step.run("fits", || async { Ok("x".repeat(98)) }).await?;
            let error = step.run("large", || async { Ok("x".repeat(99)) }).await.unwrap_err();
            Ok(format!("{:?} {error}", error.kind()))
        });
        let jobs = durably.register(job).unwrap();
        let output = jobs.trigger(0).await.unwrap().output().await.unwrap();
        assert!(output.starts_with("OverLimit") && output.contains("101") && output.contains("100"), "{output}");
    })
    .await;
}

#[tokio::test]
async fn a_timeout_drops_the_step_and_is_its_outcome() {
    within(async {
        let durably = memory().await;
        let (dropped, tries) = (Count::default(), Count::default());
        let job = job_with("job", (dropped.clone(), tries.clone()), |step, _, (dropped, tries)| async move {
            let error = step
                .run("slow", || async {
                    let _guard = crate::support::OnDrop(dropped.clone());
                    std::future::pending::<durably::JobResult<u32>>().await
                })
                .timeout(Duration::from_millis(1))
                .await
                .unwrap_err();
            if tries.up() == 1 {
                return Err("again".into());
            }
            Ok(format!("{:?} {:?}", error.kind(), error.step()))
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        ended(&durably, run.id()).await;
        let step = &durably.get_steps(run.id()).await.unwrap()[0];
        assert_eq!(step.error.as_ref().unwrap().kind, ErrorKind::Timeout);
        durably.resume(run.id()).await.unwrap();
        assert_eq!(run.output().await.unwrap(), r#"Timeout Some("slow")"#);
        assert_eq!(dropped.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn an_effect_key_is_the_same_over_resume_and_recovery_and_new_on_retrigger() {
    within(async {
        let file = TempFile::new();
        let (keys, mut seen) = tokio::sync::mpsc::unbounded_channel::<(String, u32)>();
        let tries = Count::default();
        let parked = Gate::new();
        let job = job_with("job", (keys, tries.clone(), parked.clone()), |step, _, (keys, tries, parked)| async move {
            let other = step.run_with("other", |cx| async move { Ok(cx.effect_key()) }).await?;
            let attempt = tries.up();
            step.run_with("pay", |cx| {
                let (keys, parked) = (keys.clone(), parked.clone());
                async move {
                    keys.send((cx.effect_key(), cx.attempt())).ok();
                    if attempt == 2 {
                        parked.pass().await;
                    }
                    if attempt == 1 { Err("again".into()) } else { Ok(()) }
                }
            })
            .await?;
            Ok(other)
        });
        let durably = file.open().await;
        let jobs = durably.register(job.clone()).unwrap();
        let run = jobs.trigger(0).await.unwrap().id();
        ended(&durably, run).await;
        durably.resume(run).await.unwrap();
        parked.reached().await;
        drop(durably);
        let durably = file.open().await;
        durably.register(job).unwrap();
        let other: String = durably.wait_for_run(run).await.unwrap().output_as().unwrap();
        let again = durably.retrigger(run).await.unwrap();
        again.output().await.unwrap();
        let mut of_runs = Vec::new();
        for _ in 0..4 {
            of_runs.push(seen.recv().await.unwrap());
        }
        assert!(of_runs.iter().all(|(_, attempt)| *attempt == 1));
        let first = &of_runs[0].0;
        assert!(of_runs[..3].iter().all(|(key, _)| key == first), "{of_runs:?}");
        assert_ne!(&of_runs[3].0, first);
        assert_ne!(&other, first);
        assert!(first.len() == 32 && first.bytes().all(|byte| byte.is_ascii_hexdigit()), "{first}");
    })
    .await;
}

#[tokio::test]
async fn a_blocking_step_gives_its_value_its_error_and_its_panic() {
    within(async {
        let durably = memory().await;
        let job = job_with("job", (), |step, input, ()| async move {
            let value = step.run_blocking("value", move || Ok(input + 1)).await?;
            let error = step.run_blocking("error", || Err::<u32, _>("no".into())).await.unwrap_err();
            if input == 1 {
                step.run_blocking("panic", || -> durably::JobResult<u32> { panic!("blocked out") }).await.ok();
            }
            Ok((value, error.to_string()))
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        assert_eq!(run.output().await.unwrap(), (1, "no".into()));
        let run = jobs.trigger(1).await.unwrap();
        let error = ended(&durably, run.id()).await.error.unwrap();
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Panic, "blocked out"));
        // The thread it was on works on.
        let run = jobs.trigger(0).await.unwrap();
        run.output().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn blocking_steps_are_bounded_by_the_runtimes_own_threads() {
    within(async {
        let durably = Durably::builder().blocking_threads(2).in_memory().await.unwrap();
        let gate = Gate::new();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(held));
        let job = job_with("job", (gate.clone(), held), |step, input, (gate, held)| async move {
            step.run_blocking("block", move || {
                let _inside = gate.enter();
                held.lock().unwrap().recv().ok();
                Ok(input)
            })
            .await
        });
        let jobs = durably.register(job).unwrap();
        let runs = jobs.batch_trigger(0..6).await.unwrap();
        gate.reached_by(2).await;
        for _ in 0..6 {
            release.send(()).unwrap();
        }
        for run in runs {
            run.output().await.unwrap();
        }
        assert_eq!((gate.arrivals(), gate.most_inside()), (6, 2));
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_blocking_step_holds_key_and_slot_until_it_returns() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(held));
        let job = job_with("job", (gate.clone(), held), |step, input, (gate, held)| async move {
            step.run_blocking("block", move || {
                let _inside = gate.enter();
                if input == 0 {
                    held.lock().unwrap().recv().ok();
                }
                Ok(input)
            })
            .await
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).concurrency_key("k").await.unwrap();
        gate.reached().await;
        run.cancel().await.unwrap();
        let next = jobs.trigger(1).concurrency_key("k").await.unwrap();
        durably.resume(run.id()).await.unwrap();
        jobs.trigger_and_wait(2).await.unwrap();
        for waiting in [next.id(), run.id()] {
            assert_eq!(run_of(&durably, waiting).await.status, RunStatus::Pending);
        }
        release.send(()).unwrap();
        release.send(()).unwrap();
        assert_eq!(next.output().await.unwrap(), 1);
        assert_eq!(run.output().await.unwrap(), 0);
        assert_eq!(gate.most_inside(), 2);
        assert_eq!(run_of(&durably, run.id()).await.lease_generation, 2);
    })
    .await;
}

type Kept = Pin<Box<dyn Future<Output = JobResult<usize>> + Send>>;

#[tokio::test]
async fn a_step_that_is_first_awaited_after_its_body_has_ended_does_not_run() {
    within(async {
        let durably = memory().await;
        let (kept, calls) = (Arc::new(Mutex::new(Vec::<Kept>::new())), Count::default());
        let job = job_with("job", (kept.clone(), calls.clone()), |step: Step, _, (kept, calls)| async move {
            let (in_run, in_map, in_race) = (calls.clone(), calls.clone(), calls);
            let steps: [Kept; 5] = [
                Box::pin(step.run("run", move || std::future::ready(Ok(in_run.up())))),
                Box::pin(step.sleep("sleep", Duration::ZERO).map_ok(|()| 0_usize)),
                Box::pin(step.wait_signal::<usize>("wait", "go")),
                Box::pin(
                    step.map("map", [1]).run(move |_| std::future::ready(Ok(in_map.up()))).map_ok(|all| all.len()),
                ),
                Box::pin(step.race("race").arm("arm", async move { Ok(in_race.up()) }).map_ok(Won::into_inner)),
            ];
            kept.lock().unwrap().extend(steps);
            Ok(())
        });
        let run = durably.register(job).unwrap().trigger(0).await.unwrap();
        run.output().await.unwrap();
        let steps = std::mem::take(&mut *kept.lock().unwrap());
        assert_eq!(steps.len(), 5);
        for step in steps {
            assert_eq!(step.await.unwrap_err().kind(), ErrorKind::Detached);
        }
        assert_eq!((calls.get(), durably.get_steps(run.id()).await.unwrap()), (0, Vec::new()));
    })
    .await;
}
