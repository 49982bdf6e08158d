//! Parsers of foreign input, tried with spoilt input.

mod seeds;
mod targets;

use castra_test_support::try_out;

#[test]
fn vhd_footers() {
    try_out("vhd_footer", targets::vhd_footer, &seeds::vhd_footers());
}

#[test]
fn manifests() {
    try_out("manifest", targets::manifest, &seeds::manifests());
}

#[test]
fn checksum_files() {
    try_out("checksums", targets::checksums, &seeds::checksum_files());
}

#[test]
fn lock_files() {
    try_out("lock_file", targets::lock_file, &seeds::lock_files());
}

#[test]
fn signatures() {
    try_out("signatures", targets::signatures, &seeds::signatures());
}

#[test]
fn signatures_of_gnupg_are_verified() {
    targets::verify_unspoilt();
}

#[test]
fn configurations() {
    try_out("config", targets::config, &seeds::configurations());
}

#[test]
fn control_messages() {
    try_out("control_port", targets::control_port, &seeds::control_messages());
}

#[test]
fn exec_headers() {
    try_out("exec_header", targets::exec_header, &seeds::exec_headers());
}

#[test]
fn stream_ports() {
    try_out("stream_port", targets::stream_port, &seeds::stream_ports());
}

#[test]
fn sftp_packets() {
    try_out("sftp", targets::sftp, &seeds::sftp_packets());
}
