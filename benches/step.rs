//! Durable steps: many runs at a time, one run alone, and the latency of a run of one step, each against the bare writer in
//! the same process.
//!
//! `cargo bench --bench step` prints the ratios, then criterion's own figures.

#![allow(clippy::disallowed_methods, reason = "a bench measures by the machine's own clock")]

mod support;

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use durably::{Durably, JobHandle};
use support::{Bare, cpu, open, report, steps, tokio_runtime};

/// `runs` runs of `per_run` steps, up to `at_a_time` of them executing.
async fn many(job: &JobHandle<u32, u32>, runs: usize, per_run: u32) -> Duration {
    let began = Instant::now();
    let triggered = job.batch_trigger(vec![per_run; runs]).await.expect("triggers");
    for run in triggered {
        run.output().await.expect("completes");
    }
    began.elapsed()
}

fn throughput(at_a_time: usize) {
    const PER_RUN: u32 = 10;
    let runs = (at_a_time * 16).max(512);
    tokio_runtime().block_on(async {
        let bare_dir = tempfile::tempdir().expect("a directory");
        let bare = Bare::open(&bare_dir.path().join("bare.redb"));
        let records = runs * PER_RUN as usize / 2;
        let baseline = records as f64 / bare.load(at_a_time, records).await.as_secs_f64();
        let (durably, _dir) = open(Durably::builder().max_concurrent_runs(at_a_time)).await;
        let job = steps(&durably);
        let before = durably.stats().await.expect("stats");
        let cpu_before = cpu();
        let took = many(&job, runs, PER_RUN).await;
        let after = durably.stats().await.expect("stats");
        let total = (runs * PER_RUN as usize) as f64;
        let commits = (after.commits - before.commits) as f64;
        let extra = format!(
            "| {:.2} flushes a commit, {:.0} bytes a step, {:.1} steps a commit, {:.1} CPU us a step",
            (after.flushes - before.flushes) as f64 / commits,
            (after.bytes_written - before.bytes_written) as f64 / total,
            total / commits,
            (cpu() - cpu_before).as_secs_f64() * 1e6 / total,
        );
        report(&format!("W1 {at_a_time} at a time"), total / took.as_secs_f64(), baseline, "steps/s", &extra);
        durably.shutdown().await.expect("shuts down");
    });
}

fn latency() {
    tokio_runtime().block_on(async {
        let bare_dir = tempfile::tempdir().expect("a directory");
        let bare = Bare::open(&bare_dir.path().join("bare.redb"));
        let (durably, _dir) = open(Durably::builder()).await;
        let job = steps(&durably);
        let (mut ours, mut base) = (Vec::new(), Vec::new());
        for _ in 0..300 {
            let began = Instant::now();
            bare.record(vec![7; support::RECORD_BYTES]).await;
            base.push(began.elapsed());
            let began = Instant::now();
            job.trigger_and_wait(1).await.expect("completes");
            ours.push(began.elapsed());
        }
        let median = |all: &mut Vec<Duration>| {
            all.sort();
            all[all.len() / 2].as_secs_f64() * 1e6
        };
        report("W2 trigger to result, p50", median(&mut ours), median(&mut base), "us", "");
        let records = 1_000;
        let baseline = f64::from(records) / bare.load(1, records as usize).await.as_secs_f64();
        let took = many(&job, 1, records as u32).await;
        report("W3 one run of 1,000 steps", f64::from(records) / took.as_secs_f64(), baseline, "steps/s", "");
        durably.shutdown().await.expect("shuts down");
    });
}

fn bench(criterion: &mut Criterion) {
    support::refuse_other_builds();
    throughput(1_024);
    throughput(64);
    latency();
    let runtime = tokio_runtime();
    let (durably, _dir) = runtime.block_on(open(Durably::builder()));
    let job = steps(&durably);
    criterion.bench_function("a run of one step", |bencher| {
        bencher.iter(|| runtime.block_on(async { job.trigger_and_wait(1).await.expect("completes") }));
    });
    criterion.bench_function("a run of 100 steps", |bencher| {
        bencher.iter(|| runtime.block_on(async { job.trigger_and_wait(100).await.expect("completes") }));
    });
    runtime.block_on(durably.shutdown()).expect("shuts down");
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3));
    targets = bench
}
criterion_main!(benches);
