//! Races: the first arm to end wins, and every replay takes the branch that was stored.

use std::time::Duration;

use durably::{Durably, ErrorKind, Job, JobHandle, RunStatus, Step, StepKind};
use serde_json::json;

use crate::support::{Count, Gate, ManualClock, TempFile, ended, gated, job_with, memory, next_event, run_of, within};

/// Decided by a signal or, after an hour, by itself; then it waits for the signal `on`.
fn order(calls: &Count) -> Job<u32, String> {
    job_with("order", calls.clone(), |step: Step, _, calls| async move {
        let decision = step
            .race("decision")
            .arm("approved", step.wait_signal::<String>("approval", "approved"))
            .arm("timed-out", async {
                step.sleep("patience", Duration::from_secs(3600)).await?;
                let calls = &calls;
                step.run("refuse", || async move { Ok(format!("refused {}", calls.up())) }).await
            })
            .await?;
        let text = format!("{}: {}", decision.arm(), decision.value());
        step.wait_signal::<()>("on", "on").await?;
        Ok(text)
    })
}

async fn suspended(events: &mut durably::Events) {
    next_event(events, |event| event.kind.name() == "run:suspend").await;
}

async fn names(durably: &Durably, run: durably::RunId) -> Vec<String> {
    let steps = durably.get_steps(run).await.unwrap();
    steps.into_iter().map(|step| format!("{} {} {:?}", step.name, step.kind, step.status)).collect()
}

#[tokio::test]
async fn the_first_arm_to_end_wins_and_its_name_is_stored() {
    within(async {
        let durably = memory().await;
        let mut events = durably.events();
        let job = durably.register(order(&Count::default())).unwrap();
        let run = job.trigger(0).await.unwrap();
        suspended(&mut events).await;
        durably.signal(run.id(), "approved", &"ann").await.unwrap();
        durably.signal(run.id(), "on", &()).await.unwrap();
        assert_eq!(run.output().await.unwrap(), "approved: ann");
        let steps = durably.get_steps(run.id()).await.unwrap();
        let race = steps.iter().find(|step| step.kind == StepKind::Race).unwrap();
        assert_eq!((&*race.name, race.output.clone()), ("decision", Some(json!("approved"))));
        let pause = steps.iter().find(|step| step.name == "patience").unwrap();
        assert_eq!(pause.status, durably::StepStatus::Waiting, "the arm that lost has no outcome");
    })
    .await;
}

#[tokio::test]
async fn a_replay_takes_the_branch_that_was_stored_whatever_has_come_meanwhile() {
    within(async {
        let (file, clock, calls) = (TempFile::new(), ManualClock::new(), Count::default());
        let id = {
            let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
            let mut events = durably.events();
            let run = durably.register(order(&calls)).unwrap().trigger(0).await.unwrap();
            suspended(&mut events).await;
            clock.advance(Duration::from_secs(3600));
            durably.stats().await.unwrap();
            suspended(&mut events).await;
            // Too late: on a replay by first come, first served it would win, being the first arm.
            durably.signal(run.id(), "approved", &"ann").await.unwrap();
            run.id()
        };
        let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
        durably.register(order(&calls)).unwrap();
        durably.signal(id, "on", &()).await.unwrap();
        let run = ended(&durably, id).await;
        assert_eq!((run.output.unwrap(), calls.get()), (json!("timed-out: refused 1"), 1));
        let steps = names(&durably, id).await;
        assert!(steps.contains(&"approval signal Waiting".into()), "the arm that lost was polled: {steps:?}");
    })
    .await;
}

/// Races two steps; the second ends first, and the process is gone before or after the race is on disk.
fn two(gates: &(Gate, Gate, Gate, Count)) -> Job<u32, String> {
    job_with("two", gates.clone(), |step: Step, _, (left, right, after, calls)| async move {
        let (left, right, calls) = (&left, &right, &calls);
        let won = step
            .race("race")
            .arm(
                "left",
                step.run("left", || async move {
                    left.pass().await;
                    Ok(calls.up())
                }),
            )
            .arm(
                "right",
                step.run("right", || async move {
                    right.pass().await;
                    Ok(calls.up())
                }),
            )
            .await?;
        after.pass().await;
        Ok(format!("{} {}", won.arm(), won.value()))
    })
}

#[tokio::test]
async fn a_race_that_is_decided_is_not_run_again_after_a_crash() {
    within(async {
        let file = TempFile::new();
        let gates = (Gate::new(), Gate::new(), Gate::new(), Count::default());
        let id = {
            let durably = file.open().await;
            let run = durably.register(two(&gates)).unwrap().trigger(0).await.unwrap();
            gates.1.let_one_on();
            gates.2.reached().await;
            run.id()
        };
        gates.0.open();
        gates.2.open();
        let durably = file.open().await;
        durably.register(two(&gates)).unwrap();
        assert_eq!(ended(&durably, id).await.output.unwrap(), json!("right 1"));
        assert_eq!((gates.0.arrivals(), gates.1.arrivals(), gates.3.get()), (1, 1, 1), "no arm ran again");
    })
    .await;
}

#[tokio::test]
async fn an_arm_whose_step_was_recorded_before_a_crash_gives_that_again() {
    within(async {
        let (file, gate, calls) = (TempFile::new(), Gate::new(), Count::default());
        // The arm has a checkpoint and has not ended: the race is open when the process goes.
        let job = || {
            job_with("cut", (gate.clone(), calls.clone()), |step: Step, _, (gate, calls)| async move {
                let won = step
                    .race("race")
                    .arm("never", std::future::pending::<durably::JobResult<usize>>())
                    .arm("works", async {
                        let calls = &calls;
                        let first = step.run("first", || async move { Ok(calls.up()) }).await?;
                        gate.pass().await;
                        Ok(first)
                    })
                    .await?;
                Ok(format!("{} {}", won.arm(), won.value()))
            })
        };
        let id = {
            let durably = file.open().await;
            let run = durably.register(job()).unwrap().trigger(0).await.unwrap();
            gate.reached().await;
            run.id()
        };
        gate.open();
        let durably = file.open().await;
        durably.register(job()).unwrap();
        assert_eq!(ended(&durably, id).await.output.unwrap(), json!("works 1"));
        assert_eq!(calls.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn an_arm_that_fails_wins_with_its_error_and_does_so_again() {
    within(async {
        let durably = memory().await;
        let (calls, mut events) = (Count::default(), durably.events());
        let job = job_with("fails", calls.clone(), |step: Step, _, calls| async move {
            let calls = &calls;
            let lost = step
                .race("race")
                .arm("fails", step.run("fails", || async move { Err::<(), _>(format!("no {}", calls.up()).into()) }))
                .arm("waits", step.wait_signal("wait", "never"))
                .await;
            let error = lost.err().ok_or("it won")?;
            step.wait_signal::<()>("on", "on").await?;
            Ok(error.to_string())
        });
        let run = durably.register(job).unwrap().trigger(0).await.unwrap();
        suspended(&mut events).await;
        durably.signal(run.id(), "on", &()).await.unwrap();
        assert_eq!((run.output().await.unwrap(), calls.get()), ("no 1".into(), 1));
        assert_eq!(run_of(&durably, run.id()).await.lease_generation, 2, "it was replayed");
    })
    .await;
}

#[tokio::test]
async fn of_arms_that_are_ready_at_once_the_first_wins_and_the_others_are_dropped() {
    within(async {
        let durably = memory().await;
        let job = Job::new("ready", |step: Step, _: u32| async move {
            let local = String::from("local");
            let text = &local;
            let won = step
                .race("race")
                .arm("first", async { Ok(text.len()) })
                .arm("second", step.run("second", || async { Ok(text.len() + 1) }))
                .await?;
            // The key of an arm that lost is free again.
            let second = step.run("second", || async { Ok(text.len() + 2) }).await?;
            Ok(format!("{} {} {second}", won.arm(), won.value()))
        });
        let run = durably.register(job).unwrap().trigger(0).await.unwrap();
        assert_eq!(run.output().await.unwrap(), "first 5 7");
    })
    .await;
}

#[tokio::test]
async fn a_race_whose_winner_is_gone_ends_the_run() {
    within(async {
        let (file, clock) = (TempFile::new(), ManualClock::new());
        let id = {
            let durably = file.open_with(Durably::builder().clock(clock.clone())).await;
            let mut events = durably.events();
            let run = durably.register(order(&Count::default())).unwrap().trigger(0).await.unwrap();
            suspended(&mut events).await;
            durably.signal(run.id(), "approved", &"ann").await.unwrap();
            next_event(&mut events, |event| event.kind.name() == "step:wait").await;
            run.id()
        };
        let durably = file.open().await;
        let job = Job::new("order", |step: Step, _: u32| async move {
            step.race("decision").arm("other", async { Ok(()) }).await?;
            Ok(String::new())
        });
        durably.register(job).unwrap();
        let run = ended(&durably, id).await;
        let error = run.error.unwrap();
        assert_eq!((run.status, error.kind), (RunStatus::Failed, ErrorKind::CheckpointMismatch));
        assert!(error.message.contains("approved"), "{}", error.message);
    })
    .await;
}

#[tokio::test]
async fn a_race_without_arms_fails_and_a_name_given_twice_ends_the_run() {
    within(async {
        let durably = memory().await;
        let none = Job::new("none", |step: Step, _: u32| async move {
            let error = step.race::<()>("race").await.err().ok_or("it won")?;
            Ok(error.to_string())
        });
        let twice = Job::new("twice", |step: Step, _: u32| async move {
            let won = step.race("race").arm("a", async { Ok(1) }).arm("a", async { Ok(2) }).await;
            Ok(won.map_or(0, durably::Won::into_inner))
        });
        let (none, twice) = durably.register((none, twice)).unwrap();
        assert_eq!(none.trigger(0).await.unwrap().output().await.unwrap(), "race \"race\" has no arms");
        let run = twice.trigger(0).await.unwrap();
        assert_eq!(ended(&durably, run.id()).await.error.unwrap().kind, ErrorKind::StepReused);
    })
    .await;
}

#[tokio::test]
async fn children_can_race_and_the_one_that_loses_goes_on() {
    within(async {
        let durably = memory().await;
        let (slow, quick) = (Gate::new(), Gate::new());
        let children = durably.register((gated("slow", &slow), gated("quick", &quick))).unwrap();
        let parent = job_with(
            "parent",
            children,
            |step: Step, _, (slow, quick): (JobHandle<_, _>, JobHandle<_, _>)| async move {
                let won = step
                    .race("race")
                    .arm("slow", step.call("slow", &slow, 1))
                    .arm("quick", step.call("quick", &quick, 2));
                let won = won.await?;
                Ok(format!("{} {}", won.arm(), won.value()))
            },
        );
        let run = durably.register(parent).unwrap().trigger(0).await.unwrap();
        slow.reached().await;
        quick.open();
        assert_eq!(run.output().await.unwrap(), "quick 2");
        let child = durably.get_runs(durably::RunFilter::new().job("slow")).await.unwrap().remove(0);
        assert_eq!(child.status, RunStatus::Leased);
        slow.open();
        assert_eq!(ended(&durably, child.id).await.status, RunStatus::Completed);
    })
    .await;
}

#[tokio::test]
async fn an_error_after_the_order_to_stop_decides_no_race() {
    within(async {
        let (file, gate) = (TempFile::new(), Gate::new());
        let job = || {
            job_with("stops", gate.clone(), |step: Step, _, gate| async move {
                let won = step
                    .race("race")
                    .arm("stopped", async {
                        gate.enter();
                        if gate.arrivals() == 1 {
                            step.draining().cancelled().await;
                            return Err("told to stop".into());
                        }
                        Ok("again")
                    })
                    .await?;
                Ok(won.into_inner().to_owned())
            })
        };
        let id = {
            let durably = file.open().await;
            let run = durably.register(job()).unwrap().trigger(0).await.unwrap();
            gate.reached().await;
            durably.shutdown().await.unwrap();
            run.id()
        };
        let durably = file.open().await;
        durably.register(job()).unwrap();
        assert_eq!(ended(&durably, id).await.output.unwrap(), json!("again"));
    })
    .await;
}
