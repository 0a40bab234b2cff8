//! A payment at a service that is often down: tried again with growing delays, over a restart, and not for ever.
//!
//! ```text
//! cargo run --example retries
//! ```
//!
//! Each failed attempt is on disk, with the moment of the next one. So the process that is started again neither begins to
//! count anew nor calls too early; and while a run waits for a long delay to be over, it is a row and takes no memory.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use durably::{Durably, Error, EventKind, Events, Job, JobError, JobHandle, JobResult, Received, Retry, Step};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, JsonSchema)]
struct Order {
    item: String,
    euros: u32,
}

/// A service that answers every fifth call, and refuses what is too dear.
#[derive(Default)]
struct Bank {
    calls: AtomicU32,
}

impl Bank {
    async fn charge(&self, order: &Order, effect_key: &str) -> JobResult<String> {
        if order.euros > 1_000 {
            return Err(JobError::msg("over the limit of the card").terminal());
        }
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if call.is_multiple_of(5) {
            Ok(format!("receipt {}", &effect_key[..6]))
        } else {
            Err("503 service unavailable".into())
        }
    }
}

fn pay(bank: &Arc<Bank>) -> Job<Order, String> {
    let bank = bank.clone();
    Job::new("pay", move |step: Step, order: Order| {
        let bank = bank.clone();
        async move {
            step.run_with("charge", |cx| {
                let (bank, order) = (&bank, &order);
                async move {
                    println!("  {}: attempt {}", order.item, cx.attempt());
                    bank.charge(order, &cx.effect_key()).await
                }
            })
            .timeout(Duration::from_secs(10))
            .await
        }
    })
    // For all its steps, unless they say otherwise: `.retry(Retry::none())`.
    .retry(Retry::exponential(8).initial(Duration::from_millis(200)).max(Duration::from_secs(2)))
    // And whatever its steps do, a day after the trigger it has failed.
    .deadline(Duration::from_secs(24 * 3600))
}

async fn open(path: &Path, bank: &Arc<Bank>) -> anyhow::Result<(Durably, JobHandle<Order, String>)> {
    let durably = Durably::open(path).await?;
    let jobs = durably.register(pay(bank))?;
    Ok((durably, jobs))
}

/// Waits for the failure of an attempt.
async fn attempt_failed(events: &mut Events, wanted: u32) {
    while let Some(received) = events.next().await {
        if let Received::Event(event) = received
            && let EventKind::StepRetrying { attempt, error, until, .. } = &event.kind
        {
            println!("  attempt {attempt} failed: {error}; the next in {:?}", until.since(event.timestamp));
            if *attempt == wanted {
                return;
            }
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("payments.redb");
    let bank = Arc::new(Bank::default());

    let (durably, jobs) = open(&path, &bank).await?;
    let mut events = durably.events();
    let tea = jobs.trigger(Order { item: "tea".into(), euros: 4 }).await?;
    attempt_failed(&mut events, 3).await;
    println!("the process ends between two attempts");
    durably.shutdown().await?;

    let (durably, jobs) = open(&path, &bank).await?;
    println!("another one goes on counting");
    let run = durably.wait_for_run(tea.id()).await?;
    println!("{}", run.output_as::<String>()?);
    let step = &durably.get_steps(run.id).await?[0];
    println!("{} attempts, of which {} failed", step.attempts, step.tries.len());

    println!("what is refused for good is not tried again");
    let yacht = jobs.trigger(Order { item: "yacht".into(), euros: 900_000 }).await?;
    match yacht.output().await {
        Err(error @ Error::RunFailed { .. }) => println!("{error}"),
        other => anyhow::bail!("{other:?}"),
    }
    durably.shutdown().await?;
    Ok(())
}
