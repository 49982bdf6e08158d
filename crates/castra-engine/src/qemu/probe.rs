//! A program for a bare machine that shows in a few milliseconds whether an accelerator really
//! works.
//!
//! A `/dev/kvm` that opens and answers can still be useless, for instance in a nested guest. The
//! criterion is that 64-bit code runs, so the probe is a boot sector that enters long mode and
//! writes to QEMU's `isa-debug-exit` device.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use crate::cancel::Cancel;
use crate::command::{self, CommandError};
use crate::files::{TEMPORARY, create_private_directory};

use super::accelerator::Accelerator;
use super::argv::escape_path;
use super::binary::QemuBinary;
use super::error::QemuError;
use super::options::{CpuModel, MachineType};

/// QEMU's exit status when 0x10 is written to `isa-debug-exit`: `(value << 1) | 1`.
const REACHED_LONG_MODE: i32 = 0x10 << 1 | 1;

/// Size of the probe's disk: SeaBIOS does not boot from a disk that is smaller than one cylinder.
const DISK_BYTES: u64 = 1 << 20;

/// The boot sector's code and tables, assembled from this source (origin 0x7c00):
///
/// ```text
///   fa 31c0 8ed8 8ec0       cli; ax = ds = es = 0
///   bf0010 b90018 f3ab      clear the page tables at 0x1000..0x4000
///   c7060010 0320           PML4[0] = 0x2000 | present, writable
///   c7060020 0330           PDPT[0] = 0x3000 | present, writable
///   c7060030 8300           PD[0]   = 0 | present, writable, 2 MiB page
///   0f01167000+7c00         lgdt [gdtr]
///   66b820000000 0f22e0     cr4 = PAE
///   66b800100000 0f22d8     cr3 = 0x1000
///   66b9800000c0 0f32 80cc01 0f30   EFER.LME = 1
///   66b801000080 0f22c0     cr0 = PG | PE: long mode
///   ea537c0800              jmp 0x08:0x7c53, the 64-bit part
///   66ba0105 b010 ee        out 0x501, 0x10
///   f4                      hlt
/// ```
const BOOT_CODE: [u8; 0x76] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0xbf, 0x00, 0x10, 0xb9, 0x00, 0x18, 0xf3, 0xab, 0xc7,
    0x06, 0x00, 0x10, 0x03, 0x20, 0xc7, 0x06, 0x00, 0x20, 0x03, 0x30, 0xc7, 0x06, 0x00, 0x30, 0x83,
    0x00, 0x0f, 0x01, 0x16, 0x70, 0x7c, 0x66, 0xb8, 0x20, 0x00, 0x00, 0x00, 0x0f, 0x22, 0xe0, 0x66,
    0xb8, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x22, 0xd8, 0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32,
    0x80, 0xcc, 0x01, 0x0f, 0x30, 0x66, 0xb8, 0x01, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0, 0xea, 0x53,
    0x7c, 0x08, 0x00, 0x66, 0xba, 0x01, 0x05, 0xb0, 0x10, 0xee, 0xf4, 0x90, 0x90, 0x90, 0x90,
    0x90, // GDT at 0x60: the null descriptor and a 64-bit code segment; its pointer at 0x70.
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x9a, 0x20, 0x00,
    0x0f, 0x00, 0x60, 0x7c, 0x00, 0x00,
];

/// Result of the probe under one accelerator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The probe ran to its end, in this time.
    Works(Duration),
    /// The probe failed; the reason, as text.
    Fails(String),
    /// The probe was still running at its time limit; the reason, as text. That may be the
    /// machine's fault.
    TooSlow(String),
}

/// Runs the probe under `accelerator`, with the CPU model that the launch will use and `further`
/// arguments. Its disk is written into the directory `scratch`.
///
/// # Errors
/// [`QemuError::Interrupted`]; and [`QemuError::File`] if the probe's disk cannot be written.
pub(super) fn probe(
    qemu: &QemuBinary,
    accelerator: Accelerator,
    cpu: &CpuModel,
    scratch: &Path,
    limit: Duration,
    further: &[&str],
    cancel: &Cancel,
) -> Result<Outcome, QemuError> {
    let disk = disk(scratch).map_err(|source| QemuError::File {
        action: "write the accelerator probe into",
        path: scratch.to_owned(),
        source,
    })?;
    let invocation = qemu
        .invocation()
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-m", "64"])
        .args(["-machine", &MachineType::default().to_string(), "-accel", accelerator.name()])
        .args(["-cpu", &cpu.to_string()])
        .args(["-device", "isa-debug-exit", "-device", "virtio-blk-pci,drive=disk", "-blockdev"])
        .arg(disk_node(disk.path()))
        .args(further);
    let started = Instant::now();
    match command::run(&invocation, limit, cancel) {
        // Only the probe's own code makes QEMU exit with this status.
        Err(CommandError::Failed { status, .. }) if status.code() == Some(REACHED_LONG_MODE) => {
            Ok(Outcome::Works(started.elapsed()))
        }
        Err(CommandError::Failed { stderr, status, .. }) => {
            Ok(Outcome::Fails(reason(&stderr, &status.to_string())))
        }
        Err(CommandError::Interrupted(interrupted)) => Err(interrupted.into()),
        Err(error @ CommandError::TooSlow { .. }) => Ok(Outcome::TooSlow(error.to_string())),
        Err(error) => Ok(Outcome::Fails(error.to_string())),
        Ok(_) => Ok(Outcome::Fails("the probe ended without a result".into())),
    }
}

fn reason(stderr: &str, status: &str) -> String {
    stderr.lines().find(|line| !line.trim().is_empty()).map_or(status.to_owned(), |line| {
        line.trim_start_matches("qemu-system-x86_64: ").trim_start_matches("error: ").to_owned()
    })
}

fn disk(scratch: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    create_private_directory(scratch)?;
    let disk = tempfile::Builder::new().prefix(TEMPORARY).suffix("-probe").tempfile_in(scratch)?;
    let mut sector = [0_u8; 512];
    sector[..BOOT_CODE.len()].copy_from_slice(&BOOT_CODE);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    std::os::unix::fs::FileExt::write_all_at(disk.as_file(), &sector, 0)?;
    disk.as_file().set_len(DISK_BYTES)?;
    Ok(disk)
}

fn disk_node(path: &Path) -> OsString {
    let mut node =
        OsString::from("driver=raw,node-name=disk,read-only=on,file.driver=file,file.filename=");
    node.push(escape_path(path));
    node
}

/// Opens the device to find out whether this user may, without testing whether it works.
pub(super) fn opens(device: &Path) -> Result<(), rustix::io::Errno> {
    rustix::fs::open(device, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map(drop)
}
