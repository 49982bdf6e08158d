//! Layers of provisioned disks: what one step has changed on a disk.
//!
//! ```text
//! base image ─► layer of step 1 ─► … ─► layer of step n ─► layer of the warm template ─► VM's disk
//! ```
//!
//! A layer is made like a template, in a machine that is never a VM, but by a boot that ends with
//! a shutdown: it has no memory. Its key depends on the very file below it, on the step and on
//! what the step reads. So a change of one step makes that layer and those above it again.

mod build;
mod manifest;
mod store;

pub use build::{StepMachine, StepRequest, make_step, try_step};
pub use manifest::{Foundation, StepIngredients, StepManifest};
pub use store::{
    PrunedSteps, StepLayer, list_steps, prune_steps, recognise_step, remove_unfinished, use_of_step,
};
