//! Cloning a VM that may be running.

use crate::config::ProjectConfig;

use super::error::VmError;
use super::lock::lock_for_clone;
use super::plan::Plan;
use super::project::ProjectRef;
use super::record::{Record, observe, recorded_vm};
use super::start::UpOptions;
use super::suspend::{check_clone, clone, suspend};
use super::up::up;

/// Clones the VM `vm` as `new`, with its disk where the configuration declares it. A running VM is
/// suspended for the clone and then resumed, even if the clone failed.
///
/// # Errors
/// Returns errors of [`suspend`], [`clone`] and [`up`].
pub fn clone_running(
    vm: &str,
    new: &str,
    config: &ProjectConfig,
    project: ProjectRef<'_>,
) -> Result<Record, VmError> {
    let declared = config.vms.iter().find(|declared| declared.name == new);
    let overlay = declared
        .map_or_else(|| config.bounds.default_disk(new), |declared| declared.overlay.clone());
    check_clone(vm, new, &overlay, project.layout)?;
    if !observe(&recorded_vm(Some(vm), project.layout)?, &project.files(vm)).0.is_alive() {
        return clone(vm, new, &overlay, project);
    }
    let _lock = lock_for_clone(vm, project);
    let names = [vm.to_owned()];
    for (_, suspended) in suspend(&names, project)? {
        suspended?;
    }
    let made = clone(vm, new, &overlay, project);
    let plan = Plan::of_start(config, &names, project.layout, &Record::all(project.layout))?;
    for (_, resumed) in up(&plan, project, UpOptions::default()) {
        resumed?;
    }
    made
}
