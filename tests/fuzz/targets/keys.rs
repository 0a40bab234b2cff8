//! Keys of two sets of parts: their order, and what they read back as.
#![no_main]

use durably::testing::suites::fuzz;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fuzz::keys(bytes);
});
