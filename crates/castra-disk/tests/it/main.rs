//! Tests with real filesystems, tables and images, made by the usual programs. They need neither
//! root nor loop devices.

mod boot;
mod chains;
mod filesystems;
mod fuzz;
mod hostile;
mod inspection;
mod made;
mod tables;

#[test]
fn no_file_is_forgotten() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    castra_test_support::modules::assert_none_forgotten(&folder);
}
