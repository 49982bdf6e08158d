//! Attacks on every promise of `SECURITY.md`, by the real `castra` and real files: one file a kind.
//!
//! Each test plays a stranger (a repository that was cloned, another user, a guest, a mirror) and compares the host with
//! itself before the attack: see [`snapshot`].

#![cfg(target_os = "linux")]

mod cache_poisoning;
mod confinement;
mod discovery;
mod hung_files;
mod links_inside;
mod planted_state;
mod qemu_options;
mod runtime_directory;
mod snapshot;
mod sources;
mod state_links;
mod writes_outside;
