//! Machine that QEMU emulates: from a VM's plan and files to a [`MachineSpec`].

use crate::config::VmDefinition;
use crate::layout::VmLayout;
use crate::managed::QemuProfile;
use crate::qemu::{
    AcceleratorChoice, Announcement, Boot, CpuModel, Device, DeviceModel, Disk, MachineSpec,
    Memory, Network, StreamPortCount,
};
use crate::vm::disk::{Image, data};
use crate::vm::kernel::Boots;
use crate::vm::plan::VmPlan;

use crate::vm::ports::{self, SshForward};

/// Returns the CPU model under TCG: the VM's own, else its image's, else the default.
pub(in crate::vm) fn tcg_cpu(definition: &VmDefinition, image: Option<&Image>) -> CpuModel {
    let of_image = || image.map(|(spec, _)| spec.profile.tcg_cpu.clone());
    definition.cpu.clone().or_else(of_image).unwrap_or_default()
}

/// Returns the machine of a VM that boots. The backing chain of its disk is read when QEMU is
/// started, since there may be no disk yet.
pub(in crate::vm) fn machine(
    plan: &VmPlan,
    image: Option<&Image>,
    boots: &Boots,
    files: &VmLayout,
    choice: &AcceleratorChoice,
    ssh_port: Option<u16>,
) -> MachineSpec {
    let definition = &plan.definition;
    let profile = image.map(|(spec, _)| &spec.profile);
    // A template is made without ports, and without relays.
    let is_relayed = ssh_port.is_some() && boots.has_agent();
    let relays = if is_relayed { ports::relays(&definition.port_forwards) } else { Vec::new() };
    // Blank ones are in the place of a template's.
    let disks = if ssh_port.is_some() { definition.data_disks.as_slice() } else { &[] };
    let boot = boots.of_qemu(files, &relays, disks);
    let ssh = ssh_port.map(|host| SshForward::new(host, boots.has_agent()));
    let own = devices(profile);
    let is_native = matches!(boot, Boot::Native(_));
    MachineSpec {
        name: definition.name.clone(),
        machine: profile.map(|profile| profile.machine.clone()).unwrap_or_default(),
        accelerator: choice.accelerator,
        cpu: choice.accelerator.cpu(&tcg_cpu(definition, image)),
        cpus: definition.cpus,
        memory_mib: definition.memory_bytes >> 20,
        memory: Memory::Own,
        disk: Disk { path: definition.overlay.to_path_buf(), below: Vec::new() },
        data_disks: data::of_machine(&definition.data_disks, files),
        stream_ports: match &boot {
            Boot::Kernel { .. } => StreamPortCount::OF_AGENT,
            Boot::Native(_) => StreamPortCount::NONE,
        },
        boot,
        devices: if is_native { with_graphics(own) } else { own },
        announcement: Announcement::Omitted,
        network: Network::Full,
        forwards: ports::rules(ssh, &definition.port_forwards, is_relayed),
        pidfile: files.pidfile(),
        console_log: files.console_log(),
    }
}

/// Returns the image's devices and a generation id, by which a guest's kernel learns that it is a
/// copy of another and draws other random numbers.
fn devices(profile: Option<&QemuProfile>) -> Vec<Device> {
    let own = profile
        .map_or_else(|| vec![Device::new(DeviceModel::VirtioRng)], |one| one.devices.clone());
    // QEMU accepts at most one.
    let has_one = own.iter().any(|device| device.model() == DeviceModel::GenerationId);
    own.into_iter().chain((!has_one).then(Device::new_generation_id)).collect()
}

/// Adds the graphics card that boot loaders expect: without any, GRUB hangs in QEMU's BIOS
/// (*measured* with GRUB 2.06 and SeaBIOS 1.16.2).
fn with_graphics(devices: Vec<Device>) -> Vec<Device> {
    let is_card =
        |device: &Device| matches!(device.model(), DeviceModel::Vga | DeviceModel::BochsDisplay);
    let card = (!devices.iter().any(is_card)).then(|| Device::new(DeviceModel::Vga));
    devices.into_iter().chain(card).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::managed::ManagedImagePaths;

    #[test]
    fn a_vms_own_cpu_goes_before_its_images() {
        let text = "[[vms]]\nname = \"a\"\nbase_image = \"b\"\n";
        let surroundings = crate::config::Surroundings::default();
        let file = std::path::Path::new("/p/castra.toml");
        let mut definition =
            crate::config::parse(text, file, &surroundings).expect("a project").vms.remove(0);
        let mut spec = crate::managed::Catalog::builtin().images()[0].clone();
        spec.profile.tcg_cpu = "max".parse().expect("a CPU");
        let paths = ManagedImagePaths {
            directory: PathBuf::new(),
            disk: PathBuf::new(),
            disk_sha256: String::new(),
            kernel: None,
            initramfs: None,
            manifest: PathBuf::new(),
        };
        let image = (spec, paths);
        assert_eq!(tcg_cpu(&definition, None), CpuModel::default());
        assert_eq!(tcg_cpu(&definition, Some(&image)).to_string(), "max");
        definition.cpu = Some("EPYC".parse().expect("a CPU"));
        assert_eq!(tcg_cpu(&definition, Some(&image)).to_string(), "EPYC");
    }

    #[test]
    fn a_boot_loader_has_one_graphics_card() {
        let models = |devices: Vec<Device>| devices.iter().map(Device::model).collect::<Vec<_>>();
        let rng = || Device::new(DeviceModel::VirtioRng);
        let own = vec![Device::new(DeviceModel::BochsDisplay)];
        assert_eq!(models(with_graphics(own)), [DeviceModel::BochsDisplay]);
        assert_eq!(models(with_graphics(vec![rng()])), [DeviceModel::VirtioRng, DeviceModel::Vga]);
    }

    #[test]
    fn every_vm_has_one_generation_id() {
        let texts =
            |devices: Vec<Device>| devices.iter().map(Device::to_string).collect::<Vec<_>>();
        assert_eq!(texts(devices(None)), ["virtio-rng-pci", "vmgenid,guid=auto"]);
        let mut profile = crate::managed::Catalog::builtin().images()[0].profile.clone();
        profile.devices = vec![Device::new(DeviceModel::GenerationId)];
        assert_eq!(texts(devices(Some(&profile))), ["vmgenid"]);
    }
}
