//! The library of Castra, which gives anyone a real Linux VM.
//!
//! Data takes one path through it:
//!
//! ```text
//! castra.toml ─┐
//! defaults ────┴► ProjectConfig ─► Plan (pure: the actions and their reasons) ─► up
//!                                                     │
//!      ImageManager ─► overlay ─► qemu ─► guest agent ─► record
//!      (every stage reports events; only its caller draws)
//!
//! record on disk ─► status · down · shell · exec · logs · ports      (never from config)
//! ```
//!
//! Modules depend on each other in one direction: `vm → {managed, qemu, guest} →
//! {layout, command}`; [`report`], [`error`] and [`cancel`] are leaves.

pub mod cancel;
pub mod command;
pub mod config;
pub mod context;
pub mod doctor;
pub mod error;
pub mod failpoint;
pub mod files;
pub mod guest;
pub mod hex;
pub mod host;
#[cfg(test)]
mod layers;
pub mod layout;
pub mod logs;
pub mod managed;
pub mod qemu;
pub mod report;
pub mod sanitize;
pub mod similar;
pub mod size;
pub mod sockets;
pub mod state_root;
pub mod template;
pub mod trusted;
pub mod vm;
pub mod wait;

pub use config::{BaseImageSource, ProjectConfig, VmDefinition};
pub use context::RuntimeContext;
pub use error::{Error, Kind, Result};
pub use managed::{
    ManagedArtifactSpec, ManagedDiskKind, ManagedImagePaths, ManagedImageSpec, QemuProfile,
};
