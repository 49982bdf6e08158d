//! QEMU: the choice of an accelerator, the command line, and the supervision of the process.
//!
//! Nothing here knows a project or a configuration: a [`MachineSpec`] describes the machine
//! completely.

mod accelerator;
mod argv;
mod binary;
mod boot_sector;
mod chain;
mod cpu_threads;
mod data_disk;
mod disk_error;
mod ending;
mod error;
mod find;
pub mod firmware;
mod img;
mod kernel;
mod liveness;
mod machine_status;
mod migrate;
pub mod options;
mod outside;
mod overlay;
mod probe;
mod process;
mod qcow2;
mod qmp;
mod race;
mod remembered;
mod self_test;
mod version;

pub use accelerator::{Accelerator, AcceleratorChoice};
pub use argv::{
    Boot, Channels, HostForward, MachineSpec, Memory, NativeBoot, Network, UefiFlash, arguments,
};
pub use binary::QemuBinary;
pub use boot_sector::Unbootable;
pub use chain::{Disk, Layer, LayerFormat};
pub use cpu_threads::CpuThreads;
pub use data_disk::{BadDiskName, DataDisk, DiskName, MAX_DATA_DISKS, MAX_DISK_NAME_BYTES};
pub use disk_error::DiskError;
pub use ending::{ENDED_BY_SIGNAL, EndingSignal, ending_signal};
pub use error::QemuError;
pub(crate) use error::install_hint;
pub use find::{FoundQemu, find_qemus, qemu_of_process};
pub use firmware::UefiFirmware;
pub use img::{
    DiskCheck, ImageDisk, ImageWork, check_disk, create_blank_disk, create_overlay, resize_disk,
    run_image_tool,
};
pub use kernel::is_linux;
pub use liveness::{QemuPid, lock_holder, running_qemu, runs_elsewhere};
pub use machine_status::{AgentAbsence, MachineStatus, is_agent_there};
pub use migrate::{ignore_shared_memory, save_all_memory, save_state};
pub use options::{
    Announcement, CommandLine, CpuModel, Device, DeviceModel, DiskFormat, MachineType, OptionError,
    StreamPortCount,
};
pub use process::{
    Incoming, Launch, QemuProcess, end_of_log, launch, prepare_socket_directory, remove_sockets,
};
pub use qcow2::{QCOW2_MAGIC, Qcow2Header};
pub use qmp::{Qmp, QmpError, is_listened_at};
pub use race::choose_accelerator;
pub use self_test::{
    INSTALL_FULL_QEMU, Trial, find_missing, remembered_accelerators, try_accelerators,
    try_everything,
};
pub use version::QemuVersion;
