//! Code that changes while runs of it are in flight.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use durably::{
    Durably, ErrorKind, EventKind, Job, JobError, JobHandle, JobResult, RunFilter, RunStatus, Step, StepKind,
    SupervisorMsg,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::{
    Count, Gate, TempFile, echo, ended, job_with, memory, next_event, run_of, within, within_minutes,
};

/// Steps by key, in the order in which the code has them; it fails at `fail`.
type Code = Arc<Mutex<Vec<&'static str>>>;

/// Runs the steps that its code says, each of which gives how often any has run.
fn scripted(code: &Code, ran: &Count) -> Job<u32, Vec<usize>> {
    job_with("scripted", (code.clone(), ran.clone()), |step: Step, _, (code, ran)| async move {
        let keys = code.lock().unwrap().clone();
        let mut outputs = Vec::new();
        for key in keys {
            let ran = ran.clone();
            let run = step.run(key, move || {
                let ran = ran.clone();
                async move { if key == "fail" { Err(JobError::msg("not yet")) } else { Ok(ran.up()) } }
            });
            outputs.push(run.await?);
        }
        Ok(outputs)
    })
}

#[tokio::test]
async fn steps_come_go_and_change_places_and_each_keeps_its_output() {
    within(async {
        let durably = memory().await;
        let (code, ran) = (Code::default(), Count::default());
        *code.lock().unwrap() = vec!["a", "b", "old-name", "gone", "fail"];
        let run = durably.register(scripted(&code, &ran)).unwrap().trigger(0).await.unwrap();
        assert_eq!(ended(&durably, run.id()).await.status, RunStatus::Failed);
        let mut events = durably.events();
        *code.lock().unwrap() = vec!["new", "b", "new-name", "a"];
        durably.resume(run.id()).await.unwrap();
        assert_eq!(run.output().await.unwrap(), [5, 2, 6, 1]);
        // What is not asked for any more is told and kept.
        let unused = next_event(&mut events, |event| matches!(event.kind, EventKind::StepsUnused { .. })).await;
        let keys = vec!["old-name".to_owned(), "gone".into()];
        assert_eq!(unused.kind, EventKind::StepsUnused { keys: keys.clone(), count: 2 });
        assert!(unused.committed);
        let steps = durably.get_steps(run.id()).await.unwrap();
        let flagged: Vec<_> = steps.iter().filter(|step| step.unused).map(|step| step.name.clone()).collect();
        assert_eq!((flagged, steps.len()), (keys, 6));
        let indexes: BTreeMap<_, _> = steps.into_iter().map(|step| (step.name, step.index)).collect();
        // The failure that was cleared left its place; nothing was numbered anew.
        assert_eq!((indexes["a"], indexes["gone"], indexes["new"], indexes["new-name"]), (0, 3, 4, 5));
    })
    .await;
}

#[tokio::test]
async fn a_step_that_was_asked_for_and_dropped_is_not_unused_nor_are_those_of_a_run_that_fails() {
    within(async {
        let durably = memory().await;
        let (code, ran) = (Code::default(), Count::default());
        *code.lock().unwrap() = vec!["a", "b", "fail"];
        let run = durably.register(scripted(&code, &ran)).unwrap().trigger(0).await.unwrap();
        ended(&durably, run.id()).await;
        *code.lock().unwrap() = vec!["fail"];
        durably.resume(run.id()).await.unwrap();
        ended(&durably, run.id()).await;
        assert!(durably.get_steps(run.id()).await.unwrap().iter().all(|step| !step.unused));

        let tries = Count::default();
        let job = job_with("dropping", tries, |step: Step, _, tries| async move {
            let dropped = step.run("dropped", || async { Ok(()) });
            if tries.up() == 1 {
                dropped.await?;
                return Err("again".into());
            }
            drop(dropped);
            Ok(())
        });
        let run = durably.register(job).unwrap().trigger(0).await.unwrap();
        ended(&durably, run.id()).await;
        durably.resume(run.id()).await.unwrap();
        run.output().await.unwrap();
        assert!(durably.get_steps(run.id()).await.unwrap().iter().all(|step| !step.unused));
    })
    .await;
}

const KINDS: [StepKind; 5] = [StepKind::Run, StepKind::Sleep, StepKind::Signal, StepKind::Trigger, StepKind::Call];

/// Asks for a step of the kind that it is told, under one key; fails after it the first time.
fn shifting(kind: &Arc<Mutex<StepKind>>, child: &JobHandle<u32, u32>) -> Job<bool, ()> {
    let shared = (kind.clone(), child.clone());
    Job::new("shifting", move |step: Step, waits: bool| {
        let (kind, child) = shared.clone();
        async move {
            let kind = *kind.lock().unwrap();
            let long = Duration::from_secs(if waits { 100_000 } else { 0 });
            match kind {
                StepKind::Run => step.run("step", || async { Ok(()) }).await?,
                StepKind::Sleep => step.sleep("step", long).await?,
                StepKind::Signal => drop(step.wait_signal::<Value>("step", "signal").await?),
                StepKind::Trigger => drop(step.trigger("step", &child, 1).await?),
                StepKind::Call => drop(step.call("step", &child, 1).await?),
                other => return Err(JobError::msg(format!("{other} is new"))),
            }
            step.run("then", || async { Err::<(), _>("stop here".into()) }).await
        }
    })
}

#[tokio::test]
async fn a_key_that_held_another_kind_of_step_ends_the_run_which_goes_on_once_the_code_is_right_again() {
    within(async {
        let durably = memory().await;
        let child = durably.register(echo("child")).unwrap();
        let kind = Arc::new(Mutex::new(StepKind::Run));
        let job = durably.register(shifting(&kind, &child)).unwrap();
        for (was, is) in KINDS.into_iter().flat_map(|was| KINDS.map(|is| (was, is))).filter(|(was, is)| was != is) {
            *kind.lock().unwrap() = was;
            let run = job.trigger(false).await.unwrap();
            if was == StepKind::Signal {
                durably.signal(run.id(), "signal", &1).await.unwrap();
            }
            let failed = ended(&durably, run.id()).await.error.unwrap();
            assert_eq!(failed.step.as_deref(), Some("then"), "{was}: {failed:?}");
            *kind.lock().unwrap() = is;
            durably.resume(run.id()).await.unwrap();
            let refused = ended(&durably, run.id()).await.error.unwrap();
            let wanted = format!("step \"step\" was a {was} and is a {is} now");
            assert_eq!((refused.kind, refused.message), (ErrorKind::CheckpointMismatch, wanted));
            *kind.lock().unwrap() = was;
            durably.resume(run.id()).await.unwrap();
            let failed = ended(&durably, run.id()).await.error.unwrap();
            assert_eq!(failed.step.as_deref(), Some("then"), "{was} after {is}: {failed:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_step_that_still_waits_is_of_its_kind_too() {
    within(async {
        let (gate, durably) = (Gate::new(), memory().await);
        let child = durably.register(crate::support::gated("child", &gate)).unwrap();
        let kind = Arc::new(Mutex::new(StepKind::Run));
        let job = durably.register(shifting(&kind, &child)).unwrap();
        let mut events = durably.events();
        for was in [StepKind::Sleep, StepKind::Signal, StepKind::Call] {
            *kind.lock().unwrap() = was;
            let run = job.trigger(true).await.unwrap();
            next_event(&mut events, |event| {
                event.run_id == run.id() && matches!(event.kind, EventKind::RunSuspended { .. })
            })
            .await;
            durably.cancel(run.id()).await.unwrap();
            *kind.lock().unwrap() = StepKind::Run;
            durably.resume(run.id()).await.unwrap();
            let refused = ended(&durably, run.id()).await.error.unwrap();
            assert_eq!(refused.message, format!("step \"step\" was a {was} and is a run now"));
        }
        gate.open();
    })
    .await;
}

/// A user as three versions of the code store it.
#[derive(Serialize, Deserialize, JsonSchema, Debug, PartialEq)]
struct User {
    name: String,
    mails: Vec<String>,
}

#[tokio::test]
async fn outputs_of_older_code_are_converted_where_they_are_read_and_stay_as_they_are_on_disk() {
    within(async {
        let file = TempFile::new();
        let id = {
            let durably = file.open().await;
            let job = Job::new("job", |step: Step, (): ()| async move {
                let name: String = step.run("user", || async { Ok("ann".to_owned()) }).await?;
                step.run("more", || async { Err::<(), _>(name.clone().into()) }).await
            });
            let run = durably.register(job).unwrap().trigger(()).await.unwrap();
            ended(&durably, run.id()).await;
            run.id()
        };
        let durably = file.open().await;
        let job = Job::new("job", |step: Step, (): ()| async move {
            let user: User = step
                .run("user", || async { Ok(User { name: "bob".into(), mails: Vec::new() }) })
                .upcast(1, |(name, mail): (String, String)| Ok(User { name, mails: vec![mail] }))
                .upcast(0, |name: String| {
                    let mail = format!("{name}@example.com");
                    Ok((name, mail))
                })
                .await?;
            step.run("more", || async { Ok(()) }).await?;
            assert_eq!(user.mails.len(), 1);
            step.run("new", || async { Ok(1) }).await?;
            Ok(())
        })
        .version(2);
        durably.register(job).unwrap();
        durably.resume(id).await.unwrap();
        let run = ended(&durably, id).await;
        assert_eq!((run.status, run.version), (RunStatus::Completed, 0), "{:?}", run.error);
        let steps = durably.get_steps(id).await.unwrap();
        assert_eq!(steps[0].output, Some(json!("ann")));
        let versions: Vec<_> = steps.iter().map(|step| (&*step.name, step.version)).collect();
        assert_eq!(versions, [("user", 0), ("more", 2), ("new", 2)]);
    })
    .await;
}

#[tokio::test]
async fn an_output_that_cannot_be_converted_names_its_step_and_what_is_stored() {
    within(async {
        let durably = memory().await;
        let tries = Count::default();
        let job = job_with("job", tries, |step: Step, _, tries| async move {
            if tries.up() == 1 {
                step.run("user", || async { Ok(7) }).await?;
                return Err("again".into());
            }
            let broken: fn(String) -> JobResult<u32> = |_| Err("no number".into());
            step.run("user", || async { Ok(8) }).upcast(0, broken).await
        });
        let run = durably.register(job).unwrap().trigger(0).await.unwrap();
        ended(&durably, run.id()).await;
        durably.resume(run.id()).await.unwrap();
        let error = ended(&durably, run.id()).await.error.unwrap();
        assert_eq!(error.kind, ErrorKind::CheckpointMismatch);
        assert!(error.message.contains("\"user\"") && error.message.contains("stored: 7"), "{}", error.message);
    })
    .await;
}

/// A job whose input was a text once and is a user now.
fn renamed() -> Job<User, usize> {
    Job::new("job", |_: Step, user: User| async move { Ok(user.mails.len()) })
        .version(1)
        .upcast_input(0, |name: String| Ok(User { mails: vec![name.clone()], name }))
}

#[tokio::test]
async fn inputs_of_older_code_are_converted_for_pending_runs_retriggers_and_forks() {
    within(async {
        let file = TempFile::new();
        let id = {
            let durably = file.open_paused().await;
            let job = durably.register(Job::new("job", |_: Step, name: String| async move { Ok(name) })).unwrap();
            job.trigger("ann".into()).await.unwrap().id()
        };
        let durably = file.open().await;
        let job = durably.register(renamed()).unwrap();
        let run = ended(&durably, id).await;
        assert_eq!((run.output, run.input, run.version), (Some(json!(1)), Some(json!("ann")), 0));
        for again in [durably.retrigger(id).await.unwrap(), durably.fork(id).await.unwrap()] {
            assert_eq!(again.output().await.unwrap(), json!(1));
            let run = run_of(&durably, again.id()).await;
            assert_eq!((run.version, run.input), (1, Some(json!({"name": "ann", "mails": ["ann"]}))));
        }
        // One of this version is taken as it is.
        let new = job.trigger(User { name: "bob".into(), mails: Vec::new() }).await.unwrap();
        assert_eq!(new.output().await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn what_runs_in_flight_have_stored_is_checked_before_they_start() {
    within(async {
        let file = TempFile::new();
        let gate = Gate::new();
        let (waiting, leased, done) = {
            let durably = file.open().await;
            let mut events = durably.events();
            let job = job_with("job", gate.clone(), |step: Step, input, gate| async move {
                for n in 0..3 {
                    step.run(("item", n), || async { Ok(format!("{n}")) }).await?;
                }
                step.run("items", || async { Ok(true) }).await?;
                match input {
                    0 => drop(step.wait_signal::<u32>("wait", "never").await?),
                    1 => gate.pass().await,
                    _ => {}
                }
                Ok(())
            });
            let (job, gone) = durably.register((job, crate::support::gated("gone", &gate))).unwrap();
            let waiting = job.trigger(0).await.unwrap();
            next_event(&mut events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
            let leased = job.trigger(1).await.unwrap();
            gate.reached().await;
            let done = job.trigger(2).await.unwrap();
            done.output().await.unwrap();
            let found = durably.check_pending().await.unwrap();
            assert!(found.is_ok() && found.checked == 2, "{found:?}");
            gone.trigger(1).await.unwrap();
            gate.reached().await;
            (waiting.id(), leased.id(), done.id())
        };
        gate.open();
        let durably = file.open_paused().await;
        let job: Job<Value, ()> = Job::new("job", |_: Step, _: Value| async move { Ok(()) });
        durably.register(job.version(1).expects::<u32>("item", 0).expects::<bool>("items", 0)).unwrap();
        let found = durably.check_pending().await.unwrap();
        let mut unreadable: Vec<_> =
            found.unreadable.iter().map(|value| (value.run_id, value.step.clone().unwrap_or_default())).collect();
        unreadable.sort();
        let items = |run| (0..3).map(move |n| (run, format!("item[{n}]")));
        assert_eq!(unreadable, items(waiting).chain(items(leased)).collect::<Vec<_>>());
        assert_eq!((found.checked, found.unreadable_count), (3, 6));
        assert_eq!(found.unregistered, BTreeMap::from([("gone".to_owned(), 1)]));
        let one = &found.unreadable[0];
        assert!(one.message.contains("u32") && one.message.contains("stored: \"0\""), "{}", one.message);
        assert_eq!((one.version, &*one.job_name), (0, "job"));
        assert_eq!(run_of(&durably, done).await.status, RunStatus::Completed);
    })
    .await;
}

#[tokio::test]
async fn inputs_that_do_not_fit_and_decoders_that_panic_are_told() {
    #[derive(Serialize, JsonSchema)]
    struct Touchy(u32);

    impl<'de> Deserialize<'de> for Touchy {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let number = u32::deserialize(deserializer)?;
            assert!(number != 13, "not that one");
            Ok(Touchy(number))
        }
    }

    within(async {
        let file = TempFile::new();
        let ids = {
            let durably = file.open_paused().await;
            let job: Job<Value, ()> = Job::new("job", |_: Step, _: Value| async move { Ok(()) });
            let job = durably.register(job).unwrap();
            let runs = job.batch_trigger([json!(1), json!("one"), json!(13)]).await.unwrap();
            runs.iter().map(|run| run.id()).collect::<Vec<_>>()
        };
        let durably = file.open_paused().await;
        durably.register(Job::new("job", |_: Step, _: Touchy| async move { Ok(()) })).unwrap();
        let supervisor = durably.actor_ref().unwrap();
        let found = ractor::call!(supervisor, SupervisorMsg::CheckPending).unwrap().unwrap();
        let unreadable: Vec<_> = found.unreadable.iter().map(|value| (value.run_id, value.step.clone())).collect();
        assert_eq!(unreadable, [(ids[1], None), (ids[2], None)]);
        assert!(found.unreadable[1].message.contains("panics"), "{:?}", found.unreadable[1]);
    })
    .await;
}

#[tokio::test]
async fn outputs_from_before_a_declaration_are_the_upcasts_business() {
    within(async {
        let file = TempFile::new();
        {
            let durably = file.open().await;
            let mut events = durably.events();
            let job = Job::new("job", |step: Step, (): ()| async move {
                step.run("one", || async { Ok("text".to_owned()) }).await?;
                step.wait_signal::<()>("wait", "never").await
            });
            durably.register(job).unwrap().trigger(()).await.unwrap();
            next_event(&mut events, |event| matches!(event.kind, EventKind::RunSuspended { .. })).await;
        }
        for (since, unreadable) in [(0, 1), (1, 0)] {
            let durably = file.open_paused().await;
            let job = Job::new("job", |_: Step, (): ()| async move { Ok(()) }).version(1);
            durably.register(job.expects::<u32>("one", since)).unwrap();
            assert_eq!(durably.check_pending().await.unwrap().unreadable_count, unreadable, "since {since}");
        }
    })
    .await;
}

#[tokio::test]
async fn many_pending_runs_are_checked_in_slices_while_others_are_triggered() {
    within_minutes(async {
        let durably = Durably::builder().paused(true).in_memory().await.unwrap();
        let job = durably.register(echo("job")).unwrap();
        job.batch_trigger(0..20_000).await.unwrap();
        let checking = durably.check_pending();
        let triggering = async {
            for n in 0..50 {
                job.trigger(n).await.unwrap();
            }
        };
        let (found, ()) = tokio::join!(checking, triggering);
        let found = found.unwrap();
        assert!(found.is_ok() && (20_000..=20_050).contains(&found.checked), "{found:?}");
        assert_eq!(job.get_runs(RunFilter::new().limit(1)).await.unwrap().len(), 1);
    })
    .await;
}
