//! Mounting directories in a VM that runs.

use crate::config::{DeclaredMount, MountOrigin};
use crate::guest::Mount;

use super::access::running_vm;
use super::error::{MountError, VmError};
use super::lock::lock;
use super::mounts::{check_room, checked, mount_now, unmount_now};
use super::project::ProjectRef;
use super::record::recorded_vm;

/// Mounts a directory in a running VM, until the VM stops.
///
/// # Errors
/// Returns [`MountError`], and errors as [`running_vm`] does.
pub fn mount(name: &str, mount: &Mount, project: ProjectRef<'_>) -> Result<Mount, VmError> {
    let vm = running_vm(Some(name), project)?.name;
    let _lock = lock(&vm, project)?;
    let mut record = recorded_vm(Some(&vm), project.layout)?;
    let declared = DeclaredMount { mount: mount.clone(), origin: MountOrigin::User };
    let mount = checked(&vm, &declared, project)?;
    let Some(boot) = record.boot.as_mut() else {
        return Err(MountError::Unsupported { vm, reason: "it does not run" }.into());
    };
    if boot.mounts.contains(&mount) {
        mount_now(&vm, boot, &mount, project)?;
        return Ok(mount);
    }
    check_room(&vm, &boot.mounts, &mount)?;
    mount_now(&vm, boot, &mount, project)?;
    boot.mounts.push(mount.clone());
    record.save(project.layout)?;
    Ok(mount)
}

/// Unmounts a directory in a running VM, until the VM stops.
///
/// # Errors
/// Returns [`MountError`], and errors as [`running_vm`] does.
pub fn unmount(name: &str, guest: &str, project: ProjectRef<'_>) -> Result<(), VmError> {
    let vm = running_vm(Some(name), project)?.name;
    let _lock = lock(&vm, project)?;
    let mut record = recorded_vm(Some(&vm), project.layout)?;
    let unknown = || MountError::Unknown { vm: vm.clone(), guest: guest.to_owned() };
    let path = Mount::guest_path(guest).map_err(|_| unknown())?;
    let boot = record.boot.as_mut().ok_or_else(unknown)?;
    let place = boot.mounts.iter().position(|mount| mount.guest == path).ok_or_else(unknown)?;
    unmount_now(&vm, boot, &path)?;
    boot.mounts.remove(place);
    record.save(project.layout)?;
    Ok(())
}
