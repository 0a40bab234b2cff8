//! Prints what this library costs: every workload beside its baseline, measured in the same process and the same minute.
//!
//! ```text
//! cargo run --release --example workloads -- [--json] [--only W1,W3] [--quick] [--turnover RUNS] [--dir PATH]
//!     [--any-file-system]
//! ```
//!
//! A workload is run between two halves of its baseline, several times over; what is printed is the median, and the least and
//! the greatest ratio. Absolute figures are those of the machine; ratios hold anywhere.

#![allow(clippy::disallowed_methods, reason = "a bench measures by the machine's own clock")]

mod bars;
mod context;
mod growth;
mod latency;
mod memory;
mod opening;
mod queries;
mod soak;
#[path = "../../benches/support/mod.rs"]
mod support;
mod table;
mod throughput;
mod triggers;

use std::path::PathBuf;
use std::time::Duration;

use context::Context;
use table::Table;

const USAGE: &str =
    "usage: workloads [--json] [--only W1,W3] [--quick] [--turnover RUNS] [--dir PATH] [--any-file-system]
workloads: W1 W2 W3 W4 W5 W6 W6b W7 W7b W8 keyed growth soak beside";

fn main() {
    support::refuse_other_builds();
    let mut arguments = std::env::args().skip(1);
    let (mut json, mut quick, mut any_file_system) = (false, false, false);
    let (mut only, mut turnover, mut dir) = (Vec::new(), None, std::env::temp_dir());
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| usage(&format!("{argument} needs a value")));
        match argument.as_str() {
            "--json" => json = true,
            "--quick" => quick = true,
            "--any-file-system" => any_file_system = true,
            "--only" => only.extend(value().split(',').map(str::to_owned)),
            "--turnover" => turnover = Some(value().parse().unwrap_or_else(|_| usage("--turnover takes a number"))),
            "--dir" => dir = PathBuf::from(value()),
            // A process of its own for what is to be killed, and for what is to be weighed.
            "--child" => return context::child(&arguments.collect::<Vec<_>>()),
            other => usage(&format!("unknown argument {other}")),
        }
    }
    if let Some(unknown) = only.iter().find(|name| !context::NAMES.contains(&name.as_str())) {
        usage(&format!("there is no workload {unknown}"));
    }
    let file_system = support::file_system(&dir);
    let flush = support::flush_time(&dir);
    let unreal = ["tmpfs", "ramfs"].contains(&&*file_system) || flush < Duration::from_micros(20);
    if unreal && !any_file_system {
        eprintln!(
            "nothing is measured: {} is on {file_system}, where a flush takes {:.0} us and reaches no disk; \
             name another folder with --dir, or allow it with --any-file-system",
            dir.display(),
            flush.as_secs_f64() * 1e6,
        );
        std::process::exit(2);
    }
    let mut table = Table::new(json);
    table.machine(&dir, &file_system, flush);
    let context = Context::new(dir, quick, only, turnover);
    support::tokio_runtime().block_on(async {
        throughput::run(&context, &mut table).await;
        latency::run(&context, &mut table).await;
        triggers::run(&context, &mut table).await;
        memory::run(&context, &mut table).await;
        growth::run(&context, &mut table).await;
        queries::run(&context, &mut table).await;
        opening::run(&context, &mut table).await;
        soak::run(&context, &mut table).await;
    });
    table.end();
}

fn usage(problem: &str) -> ! {
    eprintln!("{problem}\n{USAGE}");
    std::process::exit(2)
}
