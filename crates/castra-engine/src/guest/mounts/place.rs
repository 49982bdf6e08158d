//! The directory of a mount, opened without following a link.
//!
//! The path has been resolved when the user agreed to the mount. A guest that can write to a
//! directory above it may since have put a link there, which leads anywhere.

use std::io;
use std::path::{Component, Path, PathBuf};

#[cfg(target_os = "linux")]
use rustix::fd::AsRawFd as _;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, openat};

/// An open directory.
pub(super) struct Place {
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "it keeps the directory"))]
    directory: OwnedFd,
    #[cfg(not(target_os = "linux"))]
    path: PathBuf,
}

impl Place {
    /// Opens a directory by its absolute path.
    ///
    /// # Errors
    /// Fails if it is gone, or a part of its path is a link or no directory.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        let access = OFlags::PATH;
        #[cfg(not(target_os = "linux"))]
        let access = OFlags::RDONLY;
        let flags = access | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut directory = openat(CWD, "/", flags, Mode::empty())?;
        for part in path.components() {
            match part {
                Component::RootDir => {}
                Component::Normal(name) => {
                    directory = openat(&directory, name, flags | OFlags::NOFOLLOW, Mode::empty())?;
                }
                _ => return Err(io::ErrorKind::InvalidInput.into()),
            }
        }
        Ok(Self {
            directory,
            #[cfg(not(target_os = "linux"))]
            path: path.to_owned(),
        })
    }

    /// Returns a path by which this process reaches the directory, whatever was renamed since.
    #[cfg(target_os = "linux")]
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd()))
    }

    /// Returns the directory's path.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn path(&self) -> PathBuf {
        self.path.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn no_link_leads_elsewhere() {
        let top = tempfile::tempdir().expect("a directory");
        let top = top.path().canonicalize().expect("a path");
        fs::create_dir_all(top.join("a/b")).expect("made");
        fs::write(top.join("a/b/file"), "x").expect("written");
        let place = Place::open(&top.join("a/b")).expect("opens");
        fs::rename(top.join("a"), top.join("c")).expect("moved");
        symlink(top.join("c"), top.join("a")).expect("linked");
        assert!(Place::open(&top.join("a/b")).is_err(), "through a link");
        assert!(Place::open(&top.join("a")).is_err(), "a link");
        assert!(Place::open(&top.join("c/../c/b")).is_err() && Place::open("a".as_ref()).is_err());
        if cfg!(target_os = "linux") {
            assert_eq!(fs::read_to_string(place.path().join("file")).expect("read"), "x");
        }
    }
}
