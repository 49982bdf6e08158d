//! What can keep an image from being there.

use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use super::check::SpecError;
use super::download::DownloadError;
use super::manifest::Distrust;
use super::restore::CheckedImage;
use super::source::python::PipError;
use super::transform::TransformError;
use crate::cancel::Interrupted;
use crate::command::CommandError;
use crate::error::{Kind, kind_of_io};
use crate::files::{Digest, Peak};
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
    /// The manifest of an image is not to be trusted.
    #[error("the manifest in {path} {distrust}")]
    Untrusted {
        /// The image's directory.
        path: PathBuf,
        /// Why.
        distrust: Distrust,
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
    /// Files went away or were changed while they were being prepared.
    #[error("{path} was changed by something else while it was being prepared")]
    Vanished {
        /// The file or directory.
        path: PathBuf,
    },
    /// The disk would be full before the work is done.
    #[error("{needed} are needed in {path} ({peak}), and {available} are free")]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// What the work takes at its peak.
        needed: Size,
        /// What there is.
        available: Size,
        /// What it is needed for.
        peak: Peak,
    },
    /// The disk became full, or the file as long as files may become here.
    #[error("{}", no_room(path, source))]
    DiskFull {
        /// The file that could not be written.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A symbolic link stands where Castra keeps a file; it is not followed.
    #[error("{path} is a symbolic link, which Castra does not follow there")]
    SymbolicLink {
        /// The link.
        path: PathBuf,
    },
    /// Something that is no regular file stands where one is needed.
    #[error("{path} is not a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// What the user named as the source of an image is a FIFO, a device, a directory or a link to one.
    #[error("{path} is not a regular file, and images are made from regular files only")]
    SourceNotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The system refused an operation on a file or directory.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
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

/// Bytes that should have had another digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{from} has digest {found}, and {expected} was expected{}", if *html { "; it looks like a web page" } else { "" })]
pub struct DigestMismatch {
    /// URL, Python requirement or path.
    pub from: String,
    /// The pinned digest.
    pub expected: Digest,
    /// The digest of what came.
    pub found: Digest,
    /// Whether it starts as a web page does: captive portals and error pages answer in a download's place.
    pub html: bool,
}

/// A number of bytes, displayed in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: f64 = 1024.0 * 1024.0;
        match self.0 {
            bytes if bytes < 1024 * 1024 => write!(f, "{bytes} bytes"),
            bytes => write!(f, "{:.1} MiB", bytes as f64 / MIB),
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

    /// Whether it is that this very file is not there.
    pub(super) fn is_absence_of(&self, file: &Path) -> bool {
        matches!(self, Self::Io { path, source, .. } if path == file && source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether something below this directory went away meanwhile, as when somebody removes the cache.
    pub(super) fn is_loss_below(&self, directory: &Path) -> bool {
        match self {
            Self::Io { path, source, .. } => {
                path.starts_with(directory) && source.kind() == io::ErrorKind::NotFound
            }
            Self::Vanished { path } => path.starts_with(directory),
            Self::Transform(TransformError::QemuImg {
                source: CommandError::Failed { stderr, .. }, ..
            }) => {
                let named = directory.to_str().is_some_and(|directory| stderr.contains(directory));
                named && stderr.contains("No such file or directory")
            }
            _ => false,
        }
    }

    /// Whether the cache cannot be written to, so that the project has to do without it.
    pub(super) fn is_unwritable(&self) -> bool {
        match self {
            Self::DiskFull { .. } => true,
            Self::Io { source, .. } => {
                kind_of_io(source) == Kind::Permission || source.kind() == io::ErrorKind::NotADirectory
            }
            _ => false,
        }
    }
}

fn no_room(path: &Path, source: &io::Error) -> String {
    if is_file_size_limit(source) {
        format!("{} would be larger than the file-size limit allows", path.display())
    } else {
        format!("no space left for {}", path.display())
    }
}

/// Returns `true` where a file became as long as it may, written by castra or by a helper.
pub(super) fn is_file_size_limit(error: &io::Error) -> bool {
    let helper = error.get_ref().and_then(|source| source.downcast_ref::<CommandError>());
    error.kind() == io::ErrorKind::FileTooLarge || helper.is_some_and(is_helpers_file_size_limit)
}

/// Returns `true` where a helper ended because a file became as long as it may.
pub(super) fn is_helpers_file_size_limit(error: &CommandError) -> bool {
    let CommandError::Failed { status, stderr, .. } = error else { return false };
    status.signal() == Some(signal_hook::consts::SIGXFSZ) || stderr.contains("File too large")
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

/// Turns an I/O error into the variant that says most.
pub(crate) trait At<T> {
    /// `action` is a verb, as in "cannot write".
    fn at(self, action: &'static str, path: &Path) -> Result<T, ImageError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, ImageError> {
        self.map_err(|source| io_error(action, path, source))
    }
}

impl<T> At<T> for rustix::io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, ImageError> {
        self.map_err(|source| io_error(action, path, source.into()))
    }
}

pub(crate) fn io_error(action: &'static str, path: &Path, source: io::Error) -> ImageError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ImageError::DiskFull { path, source }
        }
        _ if source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            ImageError::SymbolicLink { path }
        }
        _ => ImageError::Io { action, path, source },
    }
}

/// For hashing, which fails in two ways.
impl<T> At<T> for Result<T, crate::files::HashError> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, ImageError> {
        self.map_err(|error| match error {
            crate::files::HashError::Io(source) => io_error(action, path, source),
            crate::files::HashError::Interrupted(interrupted) => interrupted.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::error::Explain;

    #[test]
    fn the_system_s_words_become_variants() {
        let from = |errno: Errno| io_error("write", Path::new("/x"), errno.into());
        assert!(matches!(from(Errno::NOSPC), ImageError::DiskFull { .. }));
        assert!(matches!(from(Errno::DQUOT), ImageError::DiskFull { .. }));
        assert!(matches!(from(Errno::FBIG), ImageError::DiskFull { .. }));
        assert!(matches!(from(Errno::LOOP), ImageError::SymbolicLink { .. }));
        assert_eq!(from(Errno::ACCESS).kind(), Kind::Permission);
        assert!(from(Errno::ROFS).is_unwritable() && !from(Errno::IO).is_unwritable());
    }

    #[test]
    fn sizes_are_shown_in_mib() {
        assert_eq!(
            (Size(1000).to_string(), Size(3 << 19).to_string()),
            ("1000 bytes".into(), "1.5 MiB".into())
        );
    }
}
