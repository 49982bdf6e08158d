//! Tests of the command line that need neither a VM nor a QEMU that fails.

mod completions;
mod config_command;
mod config_reference;
mod config_schema;
mod doctor;
mod image_commands;
mod json;
mod manual;
mod readme;

#[test]
fn no_file_is_forgotten() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    castra_test_support::modules::assert_none_forgotten(&folder);
}
