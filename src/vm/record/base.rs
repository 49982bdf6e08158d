//! Base image of a disk, and the layer of a warm template on it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::files::Stamp;
use crate::report::ImageLabel;

/// What a disk stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRecord {
    /// Whose image it is.
    pub kind: BaseKind,
    /// Identifies the content: an overlay on other content is a broken disk.
    pub content: String,
    /// Size and time of change of the user's own image when `content` was computed, so that it is not hashed each time.
    pub stamp: Option<String>,
    /// Whether the user's own image may stand on other files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_backing_file: bool,
}

/// Whose image a disk stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BaseKind {
    /// A managed image.
    Managed(ImageLabel),
    /// The user's own file.
    Path(PathBuf),
}

impl fmt::Display for BaseKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Managed(label) => label.fmt(f),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// What is known of the layer a VM's disk stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The template's key.
    pub key: String,
    /// SHA-256 of the layer, hexadecimal.
    pub sha256: String,
    /// What `stat` said of the project's copy when it was known to be right.
    pub stamp: Stamp,
}
