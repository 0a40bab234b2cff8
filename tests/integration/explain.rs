//! Why a run is not running: every reason there is.

use std::time::Duration;

use durably::{Durably, Error, Explanation, Job, Obstacle, RateLimit, Retry, RunId, RunStatus, Step, StepKind};

use crate::support::{
    Gate, ManualClock, TempFile, echo, ended, failing, gated, job_with, memory, next_event, paused, run_of, within,
};

/// What stands in the way of a pending run.
async fn obstacles(durably: &Durably, run: RunId) -> Vec<Obstacle> {
    match durably.explain(run).await.unwrap() {
        Explanation::Pending { obstacles, .. } => obstacles,
        other => panic!("it is {other}"),
    }
}

#[tokio::test]
async fn a_key_that_others_hold() {
    within(async {
        let (durably, gate) = (memory().await, Gate::new());
        let job = durably.register(gated("job", &gate)).unwrap();
        let mut runs = Vec::new();
        for n in 0..3 {
            runs.push(job.trigger(n).concurrency_key("org").await.unwrap().id());
        }
        let since = run_of(&durably, runs[0]).await.started_at;
        let [Obstacle::Key { key, holders, limit: 1, ahead: 1, .. }] = &obstacles(&durably, runs[2]).await[..] else {
            panic!("{:?}", obstacles(&durably, runs[2]).await)
        };
        assert_eq!((key.as_str(), holders.len()), ("org", 1));
        assert_eq!((holders[0].run, holders[0].status, holders[0].since), (runs[0], RunStatus::Leased, since));
        let text = durably.explain(runs[2]).await.unwrap().to_string();
        let expected = format!(
            "waiting: concurrency key \"org\" is held by run {} (leased, started {}), 1 run is ahead in its line",
            runs[0],
            since.unwrap()
        );
        assert_eq!(text, expected);
        gate.open();
    })
    .await;
}

#[tokio::test]
async fn a_key_held_by_a_cancelled_run_whose_body_has_not_stopped() {
    within(async {
        let gate = Gate::new();
        let durably = Durably::builder().cancel_grace(Duration::from_secs(60)).in_memory().await.unwrap();
        let job = durably
            .register(job_with("job", gate.clone(), |step: Step, _, gate| async move {
                // It has the token, so it gets its grace.
                let _token = step.cancelled();
                gate.pass().await;
                Ok(0)
            }))
            .unwrap();
        let first = job.trigger(0).concurrency_key("key").await.unwrap().id();
        let second = job.trigger(0).concurrency_key("key").await.unwrap().id();
        gate.reached().await;
        durably.cancel(first).await.unwrap();
        assert!(matches!(durably.explain(first).await.unwrap(), Explanation::Ended { stopping: true, .. }));
        let found = obstacles(&durably, second).await;
        let [Obstacle::Key { holders, .. }] = &found[..] else { panic!("{found:?}") };
        assert_eq!((holders[0].run, holders[0].status), (first, RunStatus::Cancelled));
        durably.resume(first).await.unwrap();
        assert_eq!(obstacles(&durably, first).await, [Obstacle::Stopping]);
        gate.open();
        ended(&durably, second).await;
    })
    .await;
}

#[tokio::test]
async fn limits_of_slots_and_of_the_job_and_the_line() {
    within(async {
        let gate = Gate::new();
        let durably = Durably::builder().max_concurrent_runs(2).in_memory().await.unwrap();
        let (one, two) = durably.register((gated("one", &gate).concurrency(1), gated("two", &gate))).unwrap();
        one.trigger(0).await.unwrap();
        let second = one.trigger(0).await.unwrap().id();
        let third = one.trigger(0).await.unwrap().id();
        assert!(matches!(
            obstacles(&durably, second).await[..],
            [Obstacle::JobConcurrency { executing: 1, limit: 1, .. }]
        ));
        two.trigger(0).await.unwrap();
        let found = obstacles(&durably, third).await;
        assert!(
            matches!(
                found[..],
                [
                    Obstacle::JobConcurrency { .. },
                    Obstacle::Slots { executing: 2, limit: 2, .. },
                    Obstacle::InLine { ahead: 1, .. }
                ]
            ),
            "{found:?}"
        );
        let text = durably.explain(third).await.unwrap().to_string();
        let expected = "waiting: 1 runs of job one execute, of 1 at a time; 2 runs execute, of 2 at a time; \
                        1 run of its job is ahead in line";
        assert_eq!(text, expected);
        gate.open();
    })
    .await;
}

#[tokio::test]
async fn pauses_and_rates() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let minute = Duration::from_secs(60);
        let (job, other) = durably.register((echo("job").rate_limit(1, minute), echo("other"))).unwrap();
        let first = job.trigger(0).await.unwrap();
        first.output().await.unwrap();
        let began = run_of(&durably, first.id()).await.started_at.unwrap();
        let second = job.trigger(0).await.unwrap().id();
        let found = obstacles(&durably, second).await;
        let [Obstacle::JobRate { starts: 1, per, until, .. }] = found[..] else { panic!("{found:?}") };
        assert_eq!((per, until.since(began)), (minute, minute));
        durably.pause_job("job").await.unwrap();
        let found = obstacles(&durably, second).await;
        assert!(matches!(found[..], [Obstacle::JobPaused { .. }, Obstacle::JobRate { .. }]), "{found:?}");

        durably.limit_key("key", RateLimit::new(1, minute)).await.unwrap();
        other.trigger_and_wait(0).concurrency_key("key").await.unwrap();
        let keyed = other.trigger(0).concurrency_key("key").await.unwrap().id();
        durably.pause_key("key").await.unwrap();
        let found = obstacles(&durably, keyed).await;
        assert!(matches!(found[..], [Obstacle::KeyPaused { .. }, Obstacle::KeyRate { starts: 1, .. }]), "{found:?}");
        let text = durably.explain(keyed).await.unwrap().to_string();
        assert!(text.contains("concurrency key \"key\" has had its 1 starts in 60s, until "), "{text}");

        durably.stop().await.unwrap();
        assert!(obstacles(&durably, keyed).await.contains(&Obstacle::RuntimePaused));
    })
    .await;
}

#[tokio::test]
async fn a_job_without_code() {
    within(async {
        let file = TempFile::new();
        let run = {
            let durably = file.open_paused().await;
            durably.register(echo("job")).unwrap().trigger(1).await.unwrap().id()
        };
        let durably = file.open().await;
        let found = obstacles(&durably, run).await;
        assert!(matches!(&found[..], [Obstacle::JobNotRegistered { job, .. }] if job == "job"), "{found:?}");
        assert_eq!(durably.explain(run).await.unwrap().to_string(), "waiting: job job is not registered");
    })
    .await;
}

#[tokio::test]
async fn an_input_that_the_code_can_t_decode() {
    within(async {
        let file = TempFile::new();
        let run = {
            let durably = file.open_paused().await;
            durably.register(echo("job")).unwrap().trigger(1).await.unwrap().id()
        };
        let durably = file.open().await;
        let mut events = durably.events();
        durably.register(Job::new("job", |_: Step, input: Vec<String>| async move { Ok(input.len()) })).unwrap();
        next_event(&mut events, |event| event.kind.name() == "run:blocked").await;
        // Its body is reported gone with the same commit.
        let found = obstacles(&durably, run).await;
        assert!(matches!(&found[..], [Obstacle::Blocked { .. }]), "{found:?}");
    })
    .await;
}

#[tokio::test]
async fn what_a_suspended_run_waits_for() {
    within(async {
        let durably = memory().await;
        let mut events = durably.events();
        let gate = Gate::new();
        let child = durably.register(gated("child", &gate)).unwrap();
        let job = durably
            .register(job_with("job", child, |step: Step, _, child| async move {
                let (sleep, signal, call) = tokio::join!(
                    step.sleep("pause", Duration::from_secs(3600)),
                    step.wait_signal::<u32>("approval", "approved"),
                    step.call("child", &child, 1),
                );
                sleep?;
                Ok(signal? + call?)
            }))
            .unwrap();
        let run = job.trigger(0).await.unwrap().id();
        next_event(&mut events, |event| event.run_id == run && event.kind.name() == "run:suspend").await;
        let why = durably.explain(run).await.unwrap();
        let Explanation::Suspended { waiting, .. } = &why else { panic!("{why}") };
        let kinds: Vec<_> = waiting.iter().map(|step| (step.name.as_str(), step.kind)).collect();
        assert_eq!(kinds, [("pause", StepKind::Sleep), ("approval", StepKind::Signal), ("child", StepKind::Call)]);
        let child = waiting[2].waiting_for.run.unwrap();
        let text = why.to_string();
        assert!(text.contains("step \"approval\" waits for signal \"approved\""), "{text}");
        assert!(text.contains(&format!("step \"child\" waits for run {child}")), "{text}");
        assert!(text.contains("step \"pause\" sleeps until "), "{text}");
        gate.open();
    })
    .await;
}

#[tokio::test]
async fn a_delayed_trigger_and_a_step_that_is_to_be_tried_again() {
    within(async {
        let clock = ManualClock::new();
        let durably = Durably::builder().clock(clock.clone()).in_memory().await.unwrap();
        let mut events = durably.events();
        let job = durably
            .register(Job::new("job", |step: Step, _: u32| async move {
                let failing = step.run("call", || async { Err::<u32, _>("no line".into()) });
                failing.retry(Retry::fixed(3, Duration::from_secs(3600))).await
            }))
            .unwrap();
        let run = job.trigger(0).delay(Duration::from_secs(60)).await.unwrap().id();
        let [Obstacle::Delayed { until, .. }] = obstacles(&durably, run).await[..] else {
            panic!("{:?}", obstacles(&durably, run).await)
        };
        assert_eq!(until, run_of(&durably, run).await.created_at.saturating_add(Duration::from_secs(60)));
        assert_eq!(durably.explain(run).await.unwrap().to_string(), format!("waiting: it is delayed until {until}"));

        clock.advance(Duration::from_secs(60));
        durably.stats().await.unwrap();
        next_event(&mut events, |event| event.run_id == run && event.kind.name() == "run:suspend").await;
        let why = durably.explain(run).await.unwrap();
        let Explanation::Suspended { waiting, since, .. } = &why else { panic!("{why}") };
        assert_eq!((waiting.len(), waiting[0].name.as_str(), waiting[0].kind), (1, "call", StepKind::Run));
        let again = waiting[0].waiting_for.until.unwrap();
        assert_eq!(why.to_string(), format!("suspended since {since}: step \"call\" is tried again at {again}"));
    })
    .await;
}

#[tokio::test]
async fn in_which_steps_a_run_executes_and_how_it_ended() {
    within(async {
        let (durably, gate) = (memory().await, Gate::new());
        let mut events = durably.events();
        let job = durably
            .register(job_with("job", gate.clone(), |step: Step, input: u32, gate| async move {
                step.run("done", || async { Ok(()) }).await?;
                let work = |name| {
                    step.run(name, || async {
                        gate.pass().await;
                        Ok(())
                    })
                };
                tokio::try_join!(work("left"), work("right"))?;
                Ok(input)
            }))
            .unwrap();
        let run = job.trigger(4).await.unwrap();
        gate.reached_by(2).await;
        let leased = run_of(&durably, run.id()).await;
        let why = durably.explain(run.id()).await.unwrap();
        let Explanation::Executing { since, steps, waiting, .. } = &why else { panic!("{why}") };
        assert_eq!((Some(*since), &steps[..], waiting.len()), (leased.started_at, &["left".into(), "right".into()][..], 0));
        assert_eq!(why.to_string(), format!("executing since {since}, in steps \"left\", \"right\""));
        gate.open();
        run.output().await.unwrap();
        let at = run_of(&durably, run.id()).await.completed_at.unwrap();
        assert_eq!(durably.explain(run.id()).await.unwrap().to_string(), format!("completed at {at}"));

        let failed = durably.register(failing("fails", "no such file")).unwrap().trigger(0).await.unwrap().id();
        next_event(&mut events, |event| event.kind.name() == "run:fail").await;
        let why = durably.explain(failed).await.unwrap();
        assert!(matches!(&why, Explanation::Ended { status: RunStatus::Failed, error: Some(error), .. } if error == "no such file"));
        assert!(why.to_string().ends_with(": no such file"), "{why}");
        let missing = durably.explain("01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap()).await;
        assert!(matches!(missing, Err(Error::RunNotFound { .. })));
    })
    .await;
}

#[tokio::test]
async fn a_run_that_another_replaced() {
    within(async {
        let durably = paused().await;
        let job = durably.register(echo("job")).unwrap();
        let old = job.trigger(0).concurrency_key("key").await.unwrap().id();
        let new = job.trigger(0).concurrency_key("key").on_conflict(durably::OnConflict::Replace).await.unwrap().id();
        let text = durably.explain(old).await.unwrap().to_string();
        assert!(text.ends_with(&format!(", replaced by run {new}")), "{text}");
    })
    .await;
}

#[tokio::test]
async fn a_run_behind_another_on_probation() {
    within(async {
        let (file, gate) = (TempFile::new(), Gate::new());
        let mut runs = Vec::new();
        // Dropped while they execute, twice: crashes in a row.
        for life in 0..2 {
            let durably = file.open().await;
            let job = durably.register(gated("job", &gate)).unwrap();
            while life == 0 && runs.len() < 2 {
                runs.push(job.trigger(0).await.unwrap().id());
            }
            gate.reached_by(2).await;
        }
        let durably = file.open().await;
        durably.register(gated("job", &gate)).unwrap();
        gate.reached().await;
        let found = obstacles(&durably, runs[1]).await;
        assert!(matches!(found[..], [Obstacle::Probation { behind: Some(run), .. }] if run == runs[0]), "{found:?}");
        let text = durably.explain(runs[1]).await.unwrap().to_string();
        assert_eq!(
            text,
            format!("waiting: run {} is on probation, as this one will be: such runs go one at a time", runs[0])
        );
        gate.open();
        ended(&durably, runs[1]).await;
    })
    .await;
}
