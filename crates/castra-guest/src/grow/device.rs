//! Block devices as the kernel shows them, and the growth of a partition.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use rustix::fs::{OFlags, major, minor};

use super::table::{self, Change, HEAD_BYTES, SECTOR};
use crate::kernel_fs::KernelFs;
use crate::log::log;

/// Maximum number of mappings between a filesystem and its partition: encryption and a volume.
const MAX_MAPPINGS: usize = 4;

/// Block device: its directory in sysfs.
pub(super) struct Device(String);

impl Device {
    /// Returns the device with this number, unless the number is none of a block device.
    pub(super) fn of_number(kernel_fs: &KernelFs, number: u64) -> Option<Self> {
        let directory = format!("dev/block/{}:{}", major(number), minor(number));
        kernel_fs.sys.has(&format!("{directory}/size")).then_some(Self(directory))
    }

    /// Returns the device to which a path leads.
    pub(super) fn of_path(kernel_fs: &KernelFs, path: &Path) -> io::Result<Option<Self>> {
        Ok(Self::of_number(kernel_fs, fs::metadata(path)?.rdev()))
    }

    /// Returns the size in bytes.
    pub(super) fn bytes(&self, kernel_fs: &KernelFs) -> io::Result<u64> {
        // The kernel counts in this unit, whatever the device's own sectors are.
        Ok(self.number(kernel_fs, "size")?.saturating_mul(SECTOR as u64))
    }

    fn number(&self, kernel_fs: &KernelFs, name: &str) -> io::Result<u64> {
        let text = kernel_fs.sys.read(&format!("{}/{name}", self.0))?;
        text.parse().map_err(io::Error::other)
    }

    /// Returns the name in `/dev`.
    fn name(&self, kernel_fs: &KernelFs) -> io::Result<String> {
        let event = kernel_fs.sys.read(&format!("{}/uevent", self.0))?;
        let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        Ok(name.ok_or(io::ErrorKind::NotFound)?.to_owned())
    }
}

/// Partition that a filesystem is on.
pub(super) struct Partition {
    device: Device,
    /// What lies between the two.
    mapping: Option<Mapping>,
}

/// Device of the device mapper.
struct Mapping {
    name: String,
    is_logical_volume: bool,
}

impl Partition {
    /// Returns the partition below a device, through mappings of one device each.
    pub(super) fn below(kernel_fs: &KernelFs, device: &Device) -> io::Result<Option<Self>> {
        let (sys, mut directory, mut mapping) = (&kernel_fs.sys, device.0.clone(), None);
        for _ in 0..=MAX_MAPPINGS {
            if sys.has(&format!("{directory}/partition")) {
                return Ok(Some(Self { device: Device(directory), mapping }));
            }
            let Ok(name) = sys.read(&format!("{directory}/dm/name")) else { return Ok(None) };
            let is_logical_volume = sys.read(&format!("{directory}/dm/uuid"))?.starts_with("LVM-");
            mapping.get_or_insert(Mapping { name, is_logical_volume });
            let below = sys.names(&format!("{directory}/slaves"))?;
            let [below] = below.as_slice() else { return Ok(None) };
            directory = format!("{directory}/slaves/{below}");
        }
        Ok(None)
    }

    /// Returns the disk that the partition is on.
    pub(super) fn disk(&self) -> Device {
        // The directory of a partition is in that of its disk.
        Device(format!("{}/..", self.device.0))
    }

    /// Lets the partition end where the disk does, if it is the last. Returns what is left to do
    /// where a mapping keeps its size.
    pub(super) fn grow(&self, kernel_fs: &KernelFs) -> io::Result<Option<String>> {
        let disk = self.disk();
        if disk.number(kernel_fs, "queue/logical_block_size")? != SECTOR as u64 {
            return Ok(None);
        }
        let disk_sectors = disk.number(kernel_fs, "size")?;
        let partition = table::Partition {
            number: u32::try_from(self.device.number(kernel_fs, "partition")?)
                .map_err(io::Error::other)?,
            start: self.device.number(kernel_fs, "start")?,
            sectors: self.device.number(kernel_fs, "size")?,
        };
        if !table::has_room(disk_sectors, partition) {
            return Ok(None);
        }
        let file = File::from(kernel_fs.dev.open(&disk.name(kernel_fs)?, OFlags::RDWR)?);
        let mut head = vec![0; HEAD_BYTES];
        file.read_exact_at(&mut head, 0)?;
        let name = self.device.name(kernel_fs)?;
        match table::grow(&head, disk_sectors, partition) {
            Ok(None) => Ok(None),
            Ok(Some(change)) => {
                write(&file, &change)?;
                resize_in_kernel(&file, partition, change.sectors)?;
                log(format!("{name} has grown to {} MiB", change.sectors / 2048));
                Ok(self.mapping.as_ref().map(|mapping| mapping.left_to_do(&name)))
            }
            Err(reason) => {
                log(format!("{name} keeps its size: {reason}"));
                Ok(None)
            }
        }
    }
}

impl Mapping {
    fn left_to_do(&self, partition: &str) -> String {
        let Self { name, is_logical_volume } = self;
        if *is_logical_volume {
            return format!(
                "/dev/{partition} has grown, and the logical volume of the root has not: \
                 `pvresize /dev/{partition} && lvextend -r -l +100%FREE /dev/mapper/{name}` in the \
                 VM grows it"
            );
        }
        format!(
            "/dev/{partition} has grown, and {name} on it has not: if it is encrypted, \
             `cryptsetup resize {name}` in the VM grows it"
        )
    }
}

/// Writes a table: the backup first and, once it is on the disk, the primary.
fn write(disk: &File, change: &Change) -> io::Result<()> {
    if let Some((at, backup)) = &change.backup {
        disk.write_all_at(backup, *at)?;
        disk.sync_all()?;
    }
    disk.write_all_at(&change.head, 0)?;
    disk.sync_all()
}

/// `BLKPG` and `BLKPG_RESIZE_PARTITION` (`linux/blkpg.h`).
const BLKPG: libc::Ioctl = 0x1269;
const RESIZE_PARTITION: libc::c_int = 3;

/// `struct blkpg_partition`.
#[repr(C)]
struct PartitionRequest {
    start_bytes: i64,
    length_bytes: i64,
    number: libc::c_int,
    names: [u8; 128],
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct Request {
    operation: libc::c_int,
    flags: libc::c_int,
    data_bytes: libc::c_int,
    data: *mut PartitionRequest,
}

/// Gives the kernel the new size of a partition, which may be mounted.
#[expect(unsafe_code, reason = "no library wraps this ioctl")]
fn resize_in_kernel(disk: &File, partition: table::Partition, sectors: u64) -> io::Result<()> {
    let bytes = |sectors: u64| i64::try_from(sectors * SECTOR as u64).map_err(io::Error::other);
    let mut data = PartitionRequest {
        start_bytes: bytes(partition.start)?,
        length_bytes: bytes(sectors)?,
        number: libc::c_int::try_from(partition.number).map_err(io::Error::other)?,
        names: [0; 128],
    };
    let mut request = Request {
        operation: RESIZE_PARTITION,
        flags: 0,
        data_bytes: libc::c_int::try_from(size_of::<PartitionRequest>())
            .map_err(io::Error::other)?,
        data: &raw mut data,
    };
    // SAFETY: the kernel reads the two structures, which live until the call returns.
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
