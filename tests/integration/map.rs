//! Maps: many items under one key, each at least once, none again once it is stored.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use durably::{Durably, Error, ErrorKind, EventKind, Health, Job, JobError, RunStatus, Step, StepKind, StepStatus};
use serde_json::json;

use crate::support::{Count, Gate, TempFile, ended, job_with, memory, next_event, run_of, within, within_minutes};

/// Which items have begun, each as often as it has.
#[derive(Clone, Default)]
struct Begun(Arc<Mutex<Vec<u32>>>);

impl Begun {
    fn note(&self, item: u32) {
        self.0.lock().unwrap().push(item);
    }

    fn take(&self) -> Vec<u32> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

#[tokio::test]
async fn a_map_gives_the_outputs_in_the_order_of_its_items_and_is_one_step() {
    within(async {
        let durably = memory().await;
        let job = Job::new("map", |step: Step, count: u32| async move {
            let words: Vec<String> = (0..count).map(|n| n.to_string()).collect();
            // Items and bodies borrow.
            let suffix = String::from("!");
            let suffix = &suffix;
            let outputs =
                step.map("words", &words).concurrency(7).run(|word| async move { Ok(format!("{word}{suffix}")) });
            Ok(outputs.await?.join(" "))
        });
        let run = durably.register(job).unwrap().trigger(12).await.unwrap();
        assert_eq!(run.output().await.unwrap(), "0! 1! 2! 3! 4! 5! 6! 7! 8! 9! 10! 11!");
        let steps = durably.get_steps(run.id()).await.unwrap();
        assert_eq!(steps.len(), 1, "{steps:?}");
        let items = steps[0].items.unwrap();
        assert_eq!((steps[0].kind, steps[0].status), (StepKind::Map, StepStatus::Completed));
        assert_eq!((items.total, items.completed, items.failed), (12, 12, 0));
        let record = run_of(&durably, run.id()).await;
        let progress = record.progress.unwrap();
        assert_eq!((progress.current, progress.total), (12, Some(12)));
        assert_eq!(record.completed_step_count, 1);
    })
    .await;
}

#[tokio::test]
async fn no_items_are_a_map_and_a_quiet_one_reports_no_progress() {
    within(async {
        let durably = memory().await;
        let job = Job::new("none", |step: Step, count: u32| async move {
            Ok(step.map("none", 0..count).quiet().run(|n| async move { Ok(n) }).await?.len())
        });
        let job = durably.register(job).unwrap();
        for count in [0, 3] {
            let run = job.trigger(count).await.unwrap();
            assert_eq!(run.output().await.unwrap(), count as usize);
            assert!(run_of(&durably, run.id()).await.progress.is_none());
        }
    })
    .await;
}

#[tokio::test]
async fn no_more_items_are_under_way_than_was_asked_for() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let job = job_with("bound", gate.clone(), |step: Step, count, gate| async move {
            let gate = &gate;
            step.map("items", 0..count)
                .concurrency(5)
                .run(|_| async move {
                    let _inside = gate.enter();
                    tokio::task::yield_now().await;
                    Ok(())
                })
                .await?;
            Ok(())
        });
        durably.register(job).unwrap().trigger(500).await.unwrap().output().await.unwrap();
        assert_eq!((gate.arrivals(), gate.most_inside()), (500, 5));
    })
    .await;
}

/// Notes which items begin; those from `stop` on wait at the gate.
fn noted(begun: &Begun, gate: &Gate, stop: u32) -> Job<u32, u64> {
    job_with("noted", (begun.clone(), gate.clone()), move |step: Step, count, (begun, gate)| async move {
        let (begun, gate) = (&begun, &gate);
        let outputs = step
            .map("items", 0..count)
            .concurrency(8)
            .run(|item| async move {
                begun.note(item);
                if item >= stop {
                    gate.pass().await;
                }
                Ok(u64::from(item))
            })
            .await?;
        Ok(outputs.into_iter().sum())
    })
}

/// Waits until the items are on disk.
async fn stored(durably: &Durably, run: durably::RunId, items: u64) {
    loop {
        let steps = durably.get_steps(run).await.unwrap();
        if steps.first().and_then(|step| step.items).is_some_and(|counts| counts.completed == items) {
            assert_eq!(steps.len(), 1, "{steps:?}");
            assert_eq!((steps[0].status, steps[0].output.clone()), (StepStatus::Running, None));
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_crash_in_the_middle_runs_only_what_was_not_stored() {
    within(async {
        let (file, begun, gate) = (TempFile::new(), Begun::default(), Gate::new());
        let id = {
            let durably = file.open().await;
            let run = durably.register(noted(&begun, &gate, 3_000)).unwrap().trigger(5_000).await.unwrap();
            stored(&durably, run.id(), 3_000).await;
            run.id()
        };
        assert_eq!(begun.take(), (0..3_008).collect::<Vec<_>>());
        gate.open();
        let durably = file.open().await;
        durably.register(noted(&begun, &gate, 3_000)).unwrap();
        let run = ended(&durably, id).await;
        assert_eq!(run.output.unwrap(), json!(4_999 * 5_000 / 2));
        assert_eq!(begun.take(), (3_000..5_000).collect::<Vec<_>>());
        drop(durably);
        assert!(durably::verify(file.path()).await.unwrap().is_sound());
    })
    .await;
}

#[tokio::test]
async fn a_map_that_is_done_is_not_run_again() {
    within(async {
        let durably = memory().await;
        let (begun, mut events) = (Begun::default(), durably.events());
        let job = job_with("twice", begun.clone(), |step: Step, count, begun| async move {
            let begun = &begun;
            let items = step.map("items", 0..count).run(|item| async move {
                begun.note(item);
                Ok(item * 2)
            });
            let sum: u32 = items.await?.iter().sum();
            step.wait_signal::<()>("go", "go").await?;
            Ok(sum)
        });
        let run = durably.register(job).unwrap().trigger(100).await.unwrap();
        next_event(&mut events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
        durably.signal(run.id(), "go", &()).await.unwrap();
        assert_eq!((run.output().await.unwrap(), begun.take().len()), (9_900, 100));
        assert_eq!(run_of(&durably, run.id()).await.lease_generation, 2);
    })
    .await;
}

#[tokio::test]
async fn the_first_failure_ends_a_map_and_a_resume_goes_on_with_the_rest() {
    within(async {
        let durably = memory().await;
        let begun = Begun::default();
        let job =
            job_with("fails", (begun.clone(), Count::default()), |step: Step, count, (begun, tries)| async move {
                let (begun, broken) = (&begun, tries.up() == 1);
                let items = step.map("items", 0..count).concurrency(1).run(|item| async move {
                    begun.note(item);
                    if broken && item == 7 { Err(JobError::msg("no paper")) } else { Ok(item) }
                });
                Ok(items.await?.len())
            });
        let run = durably.register(job).unwrap().trigger(20).await.unwrap();
        let failed = ended(&durably, run.id()).await;
        let error = failed.error.unwrap();
        assert_eq!((error.message.as_str(), error.step.as_deref()), ("item 7: no paper", Some("items")));
        assert_eq!(begun.take(), (0..8).collect::<Vec<_>>());
        let steps = durably.get_steps(run.id()).await.unwrap();
        assert_eq!((steps.len(), steps[0].status), (1, StepStatus::Failed));
        assert_eq!(steps[0].items.unwrap().completed, 7);
        durably.resume(run.id()).await.unwrap();
        assert_eq!(ended(&durably, run.id()).await.output.unwrap(), json!(20));
        assert_eq!(begun.take(), (7..20).collect::<Vec<_>>());
    })
    .await;
}

#[tokio::test]
async fn failures_are_collected_and_stay() {
    within(async {
        let durably = memory().await;
        let (begun, mut events) = (Begun::default(), durably.events());
        let job = job_with("some-fail", begun.clone(), |step: Step, count, begun| async move {
            let begun = &begun;
            let items = step.map("items", 0..count).collect_failures().run(|item| async move {
                begun.note(item);
                if item % 4 == 1 { Err(JobError::msg(format!("no {item}"))) } else { Ok(item) }
            });
            let mapped = items.await?;
            let failures: Vec<_> = mapped.failures.iter().map(|(item, error)| format!("{item}: {error}")).collect();
            step.wait_signal::<()>("go", "go").await?;
            Ok(format!("{:?} {failures:?}", mapped.outputs))
        });
        let run = durably.register(job).unwrap().trigger(6).await.unwrap();
        next_event(&mut events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
        durably.signal(run.id(), "go", &()).await.unwrap();
        let output = run.output().await.unwrap();
        assert_eq!(output, "[(0, 0), (2, 2), (3, 3), (4, 4)] [\"1: no 1\", \"5: no 5\"]");
        assert_eq!(begun.take().len(), 6, "what failed is not tried again");
        let items = durably.get_steps(run.id()).await.unwrap()[0].items.unwrap();
        assert_eq!((items.completed, items.failed), (4, 2));
    })
    .await;
}

#[tokio::test]
async fn changed_items_end_the_run_and_nothing_of_it_is_lost() {
    within(async {
        let (file, gate) = (TempFile::new(), Gate::new());
        let job = |first: u32, count: u32| {
            job_with("changed", gate.clone(), move |step: Step, _, gate| async move {
                let gate = &gate;
                let items = step.map("items", first..first + count).concurrency(1).run(|item| async move {
                    if item == 2 {
                        gate.pass().await;
                    }
                    Ok(())
                });
                Ok(items.await?.len())
            })
        };
        let id = {
            let durably = file.open().await;
            let run = durably.register(job(0, 10)).unwrap().trigger(0).await.unwrap();
            stored(&durably, run.id(), 2).await;
            run.id()
        };
        gate.open();
        for (first, count, what) in [(0, 9, "10 items and has 9"), (1, 10, "other ones")] {
            let durably = file.open().await;
            durably.register(job(first, count)).unwrap();
            let error = ended(&durably, id).await.error.unwrap();
            assert_eq!(error.kind, ErrorKind::CheckpointMismatch);
            assert!(error.message.contains(what), "{}", error.message);
            durably.stop().await.unwrap();
            durably.resume(id).await.unwrap();
        }
        let durably = file.open().await;
        durably.register(job(0, 10)).unwrap();
        assert_eq!(ended(&durably, id).await.output.unwrap(), json!(10));
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_keeps_what_is_done_and_hands_back_the_rest() {
    within(async {
        let (file, begun, gate) = (TempFile::new(), Begun::default(), Gate::new());
        let id = {
            let durably = file.open().await;
            let run = durably.register(noted(&begun, &gate, 10)).unwrap().trigger(1_000).await.unwrap();
            gate.reached_by(8).await;
            let closing = durably.clone();
            let stopping = tokio::spawn(async move { closing.shutdown().await });
            while durably.health() != Health::Draining {
                tokio::task::yield_now().await;
            }
            // Those under way end, and no other begins.
            gate.open();
            stopping.await.unwrap().unwrap();
            run.id()
        };
        let first = begun.take();
        let durably = file.open().await;
        let recovered = run_of(&durably, id).await;
        assert_eq!((recovered.status, recovered.recoveries), (RunStatus::Pending, 0));
        durably.register(noted(&begun, &gate, 10)).unwrap();
        assert_eq!(ended(&durably, id).await.output.unwrap(), json!(999 * 1_000 / 2));
        let second = begun.take();
        let both: BTreeSet<u32> = first.iter().chain(&second).copied().collect();
        assert_eq!((both.len(), first.len() + second.len()), (1_000, 1_000), "an item ran twice");
    })
    .await;
}

#[tokio::test]
async fn a_cancel_stops_a_map_and_nothing_more_is_recorded() {
    within(async {
        let durably = memory().await;
        let (begun, gate) = (Begun::default(), Gate::new());
        let run = durably.register(noted(&begun, &gate, 10)).unwrap().trigger(1_000).await.unwrap();
        gate.reached_by(8).await;
        durably.cancel(run.id()).await.unwrap();
        let before = durably.get_steps(run.id()).await.unwrap();
        gate.open();
        assert_eq!(ended(&durably, run.id()).await.status, RunStatus::Cancelled);
        durably.stop().await.unwrap();
        assert_eq!(durably.get_steps(run.id()).await.unwrap(), before);
        assert_eq!(begun.take().len(), 18, "more items began");
    })
    .await;
}

#[tokio::test]
async fn a_map_dropped_in_a_select_goes_on_at_its_next_call() {
    within(async {
        let durably = memory().await;
        let begun = Begun::default();
        let job =
            job_with("select", (begun.clone(), durably.clone()), |step: Step, count, (begun, durably)| async move {
                let (begun, gate) = (&begun, &Gate::new());
                let items = |stops: bool| {
                    step.map("items", 0..count).concurrency(1).run(move |item| async move {
                        begun.note(item);
                        if stops && item == 5 {
                            gate.pass().await;
                        }
                        Ok(item)
                    })
                };
                tokio::select! {
                    _ = items(true) => return Err("it was to be dropped".into()),
                    () = async {
                        gate.reached().await;
                        // The first segment is on its way at the latest after 20 ms, and then on disk.
                        while items_stored(&durably, step.run_id()).await < 5 {
                            tokio::task::yield_now().await;
                        }
                    } => {}
                }
                Ok(items(false).await?.len())
            });
        let job = durably.register(job).unwrap();
        let run = job.trigger(10).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 10);
        assert_eq!(begun.take(), [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9]);
    })
    .await;
}

#[tokio::test]
async fn a_map_dropped_while_items_are_on_their_way_to_the_disk_goes_on_at_its_next_call() {
    within(async {
        let file = TempFile::new();
        let durably = file.open().await;
        let job = Job::new("drops", |step: Step, rounds: u32| async move {
            for round in 0..rounds {
                let items = || step.map(("items", round), 0..10u32).quiet().run(|item| async move { Ok(item) });
                // All are done at the first poll, and on their way.
                let mut dropped = Box::pin(items());
                if futures::poll!(dropped.as_mut()).is_ready() {
                    return Err("it was to be dropped".into());
                }
                drop(dropped);
                assert_eq!(items().await?.len(), 10);
            }
            Ok(rounds)
        });
        let run = durably.register(job).unwrap().trigger(50).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 50);
    })
    .await;
}

async fn items_stored(durably: &Durably, run: durably::RunId) -> u64 {
    let steps = durably.get_steps(run).await.unwrap();
    steps.first().and_then(|step| step.items).map_or(0, |items| items.completed)
}

#[tokio::test]
async fn a_step_inside_of_an_item_ends_the_run() {
    within(async {
        let durably = memory().await;
        let job = Job::new("nested", |step: Step, count: u32| async move {
            let inner = &step;
            let items = step.map("items", 0..count);
            items.run(|item| async move { inner.run(("inner", item), || async { Ok(()) }).await }).await?;
            Ok(())
        });
        let run = durably.register(job).unwrap().trigger(3).await.unwrap();
        assert_eq!(ended(&durably, run.id()).await.error.unwrap().kind, ErrorKind::StepNested);
    })
    .await;
}

#[tokio::test]
async fn an_items_context_tells_its_index_and_a_key_of_its_own() {
    within(async {
        let durably = memory().await;
        let job = Job::new("context", |step: Step, count: u32| async move {
            let items = step.map("items", 0..count);
            let keys = items.run_with(|cx, _| async move { Ok(format!("{} {}", cx.index(), cx.effect_key())) }).await?;
            Ok(keys)
        });
        let job = durably.register(job).unwrap();
        let keys = job.trigger(3).await.unwrap().output().await.unwrap();
        assert!(keys[0].starts_with("0 ") && keys[2].starts_with("2 ") && keys[0].len() == 34, "{keys:?}");
        let others = job.trigger(3).await.unwrap().output().await.unwrap();
        let all: BTreeSet<_> = keys.iter().chain(&others).map(|key| key[2..].to_owned()).collect();
        assert_eq!(all.len(), 6);
    })
    .await;
}

#[tokio::test]
async fn too_many_at_a_time_and_values_too_large_are_refused() {
    within(async {
        let durably = Durably::builder().payload_bytes_max(1_000).in_memory().await.unwrap();
        let wide = Job::new("wide", |step: Step, at_a_time: usize| async move {
            step.map("items", 0..3).concurrency(at_a_time).run(|_| async { Ok(()) }).await?;
            Ok(())
        });
        let large = Job::new("large", |step: Step, bytes: usize| async move {
            let mapped =
                step.map("items", [1, bytes]).collect_failures().run(|n| async move { Ok("x".repeat(n)) }).await?;
            Ok(format!("{} {:?}", mapped.outputs.len(), mapped.failures[0].1.kind()))
        });
        let (wide, large) = durably.register((wide, large)).unwrap();
        for at_a_time in [0, 4_097] {
            let run = wide.trigger(at_a_time).await.unwrap();
            assert_eq!(ended(&durably, run.id()).await.error.unwrap().kind, ErrorKind::OverLimit);
        }
        wide.trigger(4_096).await.unwrap().output().await.unwrap();
        assert_eq!(large.trigger(2_000).await.unwrap().output().await.unwrap(), "1 OverLimit");
    })
    .await;
}

#[tokio::test]
async fn a_hundred_thousand_items_take_some_hundred_records_and_are_replayed() {
    within_minutes(async {
        let file = TempFile::new();
        let durably = file.open().await;
        let mut events = durably.events();
        let job = Job::new("many", |step: Step, count: u32| async move {
            let nothing = step.map("nothing", 0..count).concurrency(256).run(|_| async { Ok(()) }).await?;
            let values = step.map("values", 0..count).run(|n| async move { Ok(n) }).await?;
            step.wait_signal::<()>("go", "go").await?;
            Ok(nothing.len() as u64 + values.into_iter().map(u64::from).sum::<u64>())
        });
        let run = durably.register(job).unwrap().trigger(100_000).await.unwrap();
        next_event(&mut events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
        let commits = durably.stats().await.unwrap().commits;
        assert!(commits < 1_000, "{commits} commits");
        durably.signal(run.id(), "go", &()).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 100_000 + 99_999 * 100_000 / 2);
        durably.shutdown().await.unwrap();
        let found = durably::verify(file.path()).await.unwrap();
        assert!(found.is_sound() && found.steps < 1_000, "{found:?}");
    })
    .await;
}

#[tokio::test]
async fn a_fork_takes_over_the_items_that_are_done() {
    within(async {
        let durably = memory().await;
        let begun = Begun::default();
        let job =
            job_with("forked", (begun.clone(), Count::default()), |step: Step, count, (begun, tries)| async move {
                let (begun, broken) = (&begun, tries.up() == 1);
                let first = step.map("first", 0..count).run(|item| async move { Ok(item) });
                let second = step.map("second", 0..count).concurrency(1).run(|item| async move {
                    begun.note(item);
                    if broken && item == 7 { Err(JobError::msg("no paper")) } else { Ok(item) }
                });
                Ok(first.await?.len() + second.await?.len())
            });
        let run = durably.register(job).unwrap().trigger(20).await.unwrap();
        assert_eq!(ended(&durably, run.id()).await.status, RunStatus::Failed);
        assert_eq!(begun.take(), (0..8).collect::<Vec<_>>());
        let fork = durably.fork(run.id()).await.unwrap();
        assert_eq!(fork.output().await.unwrap(), json!(40));
        assert_eq!(begun.take(), (7..20).collect::<Vec<_>>());
        let again = durably.fork(fork.id()).from_step("second").await.unwrap();
        assert_eq!(again.output().await.unwrap(), json!(40));
        assert_eq!(begun.take(), (0..20).collect::<Vec<_>>());
        let edited = durably.fork(fork.id()).with_output("second", json!([1])).await;
        assert!(matches!(edited, Err(Error::InvalidInput { .. })), "{edited:?}");
    })
    .await;
}

#[tokio::test]
async fn a_run_at_a_map_can_be_explained() {
    within(async {
        let durably = memory().await;
        let (begun, gate) = (Begun::default(), Gate::new());
        let run = durably.register(noted(&begun, &gate, 10)).unwrap().trigger(100).await.unwrap();
        stored(&durably, run.id(), 10).await;
        let explained = durably.explain(run.id()).await.unwrap().to_string();
        assert!(!explained.contains("items"), "{explained}");
        gate.open();
        run.output().await.unwrap();
    })
    .await;
}
