//! W1: many runs at a time, each of ten steps of 200 bytes, and what a step costs that no neighbour on the machine can change.

use std::time::Instant;

use durably::Durably;

use crate::context::Context;
use crate::support::{bytes_written, cpu, steps};
use crate::table::{Rounds, Table};

const STEPS_A_RUN: u32 = 10;

/// What the rounds of one size cost in all.
#[derive(Default)]
struct Costs {
    steps: f64,
    commits: f64,
    flushes: f64,
    bytes: f64,
    cpu_us: f64,
}

pub async fn run(context: &Context, table: &mut Table) {
    if !context.wants("W1") {
        return;
    }
    for (workload, at_a_time, runs) in
        [("W1 1,024 runs at a time", 1_024, 1_024 * 20), ("W1 64 runs at a time", 64, 64 * 100)]
    {
        let runs = context.size(runs, 4);
        let (bare, _bare_dir) = context.bare();
        let records = at_a_time * context.size(400, 4);
        bare.rate(at_a_time, records / 2).await;
        let (mut rounds, mut costs) = (Rounds::default(), Costs::default());
        for _ in 0..context.rounds(9) {
            let before = bare.rate(at_a_time, records).await;
            let rate = one_round(context, at_a_time, runs, &mut costs).await;
            rounds.push(before, rate, bare.rate(at_a_time, records).await);
        }
        let note = format!("at P={at_a_time}");
        table.rounds(workload, "steps/s", &rounds, "bare writer", note);
        if at_a_time == 1_024 {
            noise_free(table, &costs);
        } else {
            table.figure("checkpoints a commit, 64", costs.steps / costs.commits, "", String::new());
        }
    }
}

/// From the trigger of all runs to the end of the last; gives steps a second.
async fn one_round(context: &Context, at_a_time: usize, runs: usize, costs: &mut Costs) -> f64 {
    let (durably, _dir) = context.open(Durably::builder().max_concurrent_runs(at_a_time)).await;
    let job = steps(&durably);
    let before = durably.stats().await.expect("stats");
    let (cpu_before, bytes_before) = (cpu(), bytes_written());
    let began = Instant::now();
    job.batch_trigger(vec![STEPS_A_RUN; runs]).await.expect("triggers");
    durably.run_until_idle(None).await.expect("works");
    let took = began.elapsed();
    let stats = durably.stats().await.expect("stats");
    // The journal's rest is folded here, so that every byte and every tick that the steps ever cost is counted.
    durably.shutdown().await.expect("shuts down");
    let steps = (runs * STEPS_A_RUN as usize) as f64;
    costs.steps += steps;
    costs.commits += (stats.commits - before.commits) as f64;
    costs.flushes += (stats.flushes - before.flushes) as f64;
    costs.bytes += (bytes_written() - bytes_before) as f64;
    costs.cpu_us += (cpu() - cpu_before).as_secs_f64() * 1e6;
    steps / took.as_secs_f64()
}

fn noise_free(table: &mut Table, costs: &Costs) {
    let all = || "W1 at 1,024, triggers, ends and the whole fold included".to_owned();
    table.figure("flushes a commit", costs.flushes / costs.commits, "", "those of folding included".into());
    table.figure("bytes written a step", costs.bytes / costs.steps, "B", all());
    table.figure("CPU a step", costs.cpu_us / costs.steps, "us", all());
    table.figure("checkpoints a commit", costs.steps / costs.commits, "", "commits that only fold included".into());
}
