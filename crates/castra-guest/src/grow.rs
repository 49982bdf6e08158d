//! Grows the root filesystem to the size of its disk.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use castra_wire::AgentTask;
use rustix::fs::{Mode, OFlags, major, minor};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::events::{EventSender, Milestone};
use crate::kernel_fs::KernelFs;

/// Unit in which the kernel counts a block device's size, whatever the device's own sector size is.
const SECTOR_BYTES: u64 = 512;

/// `EXT4_SUPER_MAGIC`, which ext2 and ext3 share (`statfs(2)`).
const EXT4_MAGIC: u64 = 0xEF53;

/// Time for which other tasks wait for the growth. From 1 to 10 GiB takes 0.3 s on an emulated CPU;
/// a disk of terabytes takes longer, and commands can run meanwhile.
const LIMIT: Duration = Duration::from_secs(1);

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
    let read_only =
        |error: &io::Error| error.raw_os_error() == Some(rustix::io::Errno::ROFS.raw_os_error());
    for _ in 0..READ_ONLY_TRIES {
        match outcome.map_err(io::Error::from).flatten() {
            Ok(()) => return,
            Err(error) if read_only(&error) => sleep(READ_ONLY_PAUSE).await,
            Err(error) => return events.failed(AgentTask::GrowRoot, error),
        }
        outcome = spawn_growth(&kernel_fs).await;
    }
}

fn spawn_growth(kernel_fs: &Arc<KernelFs>) -> tokio::task::JoinHandle<io::Result<()>> {
    let kernel_fs = Arc::clone(kernel_fs);
    spawn_blocking(move || grow_root(&kernel_fs))
}

/// Grows the root filesystem if it is an ext4 on a block device, mounted and in use. Leaves a
/// read-only one alone. The kernel does nothing if it fills the device already.
fn grow_root(kernel_fs: &KernelFs) -> io::Result<()> {
    let root =
        rustix::fs::open("/", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let filesystem = rustix::fs::fstatfs(&root)?;
    let device = rustix::fs::fstat(&root)?.st_dev;
    let size = format!("dev/block/{}:{}/size", major(device), minor(device));
    if u64::try_from(filesystem.f_type).ok() != Some(EXT4_MAGIC) || !kernel_fs.sys.has(&size) {
        return Ok(());
    }
    let sectors: u64 = kernel_fs.sys.read(&size)?.parse().map_err(io::Error::other)?;
    let block_bytes = u64::try_from(filesystem.f_bsize).map_err(io::Error::other)?;
    let blocks = sectors.saturating_mul(SECTOR_BYTES).checked_div(block_bytes).unwrap_or_default();
    Ok(rustix::fs::ext4_ioc_resize_fs(&root, blocks)?)
}
