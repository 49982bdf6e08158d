//! Data of a validated `castra.toml`, as [`Project::config`](crate::Project::config) returns it.

#[doc(inline)]
pub use crate::config::{
    BaseImageSource, BootProfile, Bounds, Diagnostics, DiskPath, ManagedImageSelection,
    PortForward, ProjectConfig, Protocol, VmDefinition,
};
