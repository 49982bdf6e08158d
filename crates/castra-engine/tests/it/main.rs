//! Tests of the library that need no VM: images, both ends of its SSH, and parsers of what comes
//! from outside.

mod fuzz;
mod images;
mod ssh;

#[test]
fn no_file_is_forgotten() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    castra_test_support::modules::assert_none_forgotten(&folder);
}
