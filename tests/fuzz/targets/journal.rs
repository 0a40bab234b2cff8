//! Rows of the journal, as they are and under a checksum that fits.
#![no_main]

use durably::testing::suites::fuzz;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fuzz::journal(bytes, false);
    fuzz::journal(bytes, true);
});
