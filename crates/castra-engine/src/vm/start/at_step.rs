//! A machine as a step of provisioning finds it: to look at the disk before a step that fails.

use std::cell::Cell;

use crate::guest::ssh::Target;
use crate::qemu::{Network, QemuBinary};
use crate::vm::disk::{ensure_base, look_at_own_disk};
use crate::vm::error::{ProvisionError, VmDiskError, VmError};
use crate::vm::kernel;
use crate::vm::lock::share_project;
use crate::vm::plan::{BasePlan, VmPlan};
use crate::vm::project::ProjectRef;
use crate::vm::record::Record;

use super::boot::{accelerator, named_accelerator};
use super::provision::Provisioning;

/// Runs `work` in a machine whose disk is as step `number` of a VM finds it, counted from 1, or as
/// the last step leaves it for the number after that. `work` gets the way in, with the variables
/// that the step would have. Earlier steps run if they have not; the VM itself is left alone, and
/// whatever the machine writes is discarded.
///
/// # Errors
/// [`ProvisionError`], and errors of starting the machine.
pub fn at_step<T>(
    plan: &VmPlan,
    number: usize,
    project: ProjectRef<'_>,
    work: &dyn Fn(&Target) -> T,
) -> Result<T, VmError> {
    let (definition, context) = (&plan.definition, project.context);
    let (vm, of) = (&definition.name, definition.provision.len());
    if of == 0 {
        return Err(ProvisionError::NoSteps { vm: vm.clone().into() }.into());
    }
    if number == 0 || number > of + 1 {
        return Err(ProvisionError::NoSuchStep { vm: vm.clone().into(), number, of }.into());
    }
    if let Err(problem) = definition.overlay.bounds().claim_state_root() {
        let (vm, problem) = (vm.clone(), Box::new(problem));
        return Err(VmDiskError::OutOfBounds { vm, problem }.into());
    }
    // Until QEMU has opened what the machine needs: cleaning up need not wait for a shell.
    let lock = Cell::new(Some(share_project(project)?));
    let binary = &QemuBinary::find(&context.environment)?;
    named_accelerator(context)?;
    if let BasePlan::Path(path) = &plan.base {
        look_at_own_disk(definition, path)?;
    }
    let recorded = Record::load(project.layout, vm)?;
    let base = &ensure_base(plan, recorded.as_ref(), project)?;
    let boots = &kernel::of_new_disk(definition, base.image.as_ref(), &base.disk, context)?.boots;
    let choice = &accelerator(plan, base.image.as_ref(), binary, project)?;
    let (network, limit) = (Network::Full, None);
    let steps = Provisioning { plan, base, boots, binary, choice, project, network, limit };
    steps.before_step(number, &|target| {
        drop(lock.take());
        work(target)
    })
}
