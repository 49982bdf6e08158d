//! Managed images: their descriptions, and the way from a source to a verified directory.
//!
//! ```text
//! Catalog or castra.toml ─► ManagedImageSpec ─► ImageManager::ensure_image ─► ManagedImagePaths
//! ```
//!
//! Everything an image is made of is pinned by digest, so it does not matter which mirror, proxy or
//! cache it comes through; and everything is verified before it gets its final name, so files in
//! place can be trusted.

mod build;
mod carry;
mod catalog;
mod check;
mod error;
mod explain;
mod fetch;
mod job;
mod lock;
mod log;
mod manager;
mod name;
mod repair;
mod spec;
mod store;
mod timeouts;
mod update;

pub use catalog::Catalog;
pub use check::{SpecError, SpecProblem};
pub use error::{FoundUnpinned, ImageError};
pub use fetch::download::{DownloadError, NetworkFailure};

pub use build::transform::{TransformError, VhdKind, parse_vhd_footer};
pub use carry::import::{Imported, ImportedFile};
pub use fetch::error::PipError;
pub use lock::{LockFile, LockFileError, LockFileProblem, Pin};
pub use manager::{ChosenImage, FoundImage, ImageManager, StoredImage};
pub use name::image_named;
pub use spec::{
    ArtifactRole, ArtifactSource, Compression, ManagedArtifactSpec, ManagedDiskKind,
    ManagedImagePaths, ManagedImageSpec, QemuProfile, TransformStep,
};
pub use store::finding::{CheckedFile, CheckedImage, Finding, Location};
pub use store::manifest::{Distrust, Manifest, ManifestArtifact};
pub use store::prune::{PruneOptions, Pruned, PrunedKind, prune};
pub use timeouts::Timeouts;
pub use update::{
    Change, Checksums, Contradiction, Keyring, PinRequest, SignatureProblem, UpdateError, Updated,
    is_updatable, signing_publishers,
};
