//! Opens files that castra relies on: the one mechanism for everything below a state root, for the
//! user's key and for notes.
//!
//! A file is opened without following a link and without waiting for the other end of a FIFO. It
//! must be a regular file that belongs to this user or to root, and that no other user may write
//! to; likewise a directory. Anything else is refused with an [`io::Error`] of the kind
//! `PermissionDenied` that holds the reason.

use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::size::ByteSize;
use rustix::fs::OFlags;

/// Bits of a mode that let the group and all others write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Reason why a file or directory is not relied on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// The type is not the required one.
    #[error("it is {found}, not {wanted}")]
    Kind {
        /// Type of the file.
        found: &'static str,
        /// Required type.
        wanted: &'static str,
    },
    /// Another user owns it.
    #[error("it belongs to another user (uid {owner})")]
    Owner {
        /// User ID of the owner.
        owner: u32,
    },
    /// Other users may write to it.
    #[error("other users can write to it (mode {mode:04o})")]
    Mode {
        /// Permissions of the file.
        mode: u32,
    },
    /// The file is larger than anything castra writes there.
    #[error("it is larger than {}", ByteSize(*limit))]
    Size {
        /// Maximum size, in bytes.
        limit: u64,
    },
}

impl Distrust {
    /// Reason for refusing a link in place of a directory.
    pub const LINKED_DIRECTORY: Self =
        Self::Kind { found: "a symbolic link", wanted: "a directory" };

    /// Returns the reason in an error of this module.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// Returns the next step for a user who meets this at a path.
    pub fn way_out(&self, path: &Path) -> String {
        let path = path.display();
        match self {
            Self::Owner { .. } => format!(
                "If everything in it is yours, take it over: sudo chown -R \"$(id -u)\" {path}. \
                If not, work in a directory that only you can write to."
            ),
            Self::Mode { .. } => {
                format!("If no other user has written to it: chmod -R go-w {path}")
            }
            Self::Kind { found: "a symbolic link", .. } => {
                format!(
                    "Replace it with its target. To keep it on another disk, mount a directory \
                    there: mount --bind DIRECTORY {path}"
                )
            }
            Self::Kind { .. } | Self::Size { .. } => {
                format!("Move it out of the way: mv {path} {path}.untrusted")
            }
        }
    }
}

impl From<Distrust> for io::Error {
    fn from(distrust: Distrust) -> Self {
        Self::new(io::ErrorKind::PermissionDenied, distrust)
    }
}

/// Returns `true` if only this user and root can change a file.
pub fn is_own(metadata: &Metadata) -> bool {
    metadata.uid() == 0 || metadata.uid() == rustix::process::geteuid().as_raw()
}

/// Checks the metadata of a required regular file.
///
/// # Errors
/// [`Distrust`].
pub fn check_file(metadata: &Metadata) -> Result<(), Distrust> {
    if !metadata.is_file() {
        return Err(Distrust::Kind { found: kind(metadata.file_type()), wanted: "a regular file" });
    }
    check_owner(metadata)
}

/// Checks the metadata of a required directory.
///
/// # Errors
/// [`Distrust`].
pub fn check_directory(metadata: &Metadata) -> Result<(), Distrust> {
    if !metadata.is_dir() {
        return Err(Distrust::Kind { found: kind(metadata.file_type()), wanted: "a directory" });
    }
    check_owner(metadata)
}

fn check_owner(metadata: &Metadata) -> Result<(), Distrust> {
    if !is_own(metadata) {
        return Err(Distrust::Owner { owner: metadata.uid() });
    }
    match metadata.mode() & 0o7777 {
        mode if mode & WRITABLE_BY_OTHERS != 0 => Err(Distrust::Mode { mode }),
        _ => Ok(()),
    }
}

/// Checks a directory, without following a link. Returns `false` if there is none.
///
/// # Errors
/// [`Distrust`], or those of `lstat`.
pub fn directory(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(check_directory(&metadata).map(|()| true)?),
        Err(error) if is_absence(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens a file for reading.
///
/// # Errors
/// [`Distrust`], or those of `open`.
pub fn open(path: &Path) -> io::Result<File> {
    open_with(OpenOptions::new().read(true), path)
}

/// Reads a whole file of at most `limit` bytes.
///
/// # Errors
/// [`Distrust`], or those of `open` and `read`.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(Distrust::Size { limit }.into());
    }
    Ok(bytes)
}

/// Opens a file with these options, which may create it.
///
/// # Errors
/// [`Distrust`], or those of `open`.
pub fn open_with(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    match options.custom_flags(flags.cast_signed()).open(path) {
        Ok(file) => {
            check_file(&file.metadata()?)?;
            Ok(file)
        }
        Err(error) if is_absence(&error) => Err(error),
        // The kernel's error (ELOOP, ENXIO, …) does not name the type of the file.
        Err(error) => match fs::symlink_metadata(path).map(|metadata| check_file(&metadata)) {
            Ok(Err(distrust)) => Err(distrust.into()),
            _ => Err(error),
        },
    }
}

/// Returns `true` for an error that means that the path does not exist.
pub fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn kind(file_type: FileType) -> &'static str {
    match file_type {
        kind if kind.is_file() => "a regular file",
        kind if kind.is_dir() => "a directory",
        kind if kind.is_symlink() => "a symbolic link",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn why(path: &Path) -> String {
        open(path).expect_err("refused").to_string()
    }

    #[test]
    fn everything_but_an_own_regular_file_is_refused_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        fs::write(at("file"), "content").expect("written");
        assert_eq!(read(&at("file"), 7).expect("read"), b"content");
        assert_eq!(read(&at("file"), 6).expect_err("refused").to_string(), "it is larger than 6 B");
        std::os::unix::fs::symlink(at("file"), at("link")).expect("linked");
        assert_eq!(why(&at("link")), "it is a symbolic link, not a regular file");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .expect("made");
        assert_eq!(why(&at("fifo")), "it is a FIFO, not a regular file");
        let appended = open_with(OpenOptions::new().append(true), &at("fifo"));
        assert_eq!(appended.expect_err("refused").to_string(), "it is a FIFO, not a regular file");
        assert_eq!(why(directory.path()), "it is a directory, not a regular file");
        let failed = why(Path::new("/dev/null"));
        assert!(failed.starts_with("it is a device"), "{failed}");
        fs::set_permissions(at("file"), fs::Permissions::from_mode(0o620)).expect("changed");
        assert_eq!(why(&at("file")), "other users can write to it (mode 0620)");
        assert!(open(&at("none")).is_err_and(|error| is_absence(&error)));
    }

    #[test]
    fn directories_are_looked_at_alike() {
        let root = tempfile::tempdir().expect("a directory");
        assert!(directory(root.path()).expect("ours"));
        assert!(!directory(&root.path().join("none")).expect("looked at"));
        let link = root.path().join("link");
        std::os::unix::fs::symlink(root.path(), &link).expect("linked");
        assert_eq!(
            directory(&link).expect_err("refused").to_string(),
            "it is a symbolic link, not a directory"
        );
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o777)).expect("changed");
        assert!(directory(root.path()).is_err_and(|error| Distrust::of(&error).is_some()));
    }
}
