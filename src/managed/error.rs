//! What can keep an image from being there.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::check::SpecError;
use super::download::DownloadError;
use super::manifest::Distrust;
use super::source::python::PipError;
use super::spec::Digest;
use super::transform::TransformError;
use crate::cancel::Interrupted;
use crate::error::{Explain, Kind, kind_of_io};
use crate::report::ImageLabel;

/// Why an image is not there, or not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The user interrupted it.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// No image has this id and version.
    #[error("there is no image `{id}` in version `{version}`")]
    Unknown {
        /// The id asked for.
        id: String,
        /// The version asked for.
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
    #[error("image {image} is not in this project")]
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
    /// Files went away or were changed while they were being prepared.
    #[error("{path} was changed by something else while it was being prepared")]
    Vanished {
        /// The file or directory.
        path: PathBuf,
    },
    /// The disk would be full before the work is done.
    #[error("{needed} are needed in {path}, and {available} are free")]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// What the work takes at its peak.
        needed: Size,
        /// What there is.
        available: Size,
    },
    /// The disk became full.
    #[error("no space left for {path}")]
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

    /// Whether it says something about one address, so that the same bytes may be had from another one.
    pub(super) fn is_about_one_address(&self) -> bool {
        matches!(self, Self::Download(_) | Self::DigestMismatch(_))
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

impl Explain for ImageError {
    fn kind(&self) -> Kind {
        match self {
            Self::Interrupted(_) => Kind::Interrupted,
            Self::Unknown { .. } | Self::NotPresent { .. } => Kind::NotFound,
            Self::Spec(_) | Self::DigestMismatch(_) | Self::Untrusted { .. } => Kind::Data,
            Self::Offline { .. } | Self::NoneReachable { .. } => Kind::Unavailable,
            Self::Download(error) => error.kind(),
            Self::Pip(error) => error.kind(),
            Self::Transform(error) => error.kind(),
            Self::NoSpace { .. } | Self::DiskFull { .. } => Kind::CannotCreate,
            Self::Vanished { .. } => Kind::Busy,
            Self::SymbolicLink { .. } | Self::NotAFile { .. } => Kind::Io,
            Self::Io { source, .. } => kind_of_io(source),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Interrupted(_) | Self::Spec(_) => None,
            Self::Unknown { similar, .. } => Some(match similar {
                Some(image) => format!("Did you mean {image}? `castra image list` shows all images."),
                None => "`castra image list` shows all images.".to_owned(),
            }),
            Self::Offline { .. } => {
                Some("Run it once without --offline (or CASTRA_OFFLINE) to fill the cache.".to_owned())
            }
            Self::Download(error) => error.hint(),
            Self::Pip(error) => error.hint(),
            Self::Transform(error) => error.hint(),
            Self::DigestMismatch(mismatch) => Some(mismatch.hint()),
            Self::NoneReachable { tried } => tried.iter().find_map(|(_, error)| error.hint()),
            Self::Vanished { .. } => Some("Try again.".to_owned()),
            Self::Untrusted { .. } => Some("`castra up` prepares the image anew.".to_owned()),
            Self::NotPresent { .. } => Some("`castra up` or `castra image fetch` prepares it.".to_owned()),
            Self::NoSpace { .. } | Self::DiskFull { .. } => Some(
                "Free some space, or put the cache on another disk with XDG_CACHE_HOME. What was downloaded so far is \
                 kept."
                    .to_owned(),
            ),
            Self::SymbolicLink { path } | Self::NotAFile { path } => {
                Some(format!("Look at what it is, and remove it: {}", path.display()))
            }
            Self::Io { source, path, .. } if kind_of_io(source) == Kind::Permission => {
                Some(format!("Make {} accessible for you, then try again.", path.display()))
            }
            Self::Io { .. } => None,
        }
    }
}

impl DigestMismatch {
    fn hint(&self) -> String {
        if self.html {
            "Something between here and the server answered with a page of its own (a login page of the network, a \
             proxy's message). Open the address in a browser, or try another network."
                .to_owned()
        } else {
            "The file was changed on its way or at its source; it was not used, and nothing was kept of it. Try again, \
             or name a mirror in CASTRA_MIRROR."
                .to_owned()
        }
    }
}

fn reasons(tried: &[(ImageLabel, ImageError)]) -> String {
    let each: Vec<String> =
        tried.iter().map(|(image, error)| format!("{image}: {}", one_line(error))).collect();
    each.join("; ")
}

/// An error and its causes, for where there is one line.
pub(super) fn one_line(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

/// Turns an I/O error into the variant that says most.
pub(super) trait At<T> {
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

pub(super) fn io_error(action: &'static str, path: &Path, source: io::Error) -> ImageError {
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
impl<T> At<T> for Result<T, super::digest::HashError> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, ImageError> {
        self.map_err(|error| match error {
            super::digest::HashError::Io(source) => io_error(action, path, source),
            super::digest::HashError::Interrupted(interrupted) => interrupted.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

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
