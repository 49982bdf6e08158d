//! Parsers of foreign input, tried with spoilt input: for a bounded time each, on every run.

mod mutate;
mod seeds;
mod targets;

use std::time::{Duration, Instant};

use mutate::Mutator;

/// Time for which each target is tried.
const LIMIT: Duration = Duration::from_secs(3);
/// Variable that sets another number of seconds.
const SECONDS: &str = "CASTRA_FUZZ_SECS";

/// Tries a target with these inputs and with spoilt ones. Prints the input of a failure.
fn try_out(target: fn(&[u8]), seeds: &[Vec<u8>]) {
    let seconds =
        std::env::var(SECONDS).ok().and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let end = Instant::now() + seconds.unwrap_or(LIMIT);
    let mut mutator = Mutator::new(seeds);
    seeds.iter().for_each(|seed| target(seed));
    while Instant::now() < end {
        let input = mutator.next_input();
        let outcome = std::panic::catch_unwind(|| target(&input));
        assert!(outcome.is_ok(), "this input: b\"{}\"", input.escape_ascii());
    }
}

#[test]
fn vhd_footers() {
    try_out(targets::vhd_footer, &seeds::vhd_footers());
}

#[test]
fn manifests() {
    try_out(targets::manifest, &seeds::manifests());
}

#[test]
fn configurations() {
    try_out(targets::config, &seeds::configurations());
}

#[test]
fn control_messages() {
    try_out(targets::control_port, &seeds::control_messages());
}

#[test]
fn exec_headers() {
    try_out(targets::exec_header, &seeds::exec_headers());
}

#[test]
fn stream_ports() {
    try_out(targets::stream_port, &seeds::stream_ports());
}

#[test]
fn sftp_packets() {
    try_out(targets::sftp, &seeds::sftp_packets());
}
