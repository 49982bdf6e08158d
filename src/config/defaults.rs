//! Every default, once, with its reason.

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

/// QEMU's machine type for an image in `[images]`: q35 without the devices that only cost boot time in a VM.
pub const MACHINE: &str = "q35,sata=off,smbus=off,vmport=off";

/// CPU model under TCG for an image in `[images]`. `max` nearly doubles the boot time, and without `rdrand`
/// the guest waits for entropy early in the boot.
pub const TCG_CPU: &str = "qemu64,+rdrand";

/// Devices of an image in `[images]`: a source of entropy, so that guests whose kernel distrusts `rdrand`
/// boot too.
pub const DEVICES: [&str; 1] = ["virtio-rng-pci"];

/// Memory in MiB below which no VM is started: the smallest Linux with a general kernel and initramfs needs
/// it.
pub const MIN_MEMORY_MIB: u64 = 64;
