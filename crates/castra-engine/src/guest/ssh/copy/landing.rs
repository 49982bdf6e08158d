//! Places on this host that a copy out of a guest writes to.
//!
//! A path that the user named is opened as `cp` does: links are followed, and a pipe or device is
//! written to. Anything below a copied tree is reached from the tree's directory, one name at a
//! time and never through a link, since a guest may have made the links in an earlier copy. So
//! [`Below`] cannot write elsewhere, whatever the tree contains.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use castra_sftp::Attributes;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::is_hole;
use super::session::Interrupted;

/// Permissions that a guest's file may have here, before the umask. Excludes set-user-id and
/// set-group-id.
const PERMISSIONS: u32 = 0o777;

/// Set-user-id and set-group-id bits.
const LENDING: u32 = 0o6000;

const WRITE: OFlags = OFlags::WRONLY.union(OFlags::CLOEXEC).union(OFlags::NOCTTY);
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// A directory that the user named, and everything below it.
pub(super) struct Below {
    root: OwnedFd,
    shown: PathBuf,
}

/// Mode that a directory gets once its entries are complete.
pub(super) struct Later(Option<Mode>);

impl Below {
    /// Opens a directory, following links to it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let root = rustix::fs::open(path, DIRECTORY, Mode::empty())?;
        Ok(Self { root, shown: path.to_owned() })
    }

    /// Returns the path of an entry, for messages.
    pub(super) fn shown(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.shown.clone() } else { self.shown.join(OsStr::from_bytes(path)) }
    }

    /// Opens the directory at a path, without following links.
    fn directory(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let mut directory = self.root.try_clone()?;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            if name == b".." {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let flags = DIRECTORY | OFlags::NOFOLLOW;
            directory =
                rustix::fs::openat(&directory, OsStr::from_bytes(name), flags, Mode::empty())?;
        }
        Ok(directory)
    }

    fn parent<'a>(&self, path: &'a [u8]) -> io::Result<(OwnedFd, &'a OsStr)> {
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        if matches!(name, b"" | b"." | b"..") {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok((self.directory(parent)?, OsStr::from_bytes(name)))
    }

    /// Creates a directory in which files can be created now, whatever its final mode. Replaces a
    /// link in its place, unless that is the root of the tree, whose name the user gave.
    pub(super) fn make_directory(&self, path: &[u8], mode: u32) -> io::Result<Later> {
        if path.is_empty() {
            return Ok(Later(None));
        }
        let (parent, name) = self.parent(path)?;
        let open = Mode::from_raw_mode((mode & PERMISSIONS | 0o700) as _);
        let is_root = !path.contains(&b'/');
        match rustix::fs::mkdirat(&parent, name, open) {
            Err(Errno::EXIST) if !is_root && is_link(&parent, name)? => {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
                rustix::fs::mkdirat(&parent, name, open)?;
            }
            Err(Errno::EXIST) => return take_over(&parent, name),
            made => made?,
        }
        // As left by the umask and by a parent that passes on its group.
        let made =
            rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode as u32 & 0o7777;
        let last = made & !(0o700 & !mode);
        Ok(Later((last != made).then(|| Mode::from_raw_mode(last as _))))
    }

    /// Gives a directory its mode and times, once its entries are complete.
    pub(super) fn finish_directory(
        &self,
        path: &[u8],
        later: &Later,
        found: &Attributes,
    ) -> io::Result<()> {
        let directory = self.directory(path)?;
        if let Some(mode) = later.0 {
            rustix::fs::fchmod(&directory, mode)?;
        }
        set_times(&directory, found)
    }

    /// Creates a link, replacing anything but a directory.
    pub(super) fn make_link(&self, path: &[u8], target: &[u8]) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::symlinkat(OsStr::from_bytes(target), &parent, name) {
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
                Ok(rustix::fs::symlinkat(OsStr::from_bytes(target), &parent, name)?)
            }
            made => Ok(made?),
        }
    }

    /// Opens a file of a tree. Replaces a link in its place; refuses anything else that is not a
    /// regular file.
    pub(super) fn create(&self, path: &[u8], mode: u32, noted: Interrupted) -> io::Result<Sink> {
        let (parent, name) = self.parent(path)?;
        let make = || {
            rustix::fs::openat(
                &parent,
                name,
                WRITE | OFlags::CREATE | OFlags::EXCL,
                permissions(mode),
            )
        };
        let (opened, is_new) = match make() {
            Err(Errno::EXIST) if is_link(&parent, name)? => {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
                (make()?, true)
            }
            Err(Errno::EXIST) => {
                // Opening a pipe would wait for a reader.
                let flags = WRITE | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                let refused = |error| match error {
                    Errno::NXIO => special(),
                    error => error.into(),
                };
                (rustix::fs::openat(&parent, name, flags, Mode::empty()).map_err(refused)?, false)
            }
            made => (made?, true),
        };
        let file = File::from(opened);
        if !file.metadata()?.is_file() {
            return Err(special());
        }
        let made = is_new.then(|| (parent, name.to_owned()));
        Sink::new(file, self.shown(path), made, noted)
    }

    /// Opens a file by its name in this directory, which the user named: writes to an existing file
    /// of any type, but does not follow a link.
    pub(super) fn create_named(
        &self,
        name: &[u8],
        mode: u32,
        noted: Interrupted,
    ) -> io::Result<Sink> {
        let (parent, name) = self.parent(name)?;
        if is_link(&parent, name)? {
            let what = "it is a symbolic link, which copies into a directory do not follow \
                because a guest may have created it; name the link itself as the destination, or \
                remove it";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        }
        let shown = self.shown.join(name);
        open_named(&parent, name, OFlags::NOFOLLOW, mode, shown, noted)
    }
}

/// Opens the file that the user named, as `cp` does: following links, whatever its type.
pub(super) fn create_at(path: &Path, mode: u32, noted: Interrupted) -> io::Result<Sink> {
    let here = Path::new(".");
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(here);
    let parent = rustix::fs::open(parent, DIRECTORY, Mode::empty())?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    if path.as_os_str().as_bytes().ends_with(b"/") {
        return Err(Errno::ISDIR.into());
    }
    open_named(&parent, name, OFlags::empty(), mode, path.to_owned(), noted)
}

fn open_named(
    parent: &OwnedFd,
    name: &OsStr,
    flags: OFlags,
    mode: u32,
    shown: PathBuf,
    noted: Interrupted,
) -> io::Result<Sink> {
    let make = WRITE | OFlags::CREATE | OFlags::EXCL;
    match rustix::fs::openat(parent, name, make, permissions(mode)) {
        Ok(made) => {
            Sink::new(made.into(), shown, Some((parent.try_clone()?, name.to_owned())), noted)
        }
        // A dangling link creates the file that it points to.
        Err(Errno::EXIST) => {
            let follow = if flags.is_empty() { OFlags::CREATE } else { flags };
            let opened = match rustix::fs::openat(parent, name, WRITE | follow, permissions(mode)) {
                // Linux refuses O_CREAT on other users' files in sticky directories, even if the
                // files exist.
                Err(Errno::ACCESS) => {
                    rustix::fs::openat(parent, name, WRITE | flags, Mode::empty())
                }
                opened => opened,
            };
            Sink::new(opened?.into(), shown, None, noted)
        }
        Err(error) => Err(error.into()),
    }
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode((mode & PERMISSIONS) as _)
}

fn is_link(parent: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(FileType::from_raw_mode(found.st_mode) == FileType::Symlink),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn special() -> io::Error {
    io::Error::new(io::ErrorKind::AlreadyExists, "it exists and is not a regular file")
}

/// Makes an existing directory writable for new files. Its mode is restored later.
fn take_over(parent: &OwnedFd, name: &OsStr) -> io::Result<Later> {
    let found = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => {}
        FileType::Symlink => {
            let what = "it is a symbolic link, which a copied directory does not replace; remove \
                it, or name its target";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        }
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "it exists and is not a directory",
            ));
        }
    }
    let mode = found.st_mode as u32 & 0o7777;
    if mode & 0o700 == 0o700 {
        return Ok(Later(None));
    }
    // By name and without following links; between the two calls only this user could change it.
    rustix::fs::chmodat(parent, name, Mode::from_raw_mode((mode | 0o700) as _), AtFlags::empty())?;
    Ok(Later(Some(Mode::from_raw_mode(mode as _))))
}

fn set_times(file: impl std::os::fd::AsFd, found: &Attributes) -> io::Result<()> {
    let Some((accessed, modified)) = found.times else { return Ok(()) };
    let time = |seconds: u32| Timespec { tv_sec: seconds.into(), tv_nsec: 0 };
    let times = Timestamps { last_access: time(accessed), last_modification: time(modified) };
    Ok(rustix::fs::futimens(file, &times)?)
}

/// An open file to which a guest's bytes are written, in order. If dropped unfinished, a file that
/// the copy created is removed, and an existing one is recorded as incomplete.
pub(super) struct Sink {
    file: File,
    metadata: Metadata,
    shown: PathBuf,
    /// Directory and name of a file that this copy has created.
    made: Option<(OwnedFd, OsString)>,
    noted: Interrupted,
    written: u64,
    is_finished: bool,
}

impl Sink {
    fn new(
        file: File,
        shown: PathBuf,
        made: Option<(OwnedFd, OsString)>,
        noted: Interrupted,
    ) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let sink = Self { file, metadata, shown, made, noted, written: 0, is_finished: false };
        if sink.metadata.is_file() && sink.made.is_none() {
            sink.file.set_len(0)?;
        }
        Ok(sink)
    }

    /// Appends bytes. Zeros in a regular file become a hole.
    pub(super) fn write(&mut self, data: &[u8]) -> io::Result<()> {
        let kind = self.metadata.file_type();
        if kind.is_file() && is_hole(data) {
            // `finish` sets the length.
        } else if kind.is_file() || kind.is_block_device() {
            self.file.write_all_at(data, self.written)?;
        } else {
            self.file.write_all(data)?;
        }
        self.written += data.len() as u64;
        Ok(())
    }

    /// Gives a regular file its length and times. Its mode is the one with which it was created, or
    /// its previous one. Anything else is left unchanged.
    pub(super) fn finish(mut self, found: &Attributes) -> io::Result<()> {
        if self.metadata.is_file() {
            self.file.set_len(self.written)?;
            let mode = self.metadata.mode();
            if mode & LENDING != 0 {
                // Those rights were granted to other contents.
                rustix::fs::fchmod(
                    &self.file,
                    Mode::from_raw_mode((mode & 0o7777 & !LENDING) as _),
                )?;
            }
            // Only the owner may set times, but the contents are complete without them.
            let _ = set_times(self.file.as_fd(), found);
        }
        self.is_finished = true;
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        match &self.made {
            Some((parent, name)) => {
                let _ = rustix::fs::unlinkat(parent, name, AtFlags::empty());
            }
            None if self.metadata.is_file() => self.noted.note(std::mem::take(&mut self.shown)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn noted() -> Interrupted {
        Interrupted::default()
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("is there").mode() & 0o7777
    }

    #[test]
    fn nothing_below_a_tree_is_reached_through_a_link() {
        let directory = tempfile::tempdir().expect("a directory");
        let (tree, outside) = (directory.path().join("tree"), directory.path().join("outside"));
        fs::create_dir_all(tree.join("real")).expect("made");
        fs::create_dir_all(outside.join("inner")).expect("made");
        fs::write(outside.join("precious"), "precious").expect("written");
        // A guest may have made these in an earlier copy, or between two steps of this one.
        symlink(&outside, tree.join("link")).expect("linked");
        symlink("../../outside", tree.join("real/link")).expect("linked");
        let below = Below::open(&tree).expect("opened");
        for path in ["link/new", "real/link/new", "link/precious", "link/inner/new"] {
            let path = path.as_bytes();
            assert!(below.create(path, 0o644, noted()).is_err(), "{path:?}");
            assert!(below.make_link(path, b"x").is_err(), "{path:?}");
            assert!(below.make_directory(path, 0o755).is_err(), "{path:?}");
        }
        let later = Later(Some(Mode::from_raw_mode(0o777)));
        assert!(below.finish_directory(b"link", &later, &Attributes::default()).is_err());
        let left: Vec<_> = fs::read_dir(&outside).expect("listed").flatten().collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert_eq!(fs::read(outside.join("precious")).expect("read"), b"precious");
    }

    #[test]
    fn no_name_leads_up() {
        let directory = tempfile::tempdir().expect("a directory");
        let below = Below::open(directory.path()).expect("opened");
        fs::create_dir(directory.path().join("a")).expect("made");
        for path in ["..", ".", "", "a/..", "a/.", "a/", "/", "../x", "a/../../x", "a/../x"] {
            let path = path.as_bytes();
            let refused = |error: io::Error| error.kind() == io::ErrorKind::InvalidInput;
            assert!(below.create(path, 0o644, noted()).is_err_and(refused), "{path:?}");
            assert!(below.create_named(path, 0o644, noted()).is_err_and(refused), "{path:?}");
            assert!(below.make_link(path, b"x").is_err_and(refused), "{path:?}");
            if !path.is_empty() {
                assert!(below.make_directory(path, 0o755).is_err_and(refused), "{path:?}");
            }
        }
    }

    #[test]
    fn a_file_lends_no_rights_from_the_start() {
        let directory = tempfile::tempdir().expect("a directory");
        let below = Below::open(directory.path()).expect("opened");
        let sink = below.create(b"new", 0o6777, noted()).expect("made");
        assert_eq!(mode(&directory.path().join("new")) & LENDING, 0);
        drop(sink);
        assert!(!directory.path().join("new").exists(), "an unfinished one goes");
        let sink = below.create_named(b"named", 0o6777, noted()).expect("made");
        assert_eq!(mode(&directory.path().join("named")) & LENDING, 0);
        drop(sink);
        let old = directory.path().join("old");
        fs::write(&old, "old").expect("written");
        fs::set_permissions(&old, fs::Permissions::from_mode(0o6750)).expect("changed");
        let attributes = Attributes { mode: Some(0o777), ..Attributes::default() };
        below
            .create(b"old", 0o777, noted())
            .expect("opened")
            .finish(&attributes)
            .expect("finished");
        assert_eq!(mode(&old), 0o750, "its own mode, without what it lent");
    }

    #[test]
    fn what_is_no_regular_file_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let below = Below::open(directory.path()).expect("opened");
        let fifo = directory.path().join("fifo");
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, Mode::from_raw_mode(0o640), 0)
            .expect("made");
        // Once without a reader, for whom it must not wait, and once with one.
        assert!(below.create(b"fifo", 0o644, noted()).is_err());
        let reader = rustix::fs::open(&fifo, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())
            .expect("opened");
        assert!(below.create(b"fifo", 0o644, noted()).is_err());
        drop(reader);
        assert_eq!(mode(&fifo), 0o640);
        fs::create_dir(directory.path().join("full")).expect("made");
        fs::write(directory.path().join("full/precious"), "precious").expect("written");
        assert!(below.make_link(b"full", b"x").is_err());
        assert!(directory.path().join("full/precious").exists());
    }
}
