//! The move from the initramfs into the real root.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{OFlags, Stat};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use crate::trees::Trees;
use crate::watch::watch;

/// How soon after a change of the mounts PID 1 is looked at again: between its last mount and its `chroot` lie
/// microseconds.
const SOON: Duration = Duration::from_millis(4);

/// How many such looks one change is worth.
const LOOKS: u32 = 5;

/// A look that needs no change, in case one was missed.
const SELDOM: Duration = Duration::from_millis(500);

/// Waits until PID 1 has left the initramfs and follows it. PID 1's root changes exactly once, when its `switch_root`
/// calls `chroot`, right before it runs the real init.
pub(crate) async fn enter(trees: &Trees) -> io::Result<()> {
    // `poll` of a mount table reports PRI whenever the table has changed (`proc(5)`).
    let mounts = watch(trees.proc.open("self/mounts", OFlags::RDONLY)?, Interest::PRIORITY)?;
    // Not simply our own root: `pivot_root` would change that together with PID 1's.
    let initramfs = place(&rustix::fs::stat("/")?);
    let mut looks = 0;
    while place(&trees.proc.stat("1/root")?) == initramfs {
        if looks > 0 {
            looks -= 1;
            sleep(SOON).await;
        } else if mounts_changed(&mounts).await? {
            looks = LOOKS;
        }
    }
    let root = trees.proc.open("1/root", OFlags::PATH | OFlags::DIRECTORY)?;
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

/// What tells one directory from all others.
fn place(directory: &Stat) -> (u64, u64) {
    (directory.st_dev, directory.st_ino)
}
