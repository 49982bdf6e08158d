//! Findings of a deep check: each file of an image, with the state of its bytes.

use std::path::PathBuf;

use crate::files::Digest;
use crate::report::ImageLabel;

/// Result of the deep check of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedImage {
    /// The image.
    pub image: ImageLabel,
    /// Files that were checked.
    pub files: Vec<CheckedFile>,
}

/// One file that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedFile {
    /// Location that the file belongs to.
    pub location: Location,
    /// The file.
    pub path: PathBuf,
    /// Expected digest; `None` for a manifest, which carries its own seal, and for a file that none
    /// describes.
    pub expected: Option<Digest>,
    /// State that the file was in.
    pub finding: Finding,
    /// Path in the quarantine, if it was damaged.
    pub quarantined: Option<PathBuf>,
}

/// Location that a file of an image belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// The project's copy.
    Project,
    /// The cache's copy.
    Cache,
    /// The cache's downloads.
    Download,
}

/// State of a file that was hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The expected bytes.
    Intact,
    /// Other bytes, with this digest.
    Changed(Digest),
    /// An unreadable file, or a manifest that is not trusted, with the reason.
    Unusable(String),
    /// No file.
    Missing,
}

impl CheckedImage {
    /// Returns `true` if every file was intact.
    pub fn is_intact(&self) -> bool {
        self.files.iter().all(|file| file.finding == Finding::Intact)
    }

    /// Returns `true` if a file of the project's own copy was not intact: QEMU may have read it.
    pub fn project_was_damaged(&self) -> bool {
        self.is_damaged_in(Location::Project)
    }

    pub(crate) fn is_damaged_in(&self, location: Location) -> bool {
        self.files.iter().any(|file| file.location == location && file.finding != Finding::Intact)
    }

    pub(crate) fn has(&self, location: Location) -> bool {
        self.files.iter().any(|file| file.location == location)
    }
}
