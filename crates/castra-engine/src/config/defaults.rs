//! Every default and limit of a configuration, once, with its reason. Those of the machine and the
//! CPU are implemented by their types.

use crate::qemu::DeviceModel;

/// Number of virtual CPUs. Under TCG, one boots as fast as two (*measured*), and it costs a small
/// host least.
pub const CPUS: u32 = 1;

/// Memory of a VM, in bytes: enough for Alpine with a compiler or a database, and a laptop can run
/// several.
pub const MEMORY_BYTES: u64 = 1 << 30;

/// Virtual size of a VM's disk, in bytes. Sparse: it costs nothing until it is written to.
pub const DISK_BYTES: u64 = 10 << 30;

/// Default image, and the name of its VM.
pub const IMAGE: &str = "alpine-minimal";

/// Version of an image in `[images]` that does not give one.
pub const IMAGE_VERSION: &str = "v1";

/// Devices of an image in `[images]`: a source of entropy, so that guests whose kernel distrusts
/// `rdrand` boot too.
pub const DEVICES: [DeviceModel; 1] = [DeviceModel::VirtioRng];

/// Minimum memory of a VM, in MiB: the smallest Linux with a generic kernel and initramfs needs
/// this much.
pub const MIN_MEMORY_MIB: u64 = 64;

/// Newest format that this Castra reads. Formats 0.x are the same with fewer keys.
pub(super) const FORMAT: i128 = 1;

/// Largest configuration that is read, in bytes; real ones have a few KiB.
pub(super) const MAX_BYTES: u64 = 1 << 20;
