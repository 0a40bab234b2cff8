//! Retrigger: a new run with an old one's input.

use durably::{Disposition, Error, Job, RunFilter, RunStatus, Step};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::support::{
    Count, Gate, TempFile, echo, ended, failing, gated, job_with, memory, paused, run_of, told_so_far, within,
};

#[tokio::test]
async fn p_retr_01_a_retrigger_is_a_new_run_that_reuses_no_step() {
    within(async {
        let durably = memory().await;
        let calls = Count::default();
        let job = job_with("job", calls.clone(), |step: Step, input, calls| async move {
            step.run("a", || async { Ok(calls.up()) }).await?;
            if input == 0 { Err("no".into()) } else { Ok(input) }
        });
        let jobs = durably.register(job).unwrap();
        let failed = jobs.trigger(0).await.unwrap().id();
        let completed = jobs.trigger(5).await.unwrap().id();
        ended(&durably, failed).await;
        ended(&durably, completed).await;
        durably.stop().await.unwrap();
        let cancelled = jobs.trigger(6).await.unwrap().id();
        durably.cancel(cancelled).await.unwrap();
        durably.start().await.unwrap();
        for (old, input) in [(failed, 0), (completed, 5), (cancelled, 6)] {
            let before = run_of(&durably, old).await;
            let new = durably.retrigger(old).await.unwrap();
            assert!(new.id() > old);
            assert_eq!(new.disposition(), Disposition::Created);
            let record = ended(&durably, new.id()).await;
            assert_eq!(record.input, Some(json!(input)));
            // P-RETR-10: it says where it is from.
            assert_eq!(record.retriggered_from, Some(old));
            assert_eq!(run_of(&durably, old).await, before);
        }
        assert_eq!(calls.get(), 5);
    })
    .await;
}

#[tokio::test]
async fn p_retr_02_03_what_can_not_be_retriggered_says_why() {
    within(async {
        let file = TempFile::new();
        let durably = file.open().await;
        let gate = Gate::new();
        let jobs = durably.register(gated("job", &gate).concurrency(1)).unwrap();
        let leased = jobs.trigger(1).await.unwrap().id();
        gate.reached().await;
        let pending = jobs.trigger(2).await.unwrap().id();
        for (run, status) in [(leased, "leased"), (pending, "pending")] {
            let error = durably.retrigger(run).await.unwrap_err();
            assert_eq!(error.to_string(), format!("cannot retrigger {status} run: {run}"));
        }
        gate.open();
        ended(&durably, leased).await;
        ended(&durably, pending).await;
        durably.delete_run(leased).await.unwrap();
        assert!(matches!(durably.retrigger(leased).await, Err(Error::RunNotFound { .. })));
        durably.shutdown().await.unwrap();
        let durably = file.open().await;
        let error = durably.retrigger(pending).await.unwrap_err();
        assert_eq!(error.to_string(), "unknown job: job");
    })
    .await;
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Loose {
    count: i64,
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Strict {
    #[schemars(range(max = 10))]
    count: i64,
}

#[tokio::test]
async fn p_retr_04_the_stored_input_is_checked_against_the_code_of_now() {
    within(async {
        let file = TempFile::new();
        let durably = file.open().await;
        let jobs = durably.register(Job::new("job", |_: Step, input: Loose| async move { Ok(input.count) })).unwrap();
        let run = jobs.trigger(Loose { count: 11 }).await.unwrap().id();
        ended(&durably, run).await;
        durably.shutdown().await.unwrap();
        let durably = file.open().await;
        durably.register(Job::new("job", |_: Step, input: Strict| async move { Ok(input.count) })).unwrap();
        let error = durably.retrigger(run).await.unwrap_err();
        assert!(
            matches!(&error, Error::InvalidInput { path, rule, .. } if path == "/count" && rule == "maximum"),
            "{error}"
        );
        assert_eq!(durably.get_runs(RunFilter::new()).await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn p_retr_05_p_conc_12_key_limit_and_labels_are_taken_over_and_nothing_else() {
    within(async {
        let durably = memory().await;
        let gate = Gate::new();
        let job = job_with("job", gate.clone(), |step: Step, input, gate| async move {
            let _ = step.progress(1, 2);
            gate.pass().await;
            Ok(input)
        });
        let jobs = durably.register(job).unwrap();
        gate.let_one_on();
        let old = jobs.trigger(1).idempotency_key("i").concurrency_key("k").limit(2).label("a", "b").await.unwrap();
        ended(&durably, old.id()).await;
        durably.stop().await.unwrap();
        let new = durably.retrigger(old.id()).await.unwrap();
        let record = run_of(&durably, new.id()).await;
        assert_eq!(
            (record.concurrency_key.as_deref(), record.labels.get("a").map(String::as_str)),
            (Some("k"), Some("b"))
        );
        assert_eq!((record.idempotency_key, record.progress, record.output), (None, None, None));
        assert_eq!((record.status, record.lease_generation), (RunStatus::Pending, 0));
        // The limit of two is in force for it too.
        durably.start().await.unwrap();
        gate.reached().await;
        gate.reached().await;
        jobs.trigger(3).concurrency_key("k").limit(2).await.unwrap();
        gate.reached().await;
        gate.open();
    })
    .await;
}

#[tokio::test]
async fn p_retr_06_a_retrigger_goes_in_line_behind_a_waiting_run_of_its_key() {
    within(async {
        let durably = paused().await;
        let jobs = durably.register(echo("job")).unwrap();
        let old = jobs.trigger(1).concurrency_key("k").await.unwrap().id();
        durably.run_until_idle(None).await.unwrap();
        jobs.trigger(2).concurrency_key("k").await.unwrap();
        let new = durably.retrigger(old).await.unwrap();
        assert_eq!(new.status(), RunStatus::Pending);
        assert_eq!(durably.run_until_idle(None).await.unwrap(), 2);
    })
    .await;
}

#[tokio::test]
async fn p_retr_07_a_retrigger_tells_of_a_trigger() {
    within(async {
        let durably = memory().await;
        let jobs = durably.register(failing("job", "no")).unwrap();
        let old = jobs.trigger(4).label("a", "b").await.unwrap().id();
        ended(&durably, old).await;
        let mut events = durably.events();
        let mut again = durably.events();
        let new = durably.retrigger(old).await.unwrap();
        ended(&durably, new.id()).await;
        let told = told_so_far(&durably, &mut events).await;
        let names: Vec<_> = told.iter().filter(|(run, _)| *run == new.id()).map(|(_, name)| *name).collect();
        assert_eq!(names, ["run:trigger", "run:leased", "run:fail"]);
        let first = again.next().await.unwrap();
        let event = first.event().unwrap();
        let durably::EventKind::RunTriggered { input } = &event.kind else { panic!("{event:?}") };
        assert_eq!((input.value(), event.labels.get("a").map(String::as_str)), (Some(json!(4)), Some("b")));
    })
    .await;
}

#[tokio::test]
async fn p_retr_08_defaults_that_were_filled_in_are_stored_and_taken_over() {
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Filled {
        #[serde(default)]
        force: bool,
    }
    within(async {
        let durably = memory().await;
        durably.register(Job::new("job", |_: Step, input: Filled| async move { Ok(input.force) })).unwrap();
        let old = durably.trigger_json("job", json!({})).await.unwrap();
        old.output().await.unwrap();
        let new = durably.retrigger(old.id()).await.unwrap();
        assert_eq!(new.output().await.unwrap(), json!(false));
        assert_eq!(run_of(&durably, new.id()).await.input, Some(json!({"force": false})));
    })
    .await;
}

#[tokio::test]
async fn a_filter_retriggers_what_has_ended() {
    within(async {
        let durably = paused().await;
        let (jobs, others) = durably.register((echo("job"), echo("other"))).unwrap();
        for input in 0..3 {
            jobs.trigger(input).label("n", input.to_string()).await.unwrap();
        }
        others.trigger(9).await.unwrap();
        durably.run_until_idle(None).await.unwrap();
        jobs.trigger(3).await.unwrap();
        let new = durably.retrigger_where(RunFilter::new().job("job")).await.unwrap();
        assert_eq!(new.len(), 3);
        let new = durably.retrigger_where(RunFilter::new().label("n", "1").status(RunStatus::Failed)).await.unwrap();
        assert_eq!(new, []);
        assert_eq!(durably.run_until_idle(None).await.unwrap(), 4);
    })
    .await;
}
