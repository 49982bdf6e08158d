//! Files of the project that a step reads: their digest, an archive of them, and their stamp.
//!
//! A configuration may be a stranger's. So nothing but the project's own files is read: each
//! directory on the way is opened without following a link, and links are copied as links.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::cancel::Cancel;
use crate::config::{ProjectPath, StepAction};
use crate::hex::hex;
use crate::layout::STATE_DIRECTORY;
use crate::vm::error::{ProvisionError, VmError};

/// Limits of a step's files.
const MAX_BYTES: u64 = 1 << 30;
const MAX_ENTRIES: usize = 100_000;
const MAX_DEPTH: usize = 100;

/// Name of a script in its archive.
pub(super) const SCRIPT: &str = "script";

/// Bits of a mode that are kept: no step makes set-user-id programs by copying.
const PERMISSIONS: u32 = 0o777;

/// Returns the digest of what a step reads: names, permissions, contents and links. `None` for a
/// step that reads nothing.
///
/// # Errors
/// [`ProvisionError::Input`], [`ProvisionError::Unsuitable`] or an interruption.
pub(super) fn digest(
    step: &StepAction,
    vm: &str,
    cancel: &Cancel,
) -> Result<Option<String>, VmError> {
    read(step, vm, Purpose::Digest, cancel)
}

/// Returns a digest of the sizes, times and inodes of what a step reads, which is quickly known.
/// With the same stamp as before, it is the same.
///
/// # Errors
/// Those of [`digest`].
pub(super) fn stamp(
    step: &StepAction,
    vm: &str,
    cancel: &Cancel,
) -> Result<Option<String>, VmError> {
    read(step, vm, Purpose::Stamp, cancel)
}

/// Writes an archive of what a step reads. Returns its digest.
///
/// # Errors
/// Those of [`digest`], and of writing.
pub(super) fn pack(
    step: &StepAction,
    vm: &str,
    archive: &mut tar::Builder<File>,
    cancel: &Cancel,
) -> Result<Option<String>, VmError> {
    read(step, vm, Purpose::Archive(archive), cancel)
}

/// Purpose of a walk through a step's files.
enum Purpose<'a> {
    /// A digest of names, permissions, contents and links.
    Digest,
    /// An archive, and the same digest.
    Archive(&'a mut tar::Builder<File>),
    /// A digest of names, permissions, links, sizes, times and inodes.
    Stamp,
}

/// Returns the name in the archive of a file that is copied to `to`; a path that ends in a slash is
/// a directory for it.
fn name_at(to: &str, from: &ProjectPath) -> OsString {
    let own = if to.ends_with('/') { from.below.file_name() } else { Path::new(to).file_name() };
    own.unwrap_or(OsStr::new(SCRIPT)).to_owned()
}

/// Returns the directory of the VM in which a step's archive is unpacked, for a copy.
pub(super) fn directory_of(to: &str, is_directory: bool) -> String {
    match Path::new(to).parent().filter(|_| !is_directory && !to.ends_with('/')) {
        Some(parent) => parent.to_string_lossy().into_owned(),
        None => to.to_owned(),
    }
}

/// Returns `true` if a step copies a directory.
pub(super) fn is_directory(path: &ProjectPath, vm: &str) -> Result<bool, VmError> {
    let (_, stat) = open(path).map_err(|error| unreadable(vm, path.absolute(), error))?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn read(
    step: &StepAction,
    vm: &str,
    purpose: Purpose<'_>,
    cancel: &Cancel,
) -> Result<Option<String>, VmError> {
    let (path, name) = match step {
        StepAction::Run(_) => return Ok(None),
        StepAction::Script(path) => (path, OsString::from(SCRIPT)),
        StepAction::Copy { from, to } => (from, name_at(to, from)),
    };
    let (opened, stat) = open(path).map_err(|error| unreadable(vm, path.absolute(), error))?;
    let hasher = Sha256::new();
    let mut reading = Reading { vm, path, purpose, hasher, left: MAX_BYTES, entries: 0, cancel };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory if matches!(step, StepAction::Copy { .. }) => {
            reading.hasher.update(b"directory");
            reading.directory(opened, &mut PathBuf::new(), &path.absolute(), 0)?;
        }
        FileType::RegularFile => {
            let mode = match step {
                StepAction::Script(_) => 0o755,
                _ => stat.st_mode & PERMISSIONS,
            };
            reading.file(opened, &stat, mode, Path::new(&name), &path.absolute())?;
        }
        _ => return Err(reading.unsuitable(path.absolute(), "it is no regular file")),
    }
    Ok(Some(hex(&reading.hasher.finalize())))
}

impl ProjectPath {
    fn absolute(&self) -> PathBuf {
        self.root.join(&self.below)
    }
}

/// Flags for every file: no link is followed, and nothing is waited for.
fn flags() -> OFlags {
    OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC
}

/// Opens a file or directory of the project. The project's directory itself is the user's choice,
/// and may be a link.
fn open(path: &ProjectPath) -> io::Result<(OwnedFd, Stat)> {
    let mut opened = OwnedFd::from(File::open(&path.root)?);
    let mut stat = fstat(&opened)?;
    for part in path.below.components() {
        (opened, stat) = open_at(&opened, part.as_os_str())?;
    }
    Ok((opened, stat))
}

/// Opens a regular file or a directory, which is looked at before: opening a device has effects.
fn open_at(directory: &OwnedFd, name: &OsStr) -> io::Result<(OwnedFd, Stat)> {
    let found = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile | FileType::Directory => {}
        FileType::Symlink => return Err(Errno::LOOP.into()),
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
    }
    let opened = openat(directory, name, flags(), Mode::empty())?;
    let stat = fstat(&opened)?;
    if (stat.st_dev, stat.st_ino) != (found.st_dev, found.st_ino) {
        return Err(io::Error::other("it was replaced while it was opened"));
    }
    Ok((opened, stat))
}

fn unreadable(vm: &str, path: PathBuf, source: io::Error) -> VmError {
    let vm = vm.to_owned().into();
    if source.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
        let reason = "a part of its path is a link, which may lead out of the project";
        return ProvisionError::Unsuitable { vm, path, reason }.into();
    }
    ProvisionError::Input { vm, path, source }.into()
}

/// A walk through a step's files, in the order of their names.
struct Reading<'a> {
    vm: &'a str,
    path: &'a ProjectPath,
    purpose: Purpose<'a>,
    hasher: Sha256,
    /// Bytes that may still be read.
    left: u64,
    entries: usize,
    cancel: &'a Cancel,
}

impl Reading<'_> {
    fn unsuitable(&self, path: PathBuf, reason: &'static str) -> VmError {
        ProvisionError::Unsuitable { vm: self.vm.to_owned().into(), path, reason }.into()
    }

    /// Adds an entry's kind, name and permissions to the digest.
    fn note(&mut self, kind: u8, name: &Path, mode: u32) {
        let name = name.as_os_str().as_bytes();
        self.hasher.update([kind]);
        self.hasher.update((name.len() as u64).to_be_bytes());
        self.hasher.update(name);
        self.hasher.update(mode.to_be_bytes());
    }

    /// Adds a file's times and inode to the digest.
    fn note_stamp(&mut self, stat: &Stat) {
        let times = [stat.st_mtime, stat.st_ctime].map(i64::from);
        let fractions = [stat.st_mtime_nsec, stat.st_ctime_nsec].map(|nanos| nanos as i64);
        for number in times.into_iter().chain(fractions).chain([stat.st_ino as i64]) {
            self.hasher.update(number.to_be_bytes());
        }
    }

    /// Reads the entries of a directory. `below` is its name in the archive.
    fn directory(
        &mut self,
        directory: OwnedFd,
        below: &mut PathBuf,
        at: &Path,
        depth: usize,
    ) -> Result<(), VmError> {
        if depth > MAX_DEPTH {
            return Err(self.unsuitable(at.to_owned(), "its directories are too deep"));
        }
        for name in self.names(&directory, at)? {
            self.cancel.check()?;
            let path = at.join(&name);
            // Nothing of castra's own is ever seen by a guest.
            if name == STATE_DIRECTORY || path == self.path.state_root {
                continue;
            }
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(self.unsuitable(self.path.absolute(), "it has too many files"));
            }
            below.push(&name);
            self.entry(&directory, &name, below, &path, depth)?;
            below.pop();
        }
        Ok(())
    }

    fn names(&self, directory: &OwnedFd, at: &Path) -> Result<Vec<OsString>, VmError> {
        let failed = |error: Errno| unreadable(self.vm, at.to_owned(), error.into());
        let mut names = Vec::new();
        for entry in Dir::read_from(directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
            if names.len() > MAX_ENTRIES {
                return Err(self.unsuitable(at.to_owned(), "it has too many files"));
            }
        }
        names.sort();
        Ok(names)
    }

    fn entry(
        &mut self,
        directory: &OwnedFd,
        name: &OsStr,
        below: &mut PathBuf,
        path: &Path,
        depth: usize,
    ) -> Result<(), VmError> {
        let failed = |error: io::Error| unreadable(self.vm, path.to_owned(), error);
        let found = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed(error.into()))?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Symlink => {
                let target = readlinkat(directory, name, Vec::new())
                    .map_err(|error| failed(error.into()))?;
                self.link(below, OsStr::from_bytes(target.to_bytes()), &found, path)
            }
            FileType::RegularFile | FileType::Directory => {
                let (opened, stat) = open_at(directory, name).map_err(failed)?;
                let mode = stat.st_mode & PERMISSIONS;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    self.note(b'd', below, mode);
                    let mut header = header(tar::EntryType::Directory, mode, 0, &stat);
                    self.append(&mut header, below, io::empty(), path)?;
                    return self.directory(opened, below, path, depth + 1);
                }
                self.file(opened, &stat, mode, below, path)
            }
            _ => Err(self.unsuitable(path.to_owned(), "it is no file, directory or link")),
        }
    }

    fn link(
        &mut self,
        below: &Path,
        target: &OsStr,
        stat: &Stat,
        path: &Path,
    ) -> Result<(), VmError> {
        self.note(b'l', below, 0);
        self.hasher.update((target.len() as u64).to_be_bytes());
        self.hasher.update(target.as_bytes());
        let Purpose::Archive(archive) = &mut self.purpose else { return Ok(()) };
        let mut header = header(tar::EntryType::Symlink, 0o777, 0, stat);
        let appended = archive.append_link(&mut header, below, target);
        appended.map_err(|error| unreadable(self.vm, path.to_owned(), error))
    }

    fn file(
        &mut self,
        opened: OwnedFd,
        stat: &Stat,
        mode: u32,
        below: &Path,
        path: &Path,
    ) -> Result<(), VmError> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let Some(left) = self.left.checked_sub(size) else {
            return Err(self.unsuitable(self.path.absolute(), "it is larger than 1 GiB"));
        };
        self.left = left;
        self.note(b'f', below, mode);
        self.hasher.update(size.to_be_bytes());
        if matches!(self.purpose, Purpose::Stamp) {
            self.note_stamp(stat);
            return Ok(());
        }
        // Another file could be larger than this one was a moment ago.
        let mut hasher = self.hasher.clone();
        let inner = File::from(opened).take(size);
        let mut contents = Contents { inner, hasher: &mut hasher, bytes: 0, cancel: self.cancel };
        let mut header = header(tar::EntryType::Regular, mode, size, stat);
        self.append(&mut header, below, &mut contents, path)?;
        if contents.bytes != size {
            let (vm, path) = (self.vm.to_owned(), path.to_owned());
            return Err(ProvisionError::Changed { vm: vm.into(), path }.into());
        }
        self.hasher = hasher;
        Ok(())
    }

    fn append(
        &mut self,
        header: &mut tar::Header,
        below: &Path,
        mut contents: impl Read,
        path: &Path,
    ) -> Result<(), VmError> {
        let appended = match &mut self.purpose {
            Purpose::Archive(archive) => archive.append_data(header, below, contents),
            Purpose::Digest | Purpose::Stamp => io::copy(&mut contents, &mut io::sink()).map(drop),
        };
        appended.map_err(|error| {
            let cancelled = self.cancel.check().err();
            cancelled.map_or_else(|| unreadable(self.vm, path.to_owned(), error), VmError::from)
        })
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64, stat: &Stat) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    // The VM's root owns it, not this user.
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Contents of a file, hashed while they are read.
struct Contents<'a> {
    inner: io::Take<File>,
    hasher: &'a mut Sha256,
    bytes: u64,
    cancel: &'a Cancel,
}

impl Read for Contents<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel.check().map_err(io::Error::other)?;
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    struct Project(tempfile::TempDir);

    impl Project {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let app = directory.path().join("app");
            fs::create_dir_all(app.join("bin")).expect("a directory");
            fs::create_dir_all(app.join(".castra")).expect("a directory");
            fs::write(app.join(".castra/vm.json"), "secret").expect("written");
            fs::write(app.join("bin/run"), "#!/bin/sh").expect("written");
            fs::set_permissions(app.join("bin/run"), fs::Permissions::from_mode(0o4750))
                .expect("set");
            symlink("bin/run", app.join("link")).expect("linked");
            symlink("/etc/passwd", app.join("outside")).expect("linked");
            symlink("app", directory.path().join("alias")).expect("linked");
            fs::write(directory.path().join("secret"), "s").expect("written");
            Self(directory)
        }

        fn at(&self, below: &str) -> PathBuf {
            self.0.path().join(below)
        }

        fn copy(&self, from: &str, to: &str) -> StepAction {
            StepAction::Copy { from: self.path(from), to: to.to_owned() }
        }

        fn path(&self, below: &str) -> ProjectPath {
            let root = self.0.path().to_owned();
            ProjectPath { state_root: root.join("state"), root, below: below.into() }
        }

        fn digest(&self, from: &str) -> Result<String, VmError> {
            let step = self.copy(from, "/srv/app");
            digest(&step, "dev", &Cancel::new()).map(|digest| digest.expect("reads files"))
        }

        fn stamp(&self, from: &str) -> String {
            let step = self.copy(from, "/srv/app");
            stamp(&step, "dev", &Cancel::new()).expect("read").expect("reads files")
        }

        /// Returns the members of a step's archive: mode and content or target by name.
        fn packed(&self, step: &StepAction) -> BTreeMap<String, (u32, String)> {
            let file = tempfile::tempfile().expect("a file");
            let mut builder = tar::Builder::new(file.try_clone().expect("a file"));
            let packed = pack(step, "dev", &mut builder, &Cancel::new()).expect("packed");
            builder.finish().expect("finished");
            assert_eq!(packed, digest(step, "dev", &Cancel::new()).expect("a digest"));
            let mut file = file;
            io::Seek::rewind(&mut file).expect("rewound");
            let mut archive = tar::Archive::new(file);
            let members = archive.entries().expect("an archive").map(|entry| {
                let mut entry = entry.expect("an entry");
                assert_eq!(entry.header().uid().expect("a number"), 0);
                let target = entry.link_name().expect("a target");
                let mut content = target.map(|to| format!("-> {}", to.display()));
                if content.is_none() {
                    let mut text = String::new();
                    entry.read_to_string(&mut text).expect("text");
                    content = Some(text);
                }
                let mode = entry.header().mode().expect("a mode");
                let name = entry.path().expect("a path").display().to_string();
                (name, (mode, content.unwrap_or_default()))
            });
            members.collect()
        }
    }

    #[test]
    fn a_tree_is_packed_with_modes_and_links_and_without_state() {
        let project = Project::new();
        let packed = project.packed(&project.copy("app", "/srv/app"));
        let names: Vec<&str> = packed.keys().map(String::as_str).collect();
        assert_eq!(names, ["bin", "bin/run", "link", "outside"]);
        assert_eq!(packed["bin/run"], (0o750, "#!/bin/sh".to_owned()));
        assert_eq!(packed["outside"].1, "-> /etc/passwd");
        let file = project.packed(&project.copy("app/bin/run", "/srv/tool"));
        assert_eq!(file["tool"], (0o750, "#!/bin/sh".to_owned()));
        let into = project.packed(&project.copy("app/bin/run", "/srv/"));
        assert_eq!(into["run"].1, "#!/bin/sh");
        let script = StepAction::Script(project.path("app/bin/run"));
        assert_eq!(project.packed(&script)[SCRIPT], (0o755, "#!/bin/sh".to_owned()));
    }

    #[test]
    fn a_directory_is_unpacked_at_its_place_and_a_file_in_the_one_above() {
        assert_eq!(directory_of("/srv/app", true), "/srv/app");
        assert_eq!(directory_of("/srv/tool", false), "/srv");
        assert_eq!(directory_of("/srv/", false), "/srv/");
        assert_eq!(directory_of("/", true), "/");
    }

    #[test]
    fn whatever_a_guest_would_see_changes_the_digest() {
        let project = Project::new();
        let mut digests = vec![project.digest("app").expect("a digest")];
        let mut changed = |change: &dyn Fn(&Project)| {
            change(&project);
            let digest = project.digest("app").expect("a digest");
            assert!(!digests.contains(&digest));
            digests.push(digest);
        };
        changed(&|project| fs::write(project.at("app/bin/run"), "#!/bin/ash").expect("written"));
        changed(&|project| fs::write(project.at("app/new"), "").expect("written"));
        changed(&|project| {
            fs::rename(project.at("app/new"), project.at("app/old")).expect("moved")
        });
        changed(&|project| {
            let mode = fs::Permissions::from_mode(0o600);
            fs::set_permissions(project.at("app/old"), mode).expect("set");
        });
        changed(&|project| {
            fs::remove_file(project.at("app/link")).expect("removed");
            symlink("bin/other", project.at("app/link")).expect("linked");
        });
        changed(&|project| fs::create_dir(project.at("app/empty")).expect("a directory"));
        let last = project.digest("app").expect("a digest");
        fs::write(project.at("app/.castra/vm.json"), "other").expect("written");
        fs::File::open(project.at("app/old"))
            .and_then(|file| file.set_modified(std::time::UNIX_EPOCH))
            .expect("set");
        assert_eq!(project.digest("app").expect("a digest"), last);
    }

    #[test]
    fn nothing_outside_of_the_project_is_read() {
        let project = Project::new();
        for from in ["alias", "alias/bin", "app/link", "app/outside"] {
            let error = project.digest(from).expect_err("is refused");
            assert!(error.to_string().contains("is a link"), "{from}: {error}");
        }
        let error = project.digest("none").expect_err("is refused");
        assert_eq!(crate::error::Explain::kind(&error), crate::error::Kind::NotFound);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            project.at("app/fifo"),
            FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .expect("made");
        for from in ["app", "app/fifo"] {
            assert!(project.digest(from).is_err(), "{from}");
        }
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let project = Project::new();
        let large = File::create(project.at("app/large")).expect("made");
        large.set_len(MAX_BYTES + 1).expect("sparse");
        let error = project.digest("app").expect_err("is refused");
        assert!(error.to_string().contains("larger than 1 GiB"), "{error}");
        fs::remove_file(project.at("app/large")).expect("removed");
        let deep: PathBuf = std::iter::repeat_n("d", MAX_DEPTH + 2).collect();
        fs::create_dir_all(project.at("app").join(deep)).expect("made");
        let error = project.digest("app").expect_err("is refused");
        assert!(error.to_string().contains("too deep"), "{error}");
    }

    #[test]
    fn a_stamp_changes_with_every_change_and_by_nothing_else() {
        let project = Project::new();
        let before = project.stamp("app");
        assert_eq!(project.stamp("app"), before);
        fs::write(project.at("secret"), "elsewhere").expect("written");
        fs::write(project.at("app/.castra/vm.json"), "other").expect("written");
        assert_eq!(project.stamp("app"), before);
        // As long as before, and of the same time.
        let run = project.at("app/bin/run");
        let time = fs::metadata(&run).and_then(|file| file.modified()).expect("a time");
        fs::write(&run, "#!/bin/rs").expect("written");
        fs::File::options()
            .append(true)
            .open(&run)
            .and_then(|file| file.set_modified(time))
            .expect("set");
        let changed = project.stamp("app");
        assert_ne!(changed, before);
        fs::write(project.at("app/new"), "").expect("written");
        assert_ne!(project.stamp("app"), changed);
    }
}
