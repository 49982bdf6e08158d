//! `template.json`: what a template is, written last, so that one without it is one that is not finished.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cancel::Cancel;
use crate::files::Stamp;
use crate::trusted;

use super::damage::Damage;
use super::key::Ingredients;

/// A manifest takes some two kilobytes; what is far larger is none.
const MAX_BYTES: u64 = 1024 * 1024;

/// What a template is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateManifest {
    /// Its key, which is also the name of its directory.
    pub key: String,
    /// What it was made of.
    pub ingredients: Ingredients,
    /// The Castra that made it.
    pub castra_version: String,
    /// When, in milliseconds since the Unix epoch.
    pub made_unix_ms: u64,
    /// How long the boot took, in milliseconds.
    pub boot_ms: u64,
    /// The disk layer.
    pub disk: TemplateFile,
    /// The memory. Its digest leaves out blocks that are zero, whether they are holes or not.
    pub memory: TemplateFile,
    /// The state of the devices.
    pub device_state: TemplateFile,
    /// The initramfs.
    pub initramfs: TemplateFile,
}

/// A file of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateFile {
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// What `stat` said when it was made.
    pub stamp: Stamp,
    /// What it takes on disk, in bytes.
    pub allocated_bytes: u64,
}

impl TemplateFile {
    /// Describes a file whose digest is known.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub(super) fn new(path: &Path, sha256: String) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self { sha256, stamp: Stamp::of(&metadata), allocated_bytes: metadata.blocks() * 512 })
    }

    /// Whether the file there is the one that was made, as far as `stat` tells.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        fs::symlink_metadata(path)
            .is_ok_and(|metadata| metadata.is_file() && Stamp::of(&metadata) == self.stamp)
    }
}

impl TemplateFile {
    /// Returns `true` for a file of the right length, as a copy has.
    pub(super) fn may_be_at(&self, path: &Path) -> bool {
        fs::symlink_metadata(path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() == self.stamp.size_bytes)
    }

    /// Takes the file there for the one that was made, if it has the digest of that. Hashes it only if its stamp is another.
    ///
    /// # Errors
    /// [`Damage`]; [`Damage::Unverified`] when interrupted.
    pub(super) fn recognise(
        &mut self,
        what: &'static str,
        path: &Path,
        digest: impl FnOnce(&Path) -> io::Result<String>,
        cancel: &Cancel,
    ) -> Result<(), Damage> {
        if self.is_at(path) {
            return Ok(());
        }
        // As of before: whatever changes it meanwhile changes its stamp, too.
        let found = Self::new(path, self.sha256.clone()).map_err(|_| Damage::File(what))?;
        match digest(path) {
            Ok(sha256) if sha256 == self.sha256 => {
                *self = found;
                Ok(())
            }
            _ if cancel.is_cancelled() => Err(Damage::Unverified(what)),
            _ => Err(Damage::File(what)),
        }
    }
}

impl TemplateManifest {
    /// Reads a manifest; nothing if there is none.
    ///
    /// # Errors
    /// It cannot be read, or makes no sense.
    pub(super) fn load(path: &Path) -> io::Result<Option<Self>> {
        let file = match trusted::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        serde_json::from_reader(io::Read::take(io::BufReader::new(file), MAX_BYTES))
            .map(Some)
            .map_err(io::Error::other)
    }

    /// What the template takes on disk, in bytes.
    pub fn allocated_bytes(&self) -> u64 {
        let files = [&self.disk, &self.memory, &self.device_state, &self.initramfs];
        files.iter().map(|file| file.allocated_bytes).sum()
    }
}
