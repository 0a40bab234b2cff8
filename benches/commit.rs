//! The baseline: a bare redb writer with group commit, as one, 64 and 1,024 producers see it.

#![allow(clippy::disallowed_methods, reason = "a bench measures by the machine's own clock")]

mod support;

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use support::{Bare, tokio_runtime};

fn bench(criterion: &mut Criterion) {
    support::refuse_other_builds();
    let dir = tempfile::tempdir().expect("a directory");
    let bare = Bare::open(&dir.path().join("bare.redb"));
    let runtime = tokio_runtime();
    let mut group = criterion.benchmark_group("bare redb writer, 200-byte records");
    for producers in [1, 64, 1_024] {
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(producers), |bencher| {
            bencher.iter_custom(|iterations| {
                // Whole rounds of all producers, scaled to what was asked for.
                let total = (iterations as usize).next_multiple_of(producers);
                let took = runtime.block_on(bare.load(producers, total));
                took.mul_f64(iterations as f64 / total as f64)
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(3));
    targets = bench
}
criterion_main!(benches);
