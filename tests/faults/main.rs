//! Faults and attacks, against the real `castra` and a stand-in for QEMU that fails on demand.

mod attacks;
mod kill;
mod lifecycle;
mod newcomer;

#[test]
fn no_file_is_forgotten() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults");
    castra_test_support::modules::assert_none_forgotten(&folder);
}
