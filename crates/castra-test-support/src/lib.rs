//! Fixtures that the test binaries share: projects for the real `castra`, servers, disks, and the
//! stand-in for QEMU.
//!
//! All of it drives `castra` from outside, as its users do, and knows nothing of its library.

pub mod capabilities;
pub mod disks;
mod ended;
mod fake;
pub mod help;
pub mod http;
mod listening;
pub mod modules;
mod mutate;
pub mod namespace;
pub mod parked;
mod programs;
mod project;
pub mod publishers;
pub mod schema;
mod skip;
mod terminal;

use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

pub use disks::{boot_sector, bootable_qcow2, qcow2_of};
pub use ended::Ended;
pub use fake::Fake;
pub use mutate::try_out;
pub use programs::{castra_program, fake_qemu_program, target_tmp};
pub use project::{CP_A, CP_R, Copied, Project, TAR, image_cache, linked_cache};
pub use skip::skip;
pub use terminal::{shown_in_terminal, terminal};

/// Runs a helper program of the test.
#[track_caller]
pub fn tool(program: &str, arguments: &[&str]) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(arguments).env("PATH", path).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask test` installs it"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Waits until a condition holds, within a limit.
#[track_caller]
pub fn eventually(what: &str, limit: Duration, holds: impl FnMut() -> bool) {
    poll(what, limit, Duration::from_millis(20), holds);
}

/// Waits until a condition holds that is asked of a guest, which has one emulated CPU for its
/// answers and for what is waited for.
#[track_caller]
pub fn eventually_in_guest(what: &str, limit: Duration, holds: impl FnMut() -> bool) {
    poll(what, limit, Duration::from_secs(1), holds);
}

#[track_caller]
fn poll(what: &str, limit: Duration, interval: Duration, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        thread::sleep(interval);
    }
}

/// Returns bytes that compression and text modes would change, the same on every run.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        // xorshift64: Marsaglia, "Xorshift RNGs", 2003.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> =
        std::iter::repeat_with(next).take(length.div_ceil(8)).flatten().collect();
    bytes.truncate(length);
    bytes
}
