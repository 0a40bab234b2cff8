//! Common mistakes give a compile error that can be read, and what the API promises to take compiles.
//!
//! After a change of compiler or API: `TRYBUILD=overwrite cargo test --test ui`, then read the differences.

#[test]
fn the_shape_of_the_api_compiles_and_common_mistakes_read_well() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/api_shape.rs");
    cases.compile_fail("tests/ui/body_not_send.rs");
    cases.compile_fail("tests/ui/input_without_schema.rs");
    cases.compile_fail("tests/ui/wrong_closure.rs");
    cases.compile_fail("tests/ui/step_error_type.rs");
}
