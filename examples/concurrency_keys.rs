//! Concurrency keys: at most one sync per customer at a time, while different customers go side by side; and what a trigger
//! can do when another run waits for its key already; and runs that need the keys of two customers.
//!
//! ```text
//! cargo run --example concurrency_keys
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use durably::{Clock, Durably, Error, Job, JobHandle, OnConflict, Step, SystemClock};
use futures::future::try_join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Sync {
    customer: String,
    number: u32,
    takes_ms: u64,
}

/// When a body was at work.
struct Worked {
    customer: String,
    number: u32,
    from: Duration,
    to: Duration,
}

type Timeline = Arc<Mutex<Vec<Worked>>>;

fn sync_customer(clock: SystemClock, timeline: Timeline) -> Job<Sync, ()> {
    Job::new("sync-customer", move |step: Step, sync: Sync| {
        let (clock, timeline) = (clock.clone(), timeline.clone());
        async move {
            let from = clock.monotonic();
            step.run("pull", || async {
                tokio::time::sleep(Duration::from_millis(sync.takes_ms)).await;
                Ok(())
            })
            .await?;
            let worked = Worked { customer: sync.customer, number: sync.number, from, to: clock.monotonic() };
            timeline.lock().unwrap_or_else(PoisonError::into_inner).push(worked);
            Ok(())
        }
    })
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (clock, timeline) = (SystemClock::default(), Timeline::default());
    let durably = Durably::in_memory().await?;
    let gate = Arc::new(Notify::new());
    let (syncs, gated) = durably.register((sync_customer(clock, timeline.clone()), gated_sync(gate.clone())))?;

    let mut runs = Vec::new();
    for number in 1..=4 {
        for (customer, takes_ms) in [("acme", 120), ("globex", 60), ("initech", 90)] {
            let sync = Sync { customer: customer.into(), number, takes_ms };
            runs.push(syncs.trigger(sync).concurrency_key(customer).await?);
        }
    }
    try_join_all(runs.iter().map(|run| run.output())).await?;
    draw(&timeline.lock().unwrap_or_else(PoisonError::into_inner));

    conflicts(&gated, &gate).await?;
    several(&durably, &gated, &gate).await?;
    durably.shutdown().await?;
    Ok(())
}

/// A lane per customer; each digit is one sync at work.
fn draw(timeline: &[Worked]) {
    const COLUMN: Duration = Duration::from_millis(10);
    let begin = timeline.iter().map(|worked| worked.from).min().unwrap_or_default();
    let column = |at: Duration| ((at - begin).as_millis() / COLUMN.as_millis()) as usize;
    let mut customers: Vec<&str> = timeline.iter().map(|worked| worked.customer.as_str()).collect();
    customers.sort_unstable();
    customers.dedup();
    println!("a column is {COLUMN:?}");
    for customer in customers {
        let mut lane: Vec<&Worked> = timeline.iter().filter(|worked| worked.customer == customer).collect();
        lane.sort_unstable_by_key(|worked| worked.from);
        let overlaps = lane.windows(2).filter(|pair| pair[1].from < pair[0].to).count();
        let mut drawn = String::new();
        for worked in lane {
            drawn += &" ".repeat(column(worked.from).saturating_sub(drawn.len()));
            drawn += &worked.number.to_string().repeat(column(worked.to).saturating_sub(drawn.len()));
        }
        println!("{customer:>8} |{drawn}  {overlaps} overlaps");
    }
}

/// A job whose runs go on when they are let.
fn gated_sync(gate: Arc<Notify>) -> Job<u32, u32> {
    Job::new("gated-sync", move |_: Step, number: u32| {
        let gate = gate.clone();
        async move {
            gate.notified().await;
            Ok(number)
        }
    })
}

/// One run holds the key, one waits for it: what the next trigger does.
async fn conflicts(syncs: &JobHandle<u32, u32>, gate: &Notify) -> anyhow::Result<()> {
    println!();
    let executing = syncs.trigger(1).concurrency_key("acme").await?;
    let waiting = syncs.trigger(2).concurrency_key("acme").await?;
    println!("1 is {}, 2 is {}", executing.status(), waiting.status());

    let skip = syncs.trigger(3).concurrency_key("acme").on_conflict(OnConflict::Skip).await?;
    println!("3 with Skip:    {:?}, it is run 2: {}", skip.disposition(), skip.id() == waiting.id());

    match syncs.trigger(4).concurrency_key("acme").on_conflict(OnConflict::Reject).await {
        Err(error @ Error::KeyConflict { .. }) => println!("4 with Reject:  {error}"),
        other => println!("4 with Reject:  {other:?}"),
    }

    let replace = syncs.trigger(5).concurrency_key("acme").on_conflict(OnConflict::Replace).await?;
    let replaced = waiting.get().await?;
    let by_it = replaced.replaced_by == Some(replace.id());
    println!("5 with Replace: {:?}, run 2 is {}, by it: {by_it}", replace.disposition(), replaced.status);

    let queue = syncs.trigger(6).concurrency_key("acme").on_conflict(OnConflict::Queue).await?;
    println!("6 with Queue:   {:?}, {}", queue.disposition(), queue.status());

    for run in [executing, replace, queue] {
        gate.notify_one();
        println!("sync {} ended", run.output().await?);
    }
    Ok(())
}

/// A run of two keys waits until it can have both, and `explain` says for what. Priorities decide who goes first in line.
async fn several(durably: &Durably, syncs: &JobHandle<u32, u32>, gate: &Notify) -> anyhow::Result<()> {
    println!();
    let acme = syncs.trigger(7).concurrency_key("acme").await?;
    let queued = syncs.trigger(8).concurrency_key("acme").await?;
    let merge = syncs.trigger(9).concurrency_keys(["acme", "globex"]).priority(1).await?;
    println!("8 is {}", durably.explain(queued.id()).await?);
    println!("9 is {}", durably.explain(merge.id()).await?);
    for run in [acme, merge, queued] {
        gate.notify_one();
        println!("sync {} ended", run.output().await?);
    }
    Ok(())
}
