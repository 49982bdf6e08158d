//! Growth of filesystems that can grow while they are mounted: ext4, xfs and btrfs.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::ioctl::{Getter, Opcode, Setter, Updater, ioctl, opcode};

use super::device::Device;
use crate::kernel_fs::KernelFs;

/// Magic numbers of `statfs(2)`. ext2 and ext3 share that of ext4.
const EXT4_MAGIC: u64 = 0xEF53;
const XFS_MAGIC: u64 = 0x5846_5342;
const BTRFS_MAGIC: u64 = 0x9123_683E;

/// Kind of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filesystem {
    Ext4 { block_bytes: u64 },
    Xfs,
    Btrfs,
}

impl Filesystem {
    /// Returns the kind of a mounted filesystem; `None` for one that cannot grow.
    pub(super) fn of(root: &OwnedFd) -> io::Result<Option<Self>> {
        let status = rustix::fs::fstatfs(root)?;
        let block_bytes = u64::try_from(status.f_bsize).map_err(io::Error::other)?;
        Ok(match u64::try_from(status.f_type).unwrap_or_default() {
            EXT4_MAGIC => Some(Self::Ext4 { block_bytes }),
            XFS_MAGIC => Some(Self::Xfs),
            BTRFS_MAGIC => Some(Self::Btrfs),
            _ => None,
        })
    }

    /// Returns the filesystem's device; `None` if it has several, or none.
    pub(super) fn device(self, kernel_fs: &KernelFs, root: &OwnedFd) -> io::Result<Option<Device>> {
        if self == Self::Btrfs {
            return match only_device(root)? {
                Some(only) => Device::of_path(kernel_fs, Path::new(OsStr::from_bytes(only.path()))),
                None => Ok(None),
            };
        }
        Ok(Device::of_number(kernel_fs, rustix::fs::fstat(root)?.st_dev))
    }

    /// Lets the filesystem fill its device, which has this size.
    pub(super) fn grow(self, root: &OwnedFd, device_bytes: u64) -> io::Result<()> {
        match self {
            Self::Ext4 { block_bytes } => {
                let blocks = device_bytes.checked_div(block_bytes).unwrap_or_default();
                Ok(rustix::fs::ext4_ioc_resize_fs(root, blocks)?)
            }
            Self::Xfs => grow_xfs(root, device_bytes),
            Self::Btrfs => grow_btrfs(root),
        }
    }
}

/// `struct xfs_fsop_geom_v1` (`xfs_fs.h`).
#[repr(C)]
struct XfsGeometry {
    block_bytes: u32,
    others: [u32; 6],
    inodes_percent: u32,
    data_blocks: u64,
    rest: [u64; 9],
}

/// `struct xfs_growfs_data`.
#[repr(C)]
struct XfsGrowth {
    data_blocks: u64,
    inodes_percent: u32,
}

const XFS_GEOMETRY: Opcode = opcode::read::<XfsGeometry>(b'X', 100);
const XFS_GROW_DATA: Opcode = opcode::write::<XfsGrowth>(b'X', 110);

#[expect(unsafe_code, reason = "no library wraps these two ioctls")]
fn grow_xfs(root: &OwnedFd, device_bytes: u64) -> io::Result<()> {
    // SAFETY: the kernel fills the structure, which is plain numbers and has its size.
    let geometry = unsafe { ioctl(root, Getter::<XFS_GEOMETRY, XfsGeometry>::new()) }?;
    let blocks = device_bytes.checked_div(geometry.block_bytes.into()).unwrap_or_default();
    // A smaller number would shrink it.
    if blocks <= geometry.data_blocks {
        return Ok(());
    }
    let growth = XfsGrowth { data_blocks: blocks, inodes_percent: geometry.inodes_percent };
    // SAFETY: the kernel reads the structure, which has its size.
    Ok(unsafe { ioctl(root, Setter::<XFS_GROW_DATA, _>::new(growth)) }?)
}

/// `struct btrfs_ioctl_fs_info_args` (`linux/btrfs.h`).
#[repr(C)]
struct BtrfsInfo {
    highest_id: u64,
    devices: u64,
    rest: [u64; 126],
}

/// `struct btrfs_ioctl_dev_info_args`.
#[repr(C)]
struct BtrfsDevice {
    id: u64,
    rest: [u64; 383],
    path: [u8; 1024],
}

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct BtrfsArguments {
    unused: i64,
    text: [u8; 4088],
}

const BTRFS_INFO: Opcode = opcode::read::<BtrfsInfo>(0x94, 31);
const BTRFS_DEVICE: Opcode = opcode::read_write::<BtrfsDevice>(0x94, 30);
const BTRFS_RESIZE: Opcode = opcode::write::<BtrfsArguments>(0x94, 3);

impl BtrfsDevice {
    fn path(&self) -> &[u8] {
        self.path.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// Returns the device of a btrfs that has one. Its files have a device number of their own.
#[expect(unsafe_code, reason = "no library wraps these two ioctls")]
fn only_device(root: &OwnedFd) -> io::Result<Option<Box<BtrfsDevice>>> {
    // SAFETY: the kernel fills the structure, which is plain numbers and has its size.
    let info = unsafe { ioctl(root, Getter::<BTRFS_INFO, BtrfsInfo>::new()) }?;
    if info.devices != 1 {
        return Ok(None);
    }
    let mut device = Box::new(BtrfsDevice { id: info.highest_id, rest: [0; 383], path: [0; 1024] });
    // SAFETY: the kernel reads and fills the structure, which is plain numbers and has its size.
    unsafe { ioctl(root, Updater::<BTRFS_DEVICE, _>::new(&mut *device)) }?;
    Ok(Some(device))
}

#[expect(unsafe_code, reason = "no library wraps this ioctl")]
fn grow_btrfs(root: &OwnedFd) -> io::Result<()> {
    let Some(device) = only_device(root)? else { return Ok(()) };
    let mut arguments = BtrfsArguments { unused: 0, text: [0; 4088] };
    let text = format!("{}:max", device.id);
    arguments.text[..text.len()].copy_from_slice(text.as_bytes());
    // SAFETY: the kernel reads the structure, which has its size.
    Ok(unsafe { ioctl(root, Setter::<BTRFS_RESIZE, _>::new(arguments)) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ioctls_have_the_kernels_numbers() {
        assert_eq!((XFS_GEOMETRY, XFS_GROW_DATA), (0x8070_5864, 0x4010_586E));
        assert_eq!((BTRFS_INFO, BTRFS_DEVICE), (0x8400_941F, 0xD000_941E));
        assert_eq!(BTRFS_RESIZE, 0x5000_9403);
    }
}
