//! Reasons why there is no [`ProjectConfig`](super::ProjectConfig).

use std::io;
use std::path::{Path, PathBuf};

use super::defaults::{FORMAT, MAX_BYTES};
use super::{Diagnostics, OutOfBounds};
use crate::error::{Explain, Kind, SharedIoError, kind_of_io};
use crate::managed::LockFileError;
use crate::size::ByteSize;

/// Error for a configuration that cannot be loaded.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConfigError {
    /// The path of `--config` does not exist.
    #[error("there is no configuration at {}", path.display())]
    NotFound {
        /// The path, absolute.
        path: PathBuf,
    },
    /// `castra.toml` is a directory, a FIFO or a device.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// `castra.toml` is a dangling symbolic link.
    #[error("{} is a symbolic link to a missing file", path.display())]
    Dangling {
        /// The link.
        path: PathBuf,
    },
    /// The file could not be read, or looked for.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// The file, or the place where it was looked for.
        path: PathBuf,
        /// The reason.
        #[source]
        source: SharedIoError,
    },
    /// The `castra.toml` belongs to another user, in a directory that every user may write to.
    #[error(
        "{} belongs to another user (uid {owner}), in a world-writable directory",
        path.display()
    )]
    UntrustedOwner {
        /// The file.
        path: PathBuf,
        /// User ID of its owner.
        owner: u32,
    },
    /// The file is larger than any configuration.
    #[error("{} is larger than {}", path.display(), ByteSize(MAX_BYTES))]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not UTF-8 text.
    #[error(
        "{} is not UTF-8 text: invalid byte at line {line}, column {column}",
        path.display()
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Line of the first bad byte, from 1.
        line: usize,
        /// Column of that byte: the number of characters before it on its line, plus 1.
        column: usize,
    },
    /// The file is written for a later Castra.
    #[error("{} has format {found:?}; this Castra supports formats up to {FORMAT}", path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Format that it declares in `version`.
        found: String,
    },
    /// The image that was chosen for a project without a file cannot be read or kept.
    #[error("{}, the image that was chosen for this directory, cannot be used", path.display())]
    ChosenImage {
        /// The file in the state root.
        path: PathBuf,
        /// The reason.
        #[source]
        source: SharedIoError,
    },
    /// An image was named for a project whose file declares the images.
    #[error("--image is for directories without a castra.toml, and there is {}", file.display())]
    ImageBesideFile {
        /// The file.
        file: PathBuf,
    },
    /// The project's `castra.lock` cannot be used.
    #[error(transparent)]
    Lock(#[from] LockFileError),
    /// The project's state directory is not a place where castra may write.
    #[error(transparent)]
    State(OutOfBounds),
    /// The file can be read but not used. Displays all problems, without colour;
    /// [`Diagnostics::render`] can add it.
    #[error("{} cannot be used ({})\n\n{_0}", _0.file().display(), _0.summary())]
    Invalid(Box<Diagnostics>),
}

impl ConfigError {
    /// Returns the error for a file, or the place of one, that cannot be read.
    pub(super) fn unreadable(path: &Path, source: io::Error) -> Self {
        Self::Unreadable { path: path.to_owned(), source: source.into() }
    }
}

impl Explain for ConfigError {
    fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } | Self::Dangling { .. } => Kind::NotFound,
            Self::Unreadable { source, .. } => kind_of_io(source),
            Self::ChosenImage { source, .. } => match kind_of_io(source) {
                Kind::Io => Kind::Data,
                other => other,
            },
            Self::ImageBesideFile { .. } => Kind::Usage,
            Self::UntrustedOwner { .. } => Kind::Permission,
            Self::Lock(error) => error.kind(),
            Self::State(problem) => problem.kind(),
            Self::NotAFile { .. }
            | Self::TooLarge { .. }
            | Self::NotUtf8 { .. }
            | Self::TooNew { .. }
            | Self::Invalid(_) => Kind::Data,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NotFound { .. } => {
                "Check the path, or run `castra init` where the file should be. If none is named, \
                Castra looks for castra.toml in this directory and above, and uses defaults if \
                there is none."
            }
            Self::NotAFile { .. } => "Move it away, or name another file.",
            Self::Dangling { .. } => {
                "Restore the file it points to, or remove the link to do without configuration."
            }
            Self::Unreadable { .. } => "Make it readable, or name another file.",
            Self::UntrustedOwner { .. } => {
                "If you trust it, name it with `--config FILE`; if not, work in a directory of \
                your own."
            }
            Self::TooLarge { .. } => {
                "A configuration is a few lines. Is it perhaps a disk image with the wrong name?"
            }
            Self::NotUtf8 { .. } => "Save it with the encoding UTF-8.",
            Self::TooNew { .. } => {
                "Update Castra, or write the file in format 1 and set `version = \"1\"`."
            }
            Self::ChosenImage { path, .. } => {
                return Some(format!(
                    "Remove it (`rm {}`) and name the image again: `castra up --image NAME`.",
                    path.display()
                ));
            }
            Self::ImageBesideFile { .. } => {
                "Name the image of a VM there: `managed_image` or, for a file, `base_image`."
            }
            Self::Lock(error) => return error.hint(),
            Self::State(problem) => return problem.hint(),
            // Each problem has its own hint.
            Self::Invalid(_) => return None,
        };
        Some(hint.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_of_an_unreadable_file_is_an_io_error() {
        let source = io::Error::from(io::ErrorKind::FileTooLarge);
        let error = ConfigError::unreadable(Path::new("/project/castra.toml"), source);
        let error = crate::error::Error::from(error);
        assert!(error.causes().any(|cause| cause.is::<io::Error>()));
        assert_eq!(error.hint().as_deref(), Some(crate::error::FILE_SIZE_HINT));
    }

    #[test]
    fn every_error_names_the_file_and_a_next_step() {
        let path = || PathBuf::from("/project/castra.toml");
        let source = io::Error::from(io::ErrorKind::PermissionDenied).into();
        for (error, kind) in [
            (ConfigError::NotFound { path: path() }, Kind::NotFound),
            (ConfigError::NotAFile { path: path() }, Kind::Data),
            (ConfigError::Dangling { path: path() }, Kind::NotFound),
            (ConfigError::Unreadable { path: path(), source }, Kind::Permission),
            (ConfigError::UntrustedOwner { path: path(), owner: 7 }, Kind::Permission),
            (ConfigError::TooLarge { path: path() }, Kind::Data),
            (ConfigError::NotUtf8 { path: path(), line: 1, column: 2 }, Kind::Data),
            (ConfigError::TooNew { path: path(), found: "2".to_owned() }, Kind::Data),
        ] {
            assert!(error.to_string().contains("/project/castra.toml"), "{error}");
            assert!(
                error.hint().is_some_and(|hint| hint.ends_with('.') || hint.ends_with('?')),
                "{error}"
            );
            assert_eq!(error.kind(), kind, "{error}");
        }
    }
}
