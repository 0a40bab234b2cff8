//! W7 and W7b: what pending and suspended runs take in memory. Weighed in processes of their own that open a file with the
//! least cache there is, so that what remains between a full file and an empty one is ours and not redb's.

use std::path::Path;
use std::time::Duration;

use durably::{Durably, Job, RunStatus, Step};

use crate::context::{Context, path_in, spawn};
use crate::table::{Row, Table};

pub async fn run(context: &Context, table: &mut Table) {
    if context.wants("W7") {
        pending(context, table).await;
    }
    if context.wants("W7b") {
        suspended(context, table).await;
    }
}

async fn pending(context: &Context, table: &mut Table) {
    let full = context.pending().await;
    let (empty, pending) = (weigh_empty(context).await, weigh(&full.path()));
    table.row(&Row {
        workload: "W7 pending runs in memory",
        value: pending - empty,
        unit: "MiB",
        baseline: "an empty runtime;",
        baseline_value: empty,
        note: format!("{} pending, beyond the empty runtime", full.runs),
    });
}

/// Runs that sleep, each until a moment of its own.
async fn suspended(context: &Context, table: &mut Table) {
    let runs = context.size(100_000, 10);
    let (durably, dir) = context.open(Durably::builder().max_concurrent_runs(1_024)).await;
    let job = Job::new("sleeper", |step: Step, n: u32| async move {
        step.sleep("pause", Duration::from_secs(1_000_000 + u64::from(n.wrapping_mul(2_654_435_761) % 1_000_000))).await
    });
    let job = durably.register(job).expect("registers");
    job.batch_trigger(0..runs as u32).await.expect("triggers");
    let asleep = |stats: durably::Stats| stats.jobs.iter().map(|job| job.count(RunStatus::Suspended)).sum::<u64>();
    while asleep(durably.stats().await.expect("stats")) < runs as u64 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    durably.shutdown().await.expect("shuts down");
    let (empty, full) = (weigh_empty(context).await, weigh(&path_in(&dir)));
    table.row(&Row {
        workload: "W7b suspended runs in memory",
        value: full - empty,
        unit: "MiB",
        baseline: "an empty runtime;",
        baseline_value: empty,
        note: format!("{runs} suspended, beyond the empty runtime"),
    });
}

async fn weigh_empty(context: &Context) -> f64 {
    let (durably, dir) = context.open(Durably::builder().paused(true)).await;
    durably.shutdown().await.expect("shuts down");
    weigh(&path_in(&dir))
}

/// What a process that opens a file takes, in MiB.
fn weigh(path: &Path) -> f64 {
    let (mut child, line) = spawn("weigh", path, 0);
    child.wait().expect("ends");
    line.parse::<f64>().expect("bytes") / f64::from(1 << 20)
}
