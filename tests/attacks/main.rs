//! Attacks on every promise of `SECURITY.md`, by the real `castra` and real files: one file a kind.
//!
//! Each test plays a stranger (a repository that was cloned, another user, a guest, a mirror) and compares the host with
//! itself before the attack: see [`snapshot`].

#![cfg(target_os = "linux")]

mod cache_poisoning;
mod confinement;
mod copying;
mod discovery;
#[allow(dead_code, reason = "made for the tests of lives; this one uses a part")]
#[path = "../support/fake.rs"]
mod fake;
#[allow(dead_code, reason = "made for the tests of images; this one uses a part")]
#[path = "../support/http.rs"]
mod http;
mod hung_files;
mod isolation;
mod links_inside;
mod logs;
mod planted_state;
mod qemu_options;
mod residents;
mod runtime_directory;
mod snapshot;
mod sources;
mod state_links;
#[path = "../support/mod.rs"]
mod support;
mod writes_outside;
