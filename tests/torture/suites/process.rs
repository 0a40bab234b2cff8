//! A process of its own for a suite to kill: this executable, started again as the child.
//!
//! The parent is never killed. The child reports over its stdout, one line of JSON a report, what it is about to do before it
//! does it and what it has done after; the parent tells it things over its stdin and by signals.
#![expect(clippy::disallowed_methods, reason = "when a process is killed is no part of what is tested")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use durably::testing::suites::Bug;
use durably::{Builder, Durably};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, setrlimit};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{images, kill9, overload, poison, saga, shutdown};

/// The environment variable that makes this executable the child.
const ROLE: &str = "DURABLY_TORTURE_CHILD";

/// What a child is to be.
#[derive(Debug, Serialize, Deserialize)]
pub enum Role {
    Kill9(kill9::life::Life),
    Saga(saga::Life),
    Poison(poison::Life),
    Shutdown(shutdown::Life),
    Overload(overload::Load),
    Images(images::Damaging),
    /// Opens the file, says so, and holds it.
    Hold(PathBuf),
}

/// Where every executable that runs suites begins: the child never comes back from here.
pub fn be_the_child_if_asked() {
    let Ok(role) = std::env::var(ROLE) else { return };
    // What dies here dies on purpose.
    limit(Resource::Core, Some(0));
    // Ends the line that the test harness has begun.
    let _ = std::io::stdout().write_all(b"\n");
    match serde_json::from_str(&role).expect("a role") {
        Role::Kill9(life) => kill9::child::live(&life),
        Role::Saga(life) => saga::child::live(&life),
        Role::Poison(life) => poison::live(&life),
        Role::Shutdown(life) => shutdown::live(&life),
        Role::Overload(load) => overload::live(&load),
        Role::Images(damaging) => images::damage(&damaging),
        Role::Hold(path) => hold(&path),
    }
    std::process::exit(0)
}

fn hold(path: &Path) {
    on_threads(2).block_on(async {
        let _durably = Durably::open(path).await.expect("the file opens");
        say(&"holding");
        std::future::pending().await
    })
}

/// A tokio runtime: one thread is the current one.
pub fn on_threads(threads: usize) -> tokio::runtime::Runtime {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(threads).enable_all().build().expect("a runtime")
}

/// A line to the parent; without one, the child is no use.
pub fn say(report: &impl Serialize) {
    let line = format!("@{}\n", serde_json::to_string(report).expect("a report as JSON"));
    if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
        std::process::exit(1);
    }
}

/// A line from the parent; `None` once it is gone.
pub async fn told() -> Option<String> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let reading = move || {
        let mut line = String::new();
        let read = std::io::stdin().read_line(&mut line);
        let _ = tell.send(read.is_ok_and(|bytes| bytes > 0).then(|| line.trim().to_owned()));
    };
    std::thread::Builder::new().spawn(reading).expect("a thread that reads");
    told.await.ok().flatten()
}

/// Ends this process, with no chance for it to do anything more.
pub fn die(signal: Signal) -> ! {
    loop {
        // The first of a signal that has a handler only takes that handler away.
        let _ = kill_process(rustix::process::getpid(), signal);
    }
}

/// Sets a soft limit of this process.
pub fn limit(resource: Resource, most: Option<u64>) {
    let maximum = rustix::process::getrlimit(resource).maximum;
    setrlimit(resource, Rlimit { current: most.or(maximum), maximum }).expect("a limit may be lowered");
}

/// After so long, and for so long, this process can't write where commits do.
pub fn refuse_writes(after: Duration, lasts: Duration) {
    /// A file can be written up to here meanwhile.
    const BYTES: u64 = 4_096;
    const SIGXFSZ: i32 = 25;
    // Told of a file that may not grow, a process is killed, unless it listens.
    let kind = tokio::signal::unix::SignalKind::from_raw(SIGXFSZ);
    let listening = tokio::signal::unix::signal(kind).expect("a handler");
    tokio::spawn(async move {
        let _listening = listening;
        tokio::time::sleep(after).await;
        limit(Resource::Fsize, Some(BYTES));
        tokio::time::sleep(lasts).await;
        limit(Resource::Fsize, None);
    });
}

/// A defect as it travels to a child.
pub fn number_of(bug: Option<Bug>) -> Option<usize> {
    bug.and_then(|bug| Bug::ALL.iter().position(|other| *other == bug))
}

/// The settings with the defect planted.
pub fn with_bug(builder: Builder, bug: Option<usize>) -> Builder {
    match bug {
        Some(number) => builder.plant(Bug::ALL[number]),
        None => builder,
    }
}

/// A child, seen from its parent. Dropped, it is killed.
pub struct Process {
    child: Child,
    reports: mpsc::Receiver<String>,
    stderr: PathBuf,
}

/// What came of waiting for a child.
pub enum Next<R> {
    Report(R),
    TimeUp,
    Ended,
}

impl Process {
    /// Starts a child. What it says to stderr goes to a file in that directory.
    pub fn start(role: &Role, directory: &Path) -> Process {
        let stderr = directory.join("stderr");
        let log = File::options().create(true).append(true).open(&stderr).expect("a file for stderr");
        let mut child = Command::new(std::env::current_exe().expect("this executable"))
            // To the test binary they mean its entry for children; the example looks at the environment first.
            .args(["--exact", "child_process", "--nocapture"])
            .env(ROLE, serde_json::to_string(role).expect("a role as JSON"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("a child");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe"));
        let (tell, reports) = mpsc::channel();
        let reading = move || {
            let mut line = Vec::new();
            // A line without its end was cut off by a kill. What the test harness says is none of ours.
            while lines.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) && line.ends_with(b"\n") {
                if let Some(report) = line.strip_prefix(b"@") {
                    let _ = tell.send(String::from_utf8(report.to_vec()).expect("JSON is text"));
                }
                line.clear();
            }
        };
        std::thread::Builder::new().spawn(reading).expect("a thread that reads");
        Process { child, reports, stderr }
    }

    /// The next report, waited for until then.
    pub fn next<R: DeserializeOwned>(&mut self, until: Instant) -> Next<R> {
        match self.reports.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(report) => Next::Report(serde_json::from_str(&report).expect("a report")),
            Err(RecvTimeoutError::Timeout) => Next::TimeUp,
            Err(RecvTimeoutError::Disconnected) => Next::Ended,
        }
    }

    /// Every report up to the child's end; `None` if that does not come in time.
    pub fn rest<R: DeserializeOwned>(&mut self, patience: Duration) -> Option<Vec<R>> {
        let (until, mut reports) = (Instant::now() + patience, Vec::new());
        loop {
            match self.next(until) {
                Next::Report(report) => reports.push(report),
                Next::Ended => return Some(reports),
                Next::TimeUp => return None,
            }
        }
    }

    pub fn id(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal; a child that has just ended gets none.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(self.id(), signal);
    }

    pub fn tell(&mut self, line: &str) {
        if let Some(stdin) = &mut self.child.stdin {
            let _ = writeln!(stdin, "{line}");
        }
    }

    /// How it ended, once it has.
    pub fn status(&mut self) -> ExitStatus {
        self.child.wait().expect("the child's end")
    }

    /// What each of its threads is at: the name, the state and the kernel function that it waits in.
    pub fn threads(&self) -> String {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.id().as_raw_nonzero()));
        let of = |task: &Path, what: &str| std::fs::read_to_string(task.join(what)).unwrap_or_default();
        let line = |task: std::fs::DirEntry| {
            let (name, waits) = (of(&task.path(), "comm"), of(&task.path(), "wchan"));
            let state = of(&task.path(), "stat").rsplit(") ").next().unwrap_or_default().chars().next();
            format!("{} {state:?} {waits}", name.trim())
        };
        tasks.map(|tasks| tasks.flatten().map(line).collect::<Vec<_>>().join(", ")).unwrap_or_default()
    }

    /// The last of what it said to stderr.
    pub fn last_words(&self) -> String {
        let words = std::fs::read(&self.stderr).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        let last = words.char_indices().rev().nth(1_000).map_or(0, |(at, _)| at);
        words[last..].to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Log-uniform: as many moments early on, where most happens, as later.
pub fn log_uniform(rng: &mut fastrand::Rng, least: Duration, most: Duration) -> Duration {
    least.mul_f64((most.as_secs_f64() / least.as_secs_f64()).powf(rng.f64()))
}

/// Address space and resident memory of this process, bytes.
pub fn resident() -> (u64, u64) {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let mut pages = statm.split(' ').map(|pages| pages.parse::<u64>().expect("a number"));
    let page = rustix::param::page_size() as u64;
    let mut bytes = || pages.next().expect("a column") * page;
    (bytes(), bytes())
}

/// Memory of this process that counts as data, bytes: what its heap has, in use or not.
pub fn data() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let data = status.lines().find_map(|line| line.strip_prefix("VmData:")).expect("a line of it");
    data.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}
