//! Starting a VM: QEMU is launched, the guest boots or a template is restored, and commands can
//! run.

mod account;
mod at_step;
mod attach;
mod boot;
mod continue_vm;
pub(super) mod copied;
mod launch;
mod limits;
mod login;
mod machine;
mod options;
pub(super) mod predecessor;
mod provision;
mod request;
mod session;
mod warm;
mod watch;

use crate::config::{Proxy, VmDefinition};
use crate::context::RuntimeContext;
use crate::guest::proxy_with_credentials;
use crate::qemu::{Network, QemuBinary};
use crate::report::Event;

use super::disk::{check_recorded, confirm, data, ensure_base, ensure_vm_assets, look_at_own_disk};
use super::error::{PortError, StartError, VmError, warn};
use super::kernel::{self, Boots, Choice};
use super::mounts;
use super::plan::{BasePlan, VmPlan};
use super::ports;
use super::project::ProjectRef;
use super::record::{ProvisionRecord, Record};
use super::timeline::{Phase, Stopwatch};

pub(super) use account::record_timeline;
pub use at_step::at_step;
pub(super) use attach::{attach, check_network, is_stalled, report_running};
pub(super) use continue_vm::{cancel_resume, cancel_suspend, continue_vm, discard, wake};
pub(super) use launch::launch_on_free_port;
pub(super) use login::{finish_login, set_clock};
pub(super) use machine::{machine, tcg_cpu};
pub use options::{UpOptions, UpOutcome, WaitFor};

pub(super) use provision::warn_of_change;
pub use provision::{UngrantedSecret, grant_secrets, ungranted_secrets};
pub(super) use request::{BootRequest, boot_record, host_of};
pub(super) use session::record_times;

use boot::{accelerator, named_accelerator, start};
use provision::Provisioning;
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
    let mounts = &mounts::of_start(&plan.definition, project, options.lifetime)?;
    data::check(vm, &plan.definition.data_disks, recorded.as_ref(), project.layout)?;
    if let Some(record) = &recorded {
        check_recorded(plan, record, project.layout)?;
        warn_of_change(plan, record, project);
    }
    let (definition, context) = (&plan.definition, project.context);
    let is_new = !definition.overlay.exists();
    let mut first = None;
    if let BasePlan::Path(path) = &plan.base {
        // Before it is hashed, which takes a while.
        look_at_own_disk(definition, path)?;
        first = is_new.then(|| kernel::of_new_disk(definition, None, path, context)).transpose()?;
    }
    let mut base = ensure_base(plan, recorded.as_ref(), project)?;
    if is_new && first.is_none() {
        let image = base.image.as_ref();
        first = Some(kernel::of_new_disk(definition, image, &base.disk, context)?);
    }
    if let Some(Choice { boots, .. }) = &first {
        check_services(vm, boots, options)?;
    }
    let limit = options.boot_limit;
    stopwatch.begin(Phase::Accelerator);
    let choice = accelerator(plan, base.image.as_ref(), binary, project)?;
    let mut made = None;
    if let Some(Choice { boots, .. }) = &first
        && !definition.provision.is_empty()
    {
        stopwatch.begin(Phase::Template);
        let (base, choice) = (&base, &choice);
        let network = options.provision_network.unwrap_or(options.network);
        let steps = Provisioning { plan, base, boots, binary, choice, project, network, limit };
        let provisioned = steps.layers()?;
        if let Some(top) = provisioned.top() {
            // A step may have installed a kernel.
            let disk = project.layout.layer(&top.sha256);
            first = Some(kernel::of_new_disk(definition, base.image.as_ref(), &disk, context)?);
        }
        made = Some(provisioned);
    }
    let warm = match &first {
        Some(Choice { boots, .. }) if is_warm_wanted(boots, options) => {
            stopwatch.begin(Phase::Template);
            let (base, choice) = (&base, &choice);
            let provisioned = made.as_ref().and_then(ProvisionRecord::top);
            Warming { plan, base, provisioned, boots, binary, choice, project, limit }.template()?
        }
        _ => None,
    };
    stopwatch.begin(Phase::Overlay);
    if warm.is_none() && is_new {
        base = confirm(base, project)?;
    }
    let layer = warm.as_ref().map(|warm| warm.layer.clone());
    data::ensure(vm, &definition.data_disks, recorded.as_ref(), &plan.declared, project)?;
    let (artifacts, record) = ensure_vm_assets(plan, recorded, base, made, layer, project)?;
    let image = artifacts.image.as_ref();
    let Choice { boots, previous } = match first.filter(|_| artifacts.is_new) {
        Some(first) => first,
        None => kernel::of_disk(definition, image, &record, project)?,
    };
    check_services(vm, &boots, options)?;
    if definition.proxy == Proxy::Host {
        warn_of_credentials(vm, context);
    }
    let mounts = mounts::of_guest(vm, mounts, boots.has_agent(), context);
    if definition.auto_forwards && !boots.has_agent() {
        warn(&PortError::Native { vm: vm.to_owned() }, context);
    }
    if !boots.has_agent() {
        warn_of_unmounted(definition, context);
    }
    let request =
        BootRequest { plan, image, boots: &boots, binary, project, options, mounts, stopwatch };
    let warm = warm.as_ref().filter(|_| artifacts.is_new);
    start(&request, record, choice, warm, previous.as_ref())
}

/// Warns of disks that nothing mounts in a guest without an agent.
fn warn_of_unmounted(definition: &VmDefinition, context: &RuntimeContext) {
    for disk in &definition.data_disks {
        let (Some(guest), vm, name) = (&disk.guest, &definition.name, &disk.name) else { continue };
        let message = format!(
            "VM `{vm}` boots natively, without Castra's agent, which would mount disk `{name}` at \
            {guest}: the system finds it as /dev/disk/by-id/virtio-{name}"
        );
        context.reporter.report(&Event::Warning { message });
    }
}

/// Warns if proxies that are passed on need a password, which a castra.toml does not get.
fn warn_of_credentials(vm: &str, context: &RuntimeContext) {
    let Some(name) = proxy_with_credentials(&context.environment) else { return };
    let message = format!(
        "VM `{vm}` gets the proxy of {name} without its user and password; `castra exec --env \
        {name}=…` passes them to one command"
    );
    context.reporter.report(&Event::Warning { message });
}

/// Checks that the guest will have an agent, which reports its services, if they are waited for.
fn check_services(vm: &str, boots: &Boots, options: UpOptions) -> Result<(), StartError> {
    match boots {
        Boots::Native(_) if options.wait == WaitFor::Services => {
            Err(StartError::ServicesUnseen { vm: vm.to_owned() })
        }
        _ => Ok(()),
    }
}

/// Returns `true` for a new disk with a guest that has an agent: a template fits only a new disk,
/// and an existing one may have been used.
fn is_warm_wanted(boots: &Boots, options: UpOptions) -> bool {
    let obstacle = if options.cold {
        "a cold boot was asked for"
    } else if !boots.has_agent() {
        "its guest has no agent"
    } else if options.network == Network::Isolated && boots.seed().is_some() {
        // It runs the user's data, which had a network when the template was made.
        "an isolated VM must be isolated from its first instruction"
    } else {
        return true;
    };
    tracing::debug!("no template: {obstacle}");
    false
}
