//! Records of every table, as they are and under a checksum that fits.
#![no_main]

use durably::testing::suites::fuzz;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((table, body)) = bytes.split_first() {
        fuzz::record(table % fuzz::TABLES, body, table & 0x80 == 0);
    }
});
