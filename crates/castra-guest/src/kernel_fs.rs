//! The kernel's own filesystems, reachable whatever the image does to its mounts.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{Access, AtFlags, Dir, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Detached mounts of proc, devtmpfs and sysfs: an initramfs moves or hides every mount it sees,
/// but not these.
pub(crate) struct KernelFs {
    /// proc.
    pub(crate) proc: Tree,
    /// devtmpfs.
    pub(crate) dev: Tree,
    /// sysfs.
    pub(crate) sys: Tree,
}

/// One detached mount. Paths are relative to its top.
pub(crate) struct Tree(OwnedFd);

impl KernelFs {
    /// Mounts all three (Linux 5.2 and newer).
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            proc: Tree::mount("proc")?,
            dev: Tree::mount("devtmpfs")?,
            sys: Tree::mount("sysfs")?,
        })
    }
}

impl Tree {
    /// Mounts a filesystem of this kind, and shows it to no other process.
    pub(crate) fn mount(kind: &str) -> io::Result<Self> {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_NOSUID;
        Ok(Self(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?))
    }

    /// Opens a file or directory.
    pub(crate) fn open(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(&self.0, from_top(path), flags | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Reads a whole file and trims its white space.
    pub(crate) fn read(&self, path: &str) -> io::Result<String> {
        let mut text = String::new();
        File::from(self.open(path, OFlags::RDONLY)?).read_to_string(&mut text)?;
        Ok(text.trim().to_owned())
    }

    /// Writes `text` into an existing file.
    pub(crate) fn write(&self, path: &str, text: &str) -> io::Result<()> {
        File::from(self.open(path, OFlags::WRONLY)?).write_all(text.as_bytes())
    }

    /// Makes a symbolic link in a directory, which is made if it is missing.
    pub(crate) fn link(&self, target: &str, directory: &str, name: &str) -> io::Result<()> {
        let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
        let parts: Vec<&str> = directory.split('/').collect();
        for depth in 1..=parts.len() {
            match rustix::fs::mkdirat(&self.0, parts[..depth].join("/"), mode) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match rustix::fs::symlinkat(target, &self.0, format!("{directory}/{name}")) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the names in a directory, without `.` and `..`.
    pub(crate) fn names(&self, path: &str) -> io::Result<Vec<String>> {
        let directory = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        for entry in Dir::new(directory)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Returns `true` if the path exists.
    pub(crate) fn has(&self, path: &str) -> bool {
        rustix::fs::accessat(&self.0, from_top(path), Access::EXISTS, AtFlags::empty()).is_ok()
    }

    /// Returns the status of a path, following links.
    pub(crate) fn stat(&self, path: &str) -> io::Result<Stat> {
        Ok(rustix::fs::statat(&self.0, from_top(path), AtFlags::empty())?)
    }
}

/// Returns `path` as the kernel accepts it: an empty path means the top of a tree here, but is an
/// error to the kernel (ENOENT).
fn from_top(path: &str) -> &str {
    if path.is_empty() { "." } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_of_a_tree_can_be_listed_and_looked_at() {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let tree = Tree(rustix::fs::open("/proc", flags, Mode::empty()).expect("proc"));
        assert!(tree.names("").expect("listed").contains(&std::process::id().to_string()));
        assert!(tree.has("") && tree.stat("").is_ok());
    }
}
