//! What QEMU is to run: from a VM's plan and files to a [`MachineSpec`].

use std::path::PathBuf;

use crate::config::{BootProfile, Protocol};
use crate::layout::VmLayout;
use crate::managed::{ManagedImagePaths, ManagedImageSpec};
use crate::plan::VmPlan;
use crate::qemu::{AcceleratorChoice, Boot, Disk, HostForward, MachineSpec, Memory, Network};

/// Machine of a VM that boots from its own disk: the same as for managed images, and what any distribution's kernel knows.
const NATIVE_MACHINE: &str = "q35,sata=off,smbus=off,vmport=off";
/// CPU of such a VM under TCG: measured the fastest that has what current distributions need.
const NATIVE_TCG_CPU: &str = "qemu64,+rdrand";
/// What a kernel is told beside what its image says. It is not to measure whether the timer ticks: on a machine so busy that
/// QEMU hardly runs it finds that it does not, and panics ("IO-APIC + timer doesn't work").
const FOR_EVERY_KERNEL: &str = "no_timer_check";
/// Tells a guest's kernel that it is a copy of another, so that it draws other random numbers (QEMU's
/// docs/specs/vmgenid.txt). `auto`: another number each time QEMU starts.
const GENERATION_ID: &str = "vmgenid,guid=auto";

/// A managed image and where its files are.
pub(super) type Image = (ManagedImageSpec, ManagedImagePaths);

/// CPU model under TCG.
pub(super) fn tcg_cpu(image: Option<&Image>) -> &str {
    image.map_or(NATIVE_TCG_CPU, |(spec, _)| &spec.profile.tcg_cpu)
}

/// The machine of a VM that boots. What its disk stands on is found out when QEMU is started: there may be no disk yet.
pub(super) fn machine(
    plan: &VmPlan,
    image: Option<&Image>,
    files: &VmLayout,
    choice: &AcceleratorChoice,
    ssh_port: Option<u16>,
) -> MachineSpec {
    let definition = &plan.definition;
    let profile = image.map(|(spec, _)| &spec.profile);
    let ssh =
        ssh_port.map(|host| HostForward { protocol: Protocol::Tcp, host, guest: castra_wire::SSH_PORT });
    let declared = definition.port_forwards.iter();
    let declared = declared.map(|f| HostForward { protocol: f.protocol, host: f.host, guest: f.guest });
    let mut devices = profile.map_or(vec!["virtio-rng-pci".into()], |profile| profile.devices.clone());
    devices.push(GENERATION_ID.into());
    MachineSpec {
        name: definition.name.clone(),
        machine: profile.map_or(NATIVE_MACHINE.into(), |profile| profile.machine.clone()),
        accelerator: choice.accelerator,
        cpu: choice.accelerator.cpu(tcg_cpu(image)),
        cpus: definition.cpus,
        memory_mib: definition.memory_bytes >> 20,
        memory: Memory::Own,
        disk: Disk { path: definition.overlay.clone(), below: Vec::new() },
        boot: what_boots(plan, image, files.initramfs()),
        devices,
        network: Network::Full,
        forwards: ssh.into_iter().chain(declared).collect(),
        pidfile: files.pidfile(),
        console_log: files.console_log(),
    }
}

fn what_boots(plan: &VmPlan, image: Option<&Image>, initramfs: PathBuf) -> Boot {
    let Some((spec, paths)) = image.filter(|_| plan.boot == BootProfile::Managed) else {
        return Boot::Native;
    };
    match (&paths.kernel, &spec.profile.command_line) {
        (Some(kernel), Some(command_line)) => Boot::Kernel {
            kernel: kernel.clone(),
            initramfs,
            command_line: format!("{command_line} {FOR_EVERY_KERNEL} rdinit={}", crate::guest::AGENT_PATH),
        },
        _ => Boot::Native,
    }
}
