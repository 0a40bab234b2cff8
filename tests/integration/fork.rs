//! Forks: a new run that begins with checkpoints of an old one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use durably::{
    Disposition, Durably, Error, ErrorKind, EventKind, ForkRequest, Job, RunStatus, Step, StepStatus, SupervisorMsg,
};
use futures::future::try_join_all;
use serde_json::{Value, json};

use crate::support::{
    Gate, TempFile, echo, ended, job_with, memory, next_event, paused, run_of, within, within_minutes,
};

/// Which steps have run, in order.
type Ran = Arc<Mutex<Vec<String>>>;

/// Runs `a`, `b` and `c`: each adds to what the one before gave, beginning with the input.
fn chain(ran: &Ran) -> Job<u32, u32> {
    job_with("chain", ran.clone(), |step: Step, input, ran| async move {
        let mut sum: u32 = input;
        for key in ["a", "b", "c"] {
            let before = sum;
            sum = step
                .run(key, || async {
                    ran.lock().unwrap().push(key.to_owned());
                    Ok(before + 1)
                })
                .await?;
        }
        Ok(sum)
    })
}

fn taken(ran: &Ran) -> Vec<String> {
    std::mem::take(&mut *ran.lock().unwrap())
}

#[tokio::test]
async fn a_fork_keeps_what_is_before_its_step_and_runs_the_rest_again() {
    within(async {
        let durably = memory().await;
        let ran = Ran::default();
        let job = durably.register(chain(&ran)).unwrap();
        let trigger = job.trigger(10).label("x", "y").concurrency_key("key").limit(3).idempotency_key("once");
        let old = trigger.await.unwrap();
        assert_eq!(old.output().await.unwrap(), 13);
        assert_eq!(taken(&ran), ["a", "b", "c"]);
        let fork = durably.fork(old.id()).from_step("b").await.unwrap();
        assert_eq!(fork.output().await.unwrap(), json!(13));
        assert_eq!(taken(&ran), ["b", "c"]);
        let (run, before) = (run_of(&durably, fork.id()).await, run_of(&durably, old.id()).await);
        assert_eq!((run.forked_from, run.retriggered_from, run.parent), (Some(old.id()), None, None));
        assert_eq!((run.idempotency_key, run.concurrency_key), (None, Some("key".into())));
        assert_eq!((run.labels, run.completed_step_count), (before.labels, 3));
        let steps = durably.get_steps(fork.id()).await.unwrap();
        assert_eq!(steps.iter().map(|step| step.index).collect::<Vec<_>>(), [0, 1, 2]);
    })
    .await;
}

#[tokio::test]
async fn input_and_outputs_can_be_edited_and_steps_skipped() {
    within(async {
        let durably = memory().await;
        let ran = Ran::default();
        let job = durably.register(chain(&ran)).unwrap();
        let old = job.trigger(10).await.unwrap();
        old.output().await.unwrap();
        taken(&ran);
        let edited = durably.fork(old.id()).from_step("c").with_output("a", json!(50)).with_output("c", json!(7));
        assert_eq!(edited.await.unwrap().output().await.unwrap(), json!(7));
        assert_eq!(taken(&ran), [""; 0]);
        let other = durably.fork(old.id()).from_step("a").input(json!(100)).await.unwrap();
        assert_eq!(other.output().await.unwrap(), json!(103));
        assert_eq!(taken(&ran), ["a", "b", "c"]);
        let refused = durably.fork(old.id()).input(json!("ten")).await;
        assert!(matches!(refused, Err(Error::InvalidInput { .. })), "{refused:?}");
        // Null fits no number, which the step says where it is asked for.
        let skipped = durably.fork(old.id()).from_step("b").skip("b").await.unwrap();
        let run = ended(&durably, skipped.id()).await;
        let error = run.error.unwrap();
        assert_eq!(error.kind, ErrorKind::CheckpointMismatch);
        assert!(error.message.contains("\"b\"") && error.message.contains("null"), "{}", error.message);
    })
    .await;
}

#[tokio::test]
async fn without_a_step_only_the_failure_that_ended_the_run_is_left_behind() {
    within(async {
        let durably = memory().await;
        let ran = Ran::default();
        let job = job_with("job", ran.clone(), |step: Step, _, ran| async move {
            let note = |key: &str| ran.lock().unwrap().push(key.to_owned());
            let caught = step.run("caught", || async {
                note("caught");
                Err::<u32, _>("no".into())
            });
            let caught = caught.await.is_err();
            step.run("fails", || async {
                note("fails");
                Err::<u32, _>("never".into())
            })
            .await?;
            Ok(caught)
        });
        let old = durably.register(job).unwrap().trigger(0).await.unwrap();
        ended(&durably, old.id()).await;
        taken(&ran);
        let fork = durably.fork(old.id()).await.unwrap();
        assert_eq!(ended(&durably, fork.id()).await.status, RunStatus::Failed);
        assert_eq!(taken(&ran), ["fails"]);
        let fork = durably.fork(old.id()).with_output("fails", json!(1)).await.unwrap();
        assert_eq!(fork.output().await.unwrap(), json!(true));
        assert_eq!(taken(&ran), [""; 0]);
    })
    .await;
}

#[tokio::test]
async fn a_run_of_any_status_is_forked_and_what_it_waits_for_begins_anew() {
    within(async {
        let durably = memory().await;
        let mut events = durably.events();
        let job = Job::new("job", |step: Step, (): ()| async move {
            let first: u32 = step.run("first", || async { Ok(1) }).await?;
            let said: u32 = step.wait_signal("wait", "say").await?;
            Ok(first + said)
        });
        let old = durably.register(job).unwrap().trigger(()).await.unwrap();
        next_event(&mut events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
        let fork = durably.fork(old.id()).await.unwrap();
        let suspended =
            |event: &durably::Event| event.run_id == fork.id() && matches!(event.kind, EventKind::RunSuspended { .. });
        next_event(&mut events, suspended).await;
        durably.signal(fork.id(), "say", &5).await.unwrap();
        assert_eq!(fork.output().await.unwrap(), json!(6));
        assert_eq!(run_of(&durably, old.id()).await.status, RunStatus::Suspended);
        // The wait of one that still waits can be given its signal.
        let given = durably.fork(old.id()).with_output("wait", json!(9)).await.unwrap();
        assert_eq!(given.output().await.unwrap(), json!(10));
        durably.signal(old.id(), "say", &7).await.unwrap();
        assert_eq!(old.output().await.unwrap(), 8);
    })
    .await;
}

#[tokio::test]
async fn a_fork_of_an_executing_run_takes_what_is_on_disk() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let job = job_with("job", gate.clone(), |step: Step, input, gate| async move {
            step.run("one", || async { Ok(1) }).await?;
            step.run("two", || async {
                gate.pass().await;
                Ok(input)
            })
            .await
        });
        let old = durably.register(job).unwrap().trigger(4).await.unwrap();
        gate.reached().await;
        let fork = durably.fork(old.id()).input(json!(5)).await.unwrap();
        gate.reached().await;
        let steps = durably.get_steps(fork.id()).await.unwrap();
        assert_eq!(steps.iter().map(|step| &*step.name).collect::<Vec<_>>(), ["one"]);
        gate.open();
        assert_eq!((old.output().await.unwrap(), fork.output().await.unwrap()), (4, json!(5)));
    })
    .await;
}

#[tokio::test]
async fn of_steps_side_by_side_those_called_before_the_named_one_are_kept() {
    within(async {
        let durably = memory().await;
        let ran = Ran::default();
        let job = job_with("job", ran.clone(), |step: Step, _, ran| async move {
            let run = |key: &'static str| {
                let ran = ran.clone();
                step.run(key, move || {
                    ran.lock().unwrap().push(key.to_owned());
                    async { Ok(1u32) }
                })
            };
            let (a, b, c) = tokio::join!(run("a"), run("b"), run("c"));
            Ok(a? + b? + c?)
        });
        let old = durably.register(job).unwrap().trigger(0).await.unwrap();
        old.output().await.unwrap();
        taken(&ran);
        let fork = durably.fork(old.id()).from_step("b").await.unwrap();
        fork.output().await.unwrap();
        assert_eq!(taken(&ran), ["b", "c"]);
    })
    .await;
}

#[tokio::test]
async fn a_step_that_was_never_recorded_is_a_typed_error_and_nothing_is_written() {
    within(async {
        let durably = memory().await;
        let job = durably.register(chain(&Ran::default())).unwrap();
        let old = job.trigger(0).await.unwrap();
        old.output().await.unwrap();
        let forks = [
            durably.fork(old.id()).from_step("d"),
            durably.fork(old.id()).skip("d"),
            durably.fork(old.id()).skip(("a", 1)),
        ];
        for (fork, wanted) in forks.into_iter().zip(["d", "d", "a[1]"]) {
            match fork.await {
                Err(Error::StepNotFound { run, step }) => assert_eq!((run, &*step), (old.id(), wanted)),
                other => panic!("{other:?}"),
            }
        }
        let unknown = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
        let missing = durably.fork(unknown).await;
        assert!(matches!(missing, Err(Error::RunNotFound { .. })), "{missing:?}");
        assert_eq!(job.get_runs(durably::RunFilter::new()).await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_fork_has_effect_keys_of_its_own_and_an_idempotency_key_if_it_is_given_one() {
    within(async {
        let durably = memory().await;
        let job = Job::new("job", |step: Step, (): ()| async move {
            step.run_with("effect", |cx| async move { Ok(cx.effect_key()) }).await
        });
        let old = durably.register(job).unwrap().trigger(()).await.unwrap();
        let first = old.output().await.unwrap();
        let fork = durably.fork(old.id()).from_step("effect").idempotency_key("fork").await.unwrap();
        assert_ne!(fork.output().await.unwrap(), json!(first));
        let again = durably.fork(old.id()).from_step("effect").idempotency_key("fork").await.unwrap();
        assert_eq!((again.id(), again.disposition()), (fork.id(), Disposition::Idempotent));
    })
    .await;
}

#[tokio::test]
async fn a_fork_and_its_checkpoints_survive_a_crash_together() {
    within(async {
        let (file, ran) = (TempFile::new(), Ran::default());
        let id = {
            let durably = file.open().await;
            let job = durably.register(chain(&ran)).unwrap();
            let old = job.trigger(10).await.unwrap();
            old.output().await.unwrap();
            durably.stop().await.unwrap();
            durably.fork(old.id()).from_step("c").await.unwrap().id()
        };
        taken(&ran);
        let durably = file.open_paused().await;
        let run = run_of(&durably, id).await;
        assert_eq!((run.status, run.completed_step_count, run.current_step_index), (RunStatus::Pending, 2, 2));
        durably.register(chain(&ran)).unwrap();
        durably.start().await.unwrap();
        assert_eq!(ended(&durably, id).await.output, Some(json!(13)));
        assert_eq!(taken(&ran), ["c"]);
        durably.delete_run(id).await.unwrap();
        durably.shutdown().await.unwrap();
        let found = durably::verify(file.path()).await.unwrap();
        assert!(found.is_sound(), "{:?}", found.problems);
        assert_eq!((found.runs, found.steps), (1, 3));
    })
    .await;
}

#[tokio::test]
async fn a_fork_takes_over_as_much_as_a_run_can_have() {
    within_minutes(async {
        let builder = Durably::builder().payload_bytes_max(durably::limits::PAYLOAD_BYTES_CEILING);
        let durably = builder.in_memory().await.unwrap();
        let job = Job::new("job", |step: Step, (many, large): (u32, usize)| async move {
            for first in (0..many).step_by(1_000) {
                let steps = (first..many.min(first + 1_000)).map(|n| step.run(("n", n), move || async move { Ok(n) }));
                try_join_all(steps).await?;
            }
            for n in 0..4 {
                step.run(("large", n), || async { Ok("x".repeat(large)) }).await?;
            }
            step.run("last", || async { Ok(many) }).await
        });
        let job = durably.register(job).unwrap();
        for input in [(99_995, 1), (0, 63 << 20)] {
            let old = job.trigger(input).await.unwrap();
            old.output().await.unwrap();
            let fork = durably.fork(old.id()).from_step("last").await.unwrap();
            assert_eq!(fork.output().await.unwrap(), json!(input.0));
            let run = run_of(&durably, fork.id()).await;
            assert_eq!(run.completed_step_count, input.0 + 5);
            durably.delete_run(old.id()).await.unwrap();
            durably.delete_run(fork.id()).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_fork_is_asked_for_by_message() {
    within(async {
        let durably = paused().await;
        let job = durably.register(echo("job")).unwrap();
        let old = job.trigger(3).await.unwrap();
        let request = ForkRequest::new(old.id()).input(json!(4));
        let supervisor = durably.actor_ref().unwrap();
        let fork = ractor::call!(supervisor, SupervisorMsg::Fork, request).unwrap().unwrap();
        let run = run_of(&durably, fork).await;
        assert_eq!((run.forked_from, run.input), (Some(old.id()), Some(json!(4))));
        assert_eq!(run.status, RunStatus::Pending);
    })
    .await;
}

#[tokio::test]
async fn a_fork_of_a_fork_that_has_not_begun_is_one_of_the_same_checkpoints() {
    within(async {
        let durably = memory().await;
        let ran = Ran::default();
        let job = durably.register(chain(&ran)).unwrap();
        let old = job.trigger(1).await.unwrap();
        old.output().await.unwrap();
        durably.stop().await.unwrap();
        let fork = durably.fork(old.id()).from_step("b").await.unwrap();
        let second = durably.fork(fork.id()).await.unwrap();
        assert_eq!(run_of(&durably, second.id()).await.forked_from, Some(fork.id()));
        let steps = durably.get_steps(second.id()).await.unwrap();
        assert_eq!(
            steps.iter().map(|step| (&*step.name, step.status)).collect::<Vec<_>>(),
            [("a", StepStatus::Completed)]
        );
        durably.cancel(fork.id()).await.unwrap();
        durably.start().await.unwrap();
        let output: Value = second.wait().timeout(Duration::from_secs(10)).await.unwrap().output.unwrap();
        assert_eq!(output, json!(4));
    })
    .await;
}
