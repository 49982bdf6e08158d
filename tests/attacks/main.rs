//! Attacks on every promise of `SECURITY.md`, by the real `castra` and real files: one file a kind.
//!
//! Each test plays a stranger (a repository that was cloned, another user, a guest, a mirror) and compares the host with
//! itself before the attack: see [`snapshot`].

#![cfg(target_os = "linux")]

// The stand-in for QEMU is built with this feature only, which `cargo xtask test` always asks for.
#[cfg(feature = "fail-points")]
#[allow(dead_code, reason = "others use the rest")]
#[path = "../support/fake.rs"]
mod fake;
#[cfg(feature = "fail-points")]
mod qemu_options;
mod snapshot;
#[path = "../support/mod.rs"]
mod support;
