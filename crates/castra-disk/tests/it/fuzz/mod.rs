//! Disks, tried with spoilt input.

mod seeds;
mod sparse;
mod targets;

use castra_disk::Kind;
use castra_test_support::try_out;

#[test]
fn tables() {
    try_out("disk_tables", targets::tables, &seeds::tables());
}

#[test]
fn volume_groups() {
    try_out("disk_lvm", targets::tables, &seeds::volume_groups());
}

#[test]
fn ext() {
    try_out("disk_ext", targets::filesystem, &seeds::filesystem(Kind::Ext4));
}

#[test]
fn xfs() {
    try_out("disk_xfs", targets::filesystem, &seeds::filesystem(Kind::Xfs));
}

#[test]
fn btrfs() {
    try_out("disk_btrfs", targets::filesystem, &seeds::filesystem(Kind::Btrfs));
}

#[test]
fn vfat() {
    try_out("disk_vfat", targets::filesystem, &seeds::filesystem(Kind::Vfat));
}

#[test]
fn qcow2_images() {
    try_out("disk_qcow2", targets::qcow2, &seeds::qcow2_images());
}
