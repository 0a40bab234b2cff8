//! Schedules: expressions and zones, and when they are due.
#![no_main]

use durably::testing::suites::fuzz;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, String)| {
    fuzz::schedule(&input.1, input.0);
});
