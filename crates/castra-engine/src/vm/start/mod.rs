//! Starting a VM: QEMU is launched, the guest boots or a template is restored, and commands can
//! run.

mod account;
mod attach;
mod boot;
mod continue_vm;
pub(super) mod copied;
mod launch;
mod limits;
mod machine;
mod options;
pub(super) mod ports;
pub(super) mod predecessor;
mod request;
mod session;
mod warm;
mod watch;

use crate::config::BootProfile;
use crate::qemu::QemuBinary;

use super::disk::{
    check_boot_code, check_own_disk, check_recorded, confirm, ensure_base, ensure_vm_assets,
};
use super::error::VmError;
use super::plan::{BasePlan, VmPlan};
use super::project::ProjectRef;
use super::record::Record;
use super::timeline::{Phase, Stopwatch};

pub(super) use account::record_timeline;
pub(super) use attach::{attach, check_network, is_stalled, report_running};
pub(super) use continue_vm::{cancel_resume, cancel_suspend, continue_vm, discard};
pub(super) use launch::launch_on_free_port;
pub(super) use machine::{machine, tcg_cpu};
pub use options::{UpOptions, UpOutcome, WaitFor};
pub use ports::{check_port, port_owner};
pub(super) use request::{BootRequest, boot_record, host_of};
pub(super) use session::record_times;

use boot::{accelerator, named_accelerator, start};
use warm::Warming;

/// Brings up a VM that does not run, with its record if there is one: QEMU's program, host ports,
/// base image, warm template, disk, in this order, so that anything missing on this machine is an
/// error before a disk is created.
pub(super) fn bring_up(
    plan: &VmPlan,
    recorded: Option<Record>,
    project: ProjectRef<'_>,
    options: UpOptions,
) -> Result<Record, VmError> {
    let vm = &plan.definition.name;
    let stopwatch = &Stopwatch::new(vm, &project.context.reporter);
    stopwatch.begin(Phase::Image);
    // Before anything is downloaded, since a missing QEMU should not be reported after an hour.
    let binary = &QemuBinary::find(&project.context.environment)?;
    named_accelerator(project.context)?;
    // A start that fails after its disk is made costs the VM its warm template.
    ports::check(vm, &plan.definition.port_forwards, project.layout)?;
    if let Some(record) = &recorded {
        check_recorded(plan, record, project.layout)?;
    }
    if let BasePlan::Path(path) = &plan.base {
        // Before it is hashed, which takes a while.
        check_own_disk(&plan.definition, path, project.context)?;
    }
    let mut base = ensure_base(plan, recorded.as_ref(), project)?;
    let limit = options.boot_limit;
    stopwatch.begin(Phase::Accelerator);
    let choice = accelerator(plan, base.image.as_ref(), binary, project)?;
    let warm = match base.image.as_ref().filter(|_| is_warm_wanted(plan, options)) {
        Some(image) => {
            stopwatch.begin(Phase::Template);
            Warming { plan, image, binary, choice: &choice, project, limit }.template()?
        }
        None => None,
    };
    stopwatch.begin(Phase::Overlay);
    let is_native = plan.boot == BootProfile::Native;
    if is_native && base.image.is_some() && !plan.definition.overlay.exists() {
        check_boot_code(vm, &base.disk, project.context)?;
    }
    if warm.is_none() && !plan.definition.overlay.exists() {
        base = confirm(base, project)?;
    }
    let layer = warm.as_ref().map(|warm| warm.layer.clone());
    let (artifacts, record) = ensure_vm_assets(plan, recorded, base, layer, project)?;
    if is_native && !artifacts.is_new {
        check_boot_code(vm, &plan.definition.overlay, project.context)?;
    }
    let image = artifacts.image.as_ref();
    let request = BootRequest { plan, image, binary, project, options, stopwatch };
    start(&request, record, choice, warm.as_ref().filter(|_| artifacts.is_new))
}

/// Returns `true` for a guest with an agent and without a disk: a template fits only a new disk,
/// and an existing one may have been used.
fn is_warm_wanted(plan: &VmPlan, options: UpOptions) -> bool {
    let obstacle = if options.cold {
        "a cold boot was asked for"
    } else if plan.boot != BootProfile::Managed {
        "its guest has no agent"
    } else if plan.definition.overlay.exists() {
        "it has a disk"
    } else {
        return true;
    };
    tracing::debug!("no template: {obstacle}");
    false
}
