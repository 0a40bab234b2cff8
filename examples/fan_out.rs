//! The same work twice, on many pages: as children of a run, and as the items of a map.
//!
//! ```text
//! cargo run --release --example fan_out -- 10000
//! ```
//!
//! A child is a run of its own: it has steps, a status, labels, can be cancelled and looked at, and takes a slot. An item of a
//! map is a line in a batch of a thousand: it costs nearly nothing, and has none of that. While the parent waits for its
//! children it is suspended.

#![expect(clippy::disallowed_methods, reason = "an example shows how long things take")]

use std::time::Instant;

use durably::{Durably, Job, JobHandle, JobResult, RunFilter, RunStatus, Step};
use futures::future::try_join_all;

/// Words of a page; this is where the work would be.
async fn words(page: u32) -> JobResult<u64> {
    Ok(u64::from(page % 300))
}

async fn with_children(step: Step, pages: u32, count_page: JobHandle<u32, u64>) -> JobResult<u64> {
    let children = (0..pages).map(|page| step.call(("page", page), &count_page, page));
    Ok(try_join_all(children).await?.iter().sum())
}

async fn with_items(step: Step, pages: u32) -> JobResult<u64> {
    let counts = step.map("pages", 0..pages).concurrency(64).run(words).await?;
    Ok(counts.iter().sum())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let pages = std::env::args().nth(1).map_or(Ok(2_000), |pages| pages.parse())?;
    let directory = tempfile::tempdir()?;
    let durably = Durably::open(directory.path().join("pages.redb")).await?;
    let count_page = durably.register(Job::new("count-page", |step: Step, page: u32| async move {
        step.run("count", || words(page)).await
    }))?;
    let count_children = durably.register(Job::new("count-with-children", {
        let count_page = count_page.clone();
        move |step, pages| with_children(step, pages, count_page.clone())
    }))?;
    let count_items = durably.register(Job::new("count-with-items", with_items))?;

    let began = Instant::now();
    let run = count_children.trigger(pages).await?;
    let total = run.output().await?;
    let record = run.get().await?;
    println!(
        "{pages} children: {total} words in {:.2?}, the parent executed {} times",
        began.elapsed(),
        record.lease_generation
    );
    let last = durably.get_runs(RunFilter::new().job("count-page").status(RunStatus::Completed).limit(1)).await?;
    println!("  one of them: {} of {}", last[0].id, last[0].parent.map(|run| run.to_string()).unwrap_or_default());

    let began = Instant::now();
    let run = count_items.trigger(pages).await?;
    let total = run.output().await?;
    println!("{pages} items: {total} words in {:.2?}", began.elapsed());
    let steps = durably.get_steps(run.id()).await?;
    println!("  all of them: {:?}", steps[0].items);
    durably.shutdown().await?;
    Ok(())
}
