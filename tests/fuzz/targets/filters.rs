//! Filters: limits, offset, labels.
#![no_main]

use durably::testing::suites::fuzz;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fuzz::filter(bytes);
});
