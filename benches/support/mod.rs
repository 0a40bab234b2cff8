//! What the benches share: the bare redb writer that everything is measured against, and a runtime over a file.

#![allow(dead_code, unused_imports, reason = "each bench uses its part")]

mod bare;
mod host;

use durably::{Builder, Durably, Job, JobHandle, Step};

pub use bare::{Bare, BareRows, RECORD_BYTES};
pub use host::{bytes_written, cpu, file_system, flush_time, resident};

pub const VALUE_BYTES: usize = 200;

/// Ends the program where what it would measure is not what is shipped.
pub fn refuse_other_builds() {
    let found = if cfg!(feature = "testing") {
        "it was built with the feature `testing`, which has crash points in the hot path"
    } else if cfg!(debug_assertions) {
        "it was built with debug assertions"
    } else {
        return;
    };
    eprintln!("nothing is measured: {found}; build with `--release` and without `--all-features`");
    std::process::exit(2);
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
