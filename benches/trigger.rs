//! Creating runs: 64 callers with an idempotency key and a label each, one batch of 20,000, and how both fare when many runs
//! wait or many keys are stored.
//!
//! `cargo bench --bench trigger` prints the rates beside the bare writer's, then criterion's own figures.

#![allow(clippy::disallowed_methods, reason = "a bench measures by the machine's own clock")]

mod support;

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use durably::{Durably, JobHandle};
use support::{Bare, open, report, steps, tokio_runtime};

/// `total` triggers by 64 closed loops; gives triggers a second.
async fn single(job: &JobHandle<u32, u32>, total: usize, first_key: usize) -> f64 {
    let began = Instant::now();
    let loops = (0..64).map(|caller| async move {
        for n in (caller..total).step_by(64) {
            let key = format!("order-{}", first_key + n);
            job.trigger(1).idempotency_key(key).label("tenant", "acme").await.expect("triggers");
        }
    });
    futures::future::join_all(loops).await;
    total as f64 / began.elapsed().as_secs_f64()
}

fn rates() {
    tokio_runtime().block_on(async {
        let bare_dir = tempfile::tempdir().expect("a directory");
        let bare = Bare::open(&bare_dir.path().join("bare.redb"));
        let baseline = 20_000.0 / bare.load(64, 20_000).await.as_secs_f64();
        // Paused, so that what is measured is the trigger and not the runs.
        let (durably, _dir) = open(Durably::builder().paused(true)).await;
        let job = steps(&durably);
        let fresh = single(&job, 20_000, 0).await;
        report("W4 64 callers, key and label", fresh, baseline, "runs/s", "");
        let began = Instant::now();
        job.batch_trigger(vec![1; 20_000]).await.expect("triggers");
        report("W4 a batch of 20,000", 20_000.0 / began.elapsed().as_secs_f64(), baseline, "runs/s", "");
        for part in 0..10 {
            let items =
                (0..20_000).map(|n| durably::Trigger::new(1).idempotency_key(format!("old-{}", part * 20_000 + n)));
            job.batch_trigger(items).await.expect("triggers");
        }
        let full = single(&job, 20_000, 1_000_000).await;
        report("with 220,000 keys stored, against none", full, fresh, "runs/s", "");
        durably.shutdown().await.expect("shuts down");
    });
}

/// How the rate of finished runs fares with the number of runs that wait.
fn backlog() {
    tokio_runtime().block_on(async {
        let mut rates = Vec::new();
        for waiting in [1_000usize, 100_000] {
            let (durably, _dir) = open(Durably::builder().paused(true)).await;
            let job = steps(&durably);
            for _ in 0..waiting.div_ceil(50_000) {
                job.batch_trigger(vec![1; waiting.min(50_000)]).await.expect("triggers");
            }
            let began = Instant::now();
            let ended = durably.run_until_idle(1_000).await.expect("works");
            rates.push(ended as f64 / began.elapsed().as_secs_f64());
            durably.shutdown().await.expect("shuts down");
        }
        report("W5 100,000 pending, against 1,000", rates[1], rates[0], "runs/s", "");
    });
}

fn bench(criterion: &mut Criterion) {
    support::refuse_other_builds();
    rates();
    backlog();
    let runtime = tokio_runtime();
    let (durably, _dir) = runtime.block_on(open(Durably::builder().paused(true)));
    let job = steps(&durably);
    criterion.bench_function("one trigger", |bencher| {
        bencher.iter(|| runtime.block_on(async { job.trigger(1).await.expect("triggers") }));
    });
    criterion.bench_function("a batch of 1,000", |bencher| {
        bencher.iter(|| runtime.block_on(async { job.batch_trigger(vec![1; 1_000]).await.expect("triggers") }));
    });
    runtime.block_on(durably.shutdown()).expect("shuts down");
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(3));
    targets = bench
}
criterion_main!(benches);
