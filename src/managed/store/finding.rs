//! What a deep check found: each file of an image, and whether its bytes are the expected ones.

use std::path::PathBuf;

use crate::files::Digest;
use crate::report::ImageLabel;

/// Result of the deep check of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedImage {
    /// The image.
    pub image: ImageLabel,
    /// Every file that was looked at.
    pub files: Vec<CheckedFile>,
}

/// One file that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedFile {
    /// Where it belongs.
    pub location: Location,
    /// The file.
    pub path: PathBuf,
    /// What it should be; nothing for a manifest, which carries its own seal, and for a file that none describes.
    pub expected: Option<Digest>,
    /// What it was found to be.
    pub finding: Finding,
    /// Its place in the quarantine, if it was damaged.
    pub quarantined: Option<PathBuf>,
}

/// Where a file of an image belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// To the project's copy.
    Project,
    /// To the cache's copy.
    Cache,
    /// To the cache's downloads.
    Download,
}

/// State of a file that was hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// What it should be.
    Intact,
    /// Other bytes, with this digest.
    Changed(Digest),
    /// Nothing that can be read, or a manifest that is not trusted; why.
    Unusable(String),
    /// Not there.
    Missing,
}

impl CheckedImage {
    /// Returns `true` if everything was as it should be.
    pub fn is_intact(&self) -> bool {
        self.files.iter().all(|file| file.finding == Finding::Intact)
    }

    /// Returns `true` if a file of the project's own copy was not as it should be: QEMU may have read it.
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
