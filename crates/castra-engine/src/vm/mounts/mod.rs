//! Mounts of a VM: directories of the host that its guest sees, served by the VM's companion.
//!
//! The record of a boot has its mounts, so that they are the same after a suspend, in a clone, and
//! once a companion that was killed is started again.

mod grants;
mod orders;
mod own;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use crate::command::Lifetime;
use crate::config::{DeclaredMount, MountOrigin, ProjectConfig, VmDefinition};
use crate::context::RuntimeContext;
use crate::guest::{MAX_MOUNTS, Mount, OF_KERNEL, is_of_kernel};

use super::error::{MountError, VmError, warn};
use super::project::ProjectRef;

pub(super) use orders::{mount_now, mount_recorded, unmount_now};

/// Reason why a VM has no mounts.
const NATIVE: &str = "it boots natively, without Castra's agent";

/// Returns the mounts that a VM starts with, their directories checked and without links.
///
/// # Errors
/// Returns the first reason why a directory cannot be mounted.
pub(super) fn of_start(
    definition: &VmDefinition,
    project: ProjectRef<'_>,
    lifetime: Lifetime,
) -> Result<Vec<Mount>, MountError> {
    let vm = &definition.name;
    let check = |declared: &DeclaredMount| match lifetime {
        Lifetime::Own => checked(vm, declared, project),
        // The mounts of a throw-away VM are its user's.
        Lifetime::ThisThreads => resolved(vm, &declared.mount, project),
    };
    let outcomes: Vec<_> = definition.mounts.iter().map(check).collect();
    let ungranted = ungranted(&outcomes);
    if !ungranted.is_empty() {
        return Err(MountError::NotGranted { vm: vm.clone(), mounts: ungranted });
    }
    let mut mounts = Vec::new();
    for outcome in outcomes {
        let mount = outcome?;
        check_room(vm, &mounts, &mount)?;
        mounts.push(mount);
    }
    Ok(mounts)
}

/// Checks that a VM with these mounts can have another one.
pub(super) fn check_room(vm: &str, mounts: &[Mount], mount: &Mount) -> Result<(), MountError> {
    let vm = vm.to_owned();
    if let Some(other) = mounts.iter().find(|other| mount.is_entangled_with(other)) {
        let (first, second) = (other.guest.clone(), mount.guest.clone());
        return Err(MountError::Entangled { vm, first, second });
    }
    if mounts.len() >= MAX_MOUNTS { Err(MountError::TooMany { vm }) } else { Ok(()) }
}

/// Returns the mounts that a guest can have: none if it boots without an agent, which is a warning.
pub(super) fn of_guest<'a>(
    vm: &str,
    mounts: &'a [Mount],
    has_agent: bool,
    context: &RuntimeContext,
) -> &'a [Mount] {
    if has_agent || mounts.is_empty() {
        return mounts;
    }
    warn(&MountError::Unsupported { vm: vm.to_owned(), reason: NATIVE }, context);
    &[]
}

/// Returns a mount whose directory is checked and has no links.
///
/// # Errors
/// Returns the reason why the directory cannot be mounted.
pub(super) fn checked(
    vm: &str,
    declared: &DeclaredMount,
    project: ProjectRef<'_>,
) -> Result<Mount, MountError> {
    let mount = resolved(vm, &declared.mount, project)?;
    match declared.origin {
        MountOrigin::User => grant(&mount, true, project)?,
        MountOrigin::File => check_granted(vm, &mount, false, project)?,
    }
    Ok(mount)
}

/// Checks that the user agrees to a mount: one of a castra.toml, or one that a running VM has.
fn check_granted(
    vm: &str,
    mount: &Mount,
    is_running: bool,
    project: ProjectRef<'_>,
) -> Result<(), MountError> {
    match grants::is_granted(mount, is_running, &project_directory(project), project.context) {
        true => Ok(()),
        false => Err(MountError::NotGranted { vm: vm.to_owned(), mounts: vec![mount.clone()] }),
    }
}

/// Checks a mount of a running VM's record, which another program may have written.
fn check_recorded(vm: &str, mount: &Mount, project: ProjectRef<'_>) -> Result<(), MountError> {
    own::check(vm, mount, project)?;
    check_granted(vm, mount, true, project)
}

/// Returns the mounts that need the user's consent and do not have it.
fn ungranted(outcomes: &[Result<Mount, MountError>]) -> Vec<Mount> {
    let of_outcome = |outcome: &Result<Mount, MountError>| match outcome {
        Err(MountError::NotGranted { mounts, .. }) => mounts.clone(),
        _ => Vec::new(),
    };
    outcomes.iter().flat_map(of_outcome).collect()
}

/// Returns the mount with its directory's path without links.
fn resolved(vm: &str, mount: &Mount, project: ProjectRef<'_>) -> Result<Mount, MountError> {
    let guest = Mount::guest_path(&mount.guest).map_err(|problem| {
        let (vm, guest) = (vm.to_owned(), mount.guest.clone());
        MountError::GuestPath { vm, guest, problem }
    })?;
    let host = &mount.host;
    let failed = |source| MountError::Directory { vm: vm.to_owned(), host: host.clone(), source };
    let unsuitable =
        |reason| MountError::Unsuitable { vm: vm.to_owned(), host: host.clone(), reason };
    let real = fs::canonicalize(host).map_err(failed)?;
    let found = fs::metadata(&real).map_err(failed)?;
    if !found.is_dir() {
        return Err(unsuitable("it is not a directory"));
    }
    if real.parent().is_none() {
        return Err(unsuitable("it is the root of this machine's files"));
    }
    if fs::File::open(&real).is_ok_and(|directory| is_of_kernel(&directory)) {
        return Err(unsuitable(OF_KERNEL));
    }
    if !mount.may_belong_to(found.uid()) {
        return Err(unsuitable("it belongs to another user"));
    }
    if real.to_str().is_none() {
        return Err(unsuitable("its path is not UTF-8"));
    }
    let mount = Mount { host: real, guest, ..mount.clone() };
    own::check(vm, &mount, project)?;
    Ok(mount)
}

/// Returns the real path of the project's directory, or of its state root if that is elsewhere.
fn project_directory(project: ProjectRef<'_>) -> PathBuf {
    let directory = project.layout.project_directory();
    let directory = directory.unwrap_or_else(|| project.layout.state_root());
    directory.canonicalize().unwrap_or_else(|_| directory.to_owned())
}

fn grant(mount: &Mount, by_hand: bool, project: ProjectRef<'_>) -> Result<(), MountError> {
    grants::grant(mount, by_hand, &project_directory(project), project.context).map_err(|source| {
        let path = project.context.user_state.as_ref().map(|state| state.mounts());
        MountError::Grant { path: path.unwrap_or_default(), source }
    })
}

/// Returns the mounts of VMs that need the user's consent and do not have it.
pub fn ungranted_mounts(
    names: &[String],
    config: &ProjectConfig,
    project: ProjectRef<'_>,
) -> Vec<(String, Mount)> {
    let is_wanted = |vm: &&VmDefinition| names.is_empty() || names.contains(&vm.name);
    let of_vm = |vm: &VmDefinition| {
        let check = |declared| checked(&vm.name, declared, project);
        let outcomes: Vec<_> = vm.mounts.iter().map(check).collect();
        ungranted(&outcomes).into_iter().map(|mount| (vm.name.clone(), mount)).collect::<Vec<_>>()
    };
    config.vms.iter().filter(is_wanted).flat_map(of_vm).collect()
}

/// Writes down that the user lets VMs of the project have these mounts.
///
/// # Errors
/// Returns [`MountError::Grant`].
pub fn grant_mounts(mounts: &[(String, Mount)], project: ProjectRef<'_>) -> Result<(), VmError> {
    Ok(mounts.iter().try_for_each(|(_, mount)| grant(mount, false, project))?)
}
