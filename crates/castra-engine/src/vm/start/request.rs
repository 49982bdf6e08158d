//! Request of a start: the plan, the files found for it, and the record of the boot.

use crate::guest::Mount;
use crate::host::{boot_id, unix_time_ms};
use crate::layout::{SocketsLayout, VmLayout};
use crate::qemu::{Accelerator, AcceleratorChoice, MachineSpec, QemuBinary};
use crate::report::Event;
use crate::vm::disk::Image;
use crate::vm::kernel::{Boots, Native};
use crate::vm::plan::VmPlan;
use crate::vm::project::ProjectRef;
use crate::vm::record::{
    AutoForwards, BootRecord, Home, MachineRecord, RecordedMachine, StartKind,
};
use crate::vm::timeline::Stopwatch;

use super::options::UpOptions;

/// Everything that a start needs to know.
#[derive(Clone, Copy)]
pub(in crate::vm) struct BootRequest<'a> {
    pub(in crate::vm) plan: &'a VmPlan,
    pub(in crate::vm) image: Option<&'a Image>,
    pub(in crate::vm) boots: &'a Boots,
    pub(in crate::vm) binary: &'a QemuBinary,
    pub(in crate::vm) project: ProjectRef<'a>,
    pub(in crate::vm) options: UpOptions,
    /// Directories of the host that the guest will see.
    pub(in crate::vm) mounts: &'a [Mount],
    pub(in crate::vm) stopwatch: &'a Stopwatch,
}

impl BootRequest<'_> {
    pub(in crate::vm) fn vm(&self) -> &str {
        &self.plan.definition.name
    }

    pub(super) fn report(&self, event: Event) {
        self.project.report(&event);
    }

    pub(in crate::vm) fn files(&self) -> VmLayout {
        self.project.files(self.vm())
    }

    pub(super) fn has_agent(&self) -> bool {
        self.boots.has_agent()
    }
}

/// Returns the record of a boot that begins.
pub(in crate::vm) fn boot_record(
    request: &BootRequest<'_>,
    choice: &AcceleratorChoice,
    ssh_port: Option<u16>,
    sockets: &SocketsLayout,
    start: StartKind,
    spec: &MachineSpec,
) -> BootRecord {
    let machine = MachineRecord {
        qemu: request.binary.identity.clone(),
        host: host_of(choice.accelerator),
        machine: spec.machine.clone(),
        cpu: spec.cpu.clone(),
        devices: spec.devices.clone(),
        stream_ports: spec.stream_ports,
        announcement: spec.announcement,
    };
    BootRecord {
        started_unix_ms: unix_time_ms(),
        boot_id: boot_id(),
        castra_version: env!("CARGO_PKG_VERSION").to_owned(),
        accelerator: choice.clone(),
        qemu_version: String::new(),
        cpus: spec.cpus,
        memory_mib: spec.memory_mib,
        ssh_port,
        port_forwards: request.plan.definition.port_forwards.clone(),
        mounts: request.mounts.to_vec(),
        proxy: request.plan.definition.proxy,
        added_forwards: Vec::new(),
        auto_forwards: (request.plan.definition.auto_forwards && request.has_agent())
            .then(|| AutoForwards::avoiding(&request.plan.ports_of_others)),
        relayed: ssh_port.is_some() && request.has_agent(),
        sockets: sockets.directory().to_owned(),
        home: Home::of(request.project.layout.state_root()),
        start,
        ready_ms: None,
        missing_modules: None,
        machine: Some(RecordedMachine::Known(machine)),
        kernel: request.boots.record().cloned(),
        native: request.boots.native().map(Native::record),
    }
}

/// Returns the host's name if the guest's CPU is the host's own.
pub(in crate::vm) fn host_of(accelerator: Accelerator) -> Option<String> {
    (accelerator != Accelerator::Tcg)
        .then(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}
