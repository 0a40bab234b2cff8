//! Crashes at every point: what is crash safe holds, and what is not is found.

use std::time::Duration;

use durably::testing::{CrashSafety, Effects, Violation, assert_crash_safe};
use durably::{Job, Retry, Step};
use serde_json::json;

use crate::support::{Count, DAY, job_with, within};

#[tokio::test]
async fn a_job_of_steps_is_crash_safe_at_every_commit() {
    within(async {
        let job = Job::new("job", |step: Step, n: u32| async move {
            let mut sum = 0;
            for i in 0..n {
                sum += step.run(("add", i), || async { Ok(i) }).await?;
            }
            Ok(sum)
        });
        let report = assert_crash_safe(job, 3).await;
        // The trigger with its lease, three steps, the end.
        assert_eq!(report.commits, 5);
        assert!(report.crash_points > 20 && report.trials == report.crash_points, "{report:?}");
        assert!(report.executions > report.trials as u64, "{report:?}");
    })
    .await;
}

/// Waits for all there is to wait for, with an effect in each step.
fn order(effects: &Effects) -> CrashSafety {
    let noted = effects.clone();
    CrashSafety::new()
        .job_with(move |durably| {
            let effects = noted.clone();
            let child = durably.register(job_with("child", effects.clone(), |step: Step, n, effects| async move {
                step.sleep("rest", Duration::from_secs(5)).await?;
                step.run("ship", || async {
                    effects.record("ship");
                    Ok(n + 1)
                })
                .await
            }))?;
            durably.register(job_with("order", (effects, child), |step: Step, n, (effects, child)| async move {
                step.run("charge", || async {
                    effects.record("charge");
                    Ok(())
                })
                .await?;
                step.sleep("day", DAY).await?;
                let by: u32 = step.wait_signal("approval", "approved").timeout(DAY).await?;
                let (a, b) = tokio::join!(step.call("a", &child, n), step.call("b", &child, by));
                let late = step.wait_signal::<u32>("never", "never").timeout(Duration::from_secs(60)).await.is_err();
                step.trigger("after", &child, 1).detached().await?;
                Ok(a? + b? + u32::from(late))
            }))
        })
        .effects(effects)
        .signal_when_suspended("approved", json!(40))
}

#[tokio::test]
async fn pauses_signals_and_children_are_crash_safe_at_every_commit() {
    within(async {
        let effects = Effects::new().exactly_once_per_checkpoint("charge").at_least("ship", 2).at_most("ship", 4);
        let report = order(&effects).run(1).await.unwrap();
        assert!(report.commits > 15, "{report:?}");
    })
    .await;
}

#[tokio::test]
async fn pauses_signals_and_children_are_crash_safe_with_one_slot() {
    within(async {
        order(&Effects::new()).configure(|builder| builder.max_concurrent_runs(1)).run(1).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pauses_signals_and_children_are_crash_safe_on_many_threads() {
    within(async {
        order(&Effects::new()).run(1).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn retries_maps_and_races_are_crash_safe_at_every_commit() {
    within(async {
        let effects = Effects::new().at_least("call", 3).at_most("call", 4);
        let job = job_with("job", effects.clone(), |step: Step, n: u32, effects| async move {
            let call = step.run_with("call", |cx| {
                let attempt = cx.attempt();
                effects.record("call");
                async move { if attempt < 3 { Err("busy".into()) } else { Ok(attempt) } }
            });
            let attempts = call.retry(Retry::fixed(3, DAY)).await?;
            let doubled = step.map("double", 0..n).concurrency(2).run(|item| async move { Ok(item * 2) }).await?;
            let race = step.race("first").arm("pause", step.sleep("pause", DAY));
            let first = race.arm("signal", step.wait_signal("go", "go")).await?;
            Ok(attempts + doubled.iter().sum::<u32>() + u32::from(first.arm() == "pause"))
        });
        let report = CrashSafety::new().job(job).effects(&effects).run(5).await.unwrap();
        assert!(report.commits > 8, "{report:?}");
    })
    .await;
}

#[tokio::test]
async fn items_of_a_map_whose_outcome_is_not_on_disk_may_have_their_effects_again() {
    within(async {
        let effects = Effects::new();
        let job = job_with("job", effects.clone(), |step: Step, n: u32, effects| async move {
            let effects = &effects;
            let items = step.map("items", 0..n).run(move |item| async move {
                effects.record("item");
                Ok(item)
            });
            Ok(items.await?.iter().sum())
        });
        CrashSafety::new().job(job).effects(&effects).run(3).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_loop_of_runs_is_crash_safe_at_every_commit() {
    within(async {
        let effects = Effects::new().exactly_once_per_checkpoint("next");
        let job = job_with("countdown", effects.clone(), |step: Step, left: u32, effects| async move {
            let next = step
                .run("next", || async {
                    effects.record("next");
                    Ok(left.saturating_sub(1))
                })
                .await?;
            step.sleep("pause", DAY).await?;
            if left == 0 { Ok(7) } else { step.continue_as_new(next).await }
        });
        let report = CrashSafety::new().job(job).effects(&effects).run(2).await.unwrap();
        assert!(report.commits > 10, "{report:?}");
    })
    .await;
}

#[tokio::test]
async fn two_crashes_are_survived_as_one() {
    within(async {
        let job = Job::new("job", |step: Step, n: u32| async move {
            step.sleep("pause", DAY).await?;
            step.run("add", || async { Ok(n + 1) }).await
        });
        let report = CrashSafety::new().job(job).crash_twice().run(1).await.unwrap();
        assert!(report.trials > report.crash_points * 2, "{report:?}");
    })
    .await;
}

#[tokio::test]
async fn an_effect_outside_of_a_step_is_found() {
    within(async {
        let effects = Effects::new();
        let job = job_with("job", effects.clone(), |step: Step, n, effects| async move {
            effects.record("mail");
            step.run("work", || async { Ok(n) }).await
        });
        let error = CrashSafety::new().job(job).effects(&effects).run(1).await.unwrap_err();
        assert!(error.to_string().contains("outside of a step"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn an_effect_that_must_not_be_done_twice_is_found_in_a_plain_step() {
    within(async {
        let effects = Effects::new().at_most("charge", 1);
        let job = job_with("job", effects.clone(), |step: Step, n, effects| async move {
            step.run("before", || async { Ok(()) }).await?;
            step.run("charge", || async {
                effects.record("charge");
                Ok(n)
            })
            .await
        });
        let error = CrashSafety::new().job(job).effects(&effects).seed(7).run(1).await.unwrap_err();
        assert!(matches!(*error.violation, Violation::Effect(_)), "{error}");
        assert_eq!((error.step(), error.commit()), (Some("charge"), Some(3)), "{error}");
        let said = error.to_string();
        for part in ["crashed at commit 3 (BeforeCommit), after step \"charge\" had begun", "seed 7", "crash\n"] {
            assert!(said.contains(part), "{part} in {said}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_step_whose_key_is_another_each_time_is_found() {
    within(async {
        let (effects, calls) = (Effects::new(), Count::default());
        let job = job_with("job", (effects.clone(), calls), |step: Step, n, (effects, calls)| async move {
            step.run(("charge", calls.up()), || async {
                effects.record("charge");
                Ok(())
            })
            .await?;
            step.run("end", || async { Ok(n) }).await
        });
        let error = CrashSafety::new().job(job).effects(&effects).run(1).await.unwrap_err();
        assert!(error.to_string().contains("was done by 2 steps"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn an_output_that_a_crash_changes_is_found() {
    within(async {
        let counted = || {
            job_with("job", Count::default(), |step: Step, _, calls| async move {
                let executions = calls.up() as u32;
                step.run("work", || async { Ok(()) }).await?;
                Ok(executions)
            })
        };
        let error = CrashSafety::new().job(counted()).run(1).await.unwrap_err();
        assert!(matches!(*error.violation, Violation::Ending { .. }), "{error}");
        CrashSafety::new().job(counted()).any_output().run(1).await.unwrap();
    })
    .await;
}

#[tokio::test]
#[should_panic = "not crash safe: run"]
async fn a_run_that_does_not_end_is_found() {
    let job = Job::new("job", |step: Step, _: u32| async move { step.wait_signal::<u32>("wait", "unsent").await });
    assert_crash_safe(job, 1).await;
}
