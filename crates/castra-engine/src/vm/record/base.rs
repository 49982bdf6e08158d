//! Base image of a disk, and the layer of a warm template on it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::files::Stamp;
use crate::report::ImageLabel;

/// Base image of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRecord {
    /// Origin of the image.
    pub kind: BaseKind,
    /// Identity of the content: an overlay on other content is a broken disk.
    pub content: String,
    /// Size and time of change of the user's own image when `content` was computed, so that it is
    /// not hashed each time.
    pub stamp: Option<String>,
    /// Set if the user's own image may have backing files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_backing_file: bool,
}

/// Origin of the image that a disk is based on.
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

/// The template's layer that a VM's disk is based on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Key of the template.
    pub key: String,
    /// SHA-256 of the layer, in hexadecimal.
    pub sha256: String,
    /// Stamp of the project's copy when it was known to be intact.
    pub stamp: Stamp,
}

/// Layers of the steps that a VM's disk was prepared by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvisionRecord {
    /// Digest of all steps, with what they have read.
    pub digest: String,
    /// Digest of all steps, with the stamps of what they have read: one that is still the same
    /// saves the hashing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<String>,
    /// Their layers, the lowest first.
    pub layers: Vec<LayerRecord>,
}

impl ProvisionRecord {
    /// Returns the layer of the last step.
    pub(in crate::vm) fn top(&self) -> Option<&LayerRecord> {
        self.layers.last()
    }
}
