//! Retries: attempts and the moment of the next are on disk, so that nothing begins the count anew and no delay is cut short.

use std::time::Duration;

use durably::{Durably, ErrorKind, EventKind, Job, JobError, Retry, RunStatus, Step, StepStatus};

use crate::support::{
    Count, Gate, ManualClock, TempFile, ended, job_with, memory, next_event, run_of, told_so_far, within,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Its step fails as often as its input says, then gives the attempt that got through.
fn flaky(calls: &Count, retry: Retry) -> Job<u32, u32> {
    job_with("flaky", (calls.clone(), retry), |step: Step, failures, (calls, retry)| async move {
        let through = step.run_with("call", |cx| {
            let calls = calls.clone();
            async move {
                calls.up();
                if cx.attempt() <= failures {
                    return Err(JobError::msg(format!("attempt {}", cx.attempt())).context("calling"));
                }
                Ok(cx.attempt())
            }
        });
        through.retry(retry).await
    })
}

/// Retries with a delay that no test waits out.
fn hourly(attempts: u32) -> Retry {
    Retry::fixed(attempts, HOUR)
}

async fn suspended(events: &mut durably::Events) {
    next_event(events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
}

#[tokio::test]
async fn a_step_that_fails_is_tried_again_until_it_gets_through() {
    within(async {
        let durably = memory().await;
        let (calls, mut events) = (Count::default(), durably.events());
        let job = durably.register(flaky(&calls, Retry::fixed(5, Duration::ZERO))).unwrap();
        let run = job.trigger(2).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 3);
        assert_eq!((calls.get(), run_of(&durably, run.id()).await.lease_generation), (3, 1));
        let told = told_so_far(&durably, &mut events).await;
        let told: Vec<_> = told.into_iter().map(|(_, name)| name).collect();
        assert_eq!(
            told,
            ["run:trigger", "run:leased", "step:retry", "step:retry", "step:complete", "run:complete"],
            "each failure is committed, and none is the step's outcome"
        );
    })
    .await;
}

#[tokio::test]
async fn every_attempt_that_failed_is_listed_with_its_error() {
    within(async {
        let durably = memory().await;
        let (calls, mut events) = (Count::default(), durably.events());
        let job = durably.register(flaky(&calls, Retry::fixed(3, Duration::ZERO))).unwrap();
        let run = job.trigger(9).await.unwrap();
        let retrying = next_event(&mut events, |event| matches!(event.kind, EventKind::StepRetrying { .. })).await;
        let EventKind::StepRetrying { step, index, attempt, error, until } = &retrying.kind else { unreachable!() };
        assert_eq!((&**step, *index, *attempt, error.message.as_str()), ("call", 0, 1, "calling"));
        assert!(retrying.committed);
        let error = ended(&durably, run.id()).await.error.unwrap();
        assert_eq!((error.step.as_deref(), error.chain), (Some("call"), vec!["attempt 3".to_owned()]));
        let steps = durably.get_steps(run.id()).await.unwrap();
        assert_eq!((steps.len(), steps[0].status, steps[0].attempts), (1, StepStatus::Failed, 3));
        let tries: Vec<_> = steps[0].tries.iter().map(|tried| (tried.number, tried.error.chain[0].as_str())).collect();
        assert_eq!(tries, [(1, "attempt 1"), (2, "attempt 2"), (3, "attempt 3")]);
        for pair in steps[0].tries.windows(2) {
            assert!(pair[0].started_at <= pair[0].failed_at && pair[0].failed_at <= pair[1].started_at);
        }
        assert_eq!(steps[0].started_at, steps[0].tries[0].started_at);
        assert!(*until >= steps[0].tries[0].failed_at);
    })
    .await;
}

#[tokio::test]
async fn of_very_many_attempts_the_newest_are_listed_and_all_are_counted() {
    within(async {
        let durably = memory().await;
        let job = durably.register(flaky(&Count::default(), Retry::fixed(100, Duration::ZERO))).unwrap();
        let run = job.trigger(40).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 41);
        let step = durably.get_steps(run.id()).await.unwrap().remove(0);
        assert_eq!((step.attempts, step.status), (41, StepStatus::Completed));
        let numbers: Vec<u32> = step.tries.iter().map(|tried| tried.number).collect();
        assert_eq!(numbers, (9..=40).collect::<Vec<_>>());
    })
    .await;
}

#[tokio::test]
async fn a_step_that_is_not_retried_lists_its_one_attempt() {
    within(async {
        let durably = memory().await;
        let job = durably.register(flaky(&Count::default(), Retry::none())).unwrap();
        let run = job.trigger(1).await.unwrap();
        ended(&durably, run.id()).await;
        let step = durably.get_steps(run.id()).await.unwrap().remove(0);
        assert_eq!((step.attempts, step.tries.len()), (1, 1));
        assert_eq!((step.tries[0].number, Some(&step.tries[0].error)), (1, step.error.as_ref()));
    })
    .await;
}

#[tokio::test]
async fn a_terminal_error_is_not_tried_again() {
    within(async {
        let durably = memory().await;
        let calls = Count::default();
        let job = durably
            .register(job_with("job", calls.clone(), |step: Step, _, calls| async move {
                let refused = step.run("refused", || async {
                    calls.up();
                    Err::<u32, _>(JobError::msg("refused").terminal())
                });
                refused.retry(Retry::fixed(9, Duration::ZERO)).await
            }))
            .unwrap();
        let run = job.trigger(0).await.unwrap();
        assert_eq!(ended(&durably, run.id()).await.error.unwrap().message, "refused");
        assert_eq!(calls.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_value_that_cannot_be_stored_is_not_tried_again() {
    within(async {
        let durably = Durably::builder().payload_bytes_max(100).in_memory().await.unwrap();
        let calls = Count::default();
        let job = durably
            .register(job_with("job", calls.clone(), |step: Step, _, calls| async move {
                let large = step.run("large", || async {
                    calls.up();
                    Ok("x".repeat(200))
                });
                large.retry(Retry::fixed(9, Duration::ZERO)).await
            }))
            .unwrap();
        let run = job.trigger(0).await.unwrap();
        assert_eq!(ended(&durably, run.id()).await.error.unwrap().kind, ErrorKind::OverLimit);
        assert_eq!(calls.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_timeout_is_of_one_attempt() {
    within(async {
        let durably = memory().await;
        let job = durably
            .register(Job::new("job", |step: Step, _: u32| async move {
                let slow = step.run_with("slow", |cx| async move {
                    if cx.attempt() < 3 {
                        std::future::pending::<()>().await;
                    }
                    Ok(cx.attempt())
                });
                slow.timeout(Duration::from_millis(30)).retry(Retry::fixed(3, Duration::ZERO)).await
            }))
            .unwrap();
        let run = job.trigger(0).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 3);
        let step = durably.get_steps(run.id()).await.unwrap().remove(0);
        assert!(step.tries.iter().all(|tried| tried.error.kind == ErrorKind::Timeout), "{:?}", step.tries);
    })
    .await;
}

#[tokio::test]
async fn a_jobs_retry_is_for_steps_that_have_none_of_their_own() {
    within(async {
        let durably = memory().await;
        let calls = [Count::default(), Count::default(), Count::default()];
        let body = |step: Step, _, [silent, none, own]: [Count; 3]| async move {
            let fail = |count: Count| async move {
                count.up();
                Err::<u32, JobError>("down".into())
            };
            let _ = step.run("silent", || fail(silent.clone())).await;
            let _ = step.run("none", || fail(none.clone())).retry(Retry::none()).await;
            let _ = step.run("own", || fail(own.clone())).retry(Retry::fixed(3, Duration::ZERO)).await;
            Ok(0)
        };
        let job = job_with::<_, u32, _, _>("job", calls.clone(), body).retry(Retry::fixed(5, Duration::ZERO));
        durably.register(job).unwrap().trigger(0).await.unwrap().output().await.unwrap();
        assert_eq!(calls.map(|count| count.get()), [5, 1, 3]);
    })
    .await;
}

#[tokio::test]
async fn the_caller_says_how_long_and_whether_at_all() {
    within(async {
        let durably = memory().await;
        let (calls, asked) = (Count::default(), Count::default());
        let count = asked.clone();
        let retry = Retry::custom(9, move |attempt, error| {
            count.up();
            assert_eq!(error.message(), "calling");
            (attempt < 3).then_some(Duration::ZERO)
        });
        let run = durably.register(flaky(&calls, retry)).unwrap().trigger(9).await.unwrap();
        ended(&durably, run.id()).await;
        assert_eq!((calls.get(), asked.get()), (3, 3));
    })
    .await;
}

#[tokio::test]
async fn a_blocking_step_is_tried_again_too() {
    within(async {
        let durably = memory().await;
        let job = durably
            .register(Job::new("job", |step: Step, _: u32| async move {
                let mut calls = 0;
                let blocking = step.run_blocking("blocking", move || {
                    calls += 1;
                    if calls < 3 { Err("busy".into()) } else { Ok(calls) }
                });
                blocking.retry(Retry::fixed(3, Duration::ZERO)).await
            }))
            .unwrap();
        assert_eq!(job.trigger(0).await.unwrap().output().await.unwrap(), 3);
    })
    .await;
}

#[tokio::test]
async fn between_two_attempts_a_run_is_suspended_and_no_attempt_comes_early() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let (calls, mut events) = (Count::default(), durably.events());
        let retry = Retry::exponential(3).initial(HOUR).max(10 * HOUR).jitter(0.0);
        let run = durably.register(flaky(&calls, retry)).unwrap().trigger(2).await.unwrap();
        for (attempt, delay) in [(1, HOUR), (2, 2 * HOUR)] {
            suspended(&mut events).await;
            let record = run_of(&durably, run.id()).await;
            assert_eq!((record.status, calls.get()), (RunStatus::Suspended, attempt));
            let step = durably.get_steps(run.id()).await.unwrap().remove(0);
            assert_eq!((step.status, step.attempts, step.error), (StepStatus::Waiting, attempt as u32, None));
            assert_eq!(step.waiting_for.unwrap().until.unwrap().since(step.completed_at), delay);
            clock.advance(delay - Duration::from_millis(1));
            durably.stats().await.unwrap();
            assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Suspended, "a millisecond early");
            clock.advance(Duration::from_millis(1));
            durably.stats().await.unwrap();
        }
        assert_eq!(run.output().await.unwrap(), 3);
        assert_eq!(run_of(&durably, run.id()).await.lease_generation, 3);
    })
    .await;
}

#[tokio::test]
async fn a_crash_between_attempts_goes_on_counting() {
    within(async {
        let (file, clock, calls) = (TempFile::new(), ManualClock::new(), Count::default());
        let id = {
            let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
            let mut events = durably.events();
            let run = durably.register(flaky(&calls, hourly(3))).unwrap().trigger(9).await.unwrap();
            suspended(&mut events).await;
            run.id()
        };
        for attempt in 2..=3 {
            clock.advance(HOUR - Duration::from_millis(1));
            let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
            let mut events = durably.events();
            durably.register(flaky(&calls, hourly(3))).unwrap();
            assert_eq!(run_of(&durably, id).await.status, RunStatus::Suspended, "the delay goes on");
            clock.advance(Duration::from_millis(1));
            durably.stats().await.unwrap();
            if attempt < 3 {
                suspended(&mut events).await;
            } else {
                assert_eq!(ended(&durably, id).await.error.unwrap().chain, ["attempt 3"]);
            }
            assert_eq!(calls.get(), attempt);
            assert_eq!(durably.get_steps(id).await.unwrap()[0].tries.len(), attempt);
        }
    })
    .await;
}

#[tokio::test]
async fn a_crash_during_an_attempt_costs_no_attempt() {
    within(async {
        let (file, clock, gate) = (TempFile::new(), ManualClock::new(), Gate::new());
        let job = |gate: &Gate| {
            job_with("job", gate.clone(), |step: Step, _, gate| async move {
                let second = step.run_with("step", |cx| {
                    let gate = gate.clone();
                    async move {
                        if cx.attempt() == 1 {
                            return Err("first".into());
                        }
                        gate.pass().await;
                        Ok(cx.attempt())
                    }
                });
                second.retry(Retry::fixed(2, Duration::from_millis(1))).await
            })
        };
        let id = {
            let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
            let mut events = durably.events();
            let run = durably.register(job(&gate)).unwrap().trigger(0).await.unwrap();
            next_event(&mut events, |event| matches!(event.kind, EventKind::StepRetrying { .. })).await;
            clock.advance(HOUR);
            gate.reached().await;
            run.id()
        };
        let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
        durably.register(job(&gate)).unwrap();
        gate.reached().await;
        gate.let_one_on();
        let run = ended(&durably, id).await;
        assert_eq!((run.output.unwrap(), run.recoveries), (2.into(), 1));
        let step = durably.get_steps(id).await.unwrap().remove(0);
        assert_eq!((step.attempts, step.tries.len()), (2, 1));
    })
    .await;
}

#[tokio::test]
async fn a_short_delay_is_on_disk_as_well() {
    within(async {
        let (file, clock, calls) = (TempFile::new(), ManualClock::new(), Count::default());
        let retry = Retry::fixed(2, Duration::from_millis(500));
        let id = {
            let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
            let mut events = durably.events();
            let run = durably.register(flaky(&calls, retry.clone())).unwrap().trigger(1).await.unwrap();
            next_event(&mut events, |event| matches!(event.kind, EventKind::StepRetrying { .. })).await;
            assert_eq!(run_of(&durably, run.id()).await.status, RunStatus::Leased, "too short to be suspended");
            run.id()
        };
        clock.advance(Duration::from_millis(500));
        let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
        durably.register(flaky(&calls, retry)).unwrap();
        assert_eq!(ended(&durably, id).await.output.unwrap(), 2);
        assert_eq!(calls.get(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_delay_and_the_next_start_goes_on() {
    within(async {
        let (file, clock, calls) = (TempFile::new(), ManualClock::new(), Count::default());
        let retry = Retry::fixed(2, Duration::from_millis(900));
        let builder = || Durably::builder().clock(clock.clone()).shutdown_grace(Duration::from_secs(600));
        let id = {
            let durably = file.open_with(builder()).await;
            let mut events = durably.events();
            let run = durably.register(flaky(&calls, retry.clone())).unwrap().trigger(1).await.unwrap();
            next_event(&mut events, |event| matches!(event.kind, EventKind::StepRetrying { .. })).await;
            // This clock stands still, so the delay would never be over.
            durably.shutdown().await.unwrap();
            run.id()
        };
        let durably = file.open_with(builder()).await;
        let record = run_of(&durably, id).await;
        assert_eq!((record.status, record.recoveries, calls.get()), (RunStatus::Suspended, 0, 1));
        durably.register(flaky(&calls, retry)).unwrap();
        clock.advance(HOUR);
        durably.stats().await.unwrap();
        assert_eq!(ended(&durably, id).await.output.unwrap(), 2);
    })
    .await;
}

#[tokio::test]
async fn an_attempt_that_fails_after_a_shutdown_has_begun_is_not_counted() {
    within(async {
        let (file, gate) = (TempFile::new(), Gate::new());
        let job = |gate: &Gate| {
            job_with("job", gate.clone(), |step: Step, _, gate| async move {
                let draining = step.draining();
                let cut_off = step.run_with("step", |cx| {
                    let (gate, draining) = (gate.clone(), draining.clone());
                    async move {
                        let _inside = gate.enter();
                        if gate.arrivals() > 1 {
                            return Ok(cx.attempt());
                        }
                        draining.cancelled().await;
                        Err("cut off".into())
                    }
                });
                cut_off.retry(Retry::fixed(1, Duration::ZERO)).await
            })
        };
        let id = {
            let durably = file.open().await;
            let run = durably.register(job(&gate)).unwrap().trigger(0).await.unwrap();
            gate.reached().await;
            durably.shutdown().await.unwrap();
            run.id()
        };
        let durably = file.open().await;
        assert!(durably.get_steps(id).await.unwrap().is_empty());
        durably.register(job(&gate)).unwrap();
        assert_eq!(ended(&durably, id).await.output.unwrap(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_cancel_during_a_delay_ends_the_run_at_once_and_no_attempt_follows() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        for delay in [Duration::from_millis(500), HOUR] {
            let (calls, mut events) = (Count::default(), durably.events());
            let name = format!("job-{}", delay.as_millis());
            let job = durably
                .register(job_with(&name, calls.clone(), move |step: Step, _, calls| async move {
                    let down = step.run("call", || async {
                        calls.up();
                        Err::<u32, _>("down".into())
                    });
                    down.retry(Retry::fixed(9, delay)).await
                }))
                .unwrap();
            let run = job.trigger(0).await.unwrap();
            if delay == HOUR {
                suspended(&mut events).await;
            } else {
                next_event(&mut events, |event| matches!(event.kind, EventKind::StepRetrying { .. })).await;
            }
            durably.cancel(run.id()).await.unwrap();
            clock.advance(2 * HOUR);
            durably.stats().await.unwrap();
            durably.stop().await.unwrap();
            assert_eq!((run_of(&durably, run.id()).await.status, calls.get()), (RunStatus::Cancelled, 1));
            durably.start().await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn once_the_attempts_are_used_up_a_resume_begins_to_count_anew() {
    within(async {
        let durably = memory().await;
        let calls = Count::default();
        let job = durably
            .register(job_with("job", calls.clone(), |step: Step, _, calls| async move {
                let late = step.run_with("late", |cx| {
                    let calls = calls.clone();
                    async move { if calls.up() < 5 { Err("down".into()) } else { Ok(cx.attempt()) } }
                });
                late.retry(Retry::fixed(3, Duration::ZERO)).await
            }))
            .unwrap();
        let run = job.trigger(0).await.unwrap();
        assert_eq!(ended(&durably, run.id()).await.status, RunStatus::Failed);
        assert_eq!(calls.get(), 3);
        durably.resume(run.id()).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 2, "the fifth call is the second attempt since");
        let step = durably.get_steps(run.id()).await.unwrap().remove(0);
        assert_eq!((step.attempts, step.tries.len()), (2, 1));
    })
    .await;
}

#[tokio::test]
async fn a_resumed_run_that_was_cancelled_between_attempts_goes_on_counting_unless_told() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let calls = Count::default();
        let job = durably.register(flaky(&calls, hourly(9))).unwrap();
        for (clear, calls_after) in [(false, 1), (true, 4)] {
            let mut events = durably.events();
            // The first attempt fails; after a clearing, the one that follows is a first again.
            let run = job.trigger(1).await.unwrap();
            suspended(&mut events).await;
            durably.cancel(run.id()).await.unwrap();
            let resume = durably.resume(run.id());
            if clear {
                resume.clear_failures(["call"]).await.unwrap()
            } else {
                resume.await.unwrap()
            }
            suspended(&mut events).await;
            let step = durably.get_steps(run.id()).await.unwrap().remove(0);
            assert_eq!((step.attempts, calls.get()), (1, calls_after));
            clock.advance(HOUR);
            durably.stats().await.unwrap();
            assert_eq!(run.output().await.unwrap(), 2);
        }
    })
    .await;
}

#[tokio::test]
async fn a_step_dropped_between_attempts_goes_on_at_its_next_call() {
    within(async {
        let durably = memory().await;
        let calls = Count::default();
        let job = durably
            .register(job_with("job", calls.clone(), |step: Step, _, calls| async move {
                let call = || {
                    let call = step.run_with("call", |cx| {
                        let calls = calls.clone();
                        async move { if calls.up() == 1 { Err("down".into()) } else { Ok(cx.attempt()) } }
                    });
                    call.retry(Retry::fixed(2, Duration::from_millis(100)))
                };
                tokio::select! {
                    biased;
                    _ = call() => unreachable!("the delay is longer"),
                    waited = step.run("wait", || async { Ok(()) }) => waited?,
                }
                call().await
            }))
            .unwrap();
        let run = job.trigger(0).await.unwrap();
        assert_eq!(run.output().await.unwrap(), 2);
        let steps = durably.get_steps(run.id()).await.unwrap();
        let names: Vec<_> = steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!((names, calls.get()), (vec!["call", "wait"], 2));
    })
    .await;
}

#[tokio::test]
async fn steps_that_wait_to_be_tried_again_beside_each_other_go_on_each_at_its_time() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let mut events = durably.events();
        let job = durably
            .register(Job::new("job", |step: Step, _: u32| async move {
                let call = |name: &'static str, hours: u32| {
                    let call = step.run_with(name, move |cx| async move {
                        if cx.attempt() == 1 { Err("down".into()) } else { Ok(name.to_owned()) }
                    });
                    call.retry(Retry::fixed(2, hours * HOUR))
                };
                let (one, two) = tokio::join!(call("one", 1), call("two", 2));
                Ok(one? + &two?)
            }))
            .unwrap();
        let run = job.trigger(0).await.unwrap();
        suspended(&mut events).await;
        clock.advance(HOUR);
        durably.stats().await.unwrap();
        suspended(&mut events).await;
        let steps = durably.get_steps(run.id()).await.unwrap();
        let statuses: Vec<_> = steps.iter().map(|step| step.status).collect();
        assert_eq!(statuses, [StepStatus::Completed, StepStatus::Waiting]);
        clock.advance(HOUR);
        durably.stats().await.unwrap();
        assert_eq!(run.output().await.unwrap(), "onetwo");
    })
    .await;
}

#[tokio::test]
async fn the_effect_key_of_every_attempt_is_the_same() {
    within(async {
        let durably = memory().await;
        let job = durably
            .register(Job::new("job", |step: Step, _: u32| async move {
                let keys = std::sync::Mutex::new(Vec::new());
                let call = step.run_with("call", |cx| {
                    keys.lock().unwrap().push(cx.effect_key());
                    async move { if cx.attempt() < 3 { Err("down".into()) } else { Ok(()) } }
                });
                call.retry(Retry::fixed(3, Duration::ZERO)).await?;
                let keys = keys.into_inner().unwrap();
                Ok(keys.windows(2).filter(|pair| pair[0] == pair[1]).count() as u32)
            }))
            .unwrap();
        assert_eq!(job.trigger(0).await.unwrap().output().await.unwrap(), 2);
    })
    .await;
}
