//! Pausing jobs and keys.

use durably::{Durably, Error, Paused, RunStatus, Step, SupervisorMsg};

use crate::support::{Gate, TempFile, echo, ended, gated, job_with, memory, next_event, run_of, within};

#[tokio::test]
async fn a_paused_job_starts_nothing_until_it_is_resumed_and_what_executes_goes_on() {
    within(async {
        let (durably, gate) = (memory().await, Gate::new());
        let (job, other) = durably.register((gated("job", &gate), echo("other"))).unwrap();
        let executing = job.trigger(1).await.unwrap();
        gate.reached().await;
        durably.pause_job("job").await.unwrap();
        let waiting = job.trigger(2).await.unwrap();
        assert_eq!(waiting.status(), RunStatus::Pending, "triggers are taken");
        assert_eq!(other.trigger_and_wait(3).await.unwrap().output, 3);
        gate.open();
        assert_eq!(executing.output().await.unwrap(), 1);
        assert_eq!(durably.run_until_idle(None).await.unwrap(), 0, "what is paused does not keep it waiting");
        assert_eq!(run_of(&durably, waiting.id()).await.status, RunStatus::Pending);
        durably.resume_job("job").await.unwrap();
        assert_eq!(waiting.output().await.unwrap(), 2);
        durably.resume_job("job").await.unwrap();
        assert!(matches!(durably.pause_job("unheard of").await, Err(Error::JobNotFound { .. })));
    })
    .await;
}

#[tokio::test]
async fn a_paused_key_lets_nobody_in_and_who_holds_it_goes_on() {
    within(async {
        let durably = memory().await;
        let mut events = durably.events();
        let (waits, other) = durably
            .register((
                job_with("waits", (), |step: Step, _, ()| async move { step.wait_signal::<u32>("go", "go").await }),
                echo("other"),
            ))
            .unwrap();
        let holder = waits.trigger(0).concurrency_key("key").await.unwrap();
        next_event(&mut events, |event| event.kind.name() == "run:suspend").await;
        durably.pause_key("key").await.unwrap();
        durably.signal(holder.id(), "go", &9).await.unwrap();
        assert_eq!(holder.output().await.unwrap(), 9);
        let shut_out = other.trigger(1).concurrency_keys(["free", "key"]).await.unwrap();
        assert_eq!(other.trigger_and_wait(2).concurrency_key("other").await.unwrap().output, 2);
        assert_eq!(run_of(&durably, shut_out.id()).await.status, RunStatus::Pending);
        durably.resume_key("key").await.unwrap();
        assert_eq!(shut_out.output().await.unwrap(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_pause_survives_restarts_and_is_listed() {
    within(async {
        let file = TempFile::new();
        let (run, first) = {
            let durably = file.open().await;
            let job = durably.register(echo("job")).unwrap();
            durably.pause_job("job").await.unwrap();
            durably.pause_key("key").await.unwrap();
            let first = durably.paused().await.unwrap();
            assert!(matches!(&first[..], [Paused::Job { name, .. }, Paused::Key { key, .. }] if name == "job" && key == "key"));
            durably.pause_job("job").await.unwrap();
            (job.trigger(1).concurrency_key("key").await.unwrap().id(), first)
        };
        {
            let durably = file.open().await;
            durably.register(echo("job")).unwrap();
            assert_eq!(durably.paused().await.unwrap(), first, "since when it was first paused");
            assert_eq!(run_of(&durably, run).await.status, RunStatus::Pending);
            durably.resume_job("job").await.unwrap();
            durably.shutdown().await.unwrap();
        }
        let durably = file.open().await;
        durably.register(echo("job")).unwrap();
        assert_eq!(durably.paused().await.unwrap().len(), 1);
        assert_eq!(run_of(&durably, run).await.status, RunStatus::Pending, "its key is paused still");
        durably.resume_key("key").await.unwrap();
        assert_eq!(ended(&durably, run).await.output.unwrap(), 1);
        assert_eq!(durably.paused().await.unwrap(), []);
        durably.shutdown().await.unwrap();
        assert!(durably::verify(file.path()).await.unwrap().is_sound());
    })
    .await;
}

#[tokio::test]
async fn all_of_it_by_message() {
    within(async {
        let durably = Durably::in_memory().await.unwrap();
        let job = durably.register(echo("job")).unwrap();
        let supervisor = durably.actor_ref().unwrap();
        let name = || "job".to_owned();
        ractor::call!(supervisor, |port| SupervisorMsg::PauseJob(name(), port)).unwrap().unwrap();
        ractor::call!(supervisor, |port| SupervisorMsg::PauseKey("key".into(), port)).unwrap().unwrap();
        let run = job.trigger(1).concurrency_key("key").await.unwrap();
        assert_eq!(ractor::call!(supervisor, SupervisorMsg::Paused).unwrap().unwrap().len(), 2);
        let why = ractor::call!(supervisor, |port| SupervisorMsg::Explain(run.id(), port)).unwrap().unwrap();
        assert!(why.to_string().contains("job job is paused"), "{why}");
        ractor::call!(supervisor, |port| SupervisorMsg::LimitKey("key".into(), None, port)).unwrap().unwrap();
        ractor::call!(supervisor, |port| SupervisorMsg::ResumeJob(name(), port)).unwrap().unwrap();
        ractor::call!(supervisor, |port| SupervisorMsg::ResumeKey("key".into(), port)).unwrap().unwrap();
        assert_eq!(run.output().await.unwrap(), 1);
    })
    .await;
}
