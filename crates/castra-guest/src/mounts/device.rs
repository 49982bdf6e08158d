//! `/dev/fuse`, and mounting with it.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::kernel_fs::KernelFs;
use crate::process::image_program;

/// Device of FUSE, which exists once the kernel has it.
const DEVICE: &str = "fuse";

/// Module of FUSE, for a kernel without.
const MODULE: &str = "fuse";

/// Interval and number of looks for the device after the module is loaded.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const LOOKS: u32 = 100;

/// Source of the mount, as `df` and `/proc/mounts` show it.
const SOURCE: &str = "castra";

/// Type of the mount: FUSE, and a subtype that the kernel only shows.
const KIND: &str = "fuse.castra";

/// Read-ahead of a mount, in KiB: as much as one READ has. Each page arrives as a message, and the
/// fewer wait for each other the better.
const READ_AHEAD_KIB: u32 = 1024;

/// Maximum number of dead mounts on one directory that are removed.
const MAX_DEAD: u32 = 16;

/// Loads the kernel's module if there is no device. A kernel without it stays as it is.
pub(crate) fn load(kernel_fs: &KernelFs) {
    if kernel_fs.dev.has(DEVICE) {
        return;
    }
    let loaded = image_program("modprobe", &[MODULE]).status();
    if loaded.is_ok_and(|status| status.success()) {
        for _ in 0..LOOKS {
            if kernel_fs.dev.has(DEVICE) {
                return;
            }
            sleep(LOOK_EVERY);
        }
    }
}

/// Numbers by which the kernel distinguishes filesystems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbers {
    major: u32,
    minor: u32,
}

impl Numbers {
    /// Returns those of the filesystem at a path. Asks no host for anything: the answer would have
    /// to come by way of this agent.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let found = rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
        Ok(Self { major: found.stx_dev_major, minor: found.stx_dev_minor })
    }

    /// Returns those of the filesystem of an open file, likewise.
    pub(super) fn of(fd: &OwnedFd) -> io::Result<Self> {
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::EMPTY_PATH;
        let found = rustix::fs::statx(fd, "", flags, StatxFlags::empty())?;
        Ok(Self { major: found.stx_dev_major, minor: found.stx_dev_minor })
    }

    /// Returns `true` if this agent's processes see the filesystem anywhere.
    fn are_mounted(self, kernel_fs: &KernelFs) -> bool {
        let Self { major, minor } = self;
        let numbers = format!("{major}:{minor}");
        let mounts = kernel_fs.proc.read("self/mountinfo").unwrap_or_default();
        mounts.lines().any(|line| line.split(' ').nth(2) == Some(&numbers))
    }
}

/// Mounts a directory whose requests come from the returned device. Makes the directory if it is
/// missing.
///
/// # Errors
/// Returns a reason for the user.
pub(super) fn mount(
    kernel_fs: &KernelFs,
    path: &Path,
    is_read_only: bool,
) -> Result<(OwnedFd, Numbers), String> {
    load(kernel_fs);
    if !kernel_fs.dev.has(DEVICE) {
        return Err("the guest's kernel has no FUSE: /dev/fuse is missing, and `modprobe fuse` \
                    does not load it"
            .into());
    }
    detach_dead(path);
    let directory = |error: io::Error| format!("cannot make the directory: {error}");
    fs::create_dir_all(path).map_err(directory)?;
    let mount = || {
        let device = kernel_fs.dev.open(DEVICE, OFlags::RDWR | OFlags::NONBLOCK)?;
        // Every user of the guest may use it: what they may do is what the host's user may.
        let data =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let data = CString::new(data)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount(SOURCE, path, KIND, flags, Some(data.as_c_str()))?;
        if is_read_only {
            // The mount is, and not the filesystem: the nudger has another mount of it.
            let flags = flags | MountFlags::BIND | MountFlags::RDONLY;
            rustix::mount::mount_remount(path, flags, c"").inspect_err(|_| {
                let _ = rustix::mount::unmount(path, UnmountFlags::DETACH);
            })?;
        }
        Ok(device)
    };
    let device =
        mount().map_err(|error: io::Error| format!("the guest's kernel refuses: {error}"))?;
    let numbers = Numbers::at(path).map_err(|error| format!("it is gone again: {error}"))?;
    // A kernel that refuses reads ahead less.
    let _ = read_ahead(kernel_fs, numbers);
    Ok((device, numbers))
}

/// Raises a mount's read-ahead, before the answer to INIT confirms it.
fn read_ahead(kernel_fs: &KernelFs, Numbers { major, minor }: Numbers) -> io::Result<()> {
    let setting = format!("class/bdi/{major}:{minor}/read_ahead_kb");
    kernel_fs.sys.write(&setting, &READ_AHEAD_KIB.to_string())
}

/// Unmounts a directory. One that the guest has unmounted by itself is no error.
///
/// # Errors
/// Returns a reason for the user.
pub(super) fn unmount(kernel_fs: &KernelFs, path: &Path, numbers: Numbers) -> Result<(), String> {
    if !Numbers::at(path).is_ok_and(|found| found == numbers) {
        return match numbers.are_mounted(kernel_fs) {
            true => Err("the guest has mounted something over it, or has moved it".to_owned()),
            false => Ok(()),
        };
    }
    rustix::mount::unmount(path, UnmountFlags::empty()).map_err(|error| match error {
        Errno::BUSY => {
            "programs of the guest have files open or their working directory in it".to_owned()
        }
        error => error.to_string(),
    })
}

/// Detaches mounts of an agent before this one, whose device is closed: nothing answers there.
fn detach_dead(path: &Path) {
    for _ in 0..MAX_DEAD {
        if !matches!(rustix::fs::stat(path), Err(Errno::NOTCONN)) {
            return;
        }
        if rustix::mount::unmount(path, UnmountFlags::DETACH).is_err() {
            return;
        }
    }
}
