//! Starting again: taking up a run with 1,000 checkpoints, and opening a file with many runs after a crash.
//!
//! `cargo bench --bench recovery` prints both, then criterion's own figures.

#![allow(clippy::disallowed_methods, reason = "a bench measures by the machine's own clock")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use durably::{Durably, Job, JobHandle, Step};
use support::{VALUE_BYTES, tokio_runtime};
use tokio::sync::Notify;

const CHECKPOINTS: u32 = 1_000;

/// A job that stops for good after its checkpoints, the first time, and says when it is there.
fn stopping(durably: &Durably, there: Arc<Notify>, stop: Arc<AtomicBool>) -> JobHandle<u32, u32> {
    let job = Job::new("stopping", move |step: Step, count: u32| {
        let (there, stop) = (there.clone(), stop.clone());
        async move {
            for n in 0..count {
                step.run(("step", n), || async { Ok("x".repeat(VALUE_BYTES - 2)) }).await?;
            }
            there.notify_one();
            if stop.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            step.run("new", || async { Ok(()) }).await?;
            Ok(count)
        }
    });
    durably.register(job).expect("registers")
}

/// A file whose one run has its checkpoints and was cut off; gives how long taking it up took.
async fn take_up(path: &Path) -> Duration {
    let (there, stop) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(true)));
    let durably = Durably::open(path).await.expect("opens");
    let run = stopping(&durably, there.clone(), stop).trigger(CHECKPOINTS).await.expect("triggers");
    there.notified().await;
    let id = run.id();
    drop((run, durably));
    let (there, stop) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let durably = Durably::builder().lock_wait(Duration::from_secs(5)).open(path).await.expect("opens again");
    let began = Instant::now();
    let _job = stopping(&durably, there.clone(), stop);
    there.notified().await;
    let took = began.elapsed();
    durably.wait_for_run(id).await.expect("completes");
    durably.shutdown().await.expect("shuts down");
    took
}

/// How long an open takes after a crash, with `runs` runs in the file.
async fn reopen(runs: usize) -> (Duration, u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("bench.redb");
    let durably = Durably::builder().paused(true).open(&path).await.expect("opens");
    let job = support::steps(&durably);
    for _ in 0..runs.div_ceil(20_000) {
        job.batch_trigger(vec![1; 20_000]).await.expect("triggers");
    }
    drop((job, durably));
    let began = Instant::now();
    let durably = Durably::builder().lock_wait(Duration::from_secs(30)).paused(true).open(&path).await.expect("opens");
    let took = began.elapsed();
    let bytes = std::fs::metadata(&path).map_or(0, |file| file.len());
    durably.shutdown().await.expect("shuts down");
    (took, bytes)
}

fn bench(criterion: &mut Criterion) {
    support::refuse_other_builds();
    let runtime = tokio_runtime();
    let (took, bytes) = runtime.block_on(reopen(200_000));
    println!("W6b open with 200,000 pending runs, {} MiB: {:.0} ms", bytes >> 20, took.as_secs_f64() * 1e3);
    criterion.bench_function("W6 taking up a run with 1,000 checkpoints", |bencher| {
        bencher.iter_custom(|iterations| {
            let one = || {
                let dir = tempfile::tempdir().expect("a directory");
                runtime.block_on(take_up(&dir.path().join("bench.redb")))
            };
            (0..iterations).map(|_| one()).sum()
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(5));
    targets = bench
}
criterion_main!(benches);
