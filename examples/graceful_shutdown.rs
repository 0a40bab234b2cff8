//! Ctrl-c or SIGTERM ends the process in order: what is executing finishes its step, and goes on after the next start. A second
//! signal ends it at once, which loses nothing either.
//!
//! ```text
//! cargo run --example graceful_shutdown                     # press ctrl-c, start it again
//! cargo run --example graceful_shutdown -- --demo           # sends itself SIGTERM after a moment, and starts again
//! cargo run --example graceful_shutdown -- --step-ms 10000  # slow steps: time for a second ctrl-c
//! ```
//!
//! Without `--demo` the database is `graceful_shutdown.redb` in the current directory.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use durably::{Durably, Job, JobError, Step};
use tokio::signal::unix::{Signal, SignalKind, signal};

const STEPS: u32 = 20;

fn count(step_time: Duration) -> Job<(), u32> {
    Job::new("count", move |step: Step, (): ()| async move {
        let draining = step.draining();
        for number in 1..=STEPS {
            step.run(("count", number), || async {
                tokio::time::sleep(step_time).await;
                println!("  step {number} of {STEPS}");
                Ok(())
            })
            .await?;
            // Left out, the run would go on until the grace is over. An error after the token has fired is no failure: the
            // run is handed back, and goes on here after the next start.
            if draining.is_cancelled() {
                println!("  told to stop after step {number}");
                return Err(JobError::msg("stopped"));
            }
        }
        Ok(STEPS)
    })
}

/// Ctrl-c, or what a service manager sends.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (mut demo, mut step_time) = (false, Duration::from_millis(200));
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--demo" => demo = true,
            "--step-ms" => {
                let ms = args.next().and_then(|ms| ms.parse().ok()).context("--step-ms needs a number")?;
                step_time = Duration::from_millis(ms);
            }
            _ => bail!("unknown argument {arg:?}; known are --demo and --step-ms N"),
        }
    }
    if !demo {
        return serve(Path::new("graceful_shutdown.redb"), step_time).await;
    }
    let directory = tempfile::tempdir()?;
    let path: PathBuf = directory.path().join("jobs.redb");
    let signalling = tokio::spawn(async move {
        tokio::time::sleep(step_time * 4).await;
        Command::new("kill").args(["-TERM", &std::process::id().to_string()]).status()
    });
    serve(&path, step_time).await?;
    signalling.await??;
    println!("started again");
    serve(&path, Duration::from_millis(20)).await
}

/// A process's life: until its run has ended, or until it is told to stop.
async fn serve(path: &Path, step_time: Duration) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let durably = Durably::builder().shutdown_grace(Duration::from_secs(60)).open(path).await?;
    let counts = durably.register(count(step_time))?;
    let run = counts.trigger(()).idempotency_key("the count").await?;
    println!("run {} {:?}", run.id(), run.disposition());
    tokio::select! {
        counted = run.output() => println!("counted to {}", counted?),
        signal = signals.next() => println!("{signal}: shutting down, again for at once"),
    }
    tokio::select! {
        closed = durably.shutdown() => closed?,
        signal = signals.next() => {
            // As after a crash: the step that was executing runs again.
            println!("{signal}: at once");
            std::process::exit(130);
        }
    }
    println!("closed");
    Ok(())
}
