//! What the next operation costs as runs pile up: a trigger, a claim, a step, a query at three sizes of the same file.
//!
//! The operations that wait for the disk are told in bare commits of that moment, so that a disk which gets slower meanwhile
//! does not look like growth.

use std::time::Instant;

use durably::{Durably, JobHandle, RunFilter, RunStatus, Trigger};

use crate::context::{Context, Fixture, path_in, tenant};
use crate::support::{Bare, steps};
use crate::table::{Row, Table, median};

/// Runs of one batch.
const BATCH: usize = 20_000;

pub async fn run(context: &Context, table: &mut Table) {
    if context.wants("growth") && context.stored.get().is_none() {
        let fixture = fill(context, Some(table)).await;
        let _ = context.stored.set(fixture);
    }
}

/// A file of many runs that have ended, each with a label.
pub async fn stored(context: &Context) -> &Fixture {
    context.stored.get_or_init(|| fill(context, None)).await
}

async fn fill(context: &Context, mut table: Option<&mut Table>) -> Fixture {
    let dir = context.new_dir();
    let open = || Durably::builder().max_concurrent_runs(1_024).paused(true).open(path_in(&dir));
    let (bare, _bare_dir) = context.bare();
    let many = context.many();
    let (mut there, mut first) = (0, None);
    for size in [1_000, many / 10, many] {
        let durably = open().await.expect("opens");
        let job = steps(&durably);
        while there < size {
            let until = (there + BATCH).min(size);
            job.batch_trigger((there..until).map(|n| Trigger::new(0).label("tenant", tenant(n))))
                .await
                .expect("triggers");
            durably.run_until_idle(None).await.expect("works");
            there = until;
        }
        // Closed and opened, so that what is measured is not the folding of what was just written.
        durably.shutdown().await.expect("shuts down");
        if let Some(table) = table.as_deref_mut() {
            let durably = open().await.expect("opens");
            let costs = probe(&durably, &steps(&durably), &bare).await;
            durably.shutdown().await.expect("shuts down");
            let smallest = first.get_or_insert(costs);
            print(table, size, costs, *smallest);
        }
    }
    Fixture::new(dir, many)
}

/// A trigger, a claim with the end of its run, a step: in bare commits. A page of 50: in ms.
type Costs = [f64; 4];

fn print(table: &mut Table, size: usize, costs: Costs, smallest: Costs) {
    let names = ["trigger", "claim and end", "step", "page of 50"];
    let units = ["commits", "commits", "commits", "ms"];
    for at in 0..costs.len() {
        table.row(&Row {
            workload: &format!("growth: {} at {size}", names[at]),
            value: costs[at],
            unit: units[at],
            baseline: "at 1,000 runs stored",
            baseline_value: smallest[at],
            note: String::new(),
        });
    }
}

async fn probe(durably: &Durably, job: &JobHandle<u32, u32>, bare: &Bare) -> Costs {
    let (mut triggers, mut claims, mut in_steps, mut pages) = (vec![], vec![], vec![], vec![]);
    // Each sample beside a bare commit of its own.
    for n in 0..60 {
        let commit = bare.load(1, 1).await.as_secs_f64();
        let began = Instant::now();
        job.trigger(0).label("tenant", tenant(n)).await.expect("triggers");
        triggers.push(began.elapsed().as_secs_f64() / commit);
        let began = Instant::now();
        durably.run_until_idle(1).await.expect("works");
        claims.push(began.elapsed().as_secs_f64() / commit);
        let began = Instant::now();
        let page = RunFilter::new().status(RunStatus::Completed).label("tenant", tenant(7)).limit(50);
        durably.get_runs(page).await.expect("reads");
        pages.push(began.elapsed().as_secs_f64() * 1e3);
    }
    durably.start().await.expect("starts");
    for _ in 0..20 {
        let commits = bare.load(1, 50).await.as_secs_f64();
        let began = Instant::now();
        job.trigger_and_wait(50).await.expect("completes");
        in_steps.push(began.elapsed().as_secs_f64() / commits);
    }
    [median(&triggers), median(&claims), median(&in_steps), median(&pages)]
}
