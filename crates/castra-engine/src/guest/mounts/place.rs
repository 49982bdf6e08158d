//! The directory of a mount, opened without following a link.
//!
//! The path has been resolved when the user agreed to the mount. A guest that can write to a
//! directory above it may since have put a link there, which leads anywhere.

use std::ffi::OsStr;
use std::io;
use std::path::{Component, PathBuf};

#[cfg(target_os = "linux")]
use rustix::fd::AsRawFd as _;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;

use super::Mount;

/// Reason why a directory is not served.
pub(crate) const OF_KERNEL: &str = "its files are the kernel's";

/// An open directory.
pub(super) struct Place {
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "it keeps the directory"))]
    directory: OwnedFd,
    #[cfg(not(target_os = "linux"))]
    path: PathBuf,
}

impl Place {
    /// Opens the directory of a mount.
    ///
    /// # Errors
    /// Fails, with a reason for the user, if it is gone, a part of its path is a link or no
    /// directory, or it belongs to another user.
    pub(super) fn open(mount: &Mount) -> io::Result<Self> {
        let path = &mount.host;
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
                    let opened = openat(&directory, name, flags | OFlags::NOFOLLOW, Mode::empty());
                    directory = opened.map_err(|error| match error {
                        Errno::NOENT => io::Error::new(io::ErrorKind::NotFound, "it is gone"),
                        Errno::NOTDIR | Errno::LOOP => not_a_directory(&directory, name),
                        error => error.into(),
                    })?;
                }
                _ => return Err(io::ErrorKind::InvalidInput.into()),
            }
        }
        if is_of_kernel(&directory) {
            return Err(io::Error::other(OF_KERNEL));
        }
        if !mount.may_belong_to(fstat(&directory)?.st_uid) {
            return Err(io::Error::other("it belongs to another user"));
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

/// Returns `true` for a directory of a filesystem such as `/proc`, in which processes are read and
/// changed, and not files.
#[cfg(target_os = "linux")]
pub(crate) fn is_of_kernel(directory: impl AsFd) -> bool {
    // `linux/magic.h`.
    const KINDS: [u32; 14] = [
        0x9fa0,      // proc
        0x6265_6572, // sysfs
        0x0027_e0eb, // cgroup
        0x6367_7270, // cgroup2
        0x6462_6720, // debugfs
        0x7472_6163, // tracefs
        0x7363_6673, // securityfs
        0xf97c_ff8c, // selinuxfs
        0x4341_5d53, // smackfs
        0xcafe_4a11, // bpf
        0x6265_6570, // configfs
        0x6165_676c, // pstore
        0xde5e_81e4, // efivarfs
        0x1cd1,      // devpts
    ];
    #[allow(
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        reason = "a magic number of 32 bits, in a word of which size and sign depend on the machine"
    )]
    rustix::fs::fstatfs(directory).is_ok_and(|found| KINDS.contains(&(found.f_type as u32)))
}

/// Returns `false`: other systems have no such filesystems.
#[cfg(not(target_os = "linux"))]
pub(crate) fn is_of_kernel(_directory: impl AsFd) -> bool {
    false
}

fn not_a_directory(parent: &OwnedFd, name: &OsStr) -> io::Error {
    let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    let is_link =
        found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Symlink);
    io::Error::other(match is_link {
        true => "a link has replaced it or a directory above it",
        false => "it is no directory any more",
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn open(path: &Path) -> io::Result<Place> {
        Place::open(&Mount {
            host: path.to_owned(),
            guest: "/src".into(),
            read_only: false,
            notify: true,
        })
    }

    #[test]
    fn the_reason_is_for_the_user() {
        let top = tempfile::tempdir().expect("a directory");
        let top = top.path().canonicalize().expect("a path");
        fs::write(top.join("file"), "x").expect("written");
        symlink("file", top.join("link")).expect("linked");
        for (name, reason) in [
            ("gone", "it is gone"),
            ("gone/below", "it is gone"),
            ("file", "it is no directory any more"),
            ("link", "a link has replaced it or a directory above it"),
            ("link/below", "a link has replaced it or a directory above it"),
        ] {
            let error = open(&top.join(name)).err().expect(name);
            assert_eq!(error.to_string(), reason, "{name}");
        }
        let of_root = Path::new("/usr");
        let is_root = rustix::process::geteuid().is_root();
        assert_eq!(open(of_root).is_ok(), is_root, "it belongs to another user");
        let read_only =
            Mount { host: of_root.into(), guest: "/src".into(), read_only: true, notify: true };
        assert!(Place::open(&read_only).is_ok());
        let of_kernel =
            Mount { host: "/proc".into(), guest: "/p".into(), read_only: true, notify: true };
        let error = Place::open(&of_kernel).err().expect("of the kernel");
        assert_eq!(error.to_string(), OF_KERNEL);
        if is_root {
            rustix::fs::chown(&top, Some(rustix::fs::Uid::from_raw(65534)), None)
                .expect("given away");
            let error = open(&top).err().expect("of another");
            assert_eq!(error.to_string(), "it belongs to another user");
        }
    }

    #[test]
    fn no_link_leads_elsewhere() {
        let top = tempfile::tempdir().expect("a directory");
        let top = top.path().canonicalize().expect("a path");
        fs::create_dir_all(top.join("a/b")).expect("made");
        fs::write(top.join("a/b/file"), "x").expect("written");
        let place = open(&top.join("a/b")).expect("opens");
        fs::rename(top.join("a"), top.join("c")).expect("moved");
        symlink(top.join("c"), top.join("a")).expect("linked");
        assert!(open(&top.join("a/b")).is_err(), "through a link");
        assert!(open(&top.join("a")).is_err(), "a link");
        assert!(open(&top.join("c/../c/b")).is_err() && open("a".as_ref()).is_err());
        if cfg!(target_os = "linux") {
            assert_eq!(fs::read_to_string(place.path().join("file")).expect("read"), "x");
        }
    }
}
