//! What QEMU is to run: from a VM's plan and files to a [`MachineSpec`].

use crate::config::Protocol;
use crate::layout::VmLayout;
use crate::qemu::{AcceleratorChoice, Boot, HostForward, MachineSpec};

use super::boot::BootRequest;

/// Machine of a VM that boots from its own disk: the same as for managed images, and what any distribution's kernel knows.
const NATIVE_MACHINE: &str = "q35,sata=off,smbus=off,vmport=off";
/// CPU of such a VM under TCG: measured the fastest that has what current distributions need.
const NATIVE_TCG_CPU: &str = "qemu64,+rdrand";

pub(super) fn tcg_cpu(request: &BootRequest<'_>) -> String {
    let image = request.artifacts.image.as_ref();
    image.map_or(NATIVE_TCG_CPU.to_owned(), |(spec, _)| spec.profile.tcg_cpu.clone())
}

pub(super) fn machine(
    request: &BootRequest<'_>,
    choice: &AcceleratorChoice,
    ssh_port: Option<u16>,
) -> MachineSpec {
    let (definition, files) = (&request.plan.definition, request.files());
    let profile = request.artifacts.image.as_ref().map(|(spec, _)| &spec.profile);
    let ssh =
        ssh_port.map(|host| HostForward { protocol: Protocol::Tcp, host, guest: castra_wire::SSH_PORT });
    let declared = definition.port_forwards.iter();
    let declared = declared.map(|f| HostForward { protocol: f.protocol, host: f.host, guest: f.guest });
    MachineSpec {
        name: definition.name.clone(),
        machine: profile.map_or(NATIVE_MACHINE.into(), |profile| profile.machine.clone()),
        accelerator: choice.accelerator,
        cpu: choice.accelerator.cpu(&tcg_cpu(request)),
        cpus: definition.cpus,
        memory_mib: definition.memory_bytes >> 20,
        disk: request.artifacts.overlay.clone(),
        boot: what_boots(request, &files),
        devices: profile.map_or(vec!["virtio-rng-pci".into()], |profile| profile.devices.clone()),
        forwards: ssh.into_iter().chain(declared).collect(),
        pidfile: files.pidfile(),
        console_log: files.console_log(),
    }
}

fn what_boots(request: &BootRequest<'_>, files: &VmLayout) -> Boot {
    let Some((spec, paths)) = request.artifacts.image.as_ref().filter(|_| request.has_agent()) else {
        return Boot::Native;
    };
    match (&paths.kernel, &spec.profile.command_line) {
        (Some(kernel), Some(command_line)) => Boot::Kernel {
            kernel: kernel.clone(),
            initramfs: files.initramfs(),
            command_line: format!("{command_line} rdinit={}", crate::guest::AGENT_PATH),
        },
        _ => Boot::Native,
    }
}
