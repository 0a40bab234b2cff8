//! W7: what pending runs take in memory. Weighed in processes of their own that open a file with the least cache there is, so
//! that what remains between a full file and an empty one is ours and not redb's.

use std::path::Path;

use durably::Durably;

use crate::context::{Context, path_in, spawn};
use crate::table::{Row, Table};

pub async fn run(context: &Context, table: &mut Table) {
    if context.wants("W7") {
        pending(context, table).await;
        // W7b, suspended runs, comes with what suspends a run: a file of them beside the empty one, weighed alike.
    }
}

async fn pending(context: &Context, table: &mut Table) {
    let (durably, empty_dir) = context.open(Durably::builder().paused(true)).await;
    durably.shutdown().await.expect("shuts down");
    let full = context.pending().await;
    let weigh = |path: &Path| {
        let (mut child, line) = spawn("weigh", path, 0);
        child.wait().expect("ends");
        line.parse::<f64>().expect("bytes") / f64::from(1 << 20)
    };
    let empty = weigh(&path_in(&empty_dir));
    let pending = weigh(&full.path());
    table.row(&Row {
        workload: "W7 pending runs in memory",
        value: pending - empty,
        unit: "MiB",
        baseline: "an empty runtime;",
        baseline_value: empty,
        note: format!("{} pending, beyond the empty runtime", full.runs),
    });
}
