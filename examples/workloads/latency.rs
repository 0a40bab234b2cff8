//! W2: a run of one step from its trigger to its result, on an idle machine. W3: one run, step after step.

use std::time::Instant;

use durably::Durably;

use crate::context::Context;
use crate::support::{RECORD_BYTES, steps};
use crate::table::{Rounds, Row, Table, median, quantile};

pub async fn run(context: &Context, table: &mut Table) {
    if context.wants("W2") {
        one_step(context, table).await;
    }
    if context.wants("W3") {
        in_sequence(context, table).await;
    }
}

async fn one_step(context: &Context, table: &mut Table) {
    let (bare, _bare_dir) = context.bare();
    let (durably, _dir) = context.open(Durably::builder()).await;
    let job = steps(&durably);
    let mut rounds = Rounds::default();
    let (mut ours, mut bares) = (Vec::new(), Vec::new());
    for _ in 0..context.rounds(20) {
        let (from, samples) = (ours.len(), 100);
        for _ in 0..samples {
            let began = Instant::now();
            bare.record(vec![7; RECORD_BYTES]).await;
            bares.push(began.elapsed().as_secs_f64() * 1e6);
            let began = Instant::now();
            job.trigger_and_wait(1).await.expect("completes");
            ours.push(began.elapsed().as_secs_f64() * 1e6);
        }
        let baseline = median(&bares[from..]);
        rounds.push(baseline, median(&ours[from..]), baseline);
    }
    table.rounds("W2 trigger to result, p50", "us", &rounds, "one bare commit, p50", String::new());
    table.row(&Row {
        workload: "W2 trigger to result, p99",
        value: quantile(&ours, 0.99),
        unit: "us",
        baseline: "one bare commit, p99",
        baseline_value: quantile(&bares, 0.99),
        note: String::new(),
    });
    durably.shutdown().await.expect("shuts down");
}

async fn in_sequence(context: &Context, table: &mut Table) {
    const STEPS: u32 = 1_000;
    let (bare, _bare_dir) = context.bare();
    let (durably, _dir) = context.open(Durably::builder()).await;
    let job = steps(&durably);
    let mut rounds = Rounds::default();
    for _ in 0..context.rounds(15) {
        let before = bare.rate(1, 500).await;
        let began = Instant::now();
        job.trigger_and_wait(STEPS).await.expect("completes");
        let rate = f64::from(STEPS) / began.elapsed().as_secs_f64();
        rounds.push(before, rate, bare.rate(1, 500).await);
    }
    table.rounds("W3 one run, steps in sequence", "steps/s", &rounds, "bare commits at P=1", String::new());
    durably.shutdown().await.expect("shuts down");
}
