//! A webhook that is delivered many times is handled once.
//!
//! ```text
//! cargo run --example idempotent_webhook
//! ```
//!
//! Senders of webhooks deliver at least once: they repeat what was not acknowledged in time. The delivery's id as the
//! idempotency key makes every repeat the same run, at once and after a restart.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use durably::{Disposition, Durably, Error, Job, JobHandle, RunHandle, Step};
use futures::future::try_join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, JsonSchema, Clone)]
struct Payment {
    /// The sender's id of the delivery: the same in every repeat.
    id: String,
    cents: u64,
}

fn book_payment(booked: Arc<AtomicUsize>) -> Job<Payment, String> {
    Job::new("book-payment", move |step: Step, payment: Payment| {
        let booked = booked.clone();
        async move {
            let receipt = step.run_with("book", |cx| {
                booked.fetch_add(1, Ordering::Relaxed);
                // The key makes the bank, too, take a step that a crash repeats as the same booking.
                let key = cx.effect_key();
                async move { Ok(format!("{} cents booked under {}", payment.cents, &key[..8])) }
            });
            receipt.await
        }
    })
}

/// What the web server's handler does. It may answer 200 as soon as this returns: the run is on disk.
async fn deliver(jobs: &JobHandle<Payment, String>, payment: Payment) -> Result<RunHandle<String>, Error> {
    let key = payment.id.clone();
    jobs.trigger(payment).idempotency_key(key).await
}

async fn open(path: &Path, booked: &Arc<AtomicUsize>) -> Result<(Durably, JobHandle<Payment, String>), Error> {
    let durably = Durably::open(path).await?;
    let jobs = durably.register(book_payment(booked.clone()))?;
    Ok((durably, jobs))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("payments.redb");
    let booked = Arc::new(AtomicUsize::new(0));
    let payment = Payment { id: "evt_8731".into(), cents: 4_200 };

    let (durably, jobs) = open(&path, &booked).await?;
    let runs = try_join_all((0..5).map(|_| deliver(&jobs, payment.clone()))).await?;
    println!("delivered 5 times at once:");
    for run in &runs {
        println!("  run {} {:?}", run.id(), run.disposition());
    }
    println!("  {}", runs[0].output().await?);
    durably.shutdown().await?;

    let (durably, jobs) = open(&path, &booked).await?;
    let again = deliver(&jobs, payment.clone()).await?;
    println!("delivered again after a restart:");
    println!("  run {} {:?}, {}", again.id(), again.disposition(), again.status());
    println!("  {}", again.output().await?);

    let changed = Payment { cents: 9_900, ..payment };
    let key = changed.id.clone();
    match jobs.trigger(changed).idempotency_key(key).reject_changed_input().await {
        Err(error) => println!("delivered with another amount:\n  {error}"),
        Ok(run) => println!("delivered with another amount:\n  taken as run {}", run.id()),
    }
    durably.shutdown().await?;

    let created = runs.iter().filter(|run| run.disposition() == Disposition::Created).count();
    println!("runs created: {created}, payments booked: {}", booked.load(Ordering::Relaxed));
    Ok(())
}
