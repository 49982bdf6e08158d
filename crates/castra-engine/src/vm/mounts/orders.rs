//! Orders to a VM's companion to mount and unmount directories.

use std::io;

use crate::command::Lifetime;
use crate::guest::{Companion, Mount};
use crate::vm::companion::start_companion;
use crate::vm::error::{CompanionError, MountError, VmError};
use crate::vm::project::ProjectRef;
use crate::vm::record::BootRecord;

use super::{NATIVE, check_recorded, own};

/// Mounts the directories of a VM's record, and waits until they are mounted or cannot be. Returns
/// the reasons why some are not.
pub(in crate::vm) fn mount_recorded(
    vm: &str,
    boot: &BootRecord,
    companion: &mut Companion,
    project: ProjectRef<'_>,
    lifetime: Lifetime,
) -> Vec<VmError> {
    let mut mount_one = |mount| {
        // A record may have been written by another program.
        if lifetime == Lifetime::Own {
            check_recorded(vm, mount, project)?;
        }
        mount_by(vm, companion, mount, project)
    };
    boot.mounts.iter().filter_map(|mount| mount_one(mount).err()).collect()
}

/// Mounts a directory in a running VM.
pub(in crate::vm) fn mount_now(
    vm: &str,
    boot: &BootRecord,
    mount: &Mount,
    project: ProjectRef<'_>,
) -> Result<(), VmError> {
    if !boot.has_agent() {
        return Err(MountError::Unsupported { vm: vm.to_owned(), reason: NATIVE }.into());
    }
    let mut companion = start_companion(vm, boot, project.context, Lifetime::Own).connect()?;
    mount_by(vm, &mut companion, mount, project)
}

/// Unmounts a directory in a running VM.
pub(in crate::vm) fn unmount_now(vm: &str, boot: &BootRecord, guest: &str) -> Result<(), VmError> {
    let connected = Companion::connect(&boot.socket_paths());
    let answer = connected.and_then(|mut companion| companion.unmount(guest));
    outcome(vm, "unmounted", guest, answer)
}

fn mount_by(
    vm: &str,
    companion: &mut Companion,
    mount: &Mount,
    project: ProjectRef<'_>,
) -> Result<(), VmError> {
    let answer = companion.mount(mount, own::directories(project));
    outcome(vm, "mounted", &mount.guest, answer)
}

/// Returns what a companion's answer means.
fn outcome(
    vm: &str,
    action: &'static str,
    guest: &str,
    answer: io::Result<Result<(), String>>,
) -> Result<(), VmError> {
    match answer {
        Ok(Ok(())) => Ok(()),
        Ok(Err(reason)) => {
            let (vm, guest) = (vm.to_owned(), guest.to_owned());
            Err(MountError::Refused { vm, action, guest, reason }.into())
        }
        Err(source) => Err(CompanionError::new(vm, "does not answer", source).into()),
    }
}
