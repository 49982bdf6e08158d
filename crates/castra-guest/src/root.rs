//! The move from the initramfs into the real root.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{OFlags, Stat};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use crate::kernel_fs::KernelFs;
use crate::watch::watch;

/// Interval of looks at PID 1 after a change of the mounts: only microseconds lie between its last
/// mount and its `chroot`.
const SOON: Duration = Duration::from_millis(4);

/// Number of such looks after one change.
const LOOKS: u32 = 5;

/// Interval of looks without a change, in case one was missed.
const SELDOM: Duration = Duration::from_millis(500);

/// Identity of a directory: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Directory(u64, u64);

impl Directory {
    fn of(status: &Stat) -> Self {
        Self(status.st_dev, status.st_ino)
    }
}

/// Returns the identity of the directory at a path.
pub(crate) fn directory(path: &str) -> io::Result<Directory> {
    Ok(Directory::of(&rustix::fs::stat(path)?))
}

/// Waits until PID 1 has left the initramfs, and follows it. PID 1's root changes exactly once,
/// when its `switch_root` calls `chroot`, right before it runs the real init. `on_change` is called
/// after each change of the mounts before that, and `on_mounted` once if the root is seen to be
/// mounted.
pub(crate) async fn enter(
    kernel_fs: &KernelFs,
    initramfs: Directory,
    mut on_change: impl FnMut(),
    on_mounted: impl FnOnce(),
) -> io::Result<()> {
    // `poll` of a mount table reports PRI whenever the table has changed (`proc(5)`).
    let mounts = watch(kernel_fs.proc.open("self/mounts", OFlags::RDONLY)?, Interest::PRIORITY)?;
    let mut on_mounted = Some(on_mounted);
    let mut looks = 0;
    // Not simply compared with our own root: `pivot_root` would change that together with PID
    // 1's.
    while Directory::of(&kernel_fs.proc.stat("1/root")?) == initramfs {
        if looks > 0 {
            looks -= 1;
            sleep(SOON).await;
        } else if mounts_changed(&mounts).await? {
            looks = LOOKS;
            on_change();
            if on_mounted.is_some()
                && kernel_fs.proc.read("self/mountinfo").is_ok_and(|mounts| has_disk(&mounts))
                && let Some(on_mounted) = on_mounted.take()
            {
                on_mounted();
            }
        }
    }
    let root = kernel_fs.proc.open("1/root", OFlags::PATH | OFlags::DIRECTORY)?;
    rustix::process::fchdir(root)?;
    Ok(rustix::process::chroot(".")?)
}

async fn mounts_changed(mounts: &AsyncFd<OwnedFd>) -> io::Result<bool> {
    tokio::select! {
        ready = mounts.ready(Interest::PRIORITY) => {
            ready?.clear_ready();
            Ok(true)
        }
        () = sleep(SELDOM) => Ok(false),
    }
}

/// Returns `true` if a filesystem on a block device is mounted. The kernel's virtual filesystems
/// have major number 0 (`proc_pid_mountinfo(5)`), and an initramfs has no others. So has btrfs.
fn has_disk(mountinfo: &str) -> bool {
    mountinfo.lines().any(|line| {
        let device = line.split(' ').nth(2);
        line.contains(" - btrfs ") || device.is_some_and(|device| !device.starts_with("0:"))
    })
}

#[cfg(test)]
mod tests {
    use super::has_disk;

    #[test]
    fn a_mounted_disk_is_distinguished_from_what_the_kernel_makes() {
        let before = "1 1 0:2 / / rw - rootfs rootfs rw\n22 1 0:21 / /proc rw - proc proc rw";
        assert!(!has_disk(before));
        assert!(has_disk(&format!("{before}\n30 1 253:0 / /sysroot rw - ext4 /dev/vda rw")));
        assert!(has_disk(&format!("{before}\n30 1 0:25 /@ /root rw - btrfs /dev/vda1 rw")));
        assert!(!has_disk(""));
    }
}
