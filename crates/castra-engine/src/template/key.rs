//! Ingredients of a template, and the key derived from them.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::hex::hex;
use crate::managed::{ArtifactRole, Manifest};
use crate::qemu::{
    Accelerator, Announcement, Boot, CommandLine, CpuModel, Device, DiskName, MachineSpec,
    MachineType, QemuBinary, StreamPortCount,
};
use crate::report::ImageLabel;

/// Version of the way templates are made and stored. Incremented whenever older ones become
/// unusable.
const FORMAT: u32 = 2;

/// SHA-256 of the guest agent, computed at build time.
const AGENT_SHA256: &str = env!("CASTRA_GUEST_SHA256");

/// Identifies the host's processor and kernel: a guest's memory contains what it has seen of them.
fn host_cpu() -> String {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = text.split("\n\n").next().unwrap_or_default();
    let is_lasting = |line: &&str| {
        ["model name", "stepping", "microcode", "flags"].iter().any(|name| line.starts_with(name))
    };
    let lines: Vec<&str> = first.lines().filter(is_lasting).collect();
    format!("{release} {}", lines.join(" "))
}

/// Disk whose own kernel a template has booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnKernel {
    /// Digests of what was read from the disk: kernel, initramfs and, if there are any, modules.
    /// Then that of the user's data for cloud-init, if there are any.
    pub files: Vec<String>,
    /// Identity of the base image's content.
    pub content: String,
    /// Path of the base image as seen from the template's directory in a project: a template's disk
    /// names it.
    pub backing_file: String,
}

/// Everything a template depends on. Any difference leads to a template of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingredients {
    format: u32,
    /// The image; for a disk of the user's own, its file name and the beginning of its digest.
    pub image: ImageLabel,
    /// Digests of the image's files, SHA-256.
    artifacts: Vec<(ArtifactRole, String)>,
    agent: String,
    /// Identity of QEMU's program: path, size and time of change.
    pub qemu: String,
    /// The host's processor and kernel, if the guest's CPU is the host's own.
    host: Option<String>,
    machine: MachineType,
    /// Accelerator that runs the CPU.
    pub accelerator: Accelerator,
    cpu: CpuModel,
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Virtual size of the disk, in bytes.
    pub disk_bytes: u64,
    devices: Vec<Device>,
    /// Number of the agent's stream ports; none in a manifest of an earlier castra.
    #[serde(default, skip_serializing_if = "StreamPortCount::is_none")]
    stream_ports: StreamPortCount,
    /// Announcement of the guest's address; made in a manifest of an earlier castra.
    #[serde(default, skip_serializing_if = "Announcement::is_made")]
    announcement: Announcement,
    /// Kernel command line; `None` for a native boot.
    #[serde(with = "maybe_line")]
    command_line: Option<CommandLine>,
    /// Set if it has booted the kernel of its disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    own_kernel: Option<OwnKernel>,
    /// Names and virtual sizes, in bytes, of its data disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data_disks: Vec<(DiskName, u64)>,
    /// SHA-256 of the layer of the last step, if its disk was provisioned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provisioned: Option<String>,
}

impl Ingredients {
    /// Returns the ingredients of a template for this machine, based on a managed image.
    pub fn of(spec: &MachineSpec, image: &Manifest, disk_bytes: u64, binary: &QemuBinary) -> Self {
        let label = ImageLabel { id: image.id.clone(), version: image.version.clone() };
        let artifacts = image.artifacts.iter().map(|one| (one.role, one.sha256.clone()));
        Self { artifacts: artifacts.collect(), ..Self::of_disk(spec, label, disk_bytes, binary) }
    }

    /// Returns these ingredients for a boot with the disk's own kernel.
    #[must_use]
    pub fn with_own_kernel(self, kernel: OwnKernel) -> Self {
        Self { own_kernel: Some(kernel), ..self }
    }

    /// Returns these ingredients for a machine with data disks of these names and sizes. What will
    /// be on them is not known: the template's are blank.
    #[must_use]
    pub fn with_data_disks(self, data_disks: Vec<(DiskName, u64)>) -> Self {
        Self { data_disks, ..self }
    }

    /// Returns these ingredients for a disk that steps have prepared. The layer names those below
    /// it by their digests, too.
    #[must_use]
    pub fn with_provisioned(self, layer_sha256: Option<String>) -> Self {
        Self { provisioned: layer_sha256, ..self }
    }

    /// Returns the ingredients of a template for this machine, based on any disk.
    pub fn of_disk(
        spec: &MachineSpec,
        image: ImageLabel,
        disk_bytes: u64,
        binary: &QemuBinary,
    ) -> Self {
        let command_line = match &spec.boot {
            Boot::Kernel { command_line, .. } => Some(command_line.clone()),
            Boot::Native(_) => None,
        };
        Self {
            format: FORMAT,
            image,
            artifacts: Vec::new(),
            agent: AGENT_SHA256.to_owned(),
            qemu: binary.identity.clone(),
            host: (spec.accelerator != Accelerator::Tcg).then(host_cpu),
            machine: spec.machine.clone(),
            accelerator: spec.accelerator,
            cpu: spec.cpu.clone(),
            cpus: spec.cpus,
            memory_mib: spec.memory_mib,
            disk_bytes,
            devices: spec.devices.clone(),
            stream_ports: spec.stream_ports,
            announcement: spec.announcement,
            command_line,
            own_kernel: None,
            data_disks: Vec::new(),
            provisioned: None,
        }
    }

    /// Returns `true` if this very castra could have made it: with its format and its agent.
    pub(super) fn is_of_this_castra(&self) -> bool {
        self.format == FORMAT && self.agent == AGENT_SHA256
    }

    /// Returns the key: 32 hexadecimal digits.
    pub fn key(&self) -> String {
        // Our own type, made of strings and numbers: serialising it cannot fail.
        let text = serde_json::to_vec(self).unwrap_or_default();
        hex(&Sha256::digest(text)[..16])
    }
}

/// Serialises a missing command line as an empty text, as manifests have always had it.
mod maybe_line {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::qemu::CommandLine;

    pub(super) fn serialize<S: Serializer>(
        line: &Option<CommandLine>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(line.as_ref().map_or("", CommandLine::as_str))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<CommandLine>, D::Error> {
        let text = String::deserialize(deserializer)?;
        (!text.is_empty()).then(|| text.parse().map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::qemu::{Device, DeviceModel};

    pub(in super::super) fn sample() -> Ingredients {
        Ingredients {
            format: FORMAT,
            image: ImageLabel { id: "alpine-minimal".into(), version: "v1".into() },
            artifacts: vec![(ArtifactRole::Rootfs, "c0ffee".into())],
            agent: AGENT_SHA256.into(),
            qemu: "/usr/bin/qemu size=1 mtime=2".into(),
            host: None,
            machine: "q35".parse().expect("a machine"),
            accelerator: Accelerator::Tcg,
            cpu: "qemu64".parse().expect("a CPU"),
            cpus: 1,
            memory_mib: 512,
            disk_bytes: 10 << 30,
            devices: vec![Device::new(DeviceModel::VirtioRng)],
            stream_ports: StreamPortCount::NONE,
            announcement: Announcement::Made,
            command_line: Some("console=ttyS0".parse().expect("a line")),
            own_kernel: None,
            data_disks: Vec::new(),
            provisioned: None,
        }
    }

    fn own(file: &str, content: &str, backing_file: &str) -> Ingredients {
        let files = vec!["c0ffee".to_owned(), file.to_owned()];
        let (content, backing_file) = (content.to_owned(), backing_file.to_owned());
        sample().with_own_kernel(OwnKernel { files, content, backing_file })
    }

    fn disks(disks: &[(&str, u64)]) -> Ingredients {
        let named = |(name, bytes): &(&str, u64)| {
            (DiskName::try_from((*name).to_owned()).expect("a name"), *bytes)
        };
        sample().with_data_disks(disks.iter().map(named).collect())
    }

    #[test]
    fn whatever_differs_has_a_key_of_its_own() {
        let others = [
            Ingredients { format: FORMAT + 1, ..sample() },
            Ingredients { artifacts: vec![(ArtifactRole::Rootfs, "decaf".into())], ..sample() },
            Ingredients { agent: "another".into(), ..sample() },
            Ingredients { qemu: "/usr/bin/qemu size=1 mtime=3".into(), ..sample() },
            Ingredients { accelerator: Accelerator::Kvm, ..sample() },
            Ingredients { cpus: 2, ..sample() },
            Ingredients { memory_mib: 1024, ..sample() },
            Ingredients { disk_bytes: 20 << 30, ..sample() },
            Ingredients { devices: Vec::new(), ..sample() },
            Ingredients { stream_ports: StreamPortCount::OF_AGENT, ..sample() },
            Ingredients { announcement: Announcement::Omitted, ..sample() },
            Ingredients { command_line: Some("quiet".parse().expect("a line")), ..sample() },
            disks(&[("a", 1 << 20)]),
            disks(&[("b", 1 << 20)]),
            disks(&[("a", 2 << 20)]),
            disks(&[("a", 1 << 20), ("b", 1 << 20)]),
            sample().with_provisioned(Some("c0ffee".into())),
            sample().with_provisioned(Some("decaf".into())),
            own("a", "1", "../../../a.qcow2"),
            own("b", "1", "../../../a.qcow2"),
            own("a", "2", "../../../a.qcow2"),
            own("a", "1", "../../../b.qcow2"),
        ];
        let keys: std::collections::BTreeSet<String> =
            others.iter().map(Ingredients::key).collect();
        assert_eq!(keys.len(), others.len());
        assert!(!keys.contains(&sample().key()));
        assert_eq!(sample().key(), sample().key());
        assert_eq!(sample().key().len(), 32);
    }

    /// Ingredients as castra 0.1.0 wrote them, when machine, CPU and devices were plain text.
    #[test]
    fn keys_of_earlier_castras_stay_as_they_are() {
        const WRITTEN: &str = r#"{"format":1,"image":{"name":"alpine-minimal","version":"v1"},"artifacts":[["rootfs","c0ffee"]],"agent":"a","qemu":"/usr/bin/qemu size=1 mtime=2","host":null,"machine":"q35,sata=off,smbus=off,vmport=off","accelerator":"tcg","cpu":"qemu64,+rdrand","cpus":1,"memory_mib":512,"disk_bytes":10737418240,"devices":["virtio-rng-pci","vmgenid,guid=auto"],"command_line":"console=ttyS0"}"#;
        let read: Ingredients = serde_json::from_str(WRITTEN).expect("is read");
        assert_eq!(serde_json::to_string(&read).expect("written"), WRITTEN);
        assert_eq!(read.key(), "eb5879c4f3c09366020f4057de7c2e01");
        let native = WRITTEN.replace("console=ttyS0", "");
        let read: Ingredients = serde_json::from_str(&native).expect("is read");
        assert_eq!(serde_json::to_string(&read).expect("written"), native);
        for evil in ["virtio-rng-pci,romfile=/x", "usb-mtp,rootdir=/"] {
            let planted = WRITTEN.replace("virtio-rng-pci", evil);
            assert!(serde_json::from_str::<Ingredients>(&planted).is_err(), "{evil}");
        }
    }
}
