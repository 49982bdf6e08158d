//! The lock of a VM, which every operation that changes the VM holds.

use std::fs::File;
use std::path::Path;

use crate::files::{self, Lock};
use crate::layout::ProjectLayout;
use crate::qemu::runs_elsewhere;
use crate::report::Event;
use crate::state_root;

use super::error::{FileAction, StateError, VmError, VmIoError};
use super::project::ProjectRef;

/// Lock of a VM, with a shared lock on its project, so that no other castra removes what the VM is
/// about to need.
#[derive(Debug)]
pub(super) struct VmLock {
    _vm: Lock,
    _project: Lock,
}

/// Locks a VM, on files that still exist: the last holder of the lock may have removed the VM, or
/// the project.
pub(super) fn lock(vm: &str, project: ProjectRef<'_>) -> Result<VmLock, VmError> {
    let report_wait = |what: String| move || project.report(&Event::Waiting { what });
    let files = project.files(vm);
    let make = |directory: &Path| {
        files::create_private_directory(directory).map_err(|source| VmIoError::File {
            action: FileAction::Create,
            path: directory.to_owned(),
            source,
        })
    };
    let on_vm = || report_wait(format!("another castra working on VM `{vm}`"));
    loop {
        let shared = share_project(project)?;
        make(files.directory())?;
        let lock = Lock::acquire(&files.lock(), project.cancel(), on_vm())?;
        ensure_reachable(vm, project.layout)?;
        if lock.is_on(&files.lock()) {
            return Ok(VmLock { _vm: lock, _project: shared });
        }
    }
}

/// Takes a shared lock on a project, whose state root is created if there is none, so that no other
/// castra removes what is about to be needed.
pub(super) fn share_project(project: ProjectRef<'_>) -> Result<Lock, VmError> {
    let path = &project.layout.project_lock();
    loop {
        state_root::create(project.layout.state_root())?;
        let what = "another castra cleaning up this project".to_owned();
        let on_wait = || project.report(&Event::Waiting { what });
        let shared = Lock::share(path, project.cancel(), on_wait)?;
        if shared.is_on(path) {
            state_root::make(project.layout, project.context)?;
            return Ok(shared);
        }
    }
}

/// Marks a VM as being cloned, which suspends and resumes it, until the lock is dropped. Commands
/// that would find it suspended wait for that. Returns `None` if its filesystem has no such locks.
pub(super) fn lock_for_clone(vm: &str, project: ProjectRef<'_>) -> Option<Lock> {
    let files = project.files(vm);
    let directory = File::open(files.directory()).ok()?;
    Lock::try_hold(directory, files.directory()).ok().flatten()
}

/// Waits while a VM is being cloned. Returns `true` if it was.
///
/// # Errors
/// Returns [`VmError::Interrupted`] or [`VmError::Io`].
pub(super) fn await_clone(vm: &str, project: ProjectRef<'_>) -> Result<bool, VmError> {
    let files = project.files(vm);
    let Ok(directory) = File::open(files.directory()) else { return Ok(false) };
    let mut has_waited = false;
    let on_wait = || {
        has_waited = true;
        project.report(&Event::Waiting { what: format!("another castra cloning VM `{vm}`") });
    };
    drop(Lock::hold(directory, files.directory(), project.cancel(), on_wait)?);
    Ok(has_waited)
}

/// Checks that the VM is not run by a QEMU that cannot be seen from here, and so neither asked nor
/// ended.
///
/// # Errors
/// Returns [`StateError::Elsewhere`].
pub(super) fn ensure_reachable(vm: &str, layout: &ProjectLayout) -> Result<(), VmError> {
    let elsewhere = runs_elsewhere(&layout.vm(vm).pidfile());
    if elsewhere { Err(StateError::Elsewhere { vm: vm.to_owned() }.into()) } else { Ok(()) }
}
