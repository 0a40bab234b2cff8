//! W6: taking up a run with many checkpoints. W6b: opening a large file after its process was killed.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use durably::{Durably, Job, JobHandle, Step};
use tokio::sync::Notify;

use crate::context::{Context, path_in, spawn};
use crate::growth::stored;
use crate::support::{BareRows, VALUE_BYTES};
use crate::table::{Rounds, Row, Table, median};

const CHECKPOINTS: u32 = 1_000;

pub async fn run(context: &Context, table: &mut Table) {
    if context.wants("W6") {
        for (workload, crash) in
            [("W6 take up a run, after a crash", true), ("W6 take up a run, after a clean stop", false)]
        {
            take_up(context, table, workload, crash).await;
        }
    }
    if context.wants("W6b") {
        after_kill(context, table).await;
    }
}

/// A job that says when its checkpoints are there, and then that its first new step runs.
fn stopping(durably: &Durably, there: Arc<Notify>, stop: bool) -> JobHandle<u32, u32> {
    let job = Job::new("stopping", move |step: Step, count: u32| {
        let there = there.clone();
        async move {
            for n in 0..count {
                step.run(("step", n), || async { Ok("x".repeat(VALUE_BYTES - 2)) }).await?;
            }
            if stop {
                there.notify_one();
                std::future::pending::<()>().await;
            }
            step.run("new", || async {
                there.notify_one();
                Ok(())
            })
            .await?;
            Ok(count)
        }
    });
    durably.register(job).expect("registers")
}

async fn take_up(context: &Context, table: &mut Table, workload: &str, crash: bool) {
    let bare_dir = context.new_dir();
    let rows = BareRows::open(&path_in(&bare_dir), u64::from(CHECKPOINTS));
    let (bare, _dir) = context.bare();
    let mut rounds = Rounds::default();
    for _ in 0..context.rounds(7) {
        let dir = context.new_dir();
        let path = path_in(&dir);
        cut_off(&path, crash).await;
        let durably = Durably::builder().lock_wait(Duration::from_secs(30)).open(&path).await.expect("opens again");
        let there = Arc::new(Notify::new());
        // What the least is: a commit that says who works on it, and reading every checkpoint once.
        let baseline = rows.newest(CHECKPOINTS as usize) + bare.load(1, 1).await;
        let began = Instant::now();
        let _job = stopping(&durably, there.clone(), false);
        there.notified().await;
        let took = began.elapsed().as_secs_f64() * 1e3;
        rounds.push(baseline.as_secs_f64() * 1e3, took, baseline.as_secs_f64() * 1e3);
        durably.shutdown().await.expect("shuts down");
    }
    let note = format!("{CHECKPOINTS} checkpoints");
    table.rounds(workload, "ms", &rounds, "bare, read them and commit once;", note);
}

/// A file whose one run has its checkpoints and was cut off.
async fn cut_off(path: &Path, crash: bool) {
    let there = Arc::new(Notify::new());
    let grace = Duration::from_millis(50);
    let durably = Durably::builder().shutdown_grace(grace).open(path).await.expect("opens");
    let _run = stopping(&durably, there.clone(), true).trigger(CHECKPOINTS).await.expect("triggers");
    there.notified().await;
    if !crash {
        durably.shutdown().await.expect("shuts down");
    }
}

async fn after_kill(context: &Context, table: &mut Table) {
    let fixture = stored(context).await;
    let pending = context.size(100_000, 10);
    let (mut child, ready) = spawn("hold", &fixture.path(), pending);
    assert_eq!(ready, "ready", "the child that is to be killed did not get there");
    child.kill().expect("kills");
    child.wait().expect("ends");
    let bytes = std::fs::metadata(fixture.path()).expect("the file").len();
    let mut times = Vec::new();
    for _ in 0..context.rounds(3) {
        // A copy of what the kill left, so that every round opens the same.
        let dir = context.new_dir();
        let path = path_in(&dir);
        std::fs::copy(fixture.path(), &path).expect("copies");
        std::fs::File::open(&path).expect("the copy").sync_all().expect("flushes");
        let began = Instant::now();
        let durably = Durably::builder().paused(true).open(&path).await.expect("opens");
        times.push(began.elapsed().as_secs_f64());
        durably.shutdown().await.expect("shuts down");
    }
    let gib = bytes as f64 / f64::from(1 << 30);
    let all = times.iter().map(|took| format!("{took:.2}")).collect::<Vec<_>>().join(", ");
    table.row(&Row {
        workload: "W6b open after kill -9",
        value: median(&times),
        unit: "s",
        baseline: "1 s + 3 s a GiB;",
        baseline_value: 1.0 + 3.0 * gib,
        note: format!("{} runs and {pending} pending, {gib:.2} GiB; each: {all}", fixture.runs),
    });
    let a_run = bytes as f64 / (fixture.runs + pending) as f64;
    table.figure("file, bytes a run", a_run, "B", "runs without steps, one label".into());
}
