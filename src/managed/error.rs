//! What can keep an image from being there.

use std::path::{Path, PathBuf};

use super::check::SpecError;
use super::fetch::error::PipError;
use crate::cancel::Interrupted;
use crate::command::CommandError;
use crate::files::{Digest, DigestMismatch, FileError};
use crate::managed::build::transform::error::TransformError;
use crate::managed::fetch::download::error::DownloadError;
use crate::managed::store::finding::CheckedImage;
use crate::report::ImageLabel;
use crate::state_root::StateRootError;

/// Why an image is not there, or not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The user interrupted it.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The project's state root cannot be used.
    #[error(transparent)]
    StateRoot(#[from] StateRootError),
    /// No image has this id and version.
    #[error("there is no image `{id}`{}", if version.is_empty() { String::new() } else { format!(" in version `{version}`") })]
    Unknown {
        /// The id asked for.
        id: String,
        /// The version asked for; empty if any would have done.
        version: String,
        /// One that may have been meant.
        similar: Option<ImageLabel>,
    },
    /// An image's description cannot be followed.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Something is missing and the network must not be used.
    #[error("{what} is not in the cache, and the network is switched off")]
    Offline {
        /// What is missing.
        what: String,
    },
    /// A download failed.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// pip did not deliver.
    #[error(transparent)]
    Pip(#[from] PipError),
    /// The bytes are not the pinned ones.
    #[error(transparent)]
    DigestMismatch(#[from] DigestMismatch),
    /// A file or directory cannot be read or written, or is not what it must be.
    #[error(transparent)]
    File(FileError),
    /// A step between download and file failed.
    #[error(transparent)]
    Transform(#[from] TransformError),
    /// None of the default images can be had.
    #[error("none of the default images can be had: {}", reasons(tried))]
    NoneReachable {
        /// The images that were tried, and why each was not taken.
        tried: Vec<(ImageLabel, ImageError)>,
    },
    /// The image, or a file of it, has not been prepared here.
    #[error("image {image} is neither in this project nor in the cache")]
    NotPresent {
        /// The image.
        image: ImageLabel,
    },
    /// A damaged image could not be made right again.
    #[error("image {image} was damaged, and could not be repaired")]
    NotRepaired {
        /// The image.
        image: ImageLabel,
        /// What was found.
        checked: Box<CheckedImage>,
        /// What went wrong.
        source: Box<ImageError>,
    },
    /// A page instead of a file that nothing pins.
    #[error("{from} is a web page, and no file of an image")]
    WebPage {
        /// URL.
        from: String,
    },
    /// Nothing pins what an image is made from. What it is now was fetched to be told.
    #[error("{}, so nothing would show that it was changed", unpinned(found))]
    Unpinned {
        /// What has no digest, and what it is now.
        found: Vec<FoundUnpinned>,
    },
    /// What a project needs was noted in a format that is not known here.
    #[error("{path} was written by a newer castra, in format {format}")]
    NewerReference {
        /// The note.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// There is no file to be imported.
    #[error("cannot import {path}: {problem}")]
    NothingToImport {
        /// The path.
        path: PathBuf,
        /// Why.
        problem: &'static str,
    },
    /// A file to be imported that nothing is made from.
    #[error("no image that is known here is made from {path}, whose digest is {found}")]
    NotImportable {
        /// The file.
        path: PathBuf,
        /// Its SHA-256.
        found: Digest,
    },
    /// An archive that no export has written like that.
    #[error("{path} is not a sound archive of an image: {problem}")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Something has the name of a file that is to be new.
    #[error("{path} is there already")]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// What the user named as the source of an image is a FIFO, a device, a directory or a link to one.
    #[error("{path} is not a regular file, and images are made from regular files only")]
    SourceNotAFile {
        /// The path.
        path: PathBuf,
    },
}

/// A file of an image that nothing pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundUnpinned {
    /// What it is: `the rootfs of the image debian`.
    pub place: String,
    /// URL, Python requirement or path.
    pub from: String,
    /// What it has now.
    pub digest: Digest,
    /// How long it is now, in bytes.
    pub size_bytes: u64,
}

fn unpinned(found: &[FoundUnpinned]) -> String {
    let places: Vec<&str> = found.iter().map(|one| one.place.as_str()).collect();
    format!("{} {} no digest", places.join(" and "), if places.len() == 1 { "has" } else { "have" })
}

/// An interruption and wrong bytes are one variant each, wherever they were met.
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
    /// Whether the image may be fine and only out of reach, so that another one may be taken in its place. A wrong
    /// digest or a missing tool is never that.
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

    /// Whether it says something about one address, so that the same bytes may be had from another one.
    pub(super) fn is_about_one_address(&self) -> bool {
        matches!(self, Self::Download(_) | Self::DigestMismatch(_))
    }

    /// Whether something below this directory went away meanwhile, as when somebody removes the cache.
    pub(super) fn is_loss_below(&self, directory: &Path) -> bool {
        match self {
            Self::File(error) => error.is_loss_below(directory),
            Self::Transform(TransformError::QemuImg {
                source: CommandError::Failed { stderr, .. }, ..
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

/// An error and its causes, for where there is one line.
pub(crate) fn one_line(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}
