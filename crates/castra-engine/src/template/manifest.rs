//! `template.json`: the description of a template. Written last, so a template without it is
//! unfinished.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cancel::Cancel;
use crate::files::{self, Stamp};
use crate::trusted;

use super::damage::Damage;
use super::key::Ingredients;

/// Largest manifest that is read, in bytes; one takes some two kilobytes.
const MAX_BYTES: u64 = 1024 * 1024;

/// Description of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateManifest {
    /// Key, which is also the name of its directory.
    pub key: String,
    /// Ingredients from which it was made.
    pub ingredients: Ingredients,
    /// Version of the Castra that made it.
    pub castra_version: String,
    /// Time at which it was made, in milliseconds since the Unix epoch.
    pub made_unix_ms: u64,
    /// Duration of the boot, in milliseconds.
    pub boot_ms: u64,
    /// Disk layer.
    pub disk: TemplateFile,
    /// Memory. Its digest leaves out blocks that are zero, whether they are holes or not.
    pub memory: TemplateFile,
    /// State of the devices.
    pub device_state: TemplateFile,
    /// Initramfs of the boot.
    pub initramfs: TemplateFile,
    /// Kernel of the boot, if it is not the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<TemplateFile>,
}

/// A file of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateFile {
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// Size, times and inode at the time of making.
    pub stamp: Stamp,
    /// Space on disk, in bytes.
    pub allocated_bytes: u64,
}

impl TemplateFile {
    /// Describes a file whose digest is known.
    ///
    /// # Errors
    /// The file cannot be examined.
    pub(super) fn new(path: &Path, sha256: String) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            sha256,
            stamp: Stamp::of(&metadata),
            allocated_bytes: files::allocated_bytes(&metadata),
        })
    }

    /// Returns `true` if the file at `path` is the one that was made, judging by its stamp.
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

    /// Recognises the file at `path` as the one that was made, if it has the same digest. Hashes it
    /// only if its stamp differs.
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
        // Taken before hashing: any change meanwhile also changes the stamp.
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
    /// Reads a manifest; returns `None` if there is none.
    ///
    /// # Errors
    /// The file cannot be read, or is malformed.
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

    /// Returns the template's space on disk, in bytes.
    pub fn allocated_bytes(&self) -> u64 {
        let files = [&self.disk, &self.memory, &self.device_state, &self.initramfs];
        files.into_iter().chain(&self.kernel).map(|file| file.allocated_bytes).sum()
    }
}
