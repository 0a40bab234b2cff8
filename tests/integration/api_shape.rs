//! The API as a program uses it, all of its shapes: borrowed locals, steps side by side, async closures, plain functions.

use std::sync::Arc;
use std::time::Duration;

use durably::{
    Disposition, Durably, Error, Job, JobError, JobResult, OnConflict, RunFilter, RunStatus, Step, StepCx, Trigger,
};
use futures::future::try_join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Clone)]
struct User {
    id: u32,
}

struct Api;

impl Api {
    async fn fetch(&self, _org: &str) -> anyhow::Result<Vec<User>> {
        Ok(vec![User { id: 1 }, User { id: 2 }])
    }

    async fn upsert(&self, user: &User) -> std::io::Result<u32> {
        if user.id == 2 { Err(std::io::Error::other("no")) } else { Ok(user.id) }
    }
}

#[derive(Serialize, Deserialize, JsonSchema, Clone)]
struct SyncUsers {
    org_id: String,
    #[serde(default)]
    force: bool,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
struct Synced {
    synced_count: usize,
    errors: Vec<String>,
}

fn sync_users(api: Arc<Api>) -> Job<SyncUsers, Synced> {
    Job::new("sync-users", move |step: Step, input: SyncUsers| {
        let api = api.clone();
        async move {
            let users = step
                .run("fetch-users", || async { Ok(api.fetch(&input.org_id).await?) })
                .timeout(Duration::from_secs(5))
                .await?;
            let mut errors = Vec::new();
            for (n, user) in users.iter().enumerate() {
                let outcome = step.run(("sync", user.id), || async { Ok(api.upsert(user).await?) }).await;
                if let Err(error) = outcome {
                    errors.push(error.to_string());
                }
                step.progress(n, users.len()).message("users");
            }
            let (left, right) =
                tokio::join!(step.run(("shard", 1), async || Ok(1_u8)), step.run(("shard", 2), async || Ok(2_u8)),);
            assert_eq!(left? + right?, 3);
            let mails: Vec<u32> =
                try_join_all(users.iter().map(|user| step.run(("mail", user.id), move || async move { Ok(user.id) })))
                    .await?;
            assert_eq!(mails, [1, 2]);
            let first = tokio::select! {
                biased;
                quick = step.run("quick", || async { Ok("quick".to_owned()) }) => quick?,
                never = step.run("never", std::future::pending::<JobResult<String>>) => never?,
            };
            assert_eq!(first, "quick");
            let mut calls = 0;
            step.run("mutating", || {
                calls += 1;
                async { Ok(()) }
            })
            .await?;
            assert_eq!(calls, 1);
            let key = step
                .run_with("with-context", |cx: StepCx| async move {
                    cx.log().info("in a step", serde_json::json!({ "attempt": cx.attempt() }));
                    Ok(cx.effect_key())
                })
                .await?;
            assert_eq!(key.len(), 32);
            let sum: u64 = step.run_blocking("blocking", || Ok((0..10_u64).sum())).await?;
            assert_eq!(sum, 45);
            step.log().warn("done", ());
            assert!(!step.cancelled().is_cancelled() && !step.draining().is_cancelled() && !input.force);
            Ok(Synced { synced_count: users.len() - errors.len(), errors })
        }
    })
}

/// A body that is a plain function.
async fn import_csv(step: Step, rows: u32) -> JobResult<u32> {
    let parsed = step.run("parse", async || Ok("7".parse::<u32>()?)).await.map_err(|error| error.context("parsing"))?;
    helper(&step).await.map_err(JobError::from)?;
    if rows > 100 {
        return Err(JobError::msg("too many rows").terminal());
    }
    Ok(parsed + rows)
}

/// A helper with another error type.
async fn helper(step: &Step) -> anyhow::Result<()> {
    step.run("helped", || async { Ok(()) }).await.map_err(|error| anyhow::Error::from_boxed(error.into_boxed()))
}

#[tokio::test]
async fn every_shape_that_a_program_uses_compiles_and_works() -> Result<(), Error> {
    let durably = Durably::builder().max_concurrent_runs(8).in_memory().await?;
    let (sync, import) =
        durably.register((sync_users(Arc::new(Api)), Job::new("import-csv", import_csv).concurrency(2)))?;
    let input = SyncUsers { org_id: "org_123".into(), force: false };

    let run = sync
        .trigger(input.clone())
        .idempotency_key("sync-org_123-2026-01-01")
        .concurrency_key("org_123")
        .label("tenant", "acme")
        .await?;
    assert_eq!(run.disposition(), Disposition::Created);
    let synced: Synced = run.output().await?;
    assert_eq!((synced.synced_count, synced.errors), (1, vec!["no".to_owned()]));

    let done = import
        .trigger_and_wait(1)
        .timeout(Duration::from_secs(30))
        .on_progress(|progress| assert_eq!(progress.total, None))
        .on_log(|line| drop(line.message.clone()))
        .await?;
    assert_eq!((done.output, done.disposition), (8, Disposition::Created));
    let runs = import.batch_trigger([1, 2, 3]).await?;
    let more = import.batch_trigger([Trigger::new(4).label("n", "4"), 5.into()]).await?;
    for run in runs.iter().chain(&more) {
        durably.wait_for_run(run.id()).timeout(Duration::from_secs(30)).await?;
    }
    let skipped = import.trigger(6).concurrency_key("k").limit(2).on_conflict(OnConflict::Skip).await?;
    skipped.output().await?;
    let found = import.get_runs(RunFilter::new().status(RunStatus::Completed).limit(10)).await?;
    assert_eq!(found.len(), 7);
    let by_name = durably.trigger_json("import-csv", serde_json::json!(1)).await?;
    assert_eq!(by_name.output().await?, serde_json::json!(8));
    let again = durably.retrigger(by_name.id()).await?;
    again.output().await?;
    durably.delete_run(by_name.id()).await?;
    let mut events = durably.subscribe(again.id()).await?;
    while events.next().await.is_some() {}
    drop((durably.events(), durably.stats().await?, durably.health()));
    durably.shutdown().await
}
