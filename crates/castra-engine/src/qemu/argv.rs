//! QEMU's command line, built from data by small pure functions. Snapshot tests hold whole lines.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::layout::MAX_STREAM_PORTS;
use crate::sockets::Protocol;

use super::accelerator::Accelerator;
use super::chain::{Disk, Layer, LayerFormat};
use super::cpu_threads::CpuThreads;
use super::data_disk::DataDisk;
use super::options::{Announcement, CommandLine, CpuModel, Device, MachineType, StreamPortCount};

/// Name of the control port's socket.
pub(super) const CONTROL: &str = "control";

/// Strictest sandbox of QEMU. It excludes -daemonize, so Castra detaches the process itself.
pub(super) const SANDBOX: &str =
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Number of ports of the bus of a machine with stream ports, instead of 31: the guest sets up two
/// queues for each, and looks at all of them on each interrupt.
const MAX_SERIAL_PORTS: u32 = FIRST_STREAM_NUMBER + MAX_STREAM_PORTS;
/// Number of the first stream port on its bus, after a reserved one and the control port.
const FIRST_STREAM_NUMBER: u32 = 2;

/// Complete description of a machine to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSpec {
    /// Name of the VM, for the process list and messages.
    pub name: String,
    /// Machine type.
    pub machine: MachineType,
    /// Accelerator that runs the CPU.
    pub accelerator: Accelerator,
    /// CPU model.
    pub cpu: CpuModel,
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// Size of the memory, in MiB.
    pub memory_mib: u64,
    /// Backing of the guest's memory.
    pub memory: Memory,
    /// Disk with its backing chain.
    pub disk: Disk,
    /// Disks in addition to that one.
    pub data_disks: Vec<DataDisk>,
    /// Program to boot.
    pub boot: Boot,
    /// Additional devices.
    pub devices: Vec<Device>,
    /// Number of the agent's stream ports.
    pub stream_ports: StreamPortCount,
    /// Announcement of the guest's address.
    pub announcement: Announcement,
    /// Reach of the guest's network.
    pub network: Network,
    /// Ports of 127.0.0.1 that are forwarded to the guest.
    pub forwards: Vec<HostForward>,
    /// Pid file, written and locked by QEMU.
    pub pidfile: PathBuf,
    /// Log of the guest's serial console.
    pub console_log: PathBuf,
}

/// Backing of a guest's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Memory {
    /// Anonymous memory of QEMU.
    Own,
    /// A file of exactly the memory's size, to which the guest writes.
    Written(PathBuf),
    /// A file whose pages the guest shares with others until it writes to them; the file never
    /// changes.
    Copied(PathBuf),
}

/// Program that a machine boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// A kernel, with the guest agent in its initramfs.
    Kernel {
        /// The kernel.
        kernel: PathBuf,
        /// The initramfs.
        initramfs: PathBuf,
        /// The kernel's command line.
        command_line: CommandLine,
    },
    /// The disk's own boot loader.
    Native(NativeBoot),
}

/// Surroundings of a boot by the disk's own boot loader.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NativeBoot {
    /// UEFI firmware; `None` for QEMU's BIOS.
    pub uefi: Option<UefiFlash>,
    /// Files of texts that the guest finds in its SMBIOS tables (type 11).
    pub oem_strings: Vec<PathBuf>,
    /// Raw image of a second disk, which is only read.
    pub seed: Option<PathBuf>,
}

/// Flash memory with UEFI firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UefiFlash {
    /// Code, which is only read.
    pub code: Layer,
    /// Variables of this machine.
    pub variables: Layer,
}

/// Reach of a guest's network. A setting of QEMU and not of the machine, so a saved state resumes
/// with either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Everything that this process can reach.
    Full,
    /// Nothing, not even this machine; forwarded ports still lead into the guest.
    Isolated,
}

/// A port of 127.0.0.1 that is forwarded to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostForward {
    /// Protocol of both ports.
    pub protocol: Protocol,
    /// Port of 127.0.0.1.
    pub host: u16,
    /// Port of the guest.
    pub guest: u16,
}

/// Listening sockets that QEMU inherits, as descriptors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channels {
    /// Socket of the machine protocol.
    pub qmp: RawFd,
    /// Socket of the guest agent's control port.
    pub control: RawFd,
    /// Socket of the guest's serial console.
    pub console: RawFd,
    /// Sockets of the stream ports, by index.
    pub streams: Vec<RawFd>,
    /// Set if a saved state follows, instead of a boot.
    pub incoming: bool,
    /// Threads for the CPUs.
    pub threads: CpuThreads,
}

/// Returns the arguments that run `spec`, without the program itself.
pub fn arguments(spec: &MachineSpec, channels: &Channels) -> Vec<OsString> {
    let groups = [
        base(spec),
        processor(spec, channels.threads),
        memory(&spec.memory, spec.memory_mib),
        boot(&spec.boot),
        disk(&spec.disk),
        network(spec),
        serial(spec, channels),
        streams(&channels.streams),
        devices(&spec.devices),
        seed(&spec.boot),
        data_disks(&spec.data_disks),
        process(spec),
        incoming(channels.incoming),
    ];
    groups.into_iter().flatten().collect()
}

/// Returns the options that disable everything that QEMU or its configuration files would add by
/// themselves.
fn base(spec: &MachineSpec) -> Vec<OsString> {
    words(&["-nodefaults", "-no-user-config", "-display", "none", "-name"])
        .chain([value(&["guest=", &escape(&spec.name)])])
        .chain(words(&["-machine", &spec.machine.to_string()]))
        .collect()
}

fn processor(spec: &MachineSpec, threads: CpuThreads) -> Vec<OsString> {
    let (cpus, memory) = (spec.cpus.to_string(), format!("{}M", spec.memory_mib));
    words(&[
        "-accel",
        &accelerator(spec.accelerator, threads),
        "-cpu",
        &spec.cpu.to_string(),
        "-smp",
        &cpus,
        "-m",
        &memory,
    ])
    .collect()
}

/// Returns the options of the memory. The id is the memory's name in a saved state, so it never
/// changes.
fn memory(memory: &Memory, size_mib: u64) -> Vec<OsString> {
    let file = |path: &Path, share| {
        let mut file = OsString::from(format!(
            "memory-backend-file,id=ram,size={size_mib}M,share={share},mem-path="
        ));
        file.push(escape_path(path));
        file
    };
    let backend = match memory {
        Memory::Own => format!("memory-backend-ram,id=ram,size={size_mib}M").into(),
        Memory::Written(path) => file(path, "on"),
        Memory::Copied(path) => file(path, "off"),
    };
    words(&["-object"]).chain([backend]).chain(words(&["-machine", "memory-backend=ram"])).collect()
}

fn accelerator(accelerator: Accelerator, threads: CpuThreads) -> String {
    let threads = match threads {
        CpuThreads::Default => "",
        CpuThreads::Shared => ",thread=single",
        CpuThreads::Each => ",thread=multi",
    };
    format!("{}{threads}", accelerator.name())
}

fn boot(boot: &Boot) -> Vec<OsString> {
    match boot {
        Boot::Native(native) => native_boot(native),
        Boot::Kernel { kernel, initramfs, command_line } => vec![
            "-kernel".into(),
            kernel.into(),
            "-initrd".into(),
            initramfs.into(),
            "-append".into(),
            command_line.as_str().into(),
        ],
    }
}

fn native_boot(native: &NativeBoot) -> Vec<OsString> {
    let mut options = Vec::new();
    if let Some(UefiFlash { code, variables }) = &native.uefi {
        for (name, file, is_read_only) in [("code", code, true), ("variables", variables, false)] {
            let access = if is_read_only { "read-only=on" } else { "read-only=off" };
            let mut node = json!({
                "driver": file.format.name(), "node-name": name, "file": format!("{name}-file"),
                "read-only": is_read_only
            });
            if file.format == LayerFormat::Qcow2 {
                node["backing"] = serde_json::Value::Null;
            }
            for node in
                [file_node(&format!("{name}-file"), access, &file.path), node.to_string().into()]
            {
                options.extend(["-blockdev".into(), node]);
            }
        }
        options.extend(words(&["-machine", "pflash0=code,pflash1=variables"]));
    }
    for path in &native.oem_strings {
        let mut table = OsString::from("type=11,path=");
        table.push(escape_path(path));
        options.extend(["-smbios".into(), table]);
    }
    options
}

/// Returns the options of the disk with data for the guest. It comes after all other devices,
/// whose places on the bus do not depend on it.
fn seed(boot: &Boot) -> Vec<OsString> {
    let Boot::Native(NativeBoot { seed: Some(path), .. }) = boot else { return Vec::new() };
    let node = json!({
        "driver": "raw", "node-name": "seed", "file": "seed-file", "read-only": true
    });
    [file_node("seed-file", "read-only=on", path), node.to_string().into()]
        .into_iter()
        .flat_map(|node| [OsString::from("-blockdev"), node])
        .chain(words(&["-device", "virtio-blk-pci,drive=seed"]))
        .collect()
}

/// Returns the options of the disk. Every file of the backing chain is a node of its own, and every
/// format node names the node below it, or that there is none: so no header of a file can make QEMU
/// open another one. Format nodes are JSON, because only that can express "none"; paths, not all of
/// which JSON can hold, are in option lists.
fn disk(disk: &Disk) -> Vec<OsString> {
    let layers: Vec<(&Layer, usize)> = disk.below.iter().zip(1..).collect();
    // discard=unmap: blocks that the guest trims are freed on the host's disk, too.
    let mut nodes = vec![file_node("disk-file", "discard=unmap", &disk.path)];
    nodes.extend(layers.iter().map(|(layer, number)| {
        file_node(&format!("layer{number}-file"), "read-only=on", &layer.path)
    }));
    let mut below = serde_json::Value::Null;
    for (layer, number) in layers.iter().rev() {
        let name = format!("layer{number}");
        let mut node = json!({"driver": layer.format.name(), "node-name": name, "read-only": true});
        node["file"] = format!("{name}-file").into();
        if layer.format == LayerFormat::Qcow2 {
            node["backing"] = below;
        }
        nodes.push(node.to_string().into());
        below = name.into();
    }
    let top = json!({
        "driver": "qcow2", "node-name": "disk", "file": "disk-file", "discard": "unmap",
        "backing": below
    });
    nodes.push(top.to_string().into());
    nodes
        .into_iter()
        .flat_map(|node| [OsString::from("-blockdev"), node])
        .chain(words(&["-device", "virtio-blk-pci,drive=disk"]))
        .collect()
}

/// Returns the options of the data disks. They come last, so that no other device's place on the
/// bus depends on them.
fn data_disks(disks: &[DataDisk]) -> Vec<OsString> {
    let one = |disk: &DataDisk| {
        let node = format!("data-{}", disk.name);
        let file = format!("{node}-file");
        let format = json!({
            "driver": "qcow2", "node-name": node, "file": file, "discard": "unmap",
            "backing": serde_json::Value::Null
        });
        let device = format!("virtio-blk-pci,drive={node},serial={}", disk.name);
        [file_node(&file, "discard=unmap", &disk.path), format.to_string().into()]
            .into_iter()
            .flat_map(|node| [OsString::from("-blockdev"), node])
            .chain(words(&["-device", &device]))
            .collect::<Vec<_>>()
    };
    disks.iter().flat_map(one).collect()
}

fn file_node(name: &str, option: &str, path: &Path) -> OsString {
    let mut node = OsString::from(format!("driver=file,node-name={name},{option},filename="));
    node.push(escape_path(path));
    node
}

fn network(spec: &MachineSpec) -> Vec<OsString> {
    let MachineSpec { network, forwards, announcement, .. } = spec;
    let mut user = String::from("user,id=net");
    if *network == Network::Isolated {
        user.push_str(",restrict=on");
    }
    for forward in forwards {
        let HostForward { protocol, host, guest } = forward;
        user.push_str(&format!(",hostfwd={protocol}:127.0.0.1:{host}-:{guest}"));
    }
    // romfile=: no boot from the network, and 0.1 s less firmware.
    let mut card = String::from("virtio-net-pci,netdev=net,romfile=");
    if !announcement.is_made() {
        card.push_str(",guest_announce=off");
    }
    words(&["-netdev", &user, "-device", &card]).collect()
}

/// Returns the options of console, agent and machine protocol, which are on sockets that the caller
/// listens on. The guest's console output is also written to a file, whether a client is connected
/// or not; the file exists already, with its mode.
fn serial(spec: &MachineSpec, channels: &Channels) -> Vec<OsString> {
    let mut console = OsString::from(format!(
        "socket,id=console,fd={},server=on,wait=off,logappend=on,logfile=",
        channels.console
    ));
    console.push(escape_path(&spec.console_log));
    let control = format!("socket,id={CONTROL},fd={},server=on,wait=off", channels.control);
    let qmp = format!("socket,id=qmp,fd={},server=on,wait=off", channels.qmp);
    let port = format!("virtserialport,chardev={CONTROL},name={}", castra_wire::PORT_NAME);
    let bus = match channels.streams.is_empty() {
        true => "virtio-serial-pci".to_owned(),
        false => format!("virtio-serial-pci,max_ports={MAX_SERIAL_PORTS}"),
    };
    words(&["-chardev"])
        .chain([console])
        .chain(words(&["-serial", "chardev:console", "-chardev", &control]))
        .chain(words(&["-device", &bus, "-device", &port]))
        .chain(words(&["-chardev", &qmp, "-mon", "chardev=qmp,mode=control"]))
        .collect()
}

/// Returns the options of the stream ports, which are on sockets that the caller listens on. Their
/// numbers on the bus, and which ports there are, are part of a saved state, so none ever changes;
/// the control port has number 1, the first that is not reserved for a console.
fn streams(sockets: &[RawFd]) -> Vec<OsString> {
    let port = |(index, socket): (u32, &RawFd)| {
        let id = format!("stream{index}");
        let chardev = format!("socket,id={id},fd={socket},server=on,wait=off");
        let number = FIRST_STREAM_NUMBER + index;
        let prefix = castra_wire::STREAM_PORT_PREFIX;
        let device = format!("virtserialport,chardev={id},nr={number},name={prefix}{index}");
        words(&["-chardev", &chardev, "-device", &device])
    };
    (0..).zip(sockets).flat_map(port).collect()
}

fn devices(devices: &[Device]) -> Vec<OsString> {
    devices.iter().flat_map(|device| words(&["-device", &device.to_string()])).collect()
}

fn process(spec: &MachineSpec) -> Vec<OsString> {
    words(&["-pidfile"])
        .chain([spec.pidfile.clone().into()])
        .chain(words(&["-sandbox", SANDBOX]))
        .collect()
}

/// Returns the options for loading a saved state, which the machine protocol names later but which
/// must be announced here.
fn incoming(is_expected: bool) -> Vec<OsString> {
    if is_expected { words(&["-incoming", "defer"]).collect() } else { Vec::new() }
}

fn words(words: &[&str]) -> std::vec::IntoIter<OsString> {
    words.iter().map(OsString::from).collect::<Vec<_>>().into_iter()
}

fn value(parts: &[&str]) -> OsString {
    parts.concat().into()
}

/// Escapes a value of QEMU's option lists, where a comma ends a value unless it is doubled.
fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

pub(super) fn escape_path(path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = path.as_os_str().as_bytes();
    let doubled =
        bytes.iter().flat_map(|&byte| std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }));
    OsString::from_vec(doubled.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::DeviceModel;

    fn based_on(path: &str, below: &[&str]) -> Disk {
        let layer = |path: &&str| Layer { path: path.into(), format: LayerFormat::Qcow2 };
        Disk { path: path.into(), below: below.iter().map(layer).collect() }
    }

    fn spec(boot: Boot) -> MachineSpec {
        MachineSpec {
            name: "alpine".into(),
            machine: MachineType::default(),
            accelerator: Accelerator::Tcg,
            cpu: CpuModel::default(),
            cpus: 2,
            memory_mib: 512,
            memory: Memory::Own,
            disk: based_on("/p/.castra/alpine-overlay.qcow2", &["/p/rootfs.qcow2"]),
            data_disks: Vec::new(),
            boot,
            devices: vec![Device::new(DeviceModel::VirtioRng)],
            stream_ports: StreamPortCount::NONE,
            announcement: Announcement::Omitted,
            network: Network::Full,
            forwards: vec![
                HostForward { protocol: Protocol::Tcp, host: 40022, guest: 6022 },
                HostForward { protocol: Protocol::Udp, host: 5353, guest: 53 },
            ],
            pidfile: "/p/.castra/vms/alpine/qemu.pid".into(),
            console_log: "/p/.castra/logs/alpine-console.log".into(),
        }
    }

    fn native() -> Boot {
        Boot::Native(NativeBoot::default())
    }

    fn line(spec: &MachineSpec) -> String {
        line_with(spec, false)
    }

    fn line_with(spec: &MachineSpec, incoming: bool) -> String {
        let streams = (8..).take(usize::try_from(spec.stream_ports.get()).expect("few")).collect();
        let threads = match (spec.accelerator, spec.cpus) {
            (Accelerator::Tcg, 2..) => CpuThreads::Shared,
            _ => CpuThreads::Default,
        };
        let channels = Channels { qmp: 5, control: 6, console: 7, streams, incoming, threads };
        let arguments = arguments(spec, &channels);
        let mut text = String::new();
        for argument in arguments {
            let argument = argument.to_string_lossy().into_owned();
            text.push_str(if argument.starts_with('-') { "\n" } else { " " });
            text.push_str(&argument);
        }
        text
    }

    #[test]
    fn cpus_have_threads_under_tcg_only() {
        assert_eq!(accelerator(Accelerator::Kvm, CpuThreads::Default), "kvm");
        assert_eq!(accelerator(Accelerator::Tcg, CpuThreads::Shared), "tcg,thread=single");
        assert_eq!(accelerator(Accelerator::Tcg, CpuThreads::Each), "tcg,thread=multi");
    }

    #[test]
    fn a_managed_boot() {
        let boot = Boot::Kernel {
            kernel: "/p/vmlinuz".into(),
            initramfs: "/p/initramfs".into(),
            command_line: "root=/dev/vda console=ttyS0".parse().expect("a line"),
        };
        insta::assert_snapshot!(line(&spec(boot)));
    }

    #[test]
    fn a_template_in_the_making_and_a_vm_restored_from_it() {
        let boot = Boot::Kernel {
            kernel: "/p/vmlinuz".into(),
            initramfs: "/t/initramfs".into(),
            command_line: "root=/dev/vda console=ttyS0".parse().expect("a line"),
        };
        let made = MachineSpec {
            memory: Memory::Written("/t/memory.img".into()),
            disk: based_on("/t/disk.qcow2", &["/p/rootfs.qcow2"]),
            forwards: Vec::new(),
            ..spec(boot.clone())
        };
        insta::assert_snapshot!(line(&made));
        let restored = MachineSpec { memory: Memory::Copied("/t/memory.img".into()), ..spec(boot) };
        insta::assert_snapshot!(line_with(&restored, true));
    }

    #[test]
    fn stream_ports_are_numbered_after_the_control_port() {
        let boot = || Boot::Kernel {
            kernel: "/p/vmlinuz".into(),
            initramfs: "/p/initramfs".into(),
            command_line: "root=/dev/vda console=ttyS0".parse().expect("a line"),
        };
        let machine = MachineSpec { stream_ports: StreamPortCount::OF_AGENT, ..spec(boot()) };
        insta::assert_snapshot!(line(&machine));
        // Saved states of machines without any have the default bus.
        let without = line(&spec(boot()));
        assert!(without.contains("-device virtio-serial-pci\n"), "{without}");
        let most = StreamPortCount::try_from(MAX_STREAM_PORTS).expect("fits");
        let line = line(&MachineSpec { stream_ports: most, ..spec(boot()) });
        assert!(line.contains("max_ports=16") && line.contains("nr=15,"), "{line}");
    }

    #[test]
    fn data_disks_come_last() {
        let disk = |name: &str| DataDisk {
            name: name.to_owned().try_into().expect("a name"),
            path: format!("/p,q/disks/alpine/{name}.qcow2").into(),
        };
        let data_disks = vec![disk("data"), disk("12345678901234567890")];
        let seed = Some("/p/seed.img".into());
        let boot = Boot::Native(NativeBoot { seed, ..NativeBoot::default() });
        let with = line(&MachineSpec { data_disks, ..spec(boot.clone()) });
        insta::assert_snapshot!(with);
        let devices = |line: &str| {
            let devices = line.lines().filter(|line| line.starts_with("-device"));
            devices.map(str::to_owned).collect::<Vec<_>>()
        };
        assert!(devices(&with).starts_with(&devices(&line(&spec(boot)))));
    }

    #[test]
    fn a_native_boot_under_kvm() {
        let machine =
            MachineSpec { accelerator: Accelerator::Kvm, cpu: CpuModel::host(), ..spec(native()) };
        insta::assert_snapshot!(line(&machine));
    }

    #[test]
    fn a_native_boot_by_uefi_with_credentials_and_a_seed() {
        let file = |path: &str, format| Layer { path: path.into(), format };
        let boot = NativeBoot {
            uefi: Some(UefiFlash {
                code: file("/usr/share/code.fd", LayerFormat::Raw),
                variables: file("/p/a,b/uefi-vars", LayerFormat::Qcow2),
            }),
            oem_strings: vec!["/p/a,b/oem-string-0".into(), "/p/oem-string-1".into()],
            seed: Some("/p/a,b/seed.img".into()),
        };
        insta::assert_snapshot!(line(&spec(Boot::Native(boot))));
    }

    #[test]
    fn an_isolated_guest_keeps_its_ports() {
        let machine = MachineSpec { network: Network::Isolated, ..spec(native()) };
        assert!(
            line(&machine)
                .contains("-netdev user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:40022-:6022")
        );
    }

    #[test]
    fn every_file_of_a_disk_is_named_and_the_last_has_no_backing_file() {
        let mut disk = based_on("/p/a.qcow2", &["/p/b.qcow2", "/p/c.qcow2"]);
        let text = line(&MachineSpec { disk: disk.clone(), ..spec(native()) });
        assert_eq!(text.matches("driver=file,").count(), 3, "{text}");
        assert_eq!(text.matches(r#""backing":null"#).count(), 1, "{text}");
        disk.below[1].format = LayerFormat::Raw;
        let text = line(&MachineSpec { disk, ..spec(native()) });
        assert!(text.contains(
            r#"{"driver":"raw","file":"layer2-file","node-name":"layer2","read-only":true}"#
        ));
        let alone = line(&MachineSpec { disk: based_on("/p/a.qcow2", &[]), ..spec(native()) });
        assert!(alone.contains(r#"{"backing":null,"discard":"unmap","driver":"qcow2""#), "{alone}");
    }

    #[test]
    fn commas_cannot_add_options() {
        let machine = MachineSpec {
            name: "a,debug-threads=on".into(),
            disk: based_on("/tmp/a,b/disk,read-only=on.qcow2", &["/tmp/c,d"]),
            memory: Memory::Copied("/tmp/m,share=on".into()),
            console_log: "/tmp/x,append=on".into(),
            ..spec(native())
        };
        let line = line(&machine);
        assert!(line.contains("guest=a,,debug-threads=on"), "{line}");
        assert!(
            line.contains("discard=unmap,filename=/tmp/a,,b/disk,,read-only=on.qcow2"),
            "{line}"
        );
        assert!(line.contains("logfile=/tmp/x,,append=on"), "{line}");
        assert!(line.contains("read-only=on,filename=/tmp/c,,d"), "{line}");
        assert!(line.contains("mem-path=/tmp/m,,share=on"), "{line}");
    }
}
