//! Tests that boot real VMs, two at a time: `.config/nextest.toml`.

mod agent;
mod attacks;
mod cache;
mod commands;
mod copies;
mod cpu;
mod data_disks;
mod filesystem;
mod full_disk;
mod guest_health;
mod json;
mod kill;
mod library;
mod lifecycle;
mod live_ports;
mod manage;
mod modules;
mod mount_lives;
mod mounts;
mod mounts_notify;
mod mounts_on_debian;
mod mounts_trouble;
mod own_disk;
mod own_kernel;
mod pipeline;
mod ports;
mod provision;
mod provision_secrets;
mod provision_uses;
mod proxies;
mod readme;
mod real_disks;
mod resize;
mod run;
mod security;
mod serve;
mod sshd;
mod streams;
mod supervision;
mod suspend;
mod timeline;
mod warm;
mod working_directory;

#[test]
fn no_file_is_forgotten() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm");
    castra_test_support::modules::assert_none_forgotten(&folder);
}
