//! An expense waits for days for somebody's word, over restarts, and costs nothing meanwhile.
//!
//! ```text
//! cargo run --example approval
//! ```
//!
//! The run reminds the approver after a while, takes the answer whenever it comes, and gives up after its time. While it
//! waits it is a row in the file: no task, no timer thread, no memory worth naming. Here the days are seconds.

use std::path::Path;
use std::time::Duration;

use durably::{Durably, ErrorKind, EventKind, Job, JobHandle, JobResult, Received, RunId, Step};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, JsonSchema)]
struct Expense {
    what: String,
    euros: u32,
}

#[derive(Serialize, Deserialize)]
struct Decision {
    by: String,
    approved: bool,
}

const REMIND_AFTER: Duration = Duration::from_secs(2);
const GIVE_UP_AFTER: Duration = Duration::from_secs(4);

async fn mail(text: String) -> JobResult<()> {
    println!("  mail: {text}");
    Ok(())
}

async fn approve(step: Step, expense: Expense) -> JobResult<String> {
    step.run("ask", || mail(format!("please approve {} for {} euros", expense.what, expense.euros))).await?;
    step.sleep("before-reminder", REMIND_AFTER).await?;
    step.run("remind", || mail(format!("{} still waits for you", expense.what))).await?;
    // An answer that came during the pause is waiting here already.
    match step.wait_signal::<Decision>("decision", "decided").timeout(GIVE_UP_AFTER).await {
        Ok(decision) if decision.approved => Ok(format!("{} approved by {}", expense.what, decision.by)),
        Ok(decision) => Ok(format!("{} refused by {}", expense.what, decision.by)),
        Err(error) if error.kind() == ErrorKind::Timeout => Ok(format!("{}: nobody answered", expense.what)),
        Err(error) => Err(error),
    }
}

async fn open(path: &Path) -> anyhow::Result<(Durably, JobHandle<Expense, String>)> {
    let durably = Durably::open(path).await?;
    let jobs = durably.register(Job::new("approve", approve))?;
    Ok((durably, jobs))
}

/// Waits until a run has nothing to do but wait.
async fn suspended(durably: &Durably, run: RunId) -> anyhow::Result<()> {
    let mut events = durably.events().after(0);
    while let Some(event) = events.next().await {
        if let Received::Event(event) = event
            && event.run_id == run
            && matches!(event.kind, EventKind::RunSuspended { .. })
        {
            break;
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("expenses.redb");

    let (durably, jobs) = open(&path).await?;
    let chair = jobs.trigger(Expense { what: "a chair".into(), euros: 240 }).await?;
    let yacht = jobs.trigger(Expense { what: "a yacht".into(), euros: 900_000 }).await?;
    suspended(&durably, chair.id()).await?;
    suspended(&durably, yacht.id()).await?;
    println!("both wait; the process ends");
    durably.shutdown().await?;

    let (durably, _) = open(&path).await?;
    println!("another process: the answer for the chair comes while its run still pauses");
    durably.signal(chair.id(), "decided", &Decision { by: "ann".into(), approved: true }).await?;
    for run in [chair.id(), yacht.id()] {
        let run = durably.wait_for_run(run).await?;
        println!("{}", run.output_as::<String>()?);
    }
    durably.shutdown().await?;
    Ok(())
}
