//! Attacks on every promise of `SECURITY.md`, with the real `castra` and real files: one file per
//! kind.
//!
//! Each test plays a stranger (a cloned repository, another user, a guest, a mirror) and compares
//! the host with its state before the attack: see [`snapshot`].

#![cfg(target_os = "linux")]

mod cache_poisoning;
mod confinement;
mod discovery;
mod hung_files;
mod links_inside;
mod mounts;
mod planted_state;
mod qemu_options;
mod runtime_directory;
mod snapshot;
mod sources;
mod state_links;
mod writes_outside;
