//! What the benches share: the bare redb writer that everything is measured against, and a runtime over a file.

#![allow(dead_code, reason = "each bench uses its part")]

use std::path::Path;
use std::time::{Duration, Instant};

use durably::{Builder, Durably, Job, JobHandle, Step};
use redb::{Database, TableDefinition};
use tokio::sync::oneshot;

pub const VALUE_BYTES: usize = 200;
const JOURNAL: TableDefinition<u64, &[u8]> = TableDefinition::new("journal");

/// A redb file behind one writer thread with group commit: a commit's records as one row under an ascending key. The best
/// layout that redb offers, with no engine and no reads: the baseline.
pub struct Bare {
    sender: std::sync::mpsc::Sender<(Vec<u8>, oneshot::Sender<()>)>,
}

impl Bare {
    pub fn open(path: &Path) -> Bare {
        let db = Database::builder().set_cache_size(64 << 20).create(path).expect("creates");
        let (sender, receiver) = std::sync::mpsc::channel::<(Vec<u8>, oneshot::Sender<()>)>();
        std::thread::spawn(move || {
            let mut group = 0u64;
            while let Ok(first) = receiver.recv() {
                let (mut row, mut replies) = (first.0, vec![first.1]);
                while replies.len() < 1_024
                    && let Ok((record, reply)) = receiver.try_recv()
                {
                    row.extend_from_slice(&record);
                    replies.push(reply);
                }
                group += 1;
                let txn = db.begin_write().expect("begins");
                txn.open_table(JOURNAL).expect("opens").insert(group, &row[..]).expect("inserts");
                txn.commit().expect("commits");
                for reply in replies {
                    let _ = reply.send(());
                }
            }
        });
        Bare { sender }
    }

    pub async fn record(&self, bytes: Vec<u8>) {
        let (reply, done) = oneshot::channel();
        self.sender.send((bytes, reply)).expect("the writer lives");
        done.await.expect("the writer answers");
    }

    /// `total` records by `producers` closed loops.
    pub async fn load(&self, producers: usize, total: usize) -> Duration {
        let began = Instant::now();
        let loops = (0..producers).map(|_| async {
            for _ in 0..total / producers {
                self.record(vec![7; VALUE_BYTES + 24]).await;
            }
        });
        futures::future::join_all(loops).await;
        began.elapsed()
    }
}

/// A runtime of two threads.
pub fn tokio_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// A new file in a directory of its own.
pub async fn open(builder: Builder) -> (Durably, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let durably = builder.open(dir.path().join("bench.redb")).await.expect("opens");
    (durably, dir)
}

/// A job of as many steps as its input says, each giving 200 bytes.
pub fn steps(durably: &Durably) -> JobHandle<u32, u32> {
    let job = Job::new("steps", |step: Step, count: u32| async move {
        for n in 0..count {
            step.run(("step", n), || async { Ok("x".repeat(VALUE_BYTES - 2)) }).await?;
        }
        Ok(count)
    });
    durably.register(job).expect("registers")
}

/// Prints one figure beside its baseline.
pub fn report(what: &str, ours: f64, baseline: f64, unit: &str, extra: &str) {
    println!("{what}: {ours:.0} {unit}, baseline {baseline:.0} {unit}, ratio {:.2} {extra}", ours / baseline);
}

/// CPU time of this process so far.
pub fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
