//! `manifest.json`: the contents of an image's directory, and the proof that they were verified.
//!
//! The manifest is written last, so that an image without one is unfinished. It is sealed with a
//! digest of its own text: a manifest that is truncated, edited by hand or written by a newer
//! Castra is not trusted, and its files are rebuilt.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{self, FileError, READ_ONLY, Stamp, sha256_hex};
use crate::layout::MANIFEST;
use crate::managed::spec::{ArtifactRole, ManagedArtifactSpec, ManagedImageSpec};

/// Version of the format. A larger one comes from a newer Castra.
const FORMAT: u32 = 1;
/// Most bytes of a manifest, which usually takes two kilobytes.
const MAX_BYTES: u64 = 1024 * 1024;

/// Contents of an image's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format.
    pub format: u32,
    /// The image's id.
    pub id: String,
    /// The image's version.
    pub version: String,
    /// SHA-256 of the description that the image was made from.
    pub spec_digest: String,
    /// Version of the Castra that wrote the manifest.
    pub castra_version: String,
    /// Time of writing, as RFC 3339.
    pub written_at: String,
    /// The files.
    pub artifacts: Vec<ManifestArtifact>,
    /// SHA-256 of everything above.
    seal: String,
}

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestArtifact {
    /// Role of the file.
    pub role: ArtifactRole,
    /// Name in the image's directory.
    pub name: String,
    /// SHA-256 of those parts of the description that the file's bytes depend on.
    pub spec_digest: String,
    /// Source of the file.
    pub source: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Time at which it was made, as RFC 3339.
    pub made_at: String,
    /// Stamp of the file when it was last verified.
    pub stamp: Stamp,
}

/// Reason why a manifest is not trusted; completes a sentence about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// There is no manifest.
    #[error("is missing")]
    Missing,
    /// The manifest cannot be read, is a link, or is far too large.
    #[error("cannot be read")]
    Unreadable,
    /// The text is not a manifest, or not all of one.
    #[error("is damaged ({0})")]
    Damaged(String),
    /// A newer Castra wrote the manifest.
    #[error("was written by a newer castra, in format {0}")]
    Newer(u32),
    /// The seal does not fit.
    #[error("was changed after it was written")]
    Changed,
    /// The manifest belongs to another image.
    #[error("describes another image")]
    Foreign,
}

impl Manifest {
    /// Creates a sealed manifest of these files.
    pub fn new(spec: &ManagedImageSpec, artifacts: Vec<ManifestArtifact>) -> Self {
        let mut manifest = Self {
            format: FORMAT,
            id: spec.id.clone(),
            version: spec.version.clone(),
            spec_digest: spec_digest(spec),
            castra_version: env!("CARGO_PKG_VERSION").to_owned(),
            written_at: now(),
            artifacts,
            seal: String::new(),
        };
        manifest.seal = manifest.proper_seal();
        manifest
    }

    /// Reads the manifest in an image's directory.
    ///
    /// # Errors
    /// Returns the reason why the manifest is not trusted.
    pub fn load(directory: &Path) -> Result<Self, Distrust> {
        let file = files::open_if_there(&path_in(directory)).map_err(|_| Distrust::Unreadable)?;
        let file = file.ok_or(Distrust::Missing)?;
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text).map_err(|_| Distrust::Unreadable)?;
        Self::parse(&text)
    }

    /// Parses and checks the text of a manifest.
    ///
    /// # Errors
    /// Returns the reason why the manifest is not trusted.
    pub fn parse(text: &[u8]) -> Result<Self, Distrust> {
        /// Header with the one field that every format will have.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let damaged = |error: serde_json::Error| Distrust::Damaged(error.to_string());
        let Format { format } = serde_json::from_slice(text).map_err(damaged)?;
        if format > FORMAT {
            return Err(Distrust::Newer(format));
        }
        let manifest: Self = serde_json::from_slice(text).map_err(damaged)?;
        if manifest.seal != manifest.proper_seal() {
            return Err(Distrust::Changed);
        }
        Ok(manifest)
    }

    /// Returns the text that [`Manifest::parse`] reads.
    pub fn to_text(&self) -> Vec<u8> {
        let mut text = json_of(self, serde_json::to_vec_pretty);
        text.push(b'\n');
        text
    }

    /// Publishes the manifest in an image's directory; it is on disk when this returns.
    pub(crate) fn store(&self, directory: &Path) -> Result<(), FileError> {
        files::write_locked(&path_in(directory), &self.to_text(), READ_ONLY)
    }

    /// Returns the entry of this role.
    pub fn artifact(&self, role: ArtifactRole) -> Option<&ManifestArtifact> {
        self.artifacts.iter().find(|artifact| artifact.role == role)
    }

    /// Returns `true` if the manifest describes this image, and only files that an image has.
    pub(crate) fn is_sound_for(&self, spec: &ManagedImageSpec) -> bool {
        let has_own_name = |entry: &ManifestArtifact| entry.name == entry.role.file_name();
        self.id == spec.id
            && self.version == spec.version
            && self.artifacts.iter().all(has_own_name)
    }

    /// Returns the digest of everything but the seal itself.
    fn proper_seal(&self) -> String {
        let unsealed = Self { seal: String::new(), ..self.clone() };
        sha256_hex(&json_of(&unsealed, serde_json::to_vec))
    }
}

/// Returns the path of the manifest in an image's directory.
pub(crate) fn path_in(directory: &Path) -> PathBuf {
    directory.join(MANIFEST)
}

/// Returns the SHA-256 of a description as compact JSON, in the order in which the types declare
/// their fields.
pub(crate) fn spec_digest(spec: &ManagedImageSpec) -> String {
    sha256_hex(&json_of(spec, serde_json::to_vec))
}

/// Returns the SHA-256 of those parts of an artifact's description that its bytes depend on. The
/// source is not one of them: another mirror of the same pinned bytes changes nothing.
pub(crate) fn artifact_digest(artifact: &ManagedArtifactSpec) -> String {
    let parts = (artifact.role, &artifact.digest, &artifact.pipeline, &artifact.product_digest);
    sha256_hex(&json_of(&parts, serde_json::to_vec))
}

/// Returns the current time, as RFC 3339.
pub(crate) fn now() -> String {
    format!("{:.0}", jiff::Timestamp::now())
}

/// Serialises one of our own types, which cannot fail: they have no maps with odd keys and no
/// numbers beyond JSON's.
fn json_of<T: Serialize>(value: &T, write: fn(&T) -> serde_json::Result<Vec<u8>>) -> Vec<u8> {
    write(value).expect("our own types can be written as JSON")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::managed::Catalog;

    fn artifact() -> impl Strategy<Value = ManifestArtifact> {
        let role = prop_oneof![
            Just(ArtifactRole::Rootfs),
            Just(ArtifactRole::Kernel),
            Just(ArtifactRole::Initramfs)
        ];
        let stamp = (any::<u64>(), any::<i64>(), any::<i64>(), any::<u64>());
        (role, ".*", ".*", ".*", any::<u64>(), stamp).prop_map(
            |(role, name, source, sha256, size_bytes, stamp)| {
                let (bytes, modified_secs, modified_nanos, inode) = stamp;
                let stamp = Stamp { size_bytes: bytes, modified_secs, modified_nanos, inode };
                let (spec_digest, made_at) = (sha256.clone(), now());
                ManifestArtifact {
                    role,
                    name,
                    spec_digest,
                    source,
                    sha256,
                    size_bytes,
                    made_at,
                    stamp,
                }
            },
        )
    }

    fn manifest() -> impl Strategy<Value = Manifest> {
        proptest::collection::vec(artifact(), 0..4)
            .prop_map(|artifacts| Manifest::new(&Catalog::builtin().images()[0], artifacts))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(manifest in manifest()) {
            prop_assert_eq!(Manifest::parse(&manifest.to_text()), Ok(manifest));
        }

        /// Covers any byte, except white space between the values.
        #[test]
        fn what_was_changed_is_not_trusted(
            manifest in manifest(),
            at in any::<prop::sample::Index>(),
            byte: u8,
        ) {
            let mut text = manifest.to_text();
            let at = at.index(text.len());
            text[at] = byte;
            match Manifest::parse(&text) {
                Ok(read) => prop_assert_eq!(read, manifest),
                Err(distrust) => prop_assert_ne!(distrust, Distrust::Missing),
            }
        }

        #[test]
        fn what_was_cut_off_is_not_trusted(
            manifest in manifest(),
            at in any::<prop::sample::Index>(),
        ) {
            let text = manifest.to_text();
            // The last two bytes are the closing brace and the end of the line.
            let cut = at.index(text.len() - 1);
            prop_assert!(matches!(Manifest::parse(&text[..cut]), Err(Distrust::Damaged(_))));
        }
    }

    #[test]
    fn a_field_that_was_added_is_not_trusted() {
        let text = Manifest::new(&Catalog::builtin().images()[0], Vec::new()).to_text();
        let text = String::from_utf8(text).expect("is text").replacen('{', "{\"note\": 1,", 1);
        assert!(matches!(Manifest::parse(text.as_bytes()), Err(Distrust::Damaged(_))));
    }

    #[test]
    fn another_address_of_the_same_bytes_is_no_other_artifact() {
        let one = Catalog::builtin().images()[0].artifacts[0].clone();
        let mut other = one.clone();
        other.source = crate::managed::ArtifactSource::Path("/elsewhere".into());
        assert_eq!(artifact_digest(&one), artifact_digest(&other));
        other.pipeline.pop();
        assert_ne!(artifact_digest(&one), artifact_digest(&other));
    }
}
