//! Errors of operations on files, sorted by what the user can do about them.

use std::io;
use std::path::{Path, PathBuf};

use super::digest::{DigestMismatch, HashError};
use crate::cancel::Interrupted;
use crate::error::{Explain, FILE_SIZE_HINT, Kind, MORE_SPACE, kind_of_io};
use crate::size::ByteSize;

/// Error of an operation on a file or directory.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The user interrupted the operation.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The bytes are not the expected ones.
    #[error(transparent)]
    DigestMismatch(#[from] DigestMismatch),
    /// The file was replaced or removed while it was being prepared.
    #[error("another process changed {path} while it was being prepared")]
    ChangedMeanwhile {
        /// The file or directory.
        path: PathBuf,
    },
    /// The disk would be full before the work is done.
    #[error("not enough space in {path}: {needed} needed ({purpose}), {available} free")]
    NoSpace {
        /// Directory on that disk.
        path: PathBuf,
        /// Space that the work takes at its peak.
        needed: ByteSize,
        /// Space that is free.
        available: ByteSize,
        /// Purpose of that space, part by part.
        purpose: String,
    },
    /// The disk became full, or the file reached the limit on file sizes.
    #[error("{}", no_room(path, source))]
    DiskFull {
        /// File that could not be written.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A symbolic link is in the place of one of Castra's files; it is not followed.
    #[error("{path} is a symbolic link, which Castra does not follow there")]
    SymbolicLink {
        /// The link.
        path: PathBuf,
    },
    /// Something else is in the place of a regular file.
    #[error("{path} is not a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The system refused an operation.
    #[error("cannot {action} {path}")]
    Io {
        /// Operation, as a verb.
        action: &'static str,
        /// File or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl FileError {
    /// Chooses the variant that says most about an I/O error. `action` is a verb, as in "cannot
    /// write".
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::DiskFull { path, source },
            _ if source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                Self::SymbolicLink { path }
            }
            _ => Self::Io { action, path, source },
        }
    }

    /// Returns `true` if the error is the absence of this very file.
    pub(crate) fn is_absence_of(&self, file: &Path) -> bool {
        matches!(
            self,
            Self::Io { path, source, .. }
                if path == file && source.kind() == io::ErrorKind::NotFound
        )
    }

    /// Returns `true` if something below this directory was removed or replaced meanwhile.
    pub(crate) fn is_loss_below(&self, directory: &Path) -> bool {
        match self {
            Self::Io { path, source, .. } => {
                path.starts_with(directory) && source.kind() == io::ErrorKind::NotFound
            }
            Self::ChangedMeanwhile { path } => path.starts_with(directory),
            _ => false,
        }
    }

    /// Returns `true` if the location cannot be written to.
    pub(crate) fn is_unwritable(&self) -> bool {
        match self {
            Self::DiskFull { .. } => true,
            Self::Io { source, .. } => {
                kind_of_io(source) == Kind::Permission
                    || source.kind() == io::ErrorKind::NotADirectory
            }
            _ => false,
        }
    }
}

impl Explain for FileError {
    fn kind(&self) -> Kind {
        match self {
            Self::Interrupted(error) => error.kind(),
            Self::DigestMismatch(_) => Kind::Data,
            Self::ChangedMeanwhile { .. } => Kind::Busy,
            Self::NoSpace { .. } | Self::DiskFull { .. } => Kind::CannotCreate,
            Self::SymbolicLink { .. } | Self::NotAFile { .. } => Kind::Io,
            Self::Io { source, .. } => kind_of_io(source),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Interrupted(_) => None,
            Self::DigestMismatch(mismatch) => Some(mismatch.hint()),
            Self::ChangedMeanwhile { .. } => Some("Try again.".to_owned()),
            Self::DiskFull { source, .. } if is_file_size_limit(source) => {
                Some(FILE_SIZE_HINT.to_owned())
            }
            Self::NoSpace { .. } | Self::DiskFull { .. } => Some(MORE_SPACE.to_owned()),
            Self::SymbolicLink { path } | Self::NotAFile { path } => {
                Some(format!("Inspect it, then remove it: {}", path.display()))
            }
            Self::Io { source, path, .. } if kind_of_io(source) == Kind::Permission => {
                Some(format!("Give yourself access to {}, then try again.", path.display()))
            }
            Self::Io { action: "read" | "put in place" | "write to disk", source, .. }
                if source.kind() == io::ErrorKind::NotFound =>
            {
                Some("Another process removed it. Try again.".to_owned())
            }
            Self::Io { .. } => None,
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

fn is_file_size_limit(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::FileTooLarge
}

/// Conversion of an error, with the attempted action and the file.
pub(crate) trait At<T> {
    /// Adds both to the error. `action` is a verb, as in "cannot write".
    fn at(self, action: &'static str, path: &Path) -> Result<T, FileError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|source| FileError::io(action, path, source))
    }
}

impl<T> At<T> for rustix::io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|source| FileError::io(action, path, source.into()))
    }
}

/// For hashing, which can be interrupted besides.
impl<T> At<T> for Result<T, HashError> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|error| match error {
            HashError::Io(source) => FileError::io(action, path, source),
            HashError::Interrupted(interrupted) => interrupted.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn the_system_s_words_become_variants() {
        let from = |errno: Errno| FileError::io("write", Path::new("/x"), errno.into());
        assert!(matches!(from(Errno::NOSPC), FileError::DiskFull { .. }));
        assert!(matches!(from(Errno::DQUOT), FileError::DiskFull { .. }));
        assert!(matches!(from(Errno::FBIG), FileError::DiskFull { .. }));
        assert!(matches!(from(Errno::LOOP), FileError::SymbolicLink { .. }));
        assert_eq!(from(Errno::ACCESS).kind(), Kind::Permission);
        assert!(from(Errno::ROFS).is_unwritable() && !from(Errno::IO).is_unwritable());
    }
}
