//! Kernel that a VM boots: its image's, or the one of its own disk.
//!
//! The disk's is read before every boot, so that a kernel which was upgraded in the guest is the
//! one that boots next. Nothing else decides what a VM boots: [`Boots`] has the answer, and
//! whatever depends on it, such as the agent in the guest, follows from that.

mod choice;
mod command_line;
mod keep;
mod native;
mod own_disk;
mod pair;

use std::path::PathBuf;

use castra_wire::Relay;

use crate::config::{DataDisk, VmDefinition};
use crate::context::RuntimeContext;
use crate::files::write_atomically;
use crate::guest::{Seed, TEMPLATE_HOSTNAME, append_agent};
use crate::layout::{TemplateLayout, VmLayout};
use crate::qemu::{Boot, CommandLine};
use crate::template::TemplateError;
use crate::vm::disk::data;

use super::error::{StartError, VmError};
use super::hostname::hostname;
use super::record::KernelRecord;

pub use choice::check_own_disk;
pub(super) use choice::{Choice, of_disk, of_new_disk, of_saved};
pub(super) use keep::share_kernel;
pub(super) use native::Native;
pub use native::{boots_by_uefi, firmware_of};
use pair::Pair;

/// What a VM boots.
#[derive(Debug)]
pub(super) enum Boots {
    /// The boot loader of its disk, without an agent in the guest.
    Native(Box<Native>),
    /// A kernel, with the agent in its initramfs.
    Kernel(Kernel),
}

/// A kernel with its initramfs, to which the agent is added, and its command line.
#[derive(Debug)]
pub(super) struct Kernel {
    origin: Origin,
    /// Command line without the agent's relays.
    command_line: CommandLine,
}

/// A seed with the host name of the VM that has it.
#[derive(Debug)]
struct OwnSeed {
    seed: Seed,
    hostname: String,
}

impl OwnSeed {
    /// Reads the seed that the definition names.
    fn of(definition: &VmDefinition) -> Result<Option<Self>, StartError> {
        let Some(cloud_init) = &definition.cloud_init else { return Ok(None) };
        let refused = |error| StartError::CloudInit { vm: definition.name.clone(), error };
        let (user_data, network_config) = cloud_init.read().map_err(refused)?;
        let seed = Seed::new(user_data, network_config);
        Ok(Some(Self { seed, hostname: hostname(&definition.name) }))
    }
}

#[derive(Debug)]
enum Origin {
    Image {
        kernel: PathBuf,
        initramfs: PathBuf,
    },
    /// A disk, with data for its cloud-init.
    Disk {
        pair: Box<Pair>,
        seed: Option<OwnSeed>,
    },
}

impl Kernel {
    fn of_image(kernel: PathBuf, initramfs: PathBuf, line: &CommandLine) -> Self {
        let command_line = command_line::of_image(line);
        Self { origin: Origin::Image { kernel, initramfs }, command_line }
    }

    fn of_disk(pair: Pair, seed: Option<OwnSeed>) -> Self {
        let command_line = command_line::of_disk(&pair.record.command_line, seed.is_some());
        Self { origin: Origin::Disk { pair: Box::new(pair), seed }, command_line }
    }
}

impl Boots {
    /// Returns `true` if the agent will be in the guest.
    pub(super) fn has_agent(&self) -> bool {
        matches!(self, Self::Kernel(_))
    }

    /// Returns the kernel that was read from a disk, if it is one.
    pub(super) fn record(&self) -> Option<&KernelRecord> {
        match self {
            Self::Kernel(Kernel { origin: Origin::Disk { pair, .. }, .. }) => Some(&pair.record),
            Self::Kernel(Kernel { origin: Origin::Image { .. }, .. }) | Self::Native(_) => None,
        }
    }

    /// Returns the boot by the disk's own boot loader, if it is one.
    pub(super) fn native(&self) -> Option<&Native> {
        match self {
            Self::Native(native) => Some(native),
            Self::Kernel(_) => None,
        }
    }

    /// Returns the data for cloud-init, if there are any.
    pub(super) fn seed(&self) -> Option<&Seed> {
        match self {
            Self::Kernel(Kernel { origin: Origin::Disk { seed, .. }, .. }) => {
                seed.as_ref().map(|own| &own.seed)
            }
            Self::Native(native) => native.seed(),
            Self::Kernel(Kernel { origin: Origin::Image { .. }, .. }) => None,
        }
    }

    /// Writes the files that QEMU reads when the VM boots, and removes kernels that are neither
    /// this one nor `kept`.
    ///
    /// # Errors
    /// [`VmError::Initrd`], [`VmError::Key`], [`VmError::Qemu`] or [`super::VmIoError::File`].
    pub(super) fn provide(
        &self,
        files: &VmLayout,
        kept: Option<&KernelRecord>,
        context: &RuntimeContext,
    ) -> Result<(), VmError> {
        match self {
            Self::Native(native) => native.provide(files, context),
            Self::Kernel(Kernel { origin: Origin::Image { initramfs, .. }, .. }) => {
                Ok(append_agent(initramfs, &files.initramfs())?)
            }
            Self::Kernel(Kernel { origin: Origin::Disk { pair, seed }, .. }) => {
                let archive = seed.as_ref().map(|own| own.seed.archive(&own.hostname));
                pair.provide(files, kept, &archive.unwrap_or_default())
            }
        }
    }

    /// Writes the files that a template's machine boots, in its directory.
    ///
    /// # Errors
    /// [`TemplateError::Initrd`] or [`TemplateError::File`].
    pub(super) fn provide_template(&self, work: &TemplateLayout) -> Result<(), TemplateError> {
        match self {
            Self::Native(_) => Ok(()),
            Self::Kernel(Kernel { origin: Origin::Image { initramfs, .. }, .. }) => {
                Ok(append_agent(initramfs, &work.initramfs())?)
            }
            Self::Kernel(Kernel { origin: Origin::Disk { pair, .. }, .. }) => {
                let archive = self.seed().map(|seed| seed.archive(TEMPLATE_HOSTNAME));
                pair.write_initramfs(&archive.unwrap_or_default(), &work.initramfs())?;
                let (path, action) = (work.kernel(), "write");
                write_atomically(&path, &pair.kernel, 0o600).map_err(|source| TemplateError::File {
                    action,
                    path,
                    source,
                })
            }
        }
    }

    /// Returns QEMU's part of it, with files of the VM.
    pub(super) fn of_qemu(&self, files: &VmLayout, relays: &[Relay], disks: &[DataDisk]) -> Boot {
        let Kernel { origin, command_line } = match self {
            Self::Native(native) => return native.of_qemu(files),
            Self::Kernel(kernel) => kernel,
        };
        let kernel = match origin {
            Origin::Image { kernel, .. } => kernel.clone(),
            Origin::Disk { pair, .. } => files.kernel(&pair.record.kernel_sha256),
        };
        let orders = data::orders(disks, files);
        let command_line = command_line.with_relays(relays).with_disks(&orders);
        Boot::Kernel { kernel, initramfs: files.initramfs(), command_line }
    }
}
