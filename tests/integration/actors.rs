//! Everything by message, from an actor of the program's own.

use std::time::Duration;

use durably::limits::{BATCH_BYTES_MAX, BATCH_ITEMS_MAX, PAYLOAD_BYTES_DEFAULT};
use durably::{
    Disposition, Durably, Error, Events, Health, Job, Reply, Run, RunEvents, RunFilter, RunStatus, Step, SupervisorMsg,
    Timestamp, TriggerRequest,
};
use ractor::rpc::CallResult;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use serde_json::json;

use crate::support::{
    Gate, TempFile, echo, ended, failing, gated, job_with, memory, paused, run_of, within, within_minutes,
};

/// Asks the supervisor and gives its answer.
async fn ask<T: std::fmt::Debug + Send + 'static>(
    supervisor: &ActorRef<SupervisorMsg>,
    message: impl FnOnce(Reply<T>) -> SupervisorMsg,
) -> Result<T, Error> {
    match supervisor.call(message, None).await.expect("is there") {
        CallResult::Success(answer) => answer,
        other => panic!("no answer: {other:?}"),
    }
}

/// A program's own actor that has work done through the supervisor.
struct Clerk;

enum ClerkMsg {
    Order(u32, RpcReplyPort<(Run, Vec<&'static str>)>),
    Withdraw(RpcReplyPort<RunStatus>),
}

impl Actor for Clerk {
    type Msg = ClerkMsg;
    type State = ActorRef<SupervisorMsg>;
    type Arguments = ActorRef<SupervisorMsg>;

    async fn pre_start(
        &self,
        _: ActorRef<ClerkMsg>,
        supervisor: ActorRef<SupervisorMsg>,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(supervisor)
    }

    async fn handle(
        &self,
        _: ActorRef<ClerkMsg>,
        message: ClerkMsg,
        supervisor: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ClerkMsg::Order(input, reply) => {
                let request = TriggerRequest::new("job", json!(input)).label("by", "clerk").concurrency_key("desk");
                let triggered = ask(supervisor, |port| SupervisorMsg::Trigger(request, port)).await?;
                let mut stream: RunEvents =
                    ask(supervisor, |port| SupervisorMsg::Subscribe(triggered.run, port)).await?;
                let run = ask(supervisor, |port| SupervisorMsg::Wait(triggered.run, None, port)).await?;
                let mut names = Vec::new();
                while let Some(received) = stream.next().await {
                    names.extend(received.event().map(|event| event.kind.name()));
                }
                let _ = reply.send((run, names));
            }
            ClerkMsg::Withdraw(reply) => {
                let request = TriggerRequest::new("slow", json!(0));
                let triggered = ask(supervisor, |port| SupervisorMsg::Trigger(request, port)).await?;
                ask(supervisor, |port| SupervisorMsg::Cancel(triggered.run, port)).await?;
                let run = ask(supervisor, |port| SupervisorMsg::GetRun(triggered.run, port)).await?;
                let _ = reply.send(run.expect("is there").status);
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn an_actor_triggers_waits_subscribes_and_cancels() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let job =
            job_with(
                "job",
                (),
                |step: Step, input, ()| async move { step.run("double", || async { Ok(input * 2) }).await },
            );
        durably.register((job, gated("slow", &gate))).unwrap();
        let (clerk, task) = Actor::spawn(None, Clerk, durably.actor_ref().unwrap()).await.unwrap();
        for input in [1, 2] {
            let answer = clerk.call(|port| ClerkMsg::Order(input, port), None).await.unwrap();
            let CallResult::Success((run, names)) = answer else { panic!("no answer") };
            assert_eq!((run.output, run.labels["by"].as_str()), (Some(json!(input * 2)), "clerk"));
            assert_eq!(names.last(), Some(&"run:complete"));
        }
        let CallResult::Success(status) = clerk.call(ClerkMsg::Withdraw, None).await.unwrap() else {
            panic!("no answer")
        };
        assert_eq!(status, RunStatus::Cancelled);
        clerk.stop(None);
        task.await.unwrap();
        assert_eq!(durably.health(), Health::Ok);
    })
    .await;
}

#[tokio::test]
async fn every_message_does_what_its_method_does() {
    within(async {
        let durably = paused().await;
        let job = job_with("job", (), |step: Step, input, ()| async move {
            step.log().info("hello", ());
            step.run("a", || async { Ok(()) }).await?;
            Ok(input)
        });
        durably.register((job, failing("bad", "no"))).unwrap();
        let actor = durably.actor_ref().unwrap();
        let mut events: Events = ask(&actor, |port| SupervisorMsg::Events(None, port)).await.unwrap();

        let request = TriggerRequest::new("job", json!(1)).idempotency_key("i");
        let first = ask(&actor, |port| SupervisorMsg::Trigger(request.clone(), port)).await.unwrap();
        assert_eq!((first.disposition, first.status), (Disposition::Created, RunStatus::Pending));
        let changed = TriggerRequest::new("job", json!(2)).idempotency_key("i");
        let again = ask(&actor, |port| SupervisorMsg::Trigger(changed, port)).await.unwrap();
        assert_eq!((again.run, again.disposition, again.input_differs), (first.run, Disposition::Idempotent, true));

        let batch = vec![TriggerRequest::new("job", json!(3)), TriggerRequest::new("bad", json!(4))];
        let batch = ask(&actor, |port| SupervisorMsg::BatchTrigger(batch, port)).await.unwrap();
        let refused = vec![TriggerRequest::new("job", json!(5)), TriggerRequest::new("job", json!("text"))];
        let refused = ask(&actor, |port| SupervisorMsg::BatchTrigger(refused, port)).await;
        assert!(matches!(refused, Err(Error::Item { index: 1, .. })), "{refused:?}");
        assert_eq!(ask(&actor, |port| SupervisorMsg::BatchTrigger(Vec::new(), port)).await.unwrap(), []);
        let unknown = TriggerRequest::new("unknown", json!(1));
        let changed = TriggerRequest::new("job", json!(2)).idempotency_key("i").reject_changed_input();
        for request in [unknown, changed] {
            let only = vec![request.clone()];
            let only = ask(&actor, |port| SupervisorMsg::BatchTrigger(only, port)).await;
            assert!(matches!(only, Err(Error::Item { index: 0, .. })), "{only:?}");
            let alone = ask(&actor, |port| SupervisorMsg::Trigger(request, port)).await;
            let bare = matches!(alone, Err(Error::JobNotFound { .. } | Error::IdempotencyMismatch { .. }));
            assert!(bare, "{alone:?}");
        }

        assert_eq!(ask(&actor, |port| SupervisorMsg::RunUntilIdle(None, port)).await.unwrap(), 3);
        let runs = ask(&actor, |port| SupervisorMsg::GetRuns(RunFilter::new(), port)).await.unwrap();
        assert_eq!(runs.iter().map(|run| run.id).collect::<Vec<_>>(), [batch[1].run, batch[0].run, first.run]);
        assert_eq!(ask(&actor, |port| SupervisorMsg::GetSteps(first.run, port)).await.unwrap().len(), 1);
        assert_eq!(ask(&actor, |port| SupervisorMsg::GetLogs(first.run, port)).await.unwrap().len(), 1);
        let run = ask(&actor, |port| SupervisorMsg::GetRun(first.run, port)).await.unwrap().unwrap();
        assert_eq!(run, run_of(&durably, first.run).await);
        let failed = ask(&actor, |port| SupervisorMsg::Wait(batch[1].run, None, port)).await;
        assert!(matches!(failed, Err(Error::RunFailed { .. })));

        let retriggered = ask(&actor, |port| SupervisorMsg::Retrigger(first.run, port)).await.unwrap();
        let soon = Some(Duration::ZERO);
        let waited = ask(&actor, |port| SupervisorMsg::Wait(retriggered, soon, port)).await;
        assert!(matches!(waited, Err(Error::WaitTimeout { .. })));
        ask(&actor, |port| SupervisorMsg::Cancel(retriggered, port)).await.unwrap();
        let conflict = ask(&actor, |port| SupervisorMsg::Cancel(retriggered, port)).await;
        assert!(matches!(conflict, Err(Error::Conflict { action: "cancel", .. })));
        ask(&actor, |port| SupervisorMsg::Resume(retriggered, vec!["a".into()], port)).await.unwrap();
        let all = || RunFilter::new().job("job");
        assert_eq!(ask(&actor, |port| SupervisorMsg::CancelWhere(all(), port)).await.unwrap(), 1);
        assert_eq!(ask(&actor, |port| SupervisorMsg::ResumeWhere(all(), port)).await.unwrap(), 1);
        assert_eq!(ask(&actor, |port| SupervisorMsg::RetriggerWhere(all(), port)).await.unwrap().len(), 2);

        ask(&actor, SupervisorMsg::Start).await.unwrap();
        ask(&actor, |port| SupervisorMsg::Wait(retriggered, None, port)).await.unwrap();
        ask(&actor, SupervisorMsg::Stop).await.unwrap();
        let stats = ask(&actor, SupervisorMsg::Stats).await.unwrap();
        assert_eq!(stats.jobs.iter().map(|job| job.name.as_str()).collect::<Vec<_>>(), ["bad", "job"]);
        assert_eq!(ask(&actor, SupervisorMsg::Health).await.unwrap(), Health::Ok);
        ask(&actor, |port| SupervisorMsg::Delete(first.run, port)).await.unwrap();
        assert_eq!(ask(&actor, |port| SupervisorMsg::GetRun(first.run, port)).await.unwrap(), None);
        let info = ask(&actor, |port| SupervisorMsg::GetJob("job".into(), port)).await.unwrap().unwrap();
        assert_eq!((info.name(), info.input_schema()), ("job", durably.get_job("job").unwrap().input_schema()));
        assert!(ask(&actor, |port| SupervisorMsg::GetJob("unknown".into(), port)).await.unwrap().is_none());
        let copy = TempFile::new();
        let copied = ask(&actor, |port| SupervisorMsg::Backup(copy.path(), port)).await.unwrap();
        assert!(copied.is_sound() && copy.path().exists());
        let far = Timestamp::from_millis(u64::MAX);
        assert_eq!(ask(&actor, |port| SupervisorMsg::Purge(far, Some(1), port)).await.unwrap(), 1);
        assert!(ask(&actor, |port| SupervisorMsg::Purge(far, None, port)).await.unwrap() >= 2);

        let told = events.next().await.unwrap().event().unwrap().clone();
        assert_eq!((told.run_id, told.kind.name()), (first.run, "run:trigger"));
        let mut replay: Events =
            ask(&actor, |port| SupervisorMsg::Events(Some(told.sequence - 1), port)).await.unwrap();
        assert_eq!(replay.next().await.unwrap().event(), Some(&told));
    })
    .await;
}

#[tokio::test]
async fn a_batch_by_message_has_the_limits_of_a_batch() {
    within_minutes(async {
        let durably = paused().await;
        let length = Job::new("length", |_: Step, input: String| async move { Ok(input.len()) });
        durably.register((echo("job"), length)).unwrap();
        let actor = durably.actor_ref().unwrap();
        let items: Vec<_> = (0..=BATCH_ITEMS_MAX).map(|n| TriggerRequest::new("job", json!(n))).collect();
        let refused = ask(&actor, |port| SupervisorMsg::BatchTrigger(items, port)).await;
        let Err(Error::TooMany { count, count_max, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!((count, count_max), (100_001, BATCH_ITEMS_MAX));
        let text = "a".repeat(PAYLOAD_BYTES_DEFAULT - 2);
        let items: Vec<_> = (0..64).map(|_| TriggerRequest::new("length", json!(text))).collect();
        let refused = ask(&actor, |port| SupervisorMsg::BatchTrigger(items, port)).await;
        let Err(Error::TooLarge { what: "batch", bytes, bytes_max }) = refused else { panic!("{refused:?}") };
        assert_eq!((bytes, bytes_max), (64 * (PAYLOAD_BYTES_DEFAULT + 256), BATCH_BYTES_MAX));
        assert_eq!(durably.get_runs(RunFilter::new()).await.unwrap(), []);
    })
    .await;
}

#[tokio::test]
async fn a_port_that_nobody_waits_on_is_no_error() {
    within(async {
        let durably = memory().await;
        let jobs = durably.register(echo("job")).unwrap();
        let actor = durably.actor_ref().unwrap();
        let mut events = durably.events();
        let (sender, receiver) = ractor::concurrency::oneshot();
        drop(receiver);
        actor.send_message(SupervisorMsg::Trigger(TriggerRequest::new("job", json!(1)), sender.into())).unwrap();
        crate::support::next_event(&mut events, |event| event.kind.name() == "run:complete").await;
        assert_eq!(jobs.trigger_and_wait(2).await.unwrap().output, 2);
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_by_message_is_answered_after_the_end() {
    within(async {
        let file = TempFile::new();
        let durably = file.open().await;
        let gate = Gate::new();
        let jobs = durably.register(gated("job", &gate)).unwrap();
        let run = jobs.trigger(1).await.unwrap().id();
        gate.reached().await;
        let actor = durably.actor_ref().unwrap();
        let shutting = ask(&actor, SupervisorMsg::Shutdown);
        let ((), shut) = tokio::join!(async { gate.open() }, shutting);
        shut.unwrap();
        assert!((durably.health(), durably.actor_ref().is_none()) == (Health::Closed, true));
        // The file is free, and what executed had its time.
        let durably = file.open_with(Durably::builder().lock_wait(Duration::ZERO)).await;
        assert_eq!(run_of(&durably, run).await.status, RunStatus::Completed);
    })
    .await;
}

#[tokio::test]
async fn two_runtimes_in_one_process_do_not_collide() {
    within(async {
        let (one, two) = (memory().await, memory().await);
        let gate = Gate::new();
        let job = || {
            job_with("job", gate.clone(), |_: Step, input, gate: Gate| async move {
                gate.pass().await;
                Ok(input)
            })
        };
        let (ones, twos) = (one.register(job()).unwrap(), two.register(job()).unwrap());
        let first = ones.trigger(1).concurrency_key("k").idempotency_key("i").await.unwrap();
        let second = twos.trigger(2).concurrency_key("k").idempotency_key("i").await.unwrap();
        // Both execute at once: keys are a runtime's own.
        gate.reached_by(2).await;
        assert_eq!(second.disposition(), Disposition::Created);
        assert_eq!(two.get_run(first.id()).await.unwrap(), None);
        gate.open();
        assert_eq!((first.output().await.unwrap(), second.output().await.unwrap()), (1, 2));
        one.shutdown().await.unwrap();
        assert_eq!(twos.trigger_and_wait(3).await.unwrap().output, 3);
        assert!(two.actor_ref().is_some());
    })
    .await;
}

/// Panics where an input is read.
#[derive(serde::Serialize, schemars::JsonSchema)]
struct Explosive;

impl<'de> serde::Deserialize<'de> for Explosive {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("in deserialize")
    }
}

#[tokio::test]
async fn a_panic_where_an_input_is_read_refuses_the_trigger_and_touches_nothing_else() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let explosive = Job::new("explosive", |_: Step, _: Explosive| async move { Ok(()) });
        let (jobs, _) = durably.register((gated("job", &gate), explosive)).unwrap();
        let run = jobs.trigger(1).concurrency_key("k").await.unwrap();
        gate.reached().await;
        let waiting = jobs.trigger(2).concurrency_key("k").await.unwrap();
        let actor = durably.actor_ref().unwrap();
        let request = || TriggerRequest::new("explosive", json!(null));
        let refused = ask(&actor, |port| SupervisorMsg::Trigger(request(), port)).await;
        let Err(Error::InvalidInput { message, .. }) = &refused else { panic!("{refused:?}") };
        assert_eq!(message, "reading it panics: in deserialize");
        let batch = vec![TriggerRequest::new("job", json!(9)), request()];
        let refused = ask(&actor, |port| SupervisorMsg::BatchTrigger(batch, port)).await;
        assert!(matches!(refused, Err(Error::Item { index: 1, .. })), "{refused:?}");
        // By the same actor, which is still there.
        assert_eq!(ask(&actor, SupervisorMsg::Health).await.unwrap(), Health::Ok);
        gate.open();
        assert_eq!(run.output().await.unwrap(), 1);
        assert_eq!(waiting.output().await.unwrap(), 2);
        let record = run_of(&durably, run.id()).await;
        assert_eq!((record.lease_generation, record.recoveries), (1, 0));
        ended(&durably, jobs.trigger(3).await.unwrap().id()).await;
    })
    .await;
}
