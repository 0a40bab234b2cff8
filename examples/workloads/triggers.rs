//! W4: creating runs. The keyed row: creating them where many keys are stored. W5: the next run where many wait.

use std::time::Instant;

use durably::{Durably, JobHandle};

use crate::context::{Context, fill_keyed, key, keyed, tenant};
use crate::support::steps;
use crate::table::{Rounds, Table};

const CALLERS: usize = 64;
const BATCH: usize = 20_000;

pub async fn run(context: &Context, table: &mut Table) {
    if context.wants("W4") {
        single(context, table).await;
        batch(context, table).await;
    }
    if context.wants("keyed") {
        many_keys(context, table).await;
    }
    if context.wants("W5") {
        many_pending(context, table).await;
    }
}

/// `total` triggers by 64 closed loops, with keys from `first` on; gives triggers a second.
async fn rate(job: &JobHandle<u32, u32>, total: usize, first: usize) -> f64 {
    let began = Instant::now();
    let callers = (0..CALLERS).map(|caller| {
        let job = job.clone();
        tokio::spawn(async move {
            for n in (caller..total).step_by(CALLERS).map(|n| first + n) {
                job.trigger(1).idempotency_key(key(n)).label("tenant", tenant(n)).await.expect("triggers");
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    for caller in callers {
        caller.await.expect("ends");
    }
    total as f64 / began.elapsed().as_secs_f64()
}

async fn single(context: &Context, table: &mut Table) {
    let total = context.size(40_000, 2);
    let (bare, _bare_dir) = context.bare();
    bare.rate(CALLERS, total / 2).await;
    let mut rounds = Rounds::default();
    for _ in 0..context.rounds(9) {
        // Paused, so that what is measured is the trigger and not the runs.
        let (durably, _dir) = context.open(Durably::builder().paused(true)).await;
        let before = bare.rate(CALLERS, total).await;
        let ours = rate(&steps(&durably), total, 0).await;
        rounds.push(before, ours, bare.rate(CALLERS, total).await);
        durably.shutdown().await.expect("shuts down");
    }
    table.rounds("W4 64 callers, key and label", "runs/s", &rounds, "bare writer at P=64", String::new());
}

async fn batch(context: &Context, table: &mut Table) {
    let (bare, _bare_dir) = context.bare();
    bare.batch_rate(BATCH).await;
    let (mut plain, mut with_key) = (Rounds::default(), Rounds::default());
    for _ in 0..context.rounds(7) {
        let (durably, _dir) = context.open(Durably::builder().paused(true)).await;
        let job = steps(&durably);
        let before = bare.batch_rate(BATCH).await;
        let began = Instant::now();
        job.batch_trigger(vec![1; BATCH]).await.expect("triggers");
        let first = BATCH as f64 / began.elapsed().as_secs_f64();
        let between = bare.batch_rate(BATCH).await;
        let items: Vec<_> = (0..BATCH).map(keyed).collect();
        let began = Instant::now();
        job.batch_trigger(items).await.expect("triggers");
        let second = BATCH as f64 / began.elapsed().as_secs_f64();
        plain.push(before, first, between);
        with_key.push(between, second, bare.batch_rate(BATCH).await);
        durably.shutdown().await.expect("shuts down");
    }
    let baseline = "bare, 20,000 in one commit";
    table.rounds("W4 a batch of 20,000", "runs/s", &plain, baseline, String::new());
    table.rounds("W4 the same, key and label", "runs/s", &with_key, baseline, String::new());
}

async fn many_keys(context: &Context, table: &mut Table) {
    let total = context.size(20_000, 1);
    let stored = context.pending().await;
    let full = Durably::builder().paused(true).open(stored.path()).await.expect("opens");
    let full_job = steps(&full);
    let mut rounds = Rounds::default();
    for round in 0..context.rounds(5) {
        let (empty, _dir) = context.open(Durably::builder().paused(true)).await;
        let empty_job = steps(&empty);
        let first = 2 * stored.runs + round * total;
        let before = rate(&empty_job, total / 2, first).await;
        let ours = rate(&full_job, total, first).await;
        rounds.push(before, ours, rate(&empty_job, total / 2, first + total).await);
        empty.shutdown().await.expect("shuts down");
    }
    full.shutdown().await.expect("shuts down");
    let note = format!("{} stored", stored.runs);
    table.rounds("keyed, many keys stored", "runs/s", &rounds, "no key stored;", note);
}

async fn many_pending(context: &Context, table: &mut Table) {
    const FEW: usize = 1_000;
    let hundred = context.size(100_000, 10);
    let (few, _few_dir) = context.open(Durably::builder().paused(true)).await;
    let (some, _some_dir) = context.open(Durably::builder().paused(true)).await;
    let stored = context.pending().await;
    let many = Durably::builder().paused(true).open(stored.path()).await.expect("opens");
    let (few_job, some_job, _many_job) = (steps(&few), steps(&some), steps(&many));
    fill_keyed(&few_job, FEW, 0).await;
    fill_keyed(&some_job, hundred, 0).await;
    let (mut at_some, mut at_many) = (Rounds::default(), Rounds::default());
    for round in 1..=context.rounds(7) {
        fill_keyed(&few_job, 3 * FEW, 3 * round * FEW).await;
        let before = work_off(&few, FEW).await;
        let some = work_off(&some, FEW).await;
        let between = work_off(&few, FEW).await;
        let many = work_off(&many, FEW).await;
        let after = work_off(&few, FEW).await;
        at_some.push(before, some, between);
        at_many.push(between, many, after);
    }
    let baseline = "1,000 to 4,000 pending;";
    let note = |runs: usize| format!("{runs} pending");
    table.rounds("W5 next run, some pending", "runs/s", &at_some, baseline, note(hundred));
    table.rounds("W5 next run, many pending", "runs/s", &at_many, baseline, note(stored.runs));
    for durably in [few, some, many] {
        durably.shutdown().await.expect("shuts down");
    }
}

/// Runs started, worked and ended a second.
async fn work_off(durably: &Durably, runs: usize) -> f64 {
    let began = Instant::now();
    let ended = durably.run_until_idle(runs as u64).await.expect("works");
    ended as f64 / began.elapsed().as_secs_f64()
}
