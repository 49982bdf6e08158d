//! Virtio disks with a serial number.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl::{NoArg, Opcode, ioctl, opcode};

use crate::kernel_fs::KernelFs;

/// Unit of the sizes of block devices, in bytes.
const SECTOR_BYTES: u64 = 512;

/// `BLKRRPART` and `BLKFLSBUF` (`linux/fs.h`).
const REREAD_PARTITIONS: Opcode = opcode::none(0x12, 95);
const DROP_CACHE: Opcode = opcode::none(0x12, 97);

/// Number of looks for a disk whose driver has not found it yet, and the pause between them.
const LOOKS: u32 = 100;
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Pause and number of tries while something else, udev for instance, has a disk open.
const BUSY_TRIES: u32 = 25;
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// A virtio disk: its name in `/dev`.
pub(super) struct Device(String);

impl Device {
    /// Returns all virtio disks that have a serial number, with it.
    pub(super) fn all(kernel_fs: &KernelFs) -> Vec<(Self, String)> {
        let names = kernel_fs.sys.names("block").unwrap_or_default();
        let disks = names.into_iter().filter(|name| name.starts_with("vd"));
        let with_serial = disks.filter_map(|name| {
            // The driver asks the disk each time.
            let serial = kernel_fs.sys.read(&format!("block/{name}/serial")).ok()?;
            (!serial.is_empty()).then_some((Self(name), serial))
        });
        with_serial.collect()
    }

    /// Returns the disk with this serial number. Waits for one that is still to appear.
    pub(super) fn named(serial: &str, kernel_fs: &KernelFs) -> Option<Self> {
        for look in 0..LOOKS {
            if look > 0 {
                sleep(LOOK_EVERY);
            }
            let mut all = Self::all(kernel_fs).into_iter();
            if let Some((device, _)) = all.find(|(_, found)| found == serial) {
                return Some(device);
            }
        }
        None
    }

    /// Returns the path in the guest.
    pub(super) fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.0)
    }

    /// Opens the disk.
    pub(super) fn open(&self, kernel_fs: &KernelFs, flags: OFlags) -> io::Result<File> {
        Ok(File::from(kernel_fs.dev.open(&self.0, flags)?))
    }

    /// Returns the size, in bytes.
    pub(super) fn bytes(&self, kernel_fs: &KernelFs) -> io::Result<u64> {
        let sectors = kernel_fs.sys.read(&format!("block/{}/size", self.0))?;
        let sectors: u64 = sectors.parse().map_err(io::Error::other)?;
        Ok(sectors.saturating_mul(SECTOR_BYTES))
    }

    /// Returns `true` if the disk's filesystem is mounted at this path.
    pub(super) fn is_mounted_at(&self, path: &Path) -> bool {
        let (Ok(at), Ok(disk)) = (fs::metadata(path), fs::metadata(self.path())) else {
            return false;
        };
        at.dev() == disk.rdev()
    }

    /// Makes the link `virtio-SERIAL` to the disk, if it is missing.
    pub(super) fn link(&self, kernel_fs: &KernelFs, links: &str, serial: &str) -> io::Result<()> {
        // A serial number may be anything.
        if serial.contains('/') || kernel_fs.dev.has(&format!("{links}/virtio-{serial}")) {
            return Ok(());
        }
        let up = "../".repeat(links.split('/').count());
        kernel_fs.dev.link(&format!("{up}{}", self.0), links, &format!("virtio-{serial}"))
    }

    /// Has the kernel forget what it knows of the disk's content, and read its partition table.
    /// Programs that wait for events of devices get one.
    #[expect(unsafe_code, reason = "no library wraps these two ioctls")]
    pub(super) fn renew(&self, kernel_fs: &KernelFs) -> io::Result<()> {
        let disk = self.open(kernel_fs, OFlags::RDONLY)?;
        // SAFETY: this ioctl takes no argument.
        unsafe { ioctl(&disk, NoArg::<DROP_CACHE>::new()) }?;
        for attempt in 0.. {
            // SAFETY: this ioctl takes no argument.
            match unsafe { ioctl(&disk, NoArg::<REREAD_PARTITIONS>::new()) } {
                Err(Errno::BUSY) if attempt < BUSY_TRIES => sleep(BUSY_PAUSE),
                outcome => {
                    outcome?;
                    break;
                }
            }
        }
        // What udev knows of a disk without partitions is that of the template's.
        let _ = kernel_fs.sys.write(&format!("block/{}/uevent", self.0), "change");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ioctls_have_the_kernels_numbers() {
        assert_eq!((REREAD_PARTITIONS, DROP_CACHE), (0x125F, 0x1261));
    }
}
