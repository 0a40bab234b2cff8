//! Signals: stored, first in first out, each taken once, also those sent before anyone waits.

use std::time::Duration;

use durably::{Durably, Error, ErrorKind, EventKind, Job, RunId, RunStatus, Step};
use futures::FutureExt;
use redb::ReadableTable;
use serde_json::{Value, json};

use crate::support::{
    Count, Gate, ManualClock, TempFile, change, echo, ended, job_with, memory, next_event, run_of, within,
};

/// Takes as many signals as it is told to.
fn taker(name: &str) -> Job<u32, Vec<String>> {
    Job::new(name, |step: Step, count: u32| async move {
        let mut taken = Vec::new();
        for n in 0..count {
            taken.push(step.wait_signal(("go", n), "go").await?);
        }
        Ok(taken)
    })
}

async fn suspended(durably: &Durably, events: &mut durably::Events, run: RunId) {
    next_event(events, |event| event.run_id == run && matches!(event.kind, EventKind::RunSuspended { .. })).await;
    assert_eq!(run_of(durably, run).await.status, RunStatus::Suspended);
}

#[tokio::test]
async fn signals_are_taken_in_order_each_once_whenever_they_came() {
    within(async {
        let durably = Durably::builder().paused(true).in_memory().await.unwrap();
        let mut events = durably.events();
        let job = durably.register(taker("job")).unwrap();
        let run = job.trigger(3).await.unwrap();
        for value in ["a", "b"] {
            durably.signal(run.id(), "go", value).await.unwrap();
        }
        durably.signal(run.id(), "other", "x").await.unwrap();
        durably.start().await.unwrap();
        suspended(&durably, &mut events, run.id()).await;
        durably.signal(run.id(), "other", "y").await.unwrap();
        assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Suspended, "of another name");
        durably.signal(run.id(), "go", "c").await.unwrap();
        assert_eq!(run.output().await.unwrap(), ["a", "b", "c"]);
    })
    .await;
}

#[tokio::test]
async fn a_signal_survives_a_restart_and_wakes_a_run_that_sleeps_in_the_file() {
    within(async {
        let file = TempFile::new();
        let id = {
            let durably = file.open_paused().await;
            let mut events = durably.events();
            let run = durably.register(taker("job")).unwrap().trigger(2).await.unwrap();
            // Before it starts, so that it is suspended once only.
            durably.signal(run.id(), "go", "a").await.unwrap();
            durably.start().await.unwrap();
            suspended(&durably, &mut events, run.id()).await;
            run.id()
        };
        {
            // Without its code the run stays, woken.
            let durably = file.open().await;
            durably.signal(id, "go", "b").await.unwrap();
            assert_eq!(run_of(&durably, id).await.status, RunStatus::Pending);
        }
        let durably = file.open().await;
        durably.register(taker("job")).unwrap();
        assert_eq!(ended(&durably, id).await.output.unwrap(), json!(["a", "b"]));
    })
    .await;
}

#[tokio::test]
async fn a_signal_reaches_a_body_that_waits_for_it_beside_a_step() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let job = durably
            .register(job_with("job", gate.clone(), |step: Step, _, gate| async move {
                tokio::select! {
                    stopped = step.wait_signal::<String>("stop", "stop") => stopped,
                    worked = step.run("work", || async { gate.pass().await; Ok("done".to_owned()) }) => worked,
                }
            }))
            .unwrap();
        let run = job.trigger(0).await.unwrap();
        gate.reached().await;
        durably.signal(run.id(), "stop", "stopped").await.unwrap();
        assert_eq!(run.output().await.unwrap(), "stopped");
    })
    .await;
}

#[tokio::test]
async fn a_signal_taken_by_a_step_that_was_dropped_is_given_to_the_next_call_of_its_key() {
    within(async {
        let durably = Durably::builder().paused(true).in_memory().await.unwrap();
        let job = durably
            .register(Job::new("job", |step: Step, _: u32| async move {
                let first = match step.wait_signal::<String>("first", "go").now_or_never() {
                    Some(first) => first?,
                    None => step.wait_signal("first", "go").await?,
                };
                Ok((first, step.wait_signal::<String>("second", "go").await?))
            }))
            .unwrap();
        let run = job.trigger(0).await.unwrap();
        for value in ["a", "b"] {
            durably.signal(run.id(), "go", value).await.unwrap();
        }
        durably.start().await.unwrap();
        assert_eq!(run.output().await.unwrap(), ("a".to_owned(), "b".to_owned()));
    })
    .await;
}

#[tokio::test]
async fn two_steps_that_wait_for_one_name_share_the_signals() {
    within(async {
        let durably = memory().await;
        let mut events = durably.events();
        let job = durably
            .register(Job::new("job", |step: Step, _: u32| async move {
                let (a, b) = tokio::join!(step.wait_signal::<u32>("a", "n"), step.wait_signal::<u32>("b", "n"));
                Ok((a?, b?))
            }))
            .unwrap();
        let run = job.trigger(0).await.unwrap();
        suspended(&durably, &mut events, run.id()).await;
        durably.signal(run.id(), "n", &1).await.unwrap();
        suspended(&durably, &mut events, run.id()).await;
        durably.signal(run.id(), "n", &2).await.unwrap();
        let (a, b) = run.output().await.unwrap();
        assert_eq!(a + b, 3);
    })
    .await;
}

#[tokio::test]
async fn a_timeout_is_the_steps_outcome_and_a_later_signal_stays() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let mut events = durably.events();
        let job = durably
            .register(Job::new("job", |step: Step, _: u32| async move {
                let first = step.wait_signal::<String>("first", "go").timeout(Duration::from_secs(3600)).await;
                let kind = first.err().map(|error| error.kind());
                assert_eq!(kind, Some(ErrorKind::Timeout));
                step.wait_signal::<String>("second", "go").await
            }))
            .unwrap();
        let run = job.trigger(0).await.unwrap();
        suspended(&durably, &mut events, run.id()).await;
        clock.advance(Duration::from_secs(3600));
        durably.stats().await.unwrap();
        suspended(&durably, &mut events, run.id()).await;
        durably.signal(run.id(), "go", "late").await.unwrap();
        assert_eq!(run.output().await.unwrap(), "late");
        let steps = durably.get_steps(run.id()).await.unwrap();
        assert_eq!(steps[0].error.as_ref().unwrap().kind, ErrorKind::Timeout);
    })
    .await;
}

#[tokio::test]
async fn a_signal_that_does_not_fit_is_a_typed_error_to_the_waiter_and_is_consumed() {
    within(async {
        let durably = Durably::builder().paused(true).in_memory().await.unwrap();
        let calls = Count::default();
        let job = durably
            .register(job_with("job", calls.clone(), |step: Step, _, calls| async move {
                let number = step.wait_signal::<u32>("number", "n").await;
                let error = number.err().ok_or("it fits")?;
                calls.up();
                step.sleep("pause", Duration::from_secs(3600)).await?;
                Ok(format!("{:?} {}", error.kind(), step.wait_signal::<u32>("next", "n").await?))
            }))
            .unwrap();
        let mut events = durably.events();
        let run = job.trigger(0).await.unwrap();
        durably.signal(run.id(), "n", "seven").await.unwrap();
        durably.signal(run.id(), "n", &8).await.unwrap();
        // Both are there before it starts, so that it is suspended by its sleep only.
        durably.start().await.unwrap();
        suspended(&durably, &mut events, run.id()).await;
        let steps = durably.get_steps(run.id()).await.unwrap();
        assert_eq!(steps[0].error.as_ref().unwrap().kind, ErrorKind::Mismatch);
        durably.cancel(run.id()).await.unwrap();
        durably.resume(run.id()).await.unwrap();
        suspended(&durably, &mut events, run.id()).await;
        assert_eq!(calls.get(), 2, "the body took the same branch");
    })
    .await;
}

#[tokio::test]
async fn what_can_not_be_sent_is_refused_with_a_type() {
    within(async {
        let durably = memory().await;
        let job = durably.register((echo("echo"), taker("taker"))).unwrap();
        let run = job.0.trigger(0).await.unwrap();
        run.output().await.unwrap();
        let ended = durably.signal(run.id(), "go", &1).await;
        assert!(matches!(ended, Err(Error::Conflict { action: "signal", status: RunStatus::Completed, .. })));
        let waits = job.1.trigger(2).await.unwrap();
        let nameless = durably.signal(waits.id(), "", &1).await;
        assert!(matches!(nameless, Err(Error::InvalidOption { option: "signal name", .. })));
        let long = durably.signal(waits.id(), &"x".repeat(129), &1).await;
        assert!(matches!(long, Err(Error::TooLarge { .. })));
        let large = durably.signal(waits.id(), "go", &"x".repeat(2 << 20)).await;
        assert!(matches!(large, Err(Error::TooLarge { .. })));
        let unstorable = durably.signal(waits.id(), "go", &std::collections::BTreeMap::from([((1, 2), 3)])).await;
        assert!(matches!(unstorable, Err(Error::InvalidSignal { .. })));
        durably.delete_run(run.id()).await.unwrap();
        assert!(matches!(durably.signal(run.id(), "go", &1).await, Err(Error::RunNotFound { .. })));
        for n in 0..1_000 {
            durably.signal(waits.id(), "unasked", &n).await.unwrap();
        }
        assert!(matches!(durably.signal(waits.id(), "unasked", &1).await, Err(Error::TooMany { .. })));
        durably.signal(waits.id(), "go", "a").await.expect_err("of whatever name");
    })
    .await;
}

#[tokio::test]
async fn a_signal_nested_too_deep_to_be_read_back_is_refused() {
    within(async {
        let nested = |levels| (0..levels).fold(json!("a"), |inner, _| json!([inner]));
        let durably = memory().await;
        let job = Job::new("job", |step: Step, (): ()| async move { step.wait_signal::<Value>("wait", "go").await });
        let run = durably.register(job).unwrap().trigger(()).await.unwrap();
        for levels in [128, 200] {
            let refused = durably.signal(run.id(), "go", &nested(levels)).await;
            assert!(matches!(refused, Err(Error::InvalidSignal { .. })), "{levels}: {refused:?}");
        }
        durably.signal(run.id(), "go", &nested(127)).await.unwrap();
        assert_eq!(run.output().await.unwrap(), nested(127));
    })
    .await;
}

#[tokio::test]
async fn a_run_that_was_sent_a_signal_before_its_first_start_starts_as_any_other_and_takes_it_with_it() {
    within(async {
        let file = TempFile::new();
        let (here, there) = {
            let durably = file.open_paused().await;
            let job = durably.register(taker("job")).unwrap();
            let (here, there) = (job.trigger(0).await.unwrap().id(), job.trigger(0).await.unwrap().id());
            durably.signal(here, "other", "x").await.unwrap();
            durably.signal(there, "other", "x").await.unwrap();
            let mut events = durably.events();
            durably.run_until_idle(Some(1)).await.unwrap();
            next_event(&mut events, |event| matches!(event.kind, EventKind::RunCompleted { .. })).await;
            (here, there)
        };
        let durably = file.open().await;
        durably.register(taker("job")).unwrap();
        for run in [here, there] {
            ended(&durably, run).await;
            durably.delete_run(run).await.unwrap();
        }
        durably.shutdown().await.unwrap();
        let found = durably::verify(file.path()).await.unwrap();
        assert!(found.is_sound(), "{found:?}");
    })
    .await;
}

#[tokio::test]
async fn a_deleted_run_takes_its_signals_with_it() {
    within(async {
        let file = TempFile::new();
        let durably = file.open().await;
        let job = durably.register(taker("job")).unwrap();
        let run = job.trigger(1).await.unwrap();
        durably.signal(run.id(), "other", "x").await.unwrap();
        durably.cancel(run.id()).await.unwrap();
        durably.delete_run(run.id()).await.unwrap();
        durably.shutdown().await.unwrap();
        let found = durably::verify(file.path()).await.unwrap();
        assert!(found.is_sound(), "{found:?}");
    })
    .await;
}

#[tokio::test]
async fn a_signal_that_cannot_be_read_ends_the_run_as_damaged_and_reaches_no_body() {
    within(async {
        let (file, went_on) = (TempFile::new(), Count::default());
        let job = || {
            job_with("job", went_on.clone(), |step: Step, _, went_on| async move {
                let signal = step.wait_signal::<u32>("wait", "go").await;
                went_on.up();
                Ok(signal.unwrap_or(0))
            })
        };
        let durably = file.open_paused().await;
        let run = durably.register(job()).unwrap().trigger(0).await.unwrap().id();
        durably.signal(run, "go", &7).await.unwrap();
        durably.shutdown().await.unwrap();
        change::<&[u8]>(&file, "signals", |table| {
            let (key, mut row) = {
                let (key, row) = table.first().unwrap().unwrap();
                (key.value().to_vec(), row.value().to_vec())
            };
            *row.last_mut().unwrap() ^= 1;
            table.insert(&key[..], &row[..]).unwrap();
        });
        let durably = file.open().await;
        durably.register(job()).unwrap();
        let error = ended(&durably, run).await.error.unwrap();
        assert_eq!((error.kind, went_on.get()), (ErrorKind::Corrupted, 0), "{error:?}");
    })
    .await;
}
