//! Warm templates: snapshots (disk layer, memory, device state) of a guest that has booted and has
//! no identity yet, from which VMs are restored.
//!
//! ```text
//! Bake, once per key:
//! image ─► cold boot ─► services up ─► at rest ─► stopped ─► saved ─► published
//!                                                              │
//!                   disk layer · memory file · device state ◄──┘
//! Restore, every time:   │            │             │
//!                  fresh overlay  private copy    loaded ─► running ─► personality
//! ```
//!
//! Memory is only valid with the exact disk of its instant. So a VM is restored from a template
//! together with a fresh overlay on the template's disk, and a VM that has run on its overlay is
//! never restored again.
//!
//! A template contains no secrets: keys, host name, machine ID and entropy are sent when a VM is
//! made from it.

mod bake;
mod damage;
mod error;
mod key;
mod manifest;
mod memory;
mod prune;
mod shim;
mod step;
mod store;

pub use bake::{BakeRequest, bake};
pub use damage::Damage;
pub use error::TemplateError;
pub use key::{Ingredients, OwnKernel};
pub use manifest::{TemplateFile, TemplateManifest};
pub use prune::{Use, prune, recognise, use_of};
pub use step::{
    Foundation, PrunedSteps, StepIngredients, StepLayer, StepMachine, StepManifest, StepRequest,
    list_steps, make_step, prune_steps, recognise_step,
    remove_unfinished as remove_unfinished_steps, try_step, use_of_step,
};
pub use store::{Refusal, Template, discard, list, refusal, refuse};
