//! Repeats changes of the host in the guest: its kernel notifies programs that watch files only of
//! what happens in it.
//!
//! The system calls come from a thread with a user of its own, for which the host answers and does
//! nothing. Files outside of the mount are out of reach: each path is resolved in a clone of the
//! mount that nothing else sees, without links and without what is mounted in it. The clone is
//! there for the length of a batch, so that the directory can be unmounted.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use castra_wire::{Change, ChangeKind, Changes, MountMessage, NUDGER_UID};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::thread::CapabilitiesSecureBits;
use tokio::sync::mpsc::UnboundedSender;

use super::keeper::Place;

/// Way to the thread, which ends once this is dropped.
#[derive(Debug)]
pub(super) struct Nudger(mpsc::Sender<Job>);

/// Changes, and the way on which is said that they are repeated.
type Job = (Changes, UnboundedSender<MountMessage>);

impl Nudger {
    /// Starts the thread.
    pub(super) fn start(place: Place) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::Builder::new().name("castra-nudger".to_owned()).spawn(move || {
            let is_nudger = become_nudger();
            for (changes, done) in queue {
                if is_nudger.is_ok() {
                    // A kernel before Linux 5.6 cannot, and the directory may be unmounted.
                    let _ = repeat(&place, &changes);
                }
                // Fails if the host is gone.
                let _ = done.send(MountMessage::Repeated);
            }
        })?;
        Ok(Self(jobs))
    }

    /// Has changes repeated.
    pub(super) fn repeat(&self, changes: Changes, done: UnboundedSender<MountMessage>) {
        if let Err(unsent) = self.0.send((changes, done)) {
            let _ = unsent.0.1.send(MountMessage::Repeated);
        }
    }
}

/// Gives the calling thread the user whose requests have no effect, and leaves it its capabilities.
fn become_nudger() -> io::Result<()> {
    rustix::thread::set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
    let user = rustix::process::Uid::from_raw(NUDGER_UID);
    rustix::thread::set_thread_res_uid(None, Some(user), None)?;
    if rustix::process::geteuid() == user { Ok(()) } else { Err(Errno::PERM.into()) }
}

fn repeat(place: &Place, changes: &Changes) -> io::Result<()> {
    let mount = clone_of(&place.path)?;
    if super::device::Numbers::of(&mount)? != place.numbers {
        return Ok(());
    }
    for (group, change) in (changes.group..).zip(&changes.changes) {
        if may_detach(&change.kind) && names_of(change).any(|name| is_in_use(place, &name)) {
            continue;
        }
        let group = rustix::process::Gid::from_raw(group);
        rustix::thread::set_thread_res_gid(None, Some(group), None)?;
        // Fails if there is something else by now, whose change follows.
        let _ = nudge(&mount, change);
    }
    Ok(())
}

/// Returns `true` for a change at whose repetition the kernel detaches what is mounted there.
fn may_detach(kind: &ChangeKind) -> bool {
    match kind {
        ChangeKind::Contents { .. } | ChangeKind::Attributes { .. } => false,
        ChangeKind::File { .. }
        | ChangeKind::Directory
        | ChangeKind::Link
        | ChangeKind::Fifo
        | ChangeKind::Socket
        | ChangeKind::Removed
        | ChangeKind::RemovedDirectory
        | ChangeKind::Moved { .. } => true,
    }
}

/// Returns the paths below the mount that a change is about.
fn names_of(change: &Change) -> impl Iterator<Item = PathBuf> {
    let path = |directory: &[u8], name: &[u8]| {
        Path::new(OsStr::from_bytes(directory)).join(OsStr::from_bytes(name))
    };
    let target = match &change.kind {
        ChangeKind::Moved { directory, name } => Some(path(directory, name)),
        _ => None,
    };
    [path(&change.directory, &change.name)].into_iter().chain(target)
}

/// Returns `true` if something is mounted at a path below the mount, or below that. Without `/proc`
/// nothing is known, and nothing is risked.
fn is_in_use(place: &Place, path: &Path) -> bool {
    let Ok(mounts) = fs::read("/proc/self/mountinfo") else { return true };
    let path = place.path.join(path);
    mount_points(&mounts).any(|mounted| mounted.starts_with(&path))
}

/// Returns the mount points of a `mountinfo` (`proc_pid_mountinfo(5)`).
fn mount_points(mountinfo: &[u8]) -> impl Iterator<Item = PathBuf> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    lines.filter_map(|line| {
        let escaped = line.split(|byte| *byte == b' ').nth(4)?;
        Some(PathBuf::from(OsString::from_vec(unescaped(escaped))))
    })
}

/// Returns a word in which the kernel has written spaces and the like as octal numbers: `\040`.
fn unescaped(mut word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    while let Some((first, rest)) = word.split_first() {
        let number = rest.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let number = number.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match number.filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                word = &rest[3..];
            }
            None => {
                bytes.push(*first);
                word = rest;
            }
        }
    }
    bytes
}

/// Returns a mount of its own of what is mounted at a path, which can be written to.
fn clone_of(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let mount = open_tree(CWD, path, flags)?;
    // Before Linux 5.12, there are no notifications in a mount that is read-only.
    let _ = make_writable(&mount);
    Ok(mount)
}

#[expect(unsafe_code, reason = "no library wraps mount_setattr")]
fn make_writable(mount: &OwnedFd) -> io::Result<()> {
    /// `struct mount_attr` of `<linux/mount.h>`.
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    /// `MOUNT_ATTR_RDONLY`.
    const READ_ONLY: u64 = 1;
    let attributes = Attributes { set: 0, clear: READ_ONLY, propagation: 0, user_namespace: 0 };
    // SAFETY: the kernel reads the empty path and the structure only, for the length of the call.
    let state = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if state < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the system call of a change.
fn nudge(mount: &OwnedFd, change: &Change) -> Result<(), Errno> {
    let directory: &[u8] = if change.directory.is_empty() { b"." } else { &change.directory };
    let directory = open(mount, directory, OFlags::PATH | OFlags::DIRECTORY)?;
    let name = &*change.name;
    let make = |kind| rustix::fs::mknodat(&directory, name, kind, Mode::RUSR, 0);
    match &change.kind {
        ChangeKind::File { is_written, is_executable: false } => {
            let file = open(&directory, name, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY)?;
            if *is_written { write(&file) } else { Ok(()) }
        }
        ChangeKind::File { is_written, is_executable: true } => {
            make(FileType::RegularFile)?;
            if *is_written { write(&open(&directory, name, OFlags::RDONLY)?) } else { Ok(()) }
        }
        ChangeKind::Directory => rustix::fs::mkdirat(&directory, name, Mode::RWXU),
        ChangeKind::Link => rustix::fs::symlinkat("/", &directory, name),
        ChangeKind::Fifo => make(FileType::Fifo),
        ChangeKind::Socket => make(FileType::Socket),
        ChangeKind::Contents { is_executable } => {
            let access = if *is_executable { OFlags::RDONLY } else { OFlags::WRONLY };
            let file = open(&directory, name, access).or_else(|_| {
                // It runs.
                open(&directory, name, OFlags::RDONLY)
            })?;
            write(&file)
        }
        ChangeKind::Attributes { is_file: true } => {
            // A host that writes by mapping a file is not noticed before it sets attributes.
            let file = open(&directory, name, OFlags::RDONLY)?;
            rustix::fs::futimens(&file, &times(UTIME_NOW))
        }
        ChangeKind::Attributes { is_file: false } => {
            let name = if name.is_empty() { b"." } else { name };
            let now = times(UTIME_NOW);
            rustix::fs::utimensat(&directory, name, &now, AtFlags::SYMLINK_NOFOLLOW)
        }
        ChangeKind::Removed => rustix::fs::unlinkat(&directory, name, AtFlags::empty()),
        ChangeKind::RemovedDirectory => rustix::fs::unlinkat(&directory, name, AtFlags::REMOVEDIR),
        ChangeKind::Moved { directory: to, name: new_name } => {
            let to: &[u8] = if to.is_empty() { b"." } else { to };
            let to = open(mount, to, OFlags::PATH | OFlags::DIRECTORY)?;
            rustix::fs::renameat(&directory, name, &to, &**new_name)
        }
    }
}

/// Opens a path below a directory, and nothing that is reached by a link or mounted there.
fn open(directory: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let always = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let always = if flags.contains(OFlags::PATH) { OFlags::CLOEXEC } else { always };
    let mode = if flags.contains(OFlags::CREATE) { Mode::RUSR | Mode::WUSR } else { Mode::empty() };
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(directory, path, flags | always, mode, resolve)
}

/// Sets the time of the last write alone, which the kernel reports as a write.
fn write(file: &OwnedFd) -> Result<(), Errno> {
    rustix::fs::futimens(file, &times(UTIME_OMIT))
}

fn times(accessed: i64) -> Timestamps {
    let time = |nanoseconds| Timespec { tv_sec: 0, tv_nsec: nanoseconds };
    Timestamps { last_access: time(accessed), last_modification: time(UTIME_NOW) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_in_the_mount_is_known() {
        let text = b"22 1 0:5 / / rw - ext4 /dev/vda rw\n\
            30 22 0:9 / /src rw - fuse castra rw\n\
            31 30 0:10 / /src/a\\040b/c\\134 rw - tmpfs none rw\n";
        let found: Vec<_> = mount_points(text).collect();
        assert_eq!(found, [Path::new("/"), Path::new("/src"), Path::new("/src/a b/c\\")]);
        assert!(found[2].starts_with("/src/a b") && !found[2].starts_with("/src/a"));
    }

    #[test]
    fn both_names_of_a_move_count() {
        let kind = ChangeKind::Moved { directory: b"e".to_vec(), name: b"y".to_vec() };
        let change = Change { directory: Vec::new(), name: b"x".to_vec(), kind };
        assert!(names_of(&change).eq([PathBuf::from("x"), PathBuf::from("e/y")]));
    }
}
