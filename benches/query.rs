//! Pages of runs: the first by status, by job and by label, and the next behind a cursor, over 20,000 runs that have ended.

#![allow(clippy::disallowed_methods, reason = "a bench measures by the machine's own clock")]

mod support;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use durably::{Durably, RunFilter, RunStatus, Trigger};
use support::{open, steps, tokio_runtime};

const RUNS: usize = 20_000;
const PAGE: usize = 50;

fn bench(criterion: &mut Criterion) {
    support::refuse_other_builds();
    let runtime = tokio_runtime();
    let (durably, _dir) = runtime.block_on(open(Durably::builder().max_concurrent_runs(1_024).paused(true)));
    let job = steps(&durably);
    let middle = runtime.block_on(async {
        let items = (0..RUNS).map(|n| Trigger::new(0).label("tenant", format!("tenant-{}", n % 20)));
        let runs = job.batch_trigger(items).await.expect("triggers");
        durably.run_until_idle(None).await.expect("works");
        runs[RUNS / 2].id()
    });
    let label = || RunFilter::new().label("tenant", "tenant-7");
    let pages = [
        ("first by status", RunFilter::new().status(RunStatus::Completed)),
        ("first by job", RunFilter::new().job(job.name())),
        ("first by label", label()),
        ("first by all three", label().status(RunStatus::Completed).job(job.name())),
        ("first by label, without payloads", label().without_payloads()),
        ("from the middle, by label", label().after(middle)),
    ];
    let mut group = criterion.benchmark_group("page of 50 runs of 20,000");
    for (name, filter) in pages {
        let found = runtime.block_on(durably.get_runs(filter.clone().limit(PAGE))).expect("reads");
        assert_eq!(found.len(), PAGE, "{name}: not a whole page");
        group.bench_function(name, |bencher| {
            bencher.iter(|| runtime.block_on(durably.get_runs(filter.clone().limit(PAGE))).expect("reads"));
        });
    }
    group.finish();
    runtime.block_on(durably.shutdown()).expect("shuts down");
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3));
    targets = bench
}
criterion_main!(benches);
