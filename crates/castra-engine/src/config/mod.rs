//! `castra.toml`: discovery, schema, validation into [`ProjectConfig`], diagnostics with spans.
//!
//! ```text
//! --config, directory ─► discovery ─► text ─► validate ─► ProjectConfig
//!                           │                  │ one module per resource, over
//!                           │                  │ schema: typed access, with spans
//!                           └► no file:        └► diagnostics: every problem, at its place
//!                              defaults
//! ```

mod bounds;
mod check;
mod chosen_image;
mod cloud_init;
mod data_disk;
pub mod defaults;
mod diagnostics;
mod discovery;
mod error;
mod json_schema;
mod lines;
mod load;
mod machine;
mod out_of_bounds;
mod project;
mod provision;
mod schema;
mod state_link;
mod template;
mod validate;

pub use bounds::{Bounds, DiskPath};
pub use check::{Checked, check};
pub use chosen_image::ChosenImage;
pub use cloud_init::{CloudInit, CloudInitError, CloudInitText};
pub use data_disk::{DataDisk, MAX_DATA_DISK_BYTES, MAX_GUEST_BYTES};
pub use diagnostics::{Diagnostic, Diagnostics, Finding, Position, Severity, UnpinnedArtifact};
pub use discovery::{ConfigOptions, Discovered, discover, resolve_config_path};
pub use error::ConfigError;
pub use json_schema::JoinLines;
pub use json_schema::{SCHEMA_URL, json_schema};
pub use lines::{KeyLines, key_lines};
pub use load::{allowed_outside, load, with_surroundings};
pub use machine::Machine;
pub use out_of_bounds::{ALLOW_OUTSIDE, OutOfBounds};
pub use project::{
    BaseImageSource, BootProfile, DeclaredMount, Firmware, ImageVersion, ManagedImageSelection,
    MountOrigin, PortForward, ProjectConfig, Proxy, VmDefinition,
};
pub use provision::{MAX_STEPS, ProjectPath, ProvisionStep, StepAction, StepSecret};
pub use template::{TemplateBase, template};
pub use validate::name::is_vm_name;
pub use validate::size::{SizeError, format_size, parse_disk, parse_memory};
pub use validate::{Surroundings, parse};

pub use crate::sockets::Protocol;
