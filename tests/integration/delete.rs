//! Delete: a terminal run goes with everything that belongs to it.

use durably::{Disposition, Error, RunFilter, RunStatus, Step};

use crate::support::{Gate, TempFile, echo, ended, gated, job_with, memory, paused, run_of, told_so_far, within};

#[tokio::test]
async fn p_del_01_a_run_goes_with_its_steps_logs_and_labels() {
    within(async {
        let file = TempFile::new();
        let durably = file.open().await;
        let job = job_with("job", (), |step: Step, input, ()| async move {
            step.log().info("hello", ());
            step.run("a", || async { Ok("x".repeat(100_000)) }).await?;
            if input == 0 { Err("no".into()) } else { Ok(input) }
        });
        let jobs = durably.register(job).unwrap();
        for input in [0, 1] {
            let run = jobs.trigger(input).label("tenant", "a").await.unwrap().id();
            ended(&durably, run).await;
            assert_eq!(durably.get_logs(run).await.unwrap().len(), 1);
            durably.delete_run(run).await.unwrap();
            assert_eq!(durably.get_run(run).await.unwrap(), None);
            assert_eq!(durably.get_steps(run).await.unwrap(), []);
            assert_eq!(durably.get_logs(run).await.unwrap(), []);
        }
        assert_eq!(durably.get_runs(RunFilter::new().label("tenant", "a")).await.unwrap(), []);
        assert_eq!(durably.get_runs(RunFilter::new()).await.unwrap(), []);
        let stats = durably.stats().await.unwrap();
        assert_eq!(stats.jobs[0].counts, [0; 6]);
        durably.shutdown().await.unwrap();
        drop(durably);
        let durably = file.open().await;
        assert_eq!(durably.get_runs(RunFilter::new()).await.unwrap(), []);
    })
    .await;
}

#[tokio::test]
async fn p_del_02_what_can_not_be_deleted_says_why() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let jobs = durably.register(gated("job", &gate).concurrency(1)).unwrap();
        let leased = jobs.trigger(1).await.unwrap().id();
        gate.reached().await;
        let pending = jobs.trigger(2).await.unwrap().id();
        for (run, status) in [(leased, "leased"), (pending, "pending")] {
            let error = durably.delete_run(run).await.unwrap_err();
            assert!(matches!(error, Error::Conflict { action: "delete", .. }));
            assert_eq!(error.to_string(), format!("cannot delete {status} run: {run}"));
        }
        gate.open();
        ended(&durably, leased).await;
        durably.delete_run(leased).await.unwrap();
        let error = durably.delete_run(leased).await.unwrap_err();
        assert_eq!(error.to_string(), format!("run not found: {leased}"));
    })
    .await;
}

#[tokio::test]
async fn p_del_03_a_delete_is_told_with_job_and_labels() {
    within(async {
        let durably = memory().await;
        let jobs = durably.register(echo("job")).unwrap();
        let run = jobs.trigger(1).label("a", "b").await.unwrap().id();
        ended(&durably, run).await;
        let mut events = durably.events();
        durably.delete_run(run).await.unwrap();
        let received = events.next().await.unwrap();
        let event = received.event().unwrap();
        assert_eq!((event.kind.name(), event.run_id, &*event.job_name), ("run:delete", run, "job"));
        assert_eq!((event.committed, event.labels.get("a").map(String::as_str)), (true, Some("b")));
        assert_eq!(told_so_far(&durably, &mut events).await, []);
    })
    .await;
}

#[tokio::test]
async fn p_del_04_the_idempotency_key_is_free_even_before_its_time() {
    within(async {
        let durably = memory().await;
        let jobs = durably.register(echo("job")).unwrap();
        let hour = std::time::Duration::from_secs(3_600);
        let old = jobs.trigger(1).idempotency_key("k").idempotency_ttl(hour).await.unwrap();
        ended(&durably, old.id()).await;
        durably.delete_run(old.id()).await.unwrap();
        let new = jobs.trigger(2).idempotency_key("k").await.unwrap();
        assert_eq!(new.disposition(), Disposition::Created);
        assert_ne!(new.id(), old.id());
        // Deleting what came before takes nothing from what holds the key now.
        let again = jobs.trigger(2).idempotency_key("k").await.unwrap();
        assert_eq!((again.id(), again.disposition()), (new.id(), Disposition::Idempotent));
    })
    .await;
}

#[tokio::test]
async fn p_del_04_a_deleted_run_frees_only_a_key_that_is_its_own() {
    within(async {
        let durably = paused().await;
        let jobs = durably.register(echo("job")).unwrap();
        let old = jobs.trigger(1).idempotency_key("k").await.unwrap();
        old.cancel().await.unwrap();
        let new = jobs.trigger(1).idempotency_key("k").reuse_after_failure().await.unwrap();
        assert_eq!(new.disposition(), Disposition::Created);
        durably.delete_run(old.id()).await.unwrap();
        let again = jobs.trigger(1).idempotency_key("k").await.unwrap();
        assert_eq!((again.id(), again.disposition()), (new.id(), Disposition::Idempotent));
    })
    .await;
}

#[tokio::test]
async fn p_del_05_a_stream_of_the_run_gets_the_delete_and_ends() {
    within(async {
        let durably = paused().await;
        let jobs = durably.register(echo("job")).unwrap();
        let run = jobs.trigger(1).await.unwrap();
        let mut events = durably.subscribe(run.id()).await.unwrap();
        run.cancel().await.unwrap();
        durably.delete_run(run.id()).await.unwrap();
        assert_eq!(events.next().await.unwrap().event().unwrap().kind.name(), "run:cancel");
        assert_eq!(events.next().await, None);
        assert!(matches!(durably.subscribe(run.id()).await, Err(Error::RunNotFound { .. })));
    })
    .await;
}

#[tokio::test]
async fn p_del_06_p_wait_10_a_wait_settles_when_its_run_is_deleted() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let job = job_with("job", gate.clone(), |step: Step, _, gate| async move {
            let _token = step.cancelled();
            gate.pass().await;
            Ok(1)
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(1).await.unwrap();
        gate.reached().await;
        // The body of a cancelled run may still be stopping when the run is deleted.
        run.cancel().await.unwrap();
        durably.delete_run(run.id()).await.unwrap();
        let error = run.output().await.unwrap_err();
        assert!(matches!(error, Error::RunNotFound { run: id } if id == run.id()), "{error}");
        gate.open();
        durably.stop().await.unwrap();
        assert_eq!(durably.get_run(run.id()).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn p_del_07_of_a_delete_and_a_resume_at_once_one_wins_whole() {
    within(async {
        let durably = paused().await;
        let jobs = durably.register(echo("job")).unwrap();
        for _ in 0..50 {
            let run = jobs.trigger(1).await.unwrap().id();
            durably.cancel(run).await.unwrap();
            let (deleted, resumed) = tokio::join!(durably.delete_run(run), async { durably.resume(run).await });
            match (deleted, resumed) {
                (Ok(()), Err(Error::RunNotFound { .. })) => assert_eq!(durably.get_run(run).await.unwrap(), None),
                (Err(Error::Conflict { status: RunStatus::Pending, .. }), Ok(())) => {
                    assert_eq!(run_of(&durably, run).await.status, RunStatus::Pending);
                }
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
}
