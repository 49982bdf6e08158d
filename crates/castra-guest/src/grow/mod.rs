//! Grows the root filesystem to the size of its disk, and the partition that it is on.
//!
//! The agent does so inside the VM, like `growpart` of cloud images: it sees which partition has
//! the root, whatever is between the two, and a disk that is resized later is nothing special. The
//! host never parses a table in order to write one.

mod crc32;
mod device;
mod filesystem;
mod table;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use castra_wire::{AgentTask, RootGrowth};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::events::{EventSender, Milestone};
use crate::kernel_fs::KernelFs;
use crate::log::log;

use device::Partition;
use filesystem::Filesystem;

/// Time for which other tasks wait for the growth. From 1 to 10 GiB takes 0.3 s on an emulated CPU;
/// a disk of terabytes takes longer, and commands can run meanwhile.
const LIMIT: Duration = Duration::from_secs(1);

/// Time for the kernel to notice that the host has resized the disk, and the interval of looks.
const NOTICE_LIMIT: Duration = Duration::from_secs(10);
const NOTICE_POLL: Duration = Duration::from_millis(50);

/// Number of tries, and the pause between them, for a root that is still read-only. Images that
/// check their root first mount it writable within this time; the others mean to keep it read-only.
const READ_ONLY_TRIES: u32 = 60;
const READ_ONLY_PAUSE: Duration = Duration::from_secs(2);

/// Grows the root filesystem, and reports the milestone early enough that programs that ask for its
/// size see the new one.
pub(crate) async fn keep_size(kernel_fs: Arc<KernelFs>, events: EventSender) {
    let mut growth = spawn_growth(&kernel_fs);
    let in_time = timeout(LIMIT, &mut growth).await;
    events.reached(Milestone::Size);
    let mut outcome = match in_time {
        Ok(outcome) => outcome,
        Err(_) => growth.await,
    };
    let read_only = |error: &io::Error| error.raw_os_error() == Some(Errno::ROFS.raw_os_error());
    for _ in 0..READ_ONLY_TRIES {
        match outcome.map_err(io::Error::from).flatten() {
            Ok(None) => return,
            Ok(Some(left_to_do)) => {
                log(&left_to_do);
                return events.noticed(AgentTask::GrowRoot, left_to_do);
            }
            Err(error) if read_only(&error) => sleep(READ_ONLY_PAUSE).await,
            Err(error) => return events.failed(AgentTask::GrowRoot, error),
        }
        outcome = spawn_growth(&kernel_fs).await;
    }
}

/// Grows the root filesystem to its disk, which the host has just given this size.
pub(crate) async fn to_disk(kernel_fs: Arc<KernelFs>, disk_bytes: u64) -> RootGrowth {
    let grown = async {
        await_disk(&kernel_fs, disk_bytes).await?;
        let left_to_do = spawn_growth(&kernel_fs).await??;
        let found = rustix::fs::fstatvfs(open_root()?)?;
        Ok(RootGrowth::Done { root_bytes: found.f_blocks * found.f_frsize, left_to_do })
    };
    let failed = |error: io::Error| RootGrowth::Failed { reason: error.to_string() };
    grown.await.unwrap_or_else(failed)
}

/// Waits until the kernel knows that the disk of the root has this size.
async fn await_disk(kernel_fs: &KernelFs, disk_bytes: u64) -> io::Result<()> {
    let noticed = Instant::now() + NOTICE_LIMIT;
    while root_disk(kernel_fs)?.is_some_and(|size| size < disk_bytes) {
        if Instant::now() > noticed {
            let reason = "its kernel has not noticed that the disk has grown";
            return Err(io::Error::other(reason));
        }
        sleep(NOTICE_POLL).await;
    }
    Ok(())
}

/// Returns the size of the disk that has the root, in bytes.
fn root_disk(kernel_fs: &KernelFs) -> io::Result<Option<u64>> {
    let root = open_root()?;
    let Some(filesystem) = Filesystem::of(&root)? else { return Ok(None) };
    let Some(device) = filesystem.device(kernel_fs, &root)? else { return Ok(None) };
    match Partition::below(kernel_fs, &device)? {
        Some(partition) => partition.disk().bytes(kernel_fs).map(Some),
        None => device.bytes(kernel_fs).map(Some),
    }
}

/// Lets a mounted filesystem fill its device, which has this size, if it can grow.
pub(crate) fn fill(mounted: &Path, device_bytes: u64) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(mounted, flags, Mode::empty())?;
    match Filesystem::of(&directory)? {
        Some(filesystem) => filesystem.grow(&directory, device_bytes),
        None => Ok(()),
    }
}

fn open_root() -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/", flags, Mode::empty())?)
}

fn spawn_growth(kernel_fs: &Arc<KernelFs>) -> tokio::task::JoinHandle<io::Result<Option<String>>> {
    let kernel_fs = Arc::clone(kernel_fs);
    spawn_blocking(move || grow_root(&kernel_fs))
}

/// Grows the root filesystem, and the partition that it is on, if it is mounted writable. The
/// kernel does nothing if it fills the device already. Returns what is left to the user.
fn grow_root(kernel_fs: &KernelFs) -> io::Result<Option<String>> {
    let root = open_root()?;
    let Some(filesystem) = Filesystem::of(&root)? else { return Ok(None) };
    let Some(device) = filesystem.device(kernel_fs, &root)? else { return Ok(None) };
    if rustix::fs::fstatvfs(&root)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(Errno::ROFS.into());
    }
    let left_to_do = match Partition::below(kernel_fs, &device)? {
        Some(partition) => partition.grow(kernel_fs)?,
        None => None,
    };
    filesystem.grow(&root, device.bytes(kernel_fs)?)?;
    Ok(left_to_do)
}
