//! Directory of a server's sandboxes, which one server has at a time.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::ServeError;

/// A directory that this process alone has, as long as this value exists.
pub(crate) struct StateDirectory {
    path: PathBuf,
    /// Lock on its file `lock`.
    _lock: fs::File,
}

impl StateDirectory {
    /// Takes a directory, which is created if it is missing.
    ///
    /// # Errors
    /// [`ServeError::Busy`] if another server has it, and if it cannot be used.
    pub(crate) fn take(path: &Path) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Directory { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        let lock = fs::File::create(path.join("lock")).map_err(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| ServeError::Busy { path: path.to_owned() })?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Returns its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the error for sandboxes in it that cannot be used.
    pub(crate) fn failed(&self, error: impl std::error::Error) -> ServeError {
        let source = io::Error::other(error.to_string());
        ServeError::Directory { path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_server() {
        let parent = tempfile::tempdir().expect("a directory");
        let path = parent.path().join("new/state");
        let first = StateDirectory::take(&path).expect("taken");
        assert_eq!(first.path(), path);
        assert!(matches!(StateDirectory::take(&path), Err(ServeError::Busy { .. })));
        drop(first);
        assert!(StateDirectory::take(&path).is_ok());
    }
}
