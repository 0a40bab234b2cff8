//! W8: the first page of 50 runs, by status, by job, by label.

use std::time::Instant;

use durably::{Durably, RunFilter, RunStatus};

use crate::context::{Context, tenant};
use crate::growth::stored;
use crate::support::{BareRows, steps};
use crate::table::{Rounds, Table, median};

const PAGE: usize = 50;

pub async fn run(context: &Context, table: &mut Table) {
    if !context.wants("W8") {
        return;
    }
    let fixture = stored(context).await;
    let durably = Durably::builder().paused(true).open(fixture.path()).await.expect("opens");
    let job = steps(&durably);
    let bare_dir = context.new_dir();
    let bare = BareRows::open(&crate::context::path_in(&bare_dir), 100_000);
    let pages = [
        ("W8 first page by status", RunFilter::new().status(RunStatus::Completed)),
        ("W8 first page by job", RunFilter::new().job(job.name())),
        ("W8 first page by label", RunFilter::new().label("tenant", tenant(7))),
        (
            "W8 by status, job and label",
            RunFilter::new().status(RunStatus::Completed).job(job.name()).label("tenant", tenant(7)),
        ),
        ("W8 in a status of no run", RunFilter::new().status(RunStatus::Failed)),
    ];
    for (workload, filter) in pages {
        let mut rounds = Rounds::default();
        for _ in 0..context.rounds(5) {
            let before = newest(&bare);
            let mut times = Vec::new();
            for _ in 0..50 {
                let began = Instant::now();
                let runs = durably.get_runs(filter.clone().limit(PAGE)).await.expect("reads");
                times.push(began.elapsed().as_secs_f64() * 1e3);
                std::hint::black_box(runs);
            }
            rounds.push(before, median(&times), newest(&bare));
        }
        let note = format!("{} stored", fixture.runs);
        table.rounds(workload, "ms", &rounds, "bare, the 50 newest rows;", note);
    }
    durably.shutdown().await.expect("shuts down");
}

fn newest(bare: &BareRows) -> f64 {
    let times: Vec<f64> = (0..50).map(|_| bare.newest(PAGE).as_secs_f64() * 1e3).collect();
    median(&times)
}
