//! Data of a validated `castra.toml`, as [`Project::config`](crate::Project::config) returns it.

#[doc(inline)]
pub use crate::config::{
    BaseImageSource, BootProfile, Bounds, DeclaredMount, Diagnostics, DiskPath,
    ManagedImageSelection, MountOrigin, PortForward, ProjectConfig, Protocol, VmDefinition,
};
#[doc(inline)]
pub use crate::guest::Mount;
