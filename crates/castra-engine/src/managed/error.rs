//! Errors of managed images.

use std::path::{Path, PathBuf};

use crate::cancel::Interrupted;
use crate::command::CommandError;
use crate::error::one_line;
use crate::files::{Digest, DigestMismatch, FileError};
use crate::managed::build::transform::error::TransformError;
use crate::managed::fetch::download::error::DownloadError;
use crate::managed::store::finding::CheckedImage;
use crate::report::ImageLabel;

use crate::state_root::StateRootError;

use super::check::SpecError;
use super::fetch::error::PipError;
use super::lock::LockFileError;
use super::update::UpdateError;

/// Reason why an image is missing, or not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The user interrupted the operation.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The project's state root cannot be used.
    #[error(transparent)]
    StateRoot(#[from] StateRootError),
    /// No image has this id and version.
    #[error("there is no image `{id}`{}", if version.is_empty() { String::new() } else { format!(" \
        in version `{version}`") })]
    Unknown {
        /// Requested id.
        id: String,
        /// Requested version; empty if any would do.
        version: String,
        /// Image that may have been meant.
        similar: Option<ImageLabel>,
    },
    /// The image's description is invalid.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The project's `castra.lock` cannot be read or written.
    #[error(transparent)]
    LockFile(#[from] LockFileError),
    /// The newest build of an image cannot be pinned.
    #[error(transparent)]
    Update(#[from] Box<UpdateError>),
    /// A download is needed and the network must not be used.
    #[error("{what} is not in the cache, and the network is disabled")]
    Offline {
        /// The missing source.
        what: String,
    },
    /// A download failed.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// pip failed.
    #[error(transparent)]
    Pip(#[from] PipError),
    /// The bytes are not the pinned ones.
    #[error(transparent)]
    DigestMismatch(#[from] DigestMismatch),
    /// A file or directory cannot be read or written, or is not what it should be.
    #[error(transparent)]
    File(FileError),
    /// A step between download and file failed.
    #[error(transparent)]
    Transform(#[from] TransformError),
    /// None of the default images is available.
    #[error("no default image is available: {}", reasons(tried))]
    NoneReachable {
        /// Images that were tried, each with its error.
        tried: Vec<(ImageLabel, ImageError)>,
    },
    /// The image, or a file of it, has not been prepared here.
    #[error("image {image} is neither in this project nor in the cache")]
    NotPresent {
        /// The image.
        image: ImageLabel,
    },
    /// A damaged image could not be repaired.
    #[error("image {image} is damaged and could not be repaired")]
    NotRepaired {
        /// The image.
        image: ImageLabel,
        /// Findings of the check.
        checked: Box<CheckedImage>,
        /// Error of the repair.
        source: Box<ImageError>,
    },
    /// A web page was served in place of a file that nothing pins.
    #[error("{from} returned a web page, not an image file")]
    WebPage {
        /// URL of the page.
        from: String,
    },
    /// Files of an image have no pinned digest. They were fetched to report their current digests.
    #[error("{}, so a change would go unnoticed", unpinned(found))]
    Unpinned {
        /// Files without a digest, with their current ones.
        found: Vec<FoundUnpinned>,
    },
    /// A project's reference has an unknown format.
    #[error("{path} was written by a newer castra, in format {format}")]
    NewerReference {
        /// File of the reference.
        path: PathBuf,
        /// Format of the file.
        format: u32,
    },
    /// There is no file to import.
    #[error("cannot import {path}: {problem}")]
    NothingToImport {
        /// The path.
        path: PathBuf,
        /// Reason why it cannot be imported.
        problem: &'static str,
    },
    /// No known image is made from the file to import.
    #[error("{path} (digest {found}) belongs to no known image")]
    NotImportable {
        /// The file.
        path: PathBuf,
        /// SHA-256 of the file.
        found: Digest,
    },
    /// The archive is not one that an export has written.
    #[error("{path} is not a valid image archive: {problem}")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// The problem.
        problem: String,
    },
    /// The file to be created exists already.
    #[error("{path} already exists")]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// The file that the user named for an image does not exist.
    #[error("a file of image {image} is missing: {}", path.display())]
    SourceMissing {
        /// The image.
        image: ImageLabel,
        /// The path.
        path: PathBuf,
    },
    /// The source that the user named for an image is a FIFO, a device, a directory or a link to
    /// one.
    #[error("{path} is not a regular file; images are made only from regular files")]
    SourceNotAFile {
        /// The path.
        path: PathBuf,
    },
}

/// A file of an image that nothing pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundUnpinned {
    /// Name of the file: `the rootfs of the image debian`.
    pub place: String,
    /// URL, Python requirement or path.
    pub from: String,
    /// Current digest.
    pub digest: Digest,
    /// Current length in bytes.
    pub size_bytes: u64,
}

fn unpinned(found: &[FoundUnpinned]) -> String {
    let places: Vec<&str> = found.iter().map(|one| one.place.as_str()).collect();
    format!("{} {} no digest", places.join(" and "), if places.len() == 1 { "has" } else { "have" })
}

/// Promotes interruptions and wrong bytes to variants of their own, wherever they occurred.
impl From<UpdateError> for ImageError {
    fn from(error: UpdateError) -> Self {
        Box::new(error).into()
    }
}

impl From<FileError> for ImageError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Interrupted(interrupted) => Self::Interrupted(interrupted),
            FileError::DigestMismatch(mismatch) => Self::DigestMismatch(mismatch),
            error => Self::File(error),
        }
    }
}

impl ImageError {
    /// Returns `true` if the image may be fine and only out of reach, so that another one may be
    /// used in its place. A wrong digest or a missing tool never is.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Offline { .. } => true,
            Self::Download(error) => error.is_unreachable(),
            Self::Pip(error) => error.is_unreachable(),
            _ => false,
        }
    }

    /// Returns `true` if it took long to find out that something cannot be reached.
    pub(super) fn is_slowness(&self) -> bool {
        matches!(self, Self::Download(error) if error.is_slowness())
    }

    /// Returns `true` if the server has no such file.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Download(DownloadError::Status { status: 404 | 410, .. }))
    }

    /// Returns `true` if the error concerns one address, so that another one may have the same
    /// bytes.
    pub(super) fn is_about_one_address(&self) -> bool {
        match self {
            Self::Download(_) | Self::DigestMismatch(_) => true,
            Self::Update(error) => matches!(**error, UpdateError::WebPage { .. }),
            _ => false,
        }
    }

    /// Returns `true` if something below this directory disappeared meanwhile, as when the cache is
    /// removed.
    pub(super) fn is_loss_below(&self, directory: &Path) -> bool {
        match self {
            Self::File(error) => error.is_loss_below(directory),
            Self::Transform(TransformError::QemuImg {
                source: CommandError::Failed { stderr, .. },
                ..
            }) => {
                let named = directory.to_str().is_some_and(|directory| stderr.contains(directory));
                named && stderr.contains("No such file or directory")
            }
            _ => false,
        }
    }
}

fn reasons(tried: &[(ImageLabel, ImageError)]) -> String {
    let each: Vec<String> =
        tried.iter().map(|(image, error)| format!("{image}: {}", one_line(error))).collect();
    each.join("; ")
}
