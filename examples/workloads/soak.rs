//! The steady state: runs are triggered, end and are purged, over and over, and the file stays as small as what it holds.
//! And what runs beside the load: the p99 of a step while runs are purged, and while others are recovered.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use durably::{Durably, Job, JobHandle, Step, Timestamp, Trigger};
use redb::{ReadableDatabase, ReadableTableMetadata, TableHandle};
use tokio::sync::Semaphore;

use crate::context::{Context, path_in, tenant};
use crate::support::{Bare, RECORD_BYTES, VALUE_BYTES, flush_time, resident, steps};
use crate::table::{Row, Table, median, quantile};

pub async fn run(context: &Context, table: &mut Table) {
    if context.wants("soak") {
        turnover(context, table).await;
    }
    if context.wants("beside") {
        beside(context, table).await;
    }
}

/// Runs of a batch, and batches that stay: what the file holds when it is steady is theirs.
const BATCH: usize = 10_000;
const BATCHES_KEPT: usize = 5;

async fn turnover(context: &Context, table: &mut Table) {
    let total = context.turnover();
    let (durably, dir) = context.open(Durably::builder().max_concurrent_runs(1_024).paused(true)).await;
    let job = steps(&durably);
    let path = path_in(&dir);
    let size = || std::fs::metadata(&path).map_or(0, |file| file.len());
    let (mut rates, mut begins) = (Vec::new(), VecDeque::new());
    // File and memory, once it has what stays and once more at the end.
    let (mut largest, mut memory) = (0, None);
    for from in (0..total).step_by(BATCH) {
        begins.push_back(Timestamp::now());
        let began = Instant::now();
        job.batch_trigger((0..BATCH).map(|n| Trigger::new(1).label("tenant", tenant(n)))).await.expect("triggers");
        let purge = async {
            if begins.len() > BATCHES_KEPT {
                begins.pop_front();
                durably.purge_runs(begins[0]).await.expect("purges");
            }
        };
        let (ended, ()) = futures::join!(durably.run_until_idle(None), purge);
        ended.expect("works");
        rates.push(BATCH as f64 / began.elapsed().as_secs_f64());
        if from >= total / 3 {
            largest = largest.max(size());
            memory.get_or_insert_with(resident);
        }
    }
    let (running, resident) = (size(), resident());
    durably.shutdown().await.expect("shuts down");
    let live = live_bytes(&path);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    table.row(&Row {
        workload: "soak, file against live data",
        value: mib(largest),
        unit: "MiB",
        baseline: "2 x live + 64 MiB;",
        baseline_value: 2.0 * mib(live) + 64.0,
        note: format!(
            "{total} runs turned over, live {:.1} MiB, file {:.1} MiB at the end and {:.1} MiB closed",
            mib(live),
            mib(running),
            mib(size()),
        ),
    });
    table.row(&Row {
        workload: "soak, resident memory at the end",
        value: mib(resident),
        unit: "MiB",
        baseline: "after a third;",
        baseline_value: memory.map_or(0.0, mib),
        note: "of the process, with what earlier workloads left in it; see --only soak".into(),
    });
    let part = rates.len().div_ceil(4);
    table.row(&Row {
        workload: "soak, rate of the last quarter",
        value: median(&rates[rates.len() - part..]),
        unit: "runs/s",
        baseline: "the quarter before;",
        baseline_value: median(&rates[rates.len().saturating_sub(2 * part)..rates.len() - part]),
        note: "trigger, one step, end, purge".into(),
    });
}

/// Keys and values of a closed file, without what redb needs around them.
fn live_bytes(path: &Path) -> u64 {
    let db = redb::Database::open(path).expect("opens");
    let txn = db.begin_read().expect("begins");
    let tables: Vec<_> = txn.list_tables().expect("lists").collect();
    tables
        .into_iter()
        .map(|handle| {
            let name = handle.name().to_owned();
            let table = txn.open_untyped_table(handle).unwrap_or_else(|error| panic!("{name}: {error}"));
            table.stats().expect("counts").stored_bytes()
        })
        .sum()
}

/// A job that notes how long each of its steps took.
fn timed(durably: &Durably, times: &Arc<Mutex<Vec<f64>>>) -> JobHandle<u32, u32> {
    let times = times.clone();
    let job = Job::new("timed", move |step: Step, count: u32| {
        let times = times.clone();
        async move {
            for n in 0..count {
                let began = Instant::now();
                step.run(("step", n), || async { Ok("x".repeat(VALUE_BYTES - 2)) }).await?;
                let took = began.elapsed().as_secs_f64();
                times.lock().unwrap_or_else(PoisonError::into_inner).push(took);
            }
            Ok(count)
        }
    });
    durably.register(job).expect("registers")
}

/// Runs that note their steps, 16 at a time.
const BESIDE: usize = 16;

/// The p99 of a step, seconds, over those noted since the last call.
fn p99(times: &Mutex<Vec<f64>>) -> f64 {
    quantile(&std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner)), 0.99)
}

/// A round of timed runs; gives the p99 of their steps.
async fn round(job: &JobHandle<u32, u32>, times: &Mutex<Vec<f64>>, per_run: u32) -> f64 {
    let runs = (0..BESIDE).map(|_| async { job.trigger_and_wait(per_run).await.expect("completes") });
    futures::future::join_all(runs).await;
    p99(times)
}

/// The p99 of the bare writer's records with as many producers, seconds: what the disk does at its worst.
async fn bare_p99(bare: &Bare, each: u32) -> f64 {
    let times = Mutex::new(Vec::new());
    let loops = (0..BESIDE).map(|_| async {
        for _ in 0..each {
            let began = Instant::now();
            bare.record(vec![7; RECORD_BYTES]).await;
            times.lock().unwrap_or_else(PoisonError::into_inner).push(began.elapsed().as_secs_f64());
        }
    });
    futures::future::join_all(loops).await;
    p99(&times)
}

/// The p99 of a step with nothing beside it, and with something, seconds; and what the disk did in the same moments.
#[derive(Default)]
struct Beside {
    alone: Vec<f64>,
    beside: Vec<f64>,
    bare: Vec<f64>,
    commit: Vec<f64>,
    flush: Vec<f64>,
}

impl Beside {
    async fn baseline(&mut self, context: &Context, bare: &Bare, per_run: u32) {
        self.flush.push(flush_time(&context.dir).as_secs_f64());
        for _ in 0..50 {
            self.commit.push(bare.load(1, 1).await.as_secs_f64());
        }
        self.bare.push(bare_p99(bare, per_run).await);
    }

    /// In bare commits, each a flush and what redb does for it: a flush of 4 KiB alone is less than any commit takes.
    fn print(&self, table: &mut Table, what: &str) {
        let commit = median(&self.commit);
        let (beside, bare) = (median(&self.beside), median(&self.bare));
        let row = Row {
            workload: &format!("p99 of a step beside a {what}"),
            value: beside / commit,
            unit: "commits",
            baseline: "bare writer's p99 at P=16;",
            baseline_value: bare / commit,
            note: format!(
                "without it {:.1}; {:.0} us, a bare commit {:.0} us, a flush of 4 KiB {:.0} us",
                median(&self.alone) / commit,
                beside * 1e6,
                commit * 1e6,
                median(&self.flush) * 1e6,
            ),
        };
        // Where the bare writer is beyond the bar, the disk is what is seen, and not what runs beside a step.
        table.row_if_baseline(&row);
    }
}

async fn beside(context: &Context, table: &mut Table) {
    let per_run = context.size(400, 2) as u32;
    let (bare, _bare_dir) = context.bare();
    purge(context, &bare, per_run).await.print(table, "purge");
    recovery(context, &bare, per_run).await.print(table, "recovery");
}

async fn purge(context: &Context, bare: &Bare, per_run: u32) -> Beside {
    let (durably, _dir) = context.open(Durably::builder().max_concurrent_runs(256)).await;
    let times = Arc::new(Mutex::new(Vec::new()));
    let (job, filler) = (timed(&durably, &times), steps(&durably));
    let mut found = Beside::default();
    for _ in 0..context.rounds(7) {
        filler.batch_trigger(vec![1; context.size(40_000, 2)]).await.expect("triggers");
        durably.run_until_idle(None).await.expect("works");
        found.baseline(context, bare, per_run).await;
        found.alone.push(round(&job, &times, per_run).await);
        let purging = tokio::spawn({
            let durably = durably.clone();
            async move { durably.purge_runs(Timestamp::now()).await }
        });
        found.beside.push(round(&job, &times, per_run).await);
        purging.await.expect("runs").expect("purges");
        found.baseline(context, bare, per_run).await;
    }
    durably.shutdown().await.expect("shuts down");
    found
}

/// A thousand runs that were cut off by a crash are taken up beside the timed ones.
async fn recovery(context: &Context, bare: &Bare, per_run: u32) -> Beside {
    const CUT_OFF: usize = 1_000;
    const CHECKPOINTS: u32 = 20;
    let times = Arc::new(Mutex::new(Vec::new()));
    let mut found = Beside::default();
    for _ in 0..context.rounds(7) {
        let dir = context.new_dir();
        let open = || {
            let builder = Durably::builder().max_concurrent_runs(2 * CUT_OFF).lock_wait(Duration::from_secs(30));
            builder.open(path_in(&dir))
        };
        let there = Arc::new(Semaphore::new(0));
        let durably = open().await.expect("opens");
        let job = timed(&durably, &times);
        found.baseline(context, bare, per_run).await;
        found.alone.push(round(&job, &times, per_run).await);
        holding(&durably, Some(&there)).batch_trigger(vec![CHECKPOINTS; CUT_OFF]).await.expect("triggers");
        drop(there.acquire_many(CUT_OFF as u32).await.expect("open"));
        drop((job, durably));
        let durably = open().await.expect("opens again");
        let (job, _held) = (timed(&durably, &times), holding(&durably, None));
        found.beside.push(round(&job, &times, per_run).await);
        found.baseline(context, bare, per_run).await;
        durably.run_until_idle(None).await.expect("works");
        durably.shutdown().await.expect("shuts down");
    }
    found
}

/// A job that says when its checkpoints are there and then stops for good, or goes on to its end.
fn holding(durably: &Durably, there: Option<&Arc<Semaphore>>) -> JobHandle<u32, u32> {
    let there = there.cloned();
    let job = Job::new("holding", move |step: Step, count: u32| {
        let there = there.clone();
        async move {
            for n in 0..count {
                step.run(("step", n), || async { Ok("x".repeat(VALUE_BYTES - 2)) }).await?;
            }
            if let Some(there) = there {
                there.add_permits(1);
                std::future::pending::<()>().await;
            }
            Ok(count)
        }
    });
    durably.register(job).expect("registers")
}
