//! Choice of what a VM boots.

use std::path::Path;

use crate::config::{BootProfile, Firmware, VmDefinition};
use crate::context::RuntimeContext;
use crate::report::Event;
use crate::vm::disk::{Image, look_at_own_disk};
use crate::vm::error::{StartError, VmDiskError, VmError};
use crate::vm::project::ProjectRef;
use crate::vm::record::{BaseKind, BootRecord, KernelRecord, NativeRecord, Record};

use super::own_disk::OwnDisk;
use super::pair::{NoKernel, Pair};
use super::{Boots, Kernel, Native, OwnSeed};

/// What a VM boots, and what else it could.
#[derive(Debug)]
pub(in crate::vm) struct Choice {
    pub(in crate::vm) boots: Boots,
    /// Kernel of the last boot that became ready, if that was another one.
    pub(in crate::vm) previous: Option<Boots>,
}

/// Chooses what boots a VM whose disk will be made from this base.
///
/// # Errors
/// [`StartError::NoKernel`], [`VmDiskError::Unbootable`], or errors of opening the disk.
pub(in crate::vm) fn of_new_disk(
    definition: &VmDefinition,
    image: Option<&Image>,
    base: &Path,
    context: &RuntimeContext,
) -> Result<Choice, VmError> {
    let base = OwnDisk::new(base, definition, &context.cancel);
    let found = look(definition, image, &base, context)?;
    let boots =
        found.or_else(|reason| without_kernel(definition, image, &base, reason, context))?;
    check_cloud_init(definition, &boots)?;
    Ok(Choice { boots, previous: None })
}

/// Chooses what boots a VM from its own disk: the kernel that is on it now, or else the one of its
/// last boot that became ready.
///
/// # Errors
/// Those of [`of_new_disk`].
pub(in crate::vm) fn of_disk(
    definition: &VmDefinition,
    image: Option<&Image>,
    record: &Record,
    project: ProjectRef<'_>,
) -> Result<Choice, VmError> {
    let choice = choose(definition, image, record, project)?;
    check_cloud_init(definition, &choice.boots)?;
    Ok(choice)
}

fn choose(
    definition: &VmDefinition,
    image: Option<&Image>,
    record: &Record,
    project: ProjectRef<'_>,
) -> Result<Choice, VmError> {
    let context = project.context;
    let disk = OwnDisk::new(&definition.overlay, definition, &context.cancel);
    let kept = || last_of(definition, image, record, project);
    match look(definition, image, &disk, context)? {
        Ok(boots) => {
            let is_other = match (boots.record(), &record.kept_kernel) {
                (Some(now), Some(last)) => !now.boots_as(last),
                _ => false,
            };
            let previous = if is_other { kept() } else { None };
            let previous = previous.map(|pair| own(pair, definition)).transpose()?;
            Ok(Choice { boots, previous })
        }
        Err(reason) => match kept() {
            Some(pair) => {
                let (vm, NoKernel(reason)) = (&definition.name, reason);
                let kernel = pair.record.title();
                let message = format!(
                    "VM `{vm}` boots {kernel} as of its last successful start, since its disk has \
                    no usable kernel now: {reason}"
                );
                context.reporter.report(&Event::Warning { message });
                Ok(Choice { boots: own(pair, definition)?, previous: None })
            }
            None => {
                let boots = without_kernel(definition, image, &disk, reason, context)?;
                Ok(Choice { boots, previous: None })
            }
        },
    }
}

/// Returns the kernel of the VM's last boot that became ready.
fn last_of(
    definition: &VmDefinition,
    image: Option<&Image>,
    record: &Record,
    project: ProjectRef<'_>,
) -> Option<Pair> {
    as_recorded(definition, image, record, record.kept_kernel.as_ref()?, project)
}

/// Returns a kernel of the VM's as it was kept, or as it is on the base image, if the VM was
/// restored from a template of that.
fn as_recorded(
    definition: &VmDefinition,
    image: Option<&Image>,
    record: &Record,
    kernel: &KernelRecord,
    project: ProjectRef<'_>,
) -> Option<Pair> {
    let files = project.files(&definition.name);
    Pair::kept(&files, kernel, definition.memory_bytes).or_else(|| {
        let base = match (&record.base.kind, image) {
            (BaseKind::Path(path), _) => path,
            (BaseKind::Managed(_), Some((_, paths))) => &paths.disk,
            (BaseKind::Managed(_), None) => return None,
        };
        let pair = OwnDisk::new(base, definition, project.cancel()).pair().ok()?.ok()?;
        pair.record.boots_as(kernel).then_some(pair)
    })
}

/// Returns what a suspended VM has booted, for a later reboot of its guest. Its disk is asked last:
/// the guest uses it, so its journal may be one that the reader cannot replay.
///
/// # Errors
/// [`StartError::NoKernel`], or errors of opening the disk.
pub(in crate::vm) fn of_saved(
    definition: &VmDefinition,
    image: Option<&Image>,
    record: &Record,
    boot: &BootRecord,
    project: ProjectRef<'_>,
) -> Result<Boots, VmError> {
    let files = project.files(&definition.name);
    if !boot.has_agent() {
        let record = boot.native.clone().unwrap_or(NativeRecord {
            firmware: Firmware::Bios,
            reason: "that of an earlier castra".to_owned(),
            seed: false,
            ssh_server: None,
        });
        let native = Native::of_record(definition, image, &record, &files, project.context)?;
        return Ok(Boots::Native(Box::new(native)));
    }
    if let Some(kernel) = image.and_then(of_image) {
        return Ok(Boots::Kernel(kernel));
    }
    let recorded = boot.kernel.as_ref();
    let pair = recorded.and_then(|last| as_recorded(definition, image, record, last, project));
    let pair = match pair {
        Some(pair) => pair,
        None => OwnDisk::new(&definition.overlay, definition, project.cancel())
            .pair()?
            .map_err(|reason| no_kernel(definition, &definition.overlay, reason))?,
    };
    // The guest has read the data, which may be gone by now.
    let seed = OwnSeed::of(definition).unwrap_or_default();
    Ok(Boots::Kernel(Kernel::of_disk(pair, seed)))
}

/// Checks that the user's own disk exists, can be used and, unless its VM has a disk already, can
/// be booted.
///
/// # Errors
/// Returns [`VmDiskError::BaseMissing`], [`super::super::VmIoError::File`], [`VmError::Qemu`],
/// [`StartError::NoKernel`] or [`VmDiskError::Unbootable`].
pub fn check_own_disk(
    definition: &VmDefinition,
    path: &Path,
    context: &RuntimeContext,
) -> Result<(), VmError> {
    look_at_own_disk(definition, path)?;
    if definition.overlay.exists() {
        return Ok(());
    }
    let disk = OwnDisk::new(path, definition, &context.cancel);
    match look(definition, None, &disk, context)? {
        Ok(_) => Ok(()),
        Err(reason) => check_native(definition, None, &disk, reason, context).map(drop),
    }
}

/// Returns what boots from this disk. The inner error is the reason why its own kernel cannot.
fn look(
    definition: &VmDefinition,
    image: Option<&Image>,
    disk: &OwnDisk<'_>,
    context: &RuntimeContext,
) -> Result<Result<Boots, NoKernel>, VmError> {
    if definition.boot_profile == Some(BootProfile::Native) {
        let native = Native::of_disk(definition, image, disk, context)?;
        return Ok(Ok(Boots::Native(Box::new(native))));
    }
    if let Some(kernel) = image.and_then(of_image) {
        return Ok(Ok(Boots::Kernel(kernel)));
    }
    match disk.pair()? {
        Ok(pair) => own(pair, definition).map(Ok),
        Err(reason) => Ok(Err(reason)),
    }
}

/// Returns the kernel of a disk, with the data of the definition for cloud-init.
fn own(pair: Pair, definition: &VmDefinition) -> Result<Boots, VmError> {
    let seed = OwnSeed::of(definition)?;
    Ok(Boots::Kernel(Kernel::of_disk(pair, seed)))
}

/// Checks that data for cloud-init get to it.
fn check_cloud_init(definition: &VmDefinition, boots: &Boots) -> Result<(), StartError> {
    if definition.cloud_init.is_none() || boots.seed().is_some() {
        return Ok(());
    }
    Err(StartError::NoCloudInit { vm: definition.name.clone() })
}

fn of_image((spec, paths): &Image) -> Option<Kernel> {
    let (kernel, initramfs) = (paths.kernel.clone()?, paths.initramfs.clone()?);
    Some(Kernel::of_image(kernel, initramfs, spec.profile.command_line.as_ref()?))
}

/// Returns what boots from a disk without a kernel of its own: its boot loader, with a warning,
/// unless the definition asks for a kernel.
fn without_kernel(
    definition: &VmDefinition,
    image: Option<&Image>,
    disk: &OwnDisk<'_>,
    reason: NoKernel,
    context: &RuntimeContext,
) -> Result<Boots, VmError> {
    let (native, NoKernel(reason)) = check_native(definition, image, disk, reason, context)?;
    let vm = &definition.name;
    let message = format!(
        "VM `{vm}` boots natively, without Castra's agent: {reason}. `boot_profile = \"native\"` \
        in its [[vms]] silences this"
    );
    context.reporter.report(&Event::Warning { message });
    Ok(Boots::Native(Box::new(native)))
}

/// Checks that a disk without a kernel of its own may boot natively, and can. Returns that boot,
/// and the reason for it.
fn check_native(
    definition: &VmDefinition,
    image: Option<&Image>,
    disk: &OwnDisk<'_>,
    reason: NoKernel,
    context: &RuntimeContext,
) -> Result<(Native, NoKernel), VmError> {
    if definition.boot_profile == Some(BootProfile::Managed) {
        return Err(no_kernel(definition, disk.path, reason).into());
    }
    match Native::of_disk(definition, image, disk, context) {
        Err(VmError::Disk(VmDiskError::Unbootable { vm, disk, reason: unbootable, .. })) => {
            let found = Some(reason.0);
            Err(VmDiskError::Unbootable { vm, disk, reason: unbootable, found }.into())
        }
        native => Ok((native?, reason)),
    }
}

fn no_kernel(definition: &VmDefinition, disk: &Path, NoKernel(reason): NoKernel) -> StartError {
    StartError::NoKernel { vm: definition.name.clone(), disk: disk.to_owned(), reason }
}
