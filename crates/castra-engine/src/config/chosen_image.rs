//! Image of a project without a `castra.toml`: chosen with `castra up --image`, and kept in its
//! state root.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::ConfigError;
use super::project::{BaseImageSource, ImageVersion, ManagedImageSelection, ProjectConfig};
use super::validate::name::{is_vm_name, safe_file_name};
use crate::context::RuntimeContext;
use crate::error::{Error, Result};
use crate::files::{normalise, write_atomically};
use crate::layout::{MAX_VM_NAME_BYTES, ProjectLayout};
use crate::managed::{ImageError, ManagedDiskKind, ManagedImageSpec, image_named};
use crate::state_root;
use crate::trusted::{self, is_absence};

/// Longest file that is read, in bytes: a path has at most 4,096.
const MAX_BYTES: u64 = 16 * 1024;

/// An image that was named on the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ChosenImage {
    /// A managed image.
    Managed {
        /// ID of the image.
        name: String,
        /// Version of the image.
        version: String,
    },
    /// A qcow2 of the user's own. Absolute.
    File(PathBuf),
}

impl ChosenImage {
    /// Returns what `text` names: `NAME[@VERSION]` of one of these images, or else a file. A text
    /// with a slash is always a file. Relative paths start at `directory`.
    ///
    /// # Errors
    /// [`ImageError::Unknown`] for neither.
    pub fn parse<'a>(
        text: &OsStr,
        directory: &Path,
        images: impl IntoIterator<Item = &'a ManagedImageSpec>,
    ) -> std::result::Result<Self, ImageError> {
        let file = || Self::File(normalise(&directory.join(text)));
        let is_file = || directory.join(text).is_file();
        let Some(name) = text.to_str().filter(|name| !name.contains('/')) else {
            return Ok(file());
        };
        match image_named(name, images) {
            Ok(spec) => Ok(Self::Managed { name: spec.id.clone(), version: spec.version.clone() }),
            Err(_) if is_file() => Ok(file()),
            Err(unknown) => Err(unknown),
        }
    }

    /// Returns the image as the base of a VM.
    pub fn source(&self) -> BaseImageSource {
        match self {
            Self::Managed { name, version } => {
                let (name, version) = (name.clone(), ImageVersion::Named(version.clone()));
                let disk = ManagedDiskKind::default();
                BaseImageSource::Managed(ManagedImageSelection::Exact { name, version, disk })
            }
            Self::File(path) => BaseImageSource::Path(path.clone()),
        }
    }

    /// Returns the description of a managed image, one of these.
    pub(crate) fn spec<'a>(
        &self,
        images: impl IntoIterator<Item = &'a ManagedImageSpec>,
    ) -> Option<&'a ManagedImageSpec> {
        let Self::Managed { name, version } = self else { return None };
        images.into_iter().find(|spec| spec.id == *name && spec.version == *version)
    }

    /// Returns the name of the VM on it: the image's, or one like the file's.
    pub(super) fn vm_name(&self) -> String {
        let name = match self {
            Self::Managed { name, .. } => name.clone(),
            Self::File(path) => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        };
        if is_vm_name(&name) {
            return name;
        }
        safe_file_name(&name, MAX_VM_NAME_BYTES).unwrap_or_else(|| "vm".to_owned())
    }

    /// Reads the choice that was made for a project; `None` if there was none.
    pub(super) fn read(layout: &ProjectLayout) -> std::result::Result<Option<Self>, ConfigError> {
        let path = layout.chosen_image();
        let read = trusted::read(&path, MAX_BYTES)
            .and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from));
        match read {
            Ok(Self::File(file)) if !file.is_absolute() => {
                let source = io::Error::new(io::ErrorKind::InvalidData, "a path in it is relative");
                Err(ConfigError::ChosenImage { path, source: source.into() })
            }
            Ok(chosen) => Ok(Some(chosen)),
            Err(error) if is_absence(&error) => Ok(None),
            Err(source) => Err(ConfigError::ChosenImage { path, source: source.into() }),
        }
    }

    /// Keeps the choice for the commands that follow, in the state root of this project, which was
    /// opened before and is created if there is none.
    ///
    /// # Errors
    /// Returns errors of creating the state root and of writing the file.
    pub fn keep(&self, config: &ProjectConfig, context: &RuntimeContext) -> Result<()> {
        config.bounds.claim_state_root().map_err(ConfigError::State)?;
        let layout = config.state_root.names();
        state_root::make(layout, context)?;
        self.write(&layout.chosen_image())
            .map_err(|source| ConfigError::ChosenImage {
                path: layout.chosen_image(),
                source: source.into(),
            })
            .map_err(Error::from)
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::from)?;
        write_atomically(path, &text, 0o600)
    }

    /// Removes a choice of which nothing came.
    pub fn forget(layout: &ProjectLayout) {
        // If it stays, the next `up` tries that image again.
        let _ = std::fs::remove_file(layout.chosen_image());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::managed::Catalog;

    fn parse(text: &str, directory: &Path) -> std::result::Result<ChosenImage, ImageError> {
        ChosenImage::parse(OsStr::new(text), directory, Catalog::builtin().images())
    }

    #[test]
    fn a_name_of_the_catalog_goes_before_a_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let here = directory.path();
        for name in ["debian-13", "disk.qcow2"] {
            std::fs::write(here.join(name), "").expect("written");
        }
        assert!(matches!(
            parse("debian-13", here),
            Ok(ChosenImage::Managed { name, version }) if name == "debian-13" && !version.is_empty()
        ));
        for (text, file) in [("disk.qcow2", "disk.qcow2"), ("./debian-13", "debian-13")] {
            assert_eq!(parse(text, here).expect("a file"), ChosenImage::File(here.join(file)));
        }
        assert_eq!(parse("/a/../b", here).expect("a file"), ChosenImage::File("/b".into()));
        for neither in ["debian-31", "debian-13@1"] {
            assert!(matches!(parse(neither, here), Err(ImageError::Unknown { .. })), "{neither}");
        }
    }

    #[test]
    fn a_vm_has_a_name_like_its_image() {
        let file = |path: &str| ChosenImage::File(path.into()).vm_name();
        assert_eq!(file("/images/jammy-server.amd64.img"), "jammy-server.amd64");
        assert_eq!(file("/images/My disk (2).qcow2"), "My-disk-2");
        assert_eq!(file("/images/…"), "vm");
        let (name, version) = ("ubuntu-24.04".to_owned(), "1".to_owned());
        assert_eq!(ChosenImage::Managed { name, version }.vm_name(), "ubuntu-24.04");
    }

    #[test]
    fn what_was_kept_is_read_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let layout = ProjectLayout::unchecked(directory.path().to_owned());
        assert_eq!(ChosenImage::read(&layout).expect("read"), None);
        let file = ChosenImage::File("/images/a.qcow2".into());
        file.write(&layout.chosen_image()).expect("kept");
        assert_eq!(ChosenImage::read(&layout).expect("read"), Some(file));
        for other in ["", "{}", "{\"file\":\"a.qcow2\"}", "{\"managed\":{\"name\":\"a\"}}"] {
            std::fs::write(layout.chosen_image(), other).expect("written");
            assert!(ChosenImage::read(&layout).is_err(), "{other}");
        }
    }
}
