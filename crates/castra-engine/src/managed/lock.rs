//! `castra.lock`: builds of distributions' images that a project pins, so that all who work on it
//! get the same bytes.
//!
//! The file lies beside `castra.toml`, is written by `castra image update` and is meant to be
//! committed. Of each image, the first build is the one that new VMs get; earlier ones stay below
//! it, since disks of existing VMs are based on them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::catalog::Distribution;
use super::check::{self, SpecProblem};
use super::spec::{ManagedArtifactSpec, ManagedImageSpec};
use crate::error::{Explain, Kind, SharedIoError, kind_of_io};
use crate::files::{Digest, read_regular, write_atomically};
use crate::similar::closest;
use crate::trusted::is_absence;

/// Format of the file. A larger one comes from a newer Castra.
const FORMAT: u32 = 1;
/// Largest file that is read, in bytes; an image takes half a kilobyte.
const MAX_BYTES: u64 = 1 << 20;
/// Number of earlier builds that are kept of an image.
const EARLIER_BUILDS: usize = 8;
/// Mode of the file, which is shared with others.
const MODE: u32 = 0o644;

const HEADER: &str = "\
# Builds of images that this project uses. `castra image update` writes this file; commit it, so
# that new VMs are made from the same bytes everywhere. Earlier builds are for existing VMs.
";

/// Contents of a `castra.lock`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LockFile {
    /// Pinned builds, sorted by name, the current one of each name first.
    pins: Vec<Pin>,
}

/// Build of an image that is pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Name of the image.
    pub name: String,
    /// Version of the build.
    pub version: String,
    /// Addresses of the build, tried in order.
    pub urls: Vec<String>,
    /// Digest of the build.
    pub digest: Digest,
    /// Length in bytes, if the publisher names it.
    pub size_bytes: Option<u64>,
    /// Fingerprint of the key by which the publisher signed the digest, if that was verified.
    pub signed_by: Option<String>,
}

/// Failure to read or write a `castra.lock`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{} cannot be {}", path.display(), problem.verb())]
pub struct LockFileError {
    /// The file.
    pub path: PathBuf,
    /// The problem.
    #[source]
    pub problem: LockFileProblem,
}

/// Problem of a `castra.lock`.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LockFileProblem {
    /// The file cannot be read.
    #[error("reading it failed")]
    Read(#[source] SharedIoError),
    /// The file cannot be written.
    #[error("writing it failed")]
    Write(#[source] SharedIoError),
    /// The file is larger than Castra writes any.
    #[error("it is too large")]
    TooLarge,
    /// The text is not a `castra.lock`.
    #[error("line {line}: {message}")]
    Malformed {
        /// Line of the first mistake, from 1.
        line: usize,
        /// Description of the mistake.
        message: String,
    },
    /// The file was written by a newer Castra.
    #[error("a newer castra wrote it, in format {0}; this one reads formats up to {FORMAT}")]
    TooNew(u32),
    /// No distribution has this name.
    #[error("it pins the image `{name}`, which is no distribution that this castra knows")]
    UnknownImage {
        /// Name of the image.
        name: String,
        /// Name that may have been meant.
        similar: Option<&'static str>,
    },
    /// A build has not exactly one digest.
    #[error("`{0}` needs either `sha256` or `sha512`")]
    Digests(String),
    /// A build cannot be one.
    #[error("`{name}`: {problem}")]
    Invalid {
        /// Name of the image.
        name: String,
        /// The problem.
        problem: SpecProblem,
    },
    /// A build is pinned twice.
    #[error("it pins `{0}` twice")]
    Twice(String),
    /// A build that is also built in has another digest.
    #[error("it pins `{0}` with another digest than the one that castra knows for this build")]
    Differs(String),
}

/// The file as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    #[serde(default)]
    images: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    version: String,
    urls: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha512: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signed_by: Option<String>,
}

impl LockFile {
    /// Reads a file; `None` if there is none.
    ///
    /// # Errors
    /// [`LockFileError`].
    pub fn read(path: &Path) -> Result<Option<Self>, LockFileError> {
        let failed = |problem| LockFileError { path: path.to_owned(), problem };
        let text = match read_text(path) {
            Ok(text) => text.ok_or_else(|| failed(LockFileProblem::TooLarge))?,
            Err(error) if is_absence(&error) && fs::symlink_metadata(path).is_err() => {
                return Ok(None);
            }
            Err(error) => return Err(failed(LockFileProblem::Read(error.into()))),
        };
        Self::parse(&text).map(Some).map_err(failed)
    }

    /// Parses the text of a file.
    ///
    /// # Errors
    /// Returns the first problem.
    pub fn parse(text: &str) -> Result<Self, LockFileProblem> {
        /// The one key that every format will have.
        #[derive(Deserialize)]
        struct Format {
            version: u32,
        }
        let malformed = |error: toml::de::Error| {
            let start = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1;
            LockFileProblem::Malformed { line, message: error.message().to_owned() }
        };
        let Format { version } = toml::from_str(text).map_err(malformed)?;
        if version > FORMAT {
            return Err(LockFileProblem::TooNew(version));
        }
        let document: Document = toml::from_str(text).map_err(malformed)?;
        let mut pins: Vec<Pin> = Vec::new();
        for entry in document.images {
            let pin = entry.into_pin()?;
            check_pin(&pin)?;
            if pins.iter().any(|other| other.name == pin.name && other.version == pin.version) {
                return Err(LockFileProblem::Twice(format!("{} {}", pin.name, pin.version)));
            }
            pins.push(pin);
        }
        pins.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Self { pins })
    }

    /// Returns the text that [`Self::parse`] reads.
    pub fn to_text(&self) -> String {
        let images = self.pins.iter().map(Entry::of).collect();
        let document = Document { version: FORMAT, images };
        let text = toml::to_string_pretty(&document).expect("our own types can be written as TOML");
        format!("{HEADER}{text}")
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`LockFileProblem::Write`], after which the old file is untouched.
    pub(crate) fn write(&self, path: &Path) -> Result<(), LockFileError> {
        write_atomically(path, self.to_text().as_bytes(), MODE).map_err(|error| LockFileError {
            path: path.to_owned(),
            problem: LockFileProblem::Write(error.into()),
        })
    }

    /// Returns the build that new VMs get.
    pub fn current(&self, name: &str) -> Option<&Pin> {
        self.pins.iter().find(|pin| pin.name == name)
    }

    /// Returns the names of all images, each once.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.pins.iter().map(|pin| pin.name.as_str()).collect();
        names.dedup();
        names
    }

    /// Returns the descriptions of all builds, the current one of each name first.
    pub fn images(&self) -> Vec<ManagedImageSpec> {
        self.pins.iter().filter_map(Pin::image).collect()
    }

    /// Makes this build the current one of its name. Of the earlier ones, the latest are kept, and
    /// those that `is_needed`.
    pub(crate) fn pin(&mut self, pin: Pin, is_needed: impl Fn(&Pin) -> bool) {
        let same = |other: &Pin| other.name == pin.name && other.version == pin.version;
        self.pins.retain(|other| !same(other));
        let at = self.pins.partition_point(|other| other.name < pin.name);
        let name = pin.name.clone();
        self.pins.insert(at, pin);
        let mut position = 0;
        self.pins.retain(|pin| {
            position += usize::from(pin.name == name);
            pin.name != name || position <= EARLIER_BUILDS + 1 || is_needed(pin)
        });
    }
}

impl Pin {
    /// Returns the description of the build; `None` if there is no such distribution.
    pub(crate) fn image(&self) -> Option<ManagedImageSpec> {
        let distribution = Distribution::named(&self.name)?;
        let (urls, digest) = (self.urls.clone(), self.digest.clone());
        Some(distribution.image(&self.version, urls, digest, self.size_bytes))
    }
}

impl Entry {
    fn of(pin: &Pin) -> Self {
        let Pin { name, version, urls, digest, size_bytes, signed_by } = pin.clone();
        let (sha256, sha512) = match digest {
            Digest::Sha256(hex) => (Some(hex), None),
            Digest::Sha512(hex) => (None, Some(hex)),
        };
        Self { name, version, urls, sha256, sha512, size_bytes, signed_by }
    }

    fn into_pin(self) -> Result<Pin, LockFileProblem> {
        let Self { name, version, urls, sha256, sha512, size_bytes, signed_by } = self;
        let digest = match (sha256, sha512) {
            (Some(hex), None) => Digest::Sha256(hex),
            (None, Some(hex)) => Digest::Sha512(hex),
            _ => return Err(LockFileProblem::Digests(format!("{name} {version}"))),
        };
        Ok(Pin { name, version, urls, digest, size_bytes, signed_by })
    }
}

/// Checks that a pin is a build of a distribution, and the same as the built-in one if there is
/// one.
fn check_pin(pin: &Pin) -> Result<(), LockFileProblem> {
    let (Some(image), Some(distribution)) = (pin.image(), Distribution::named(&pin.name)) else {
        let similar = closest(&pin.name, Distribution::all().map(|one| one.id));
        let similar = similar.and_then(Distribution::named).map(|one| one.id);
        return Err(LockFileProblem::UnknownImage { name: pin.name.clone(), similar });
    };
    check::spec(&image).map_err(|error| LockFileProblem::Invalid {
        name: pin.name.clone(),
        problem: error.problem,
    })?;
    let digest = |image: &ManagedImageSpec| first(image).map(|artifact| artifact.digest.clone());
    let builtin = distribution.images().find(|builtin| builtin.version == pin.version);
    match builtin.filter(|builtin| digest(builtin) != digest(&image)) {
        Some(_) => Err(LockFileProblem::Differs(format!("{} {}", pin.name, pin.version))),
        None => Ok(()),
    }
}

fn first(image: &ManagedImageSpec) -> Option<&ManagedArtifactSpec> {
    image.artifacts.first()
}

/// Reads the text of a file; `None` if it is too large.
fn read_text(path: &Path) -> io::Result<Option<String>> {
    // A byte that is not UTF-8 is a mistake of the text like any other.
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(read_regular(path, MAX_BYTES)?.map(text))
}

impl LockFileProblem {
    fn verb(&self) -> &'static str {
        if matches!(self, Self::Write(_)) { "written" } else { "used" }
    }
}

impl Explain for LockFileError {
    fn kind(&self) -> Kind {
        match &self.problem {
            LockFileProblem::Read(source) => kind_of_io(source),
            LockFileProblem::Write(source) => match kind_of_io(source) {
                Kind::Io => Kind::CannotCreate,
                other => other,
            },
            _ => Kind::Data,
        }
    }

    fn hint(&self) -> Option<String> {
        let path = self.path.display();
        Some(match &self.problem {
            LockFileProblem::Read(_) => "It must be a regular file that you can read.".to_owned(),
            LockFileProblem::Write(_) => {
                format!("Castra writes it beside castra.toml: {path}")
            }
            LockFileProblem::TooNew(_) => "Update Castra.".to_owned(),
            LockFileProblem::UnknownImage { name, similar } => {
                let meant = similar.map_or_else(String::new, |id| format!("Did you mean `{id}`? "));
                format!("{meant}Update Castra, or remove the entries of `{name}` from the file.")
            }
            LockFileProblem::Differs(_) => {
                "The file was changed, or the publisher replaced the build. Restore the file from \
                your version control, or remove the entry and run `castra image update`."
                    .to_owned()
            }
            _ => "Restore it from your version control. Without the file, `castra image update` \
                  writes a new one."
                .to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(name: &str, version: &str) -> Pin {
        let urls = vec![format!("https://example.org/{version}.qcow2")];
        let digest = Digest::Sha256("ab".repeat(32));
        let (name, version) = (name.to_owned(), version.to_owned());
        Pin { name, version, urls, digest, size_bytes: Some(7), signed_by: None }
    }

    fn versions(lock_file: &LockFile, name: &str) -> Vec<String> {
        let pins = lock_file.pins.iter().filter(|pin| pin.name == name);
        pins.map(|pin| pin.version.clone()).collect()
    }

    #[test]
    fn earlier_builds_stay_as_long_as_they_may_be_needed() {
        let mut lock_file = LockFile::default();
        lock_file.pin(pin("debian-13", "1"), |_| false);
        for build in 1..=12 {
            lock_file.pin(pin("arch", &build.to_string()), |pin| pin.version == "2");
        }
        assert_eq!(
            versions(&lock_file, "arch"),
            ["12", "11", "10", "9", "8", "7", "6", "5", "4", "2"]
        );
        assert_eq!(versions(&lock_file, "debian-13"), ["1"]);
        assert_eq!(lock_file.current("arch"), Some(&pin("arch", "12")));
        assert_eq!(lock_file.names(), ["arch", "debian-13"]);
        // An earlier build becomes the current one again.
        lock_file.pin(pin("arch", "9"), |_| false);
        assert_eq!(versions(&lock_file, "arch")[..3], ["9", "12", "11"]);
        assert_eq!(LockFile::parse(&lock_file.to_text()).expect("is as written"), lock_file);
    }

    #[test]
    fn a_file_is_read_or_there_is_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("castra.lock");
        assert_eq!(LockFile::read(&path).expect("none"), None);
        let mut lock_file = LockFile::default();
        lock_file.pin(pin("arch", "1"), |_| false);
        lock_file.write(&path).expect("written");
        assert_eq!(LockFile::read(&path).expect("there"), Some(lock_file));
        std::fs::remove_file(&path).expect("is there");
        std::os::unix::fs::symlink("nowhere", &path).expect("linked");
        assert!(LockFile::read(&path).is_err(), "a link to nothing is not absence");
    }
}
