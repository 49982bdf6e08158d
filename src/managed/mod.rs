//! Managed images: what they are made of, and how they get from a source to a verified directory.
//!
//! ```text
//! Catalog or castra.toml ─► ManagedImageSpec ─► ImageManager::ensure_image ─► ManagedImagePaths
//! ```
//!
//! Everything an image is made of is pinned by digest, so it does not matter which mirror, proxy or cache it comes
//! through; and everything is verified before it gets its final name, so what is there can be relied on.

mod archive;
mod catalog;
mod check;
mod directory;
mod download;
mod error;
mod explain;
mod export;
mod import;
mod job;
mod lock;
mod log;
mod manager;
mod manifest;
mod patience;
mod prepare;
mod product;
mod prune;
mod quarantine;
mod references;
mod restore;
mod source;
mod spec;
mod transform;
mod witness;
mod workspace;

pub(crate) use error::one_line;

pub use catalog::Catalog;
pub use check::{SpecError, SpecProblem};
pub use download::{DownloadError, NetworkFailure};
pub use error::{FoundUnpinned, ImageError};

pub use import::{Imported, ImportedFile};
pub use manager::{ChosenImage, FileState, FoundImage, ImageManager, StoredImage, VerifiedFile};
pub use manifest::{Distrust, Manifest, ManifestArtifact};
pub use patience::Patience;
pub use prune::{PruneOptions, Pruned, PrunedKind, prune};
pub use restore::{CheckedFile, CheckedImage, Finding, Location};
pub use source::python::PipError;
pub use spec::{
    ArtifactRole, ArtifactSource, Compression, ManagedArtifactSpec, ManagedDiskKind, ManagedImagePaths,
    ManagedImageSpec, QemuProfile, TransformStep,
};
pub use transform::{TransformError, VhdKind, parse_vhd_footer};
