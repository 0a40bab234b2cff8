//! What the workloads have in common: which of them are wanted, how large they are, files and processes of their own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use durably::{Builder, Durably, JobHandle, Trigger};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::support::{Bare, resident, steps};

pub const NAMES: &[&str] =
    &["W1", "W2", "W3", "W4", "W5", "W6", "W6b", "W7", "W7b", "W8", "keyed", "growth", "soak", "beside"];

/// Runs of one commit where many are put into a file.
const BATCH: usize = 20_000;

pub struct Context {
    pub dir: PathBuf,
    quick: bool,
    only: Vec<String>,
    turnover: Option<usize>,
    pending: OnceCell<Fixture>,
    pub stored: OnceCell<Fixture>,
}

/// A file that was filled once and closed cleanly, for several workloads.
pub struct Fixture {
    dir: TempDir,
    pub runs: usize,
}

impl Fixture {
    pub fn new(dir: TempDir, runs: usize) -> Fixture {
        Fixture { dir, runs }
    }

    pub fn path(&self) -> PathBuf {
        path_in(&self.dir)
    }
}

impl Context {
    pub fn new(dir: PathBuf, quick: bool, only: Vec<String>, turnover: Option<usize>) -> Context {
        Context { dir, quick, only, turnover, pending: OnceCell::new(), stored: OnceCell::new() }
    }

    pub fn wants(&self, workload: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == workload)
    }

    /// A size, cut to a part of it for `--quick`.
    pub fn size(&self, full: usize, part: usize) -> usize {
        if self.quick { full / part } else { full }
    }

    pub fn rounds(&self, full: usize) -> usize {
        if self.quick { full.div_ceil(2) } else { full }
    }

    /// The number of runs of what is large: a million.
    pub fn many(&self) -> usize {
        self.size(1_000_000, 10)
    }

    /// Runs that come and go in the soak.
    pub fn turnover(&self) -> usize {
        self.turnover.unwrap_or_else(|| self.size(300_000, 3))
    }

    pub fn new_dir(&self) -> TempDir {
        tempfile::Builder::new().prefix("durably-workloads-").tempdir_in(&self.dir).expect("a directory")
    }

    pub fn bare(&self) -> (Bare, TempDir) {
        let dir = self.new_dir();
        (Bare::open(&path_in(&dir)), dir)
    }

    pub async fn open(&self, builder: Builder) -> (Durably, TempDir) {
        let dir = self.new_dir();
        (builder.open(path_in(&dir)).await.expect("opens"), dir)
    }

    /// A file of many pending runs, each with an idempotency key and a label.
    pub async fn pending(&self) -> &Fixture {
        let fill = || async {
            let (durably, dir) = self.open(Durably::builder().paused(true)).await;
            fill_keyed(&steps(&durably), self.many(), 0).await;
            durably.shutdown().await.expect("shuts down");
            Fixture::new(dir, self.many())
        };
        self.pending.get_or_init(fill).await
    }
}

pub fn path_in(dir: &TempDir) -> PathBuf {
    dir.path().join("workload.redb")
}

/// Triggers `runs` runs, each with a key and a label.
pub async fn fill_keyed(job: &JobHandle<u32, u32>, runs: usize, first: usize) {
    for from in (first..first + runs).step_by(BATCH) {
        job.batch_trigger((from..(from + BATCH).min(first + runs)).map(keyed)).await.expect("triggers");
    }
}

/// A trigger with a key and a label.
pub fn keyed(n: usize) -> Trigger<u32> {
    Trigger::new(1).idempotency_key(key(n)).label("tenant", tenant(n))
}

/// Keys in no order at all, as those of webhooks are.
pub fn key(n: usize) -> String {
    format!("{:016x}", (n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// One of twenty values of the label.
pub fn tenant(n: usize) -> String {
    format!("tenant-{}", n % 20)
}

/// Starts this program again to do one thing, and gives its process and the first line that it prints.
pub fn spawn(what: &str, path: &Path, count: usize) -> (Child, String) {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command.arg("--child").arg(what).arg(path).arg(count.to_string());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("answers");
    (child, line.trim().to_owned())
}

/// What a process started by [`spawn`] does.
pub fn child(arguments: &[String]) {
    let [what, path, count] = arguments else { panic!("what, path and count") };
    let count: usize = count.parse().expect("a count");
    crate::support::tokio_runtime().block_on(async {
        let builder = Durably::builder().paused(true).lock_wait(Duration::from_secs(30));
        match what.as_str() {
            // Puts runs into the file, says so, and waits to be killed.
            "hold" => {
                let durably = builder.open(path).await.expect("opens");
                let job = steps(&durably);
                for from in (0..count).step_by(BATCH) {
                    let items = (from..(from + BATCH).min(count)).map(|n| Trigger::new(1).label("tenant", tenant(n)));
                    job.batch_trigger(items).await.expect("triggers");
                }
                println!("ready");
                std::io::stdin().lines().for_each(drop);
            }
            // Opens the file with the least cache there is, and says what memory that takes.
            "weigh" => {
                let durably = builder.cache_bytes(1 << 20).open(path).await.expect("opens");
                let _job = steps(&durably);
                durably.stats().await.expect("stats");
                println!("{}", resident());
                durably.shutdown().await.expect("shuts down");
            }
            other => panic!("no such child: {other}"),
        }
    });
}
