//! A run fails, the code is fixed, and the run goes on where it failed; then another is forked from it with an edited output.
//!
//! ```text
//! cargo run --example resume_and_fork
//! ```

use durably::{Durably, Error, Job, JobResult, Step};
use serde_json::json;

/// Builds a report: what its last step does differs from version to version.
fn report(version: u32) -> Job<String, String> {
    Job::new("report", move |step: Step, customer: String| async move {
        let orders: Vec<u32> = step
            .run("fetch-orders", || async {
                println!("  fetching the orders of {customer}, which takes long");
                Ok(vec![120, 80])
            })
            .await?;
        let total: u32 = step
            .run("sum-up", || async {
                println!("  summing up");
                Ok(orders.iter().sum())
            })
            .await?;
        step.run("write", || async {
            println!("  writing, with version {version} of the code");
            write(version, &customer, total)
        })
        .await
    })
    .version(version)
}

fn write(version: u32, customer: &str, total: u32) -> JobResult<String> {
    if version == 1 {
        return Err("no template for reports".into());
    }
    Ok(format!("{customer} ordered for {total}"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::temp_dir().join(format!("durably-resume-and-fork-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let path = directory.join("reports.redb");

    println!("version 1 fails in its last step:");
    let durably = Durably::open(&path).await?;
    let run = durably.register(report(1))?.trigger("acme".into()).await?;
    match run.output().await {
        Err(Error::RunFailed { run }) => println!("  failed: {}", run.error.expect("a failed run has one")),
        other => return Err(format!("it should have failed: {other:?}").into()),
    }
    durably.shutdown().await?;

    println!("version 2 goes on with the same run; only the step that failed runs again:");
    let durably = Durably::open(&path).await?;
    durably.register(report(2))?;
    let found = durably.check_pending().await?;
    assert!(found.is_ok(), "{found:?}");
    durably.resume(run.id()).await?;
    let done = durably.wait_for_run(run.id()).await?;
    println!("  {}", done.output_as::<String>()?);

    println!("a fork begins at the sum, as if other orders had been fetched:");
    let fork = durably.fork(run.id()).from_step("sum-up").with_output("fetch-orders", json!([120, 80, 50])).await?;
    println!("  {}", fork.output().await?);
    let forked = fork.get().await?;
    assert_eq!(forked.forked_from, Some(run.id()));
    for step in durably.get_steps(fork.id()).await? {
        println!("  {} by version {}: {:?}", step.name, step.version, step.output);
    }
    durably.shutdown().await?;
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}
