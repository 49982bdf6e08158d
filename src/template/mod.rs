//! Warm templates: a guest that has booted and belongs to nobody yet, kept so that a VM can go on from there.
//!
//! ```text
//! image ─► cold boot ─► services up ─► at rest ─► stopped ─► saved ─► published        (bake, once a key)
//!                                                              │
//!                  disk layer · memory file · devices' state ◄─┘
//!                       │            │              │
//!                  fresh overlay  private copy   loaded  ─► running ─► personality     (restore, every time)
//! ```
//!
//! Memory is worth something with the exact disk of its instant only. So a VM is restored from a template together with
//! a fresh overlay on the template's disk, and a VM that has run on its overlay never is again.
//!
//! Nothing secret is in a template: keys, host name, machine id and entropy come when a VM is made of it.

mod bake;
mod damage;
mod error;
mod key;
mod manifest;
mod memory;
mod prune;
mod store;

pub use bake::{BakeRequest, bake};
pub use damage::Damage;
pub use error::TemplateError;
pub use key::Ingredients;
pub use manifest::{TemplateFile, TemplateManifest};
pub use prune::{Use, prune, recognise, use_of};
pub use store::{Refusal, Template, discard, list, refusal, refuse};
