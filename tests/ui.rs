//! Common mistakes give a compile error that can be read.
//!
//! After a change of compiler or API: `TRYBUILD=overwrite cargo test --test ui`, then read the differences.

#[test]
fn common_mistakes_read_well() {
    // None of them is to compile, so that their dependencies are checked and not built.
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/body_not_send.rs");
    cases.compile_fail("tests/ui/input_without_schema.rs");
    cases.compile_fail("tests/ui/wrong_closure.rs");
    cases.compile_fail("tests/ui/step_error_type.rs");
}
