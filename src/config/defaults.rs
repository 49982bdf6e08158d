//! Every default and limit of a configuration, once, with its reason. Those of the machine and the CPU are their types' own.

use crate::qemu::DeviceModel;

/// Virtual CPUs of a VM. One boots as fast as two do under TCG (*measured*), and costs a small host least.
pub const CPUS: u32 = 1;

/// Memory of a VM, in bytes: Alpine with a compiler or a database fits, and a laptop holds several.
pub const MEMORY_BYTES: u64 = 1 << 30;

/// Virtual size of a VM's disk, in bytes. Sparse: it costs nothing until it is written to.
pub const DISK_BYTES: u64 = 10 << 30;

/// Image, and name of the VM, where nothing else is said.
pub const IMAGE: &str = "alpine-minimal";

/// Version of an image in `[images]` that does not give one.
pub const IMAGE_VERSION: &str = "v1";

/// Devices of an image in `[images]`: a source of entropy, so that guests whose kernel distrusts `rdrand`
/// boot too.
pub const DEVICES: [DeviceModel; 1] = [DeviceModel::VirtioRng];

/// Memory in MiB below which no VM is started: the smallest Linux with a general kernel and initramfs needs
/// it.
pub const MIN_MEMORY_MIB: u64 = 64;

/// The newest format that this Castra reads. Formats called 0.x are the same with fewer keys.
pub(super) const FORMAT: i128 = 1;

/// Largest configuration that is read, in bytes; real ones have a few KiB.
pub(super) const MAX_BYTES: u64 = 1 << 20;
