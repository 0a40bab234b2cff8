//! A build in which a panic ends the process.

use std::path::Path;
use std::process::Command;

use crate::suites::suite::tier;

/// The children of a suite are builds like their parent, so the example `torture` is built so and is the parent.
#[test]
fn p9_a_panic_in_a_build_that_aborts_is_a_crash_like_another() {
    if tier() == 0 {
        eprintln!("skipped: everything is built anew for it, which the tier nightly does");
        return;
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("abort");
    let mut build = Command::new(std::env::var_os("CARGO").expect("cargo runs the tests"));
    build.args(["build", "--profile", "abort", "--features", "testing", "--example", "torture", "--target-dir"]);
    let built = build.arg(&target).current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo");
    assert!(built.success(), "the example is not built: {built}");
    let mut torture = Command::new(target.join("abort/examples/torture"));
    let held = torture.args(["--suite", "poison", "--cases", "7"]).status().expect("the example");
    assert!(held.success(), "P9: {held}");
}
