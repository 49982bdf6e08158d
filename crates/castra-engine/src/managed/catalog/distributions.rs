//! Cloud images of distributions, as their publishers built them, in dated builds.
//!
//! Each is a qcow2 with a partition table and a kernel of its own, which boots with Castra's agent:
//! see `vm/kernel`. Addresses and digests were copied from at least two public lists that agree (of
//! other tools, of packagers, of people who verified the publisher's signature). **None was ever
//! fetched by the authors**, whose machines reach no distribution's server; a digest that is wrong
//! is an error and never another image.

use crate::files::Digest;
use crate::qemu::{CpuModel, Device, DeviceModel, MachineType};

use super::super::spec::{
    ArtifactRole, ArtifactSource, ManagedArtifactSpec, ManagedImageSpec, QemuProfile,
};

/// Least memory in which these systems start all their services.
const MIN_MEMORY_MIB: u64 = 512;

/// A dated build of a distribution's cloud image for x86-64.
struct Build {
    id: &'static str,
    version: &'static str,
    description: &'static str,
    addresses: &'static [&'static str],
    /// SHA-256 or SHA-512 by its length.
    digest: &'static str,
    size_bytes: Option<u64>,
    level: CpuLevel,
}

/// Instructions for which a distribution is compiled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CpuLevel {
    /// No more than the default CPU has.
    Default,
    /// x86-64-v3, with AVX2. QEMU 7.2 cannot emulate that well enough: guests hang.
    V3,
}

const BUILDS: [Build; 13] = [
    Build {
        id: "debian-12",
        version: "20260923-2610",
        description: "Debian 12 (bookworm), the generic cloud image of 2026-09-23",
        addresses: &["https://cloud.debian.org/images/cloud/bookworm/20260923-2610/\
            debian-12-genericcloud-amd64-20260923-2610.qcow2"],
        digest: "3d94c9dd66d8a283fde060b8810373b7ae04038b956ee00d553d1ae564f6fbde\
            aa2fd6e7404e87e53348b5a9509170f3ea7c0731ba737590c5c4cb8d559a47f8",
        size_bytes: None,
        level: CpuLevel::Default,
    },
    Build {
        id: "debian-13",
        version: "20261001-2618",
        description: "Debian 13 (trixie), the generic cloud image of 2026-10-01",
        addresses: &["https://cloud.debian.org/images/cloud/trixie/20261001-2618/\
            debian-13-genericcloud-amd64-20261001-2618.qcow2"],
        digest: "f46f0671a6e5bdec5291ab8972bae2f10e5408c2f64a74078f11efc2f06a436a\
            9d0313ed50e0472542eeabf780e9f7c792ac0a314c6c20507fcd9fd81b468c3d",
        size_bytes: Some(341_508_096),
        level: CpuLevel::Default,
    },
    Build {
        id: "ubuntu-22.04",
        version: "20260826",
        description: "Ubuntu 22.04 LTS (jammy), the server cloud image of 2026-08-26",
        addresses: &["https://cloud-images.ubuntu.com/releases/jammy/release-20260826/\
            ubuntu-22.04-server-cloudimg-amd64.img"],
        digest: "c0a5af17e6c0f76351fe07e2fffef3011dab1facb8a8ed5701dcf648dabd4f0a",
        size_bytes: None,
        level: CpuLevel::Default,
    },
    Build {
        id: "ubuntu-24.04",
        version: "20260926",
        description: "Ubuntu 24.04 LTS (noble), the server cloud image of 2026-09-26",
        addresses: &["https://cloud-images.ubuntu.com/releases/noble/release-20260926/\
            ubuntu-24.04-server-cloudimg-amd64.img"],
        digest: "6a81c37564db9b1ee84e141922625e1d7c5b389b99bb3c572e0243607d5bb4d2",
        size_bytes: Some(625_612_288),
        level: CpuLevel::Default,
    },
    Build {
        id: "ubuntu-26.04",
        version: "20260520",
        description: "Ubuntu 26.04 LTS (resolute), the server cloud image of 2026-05-20",
        addresses: &["https://cloud-images.ubuntu.com/releases/resolute/release-20260520/\
            ubuntu-26.04-server-cloudimg-amd64.img"],
        digest: "dced94c031cc1f23dee14419a3723a5b110df9938de0ac31913a2bfd07c755b4",
        size_bytes: Some(858_720_256),
        level: CpuLevel::Default,
    },
    Build {
        id: "fedora-42",
        version: "42-1.1",
        description: "Fedora 42, the generic cloud image",
        addresses: &[
            "https://dl.fedoraproject.org/pub/archive/fedora/linux/releases/42/Cloud/x86_64/\
            images/Fedora-Cloud-Base-Generic-42-1.1.x86_64.qcow2",
            "https://archives.fedoraproject.org/pub/archive/fedora/linux/releases/42/Cloud/\
            x86_64/images/Fedora-Cloud-Base-Generic-42-1.1.x86_64.qcow2",
        ],
        digest: "e401a4db2e5e04d1967b6729774faa96da629bcf3ba90b67d8d9cce9906bec0f",
        size_bytes: Some(532_217_856),
        level: CpuLevel::Default,
    },
    Build {
        id: "fedora-43",
        version: "43-1.6",
        description: "Fedora 43, the generic cloud image",
        addresses: &[
            "https://download.fedoraproject.org/pub/fedora/linux/releases/43/Cloud/x86_64/\
            images/Fedora-Cloud-Base-Generic-43-1.6.x86_64.qcow2",
            "https://dl.fedoraproject.org/pub/archive/fedora/linux/releases/43/Cloud/x86_64/\
            images/Fedora-Cloud-Base-Generic-43-1.6.x86_64.qcow2",
        ],
        digest: "846574c8a97cd2d8dc1f231062d73107cc85cbbbda56335e264a46e3a6c8ab2f",
        size_bytes: None,
        level: CpuLevel::Default,
    },
    Build {
        id: "fedora-44",
        version: "44-1.7",
        description: "Fedora 44, the generic cloud image",
        addresses: &[
            "https://download.fedoraproject.org/pub/fedora/linux/releases/44/Cloud/x86_64/\
            images/Fedora-Cloud-Base-Generic-44-1.7.x86_64.qcow2",
            "https://dl.fedoraproject.org/pub/fedora/linux/releases/44/Cloud/x86_64/\
            images/Fedora-Cloud-Base-Generic-44-1.7.x86_64.qcow2",
        ],
        digest: "28680fe5b371a5a82ebf43a31926e086a168e59949d03969c5093e7071f90b7f",
        size_bytes: None,
        level: CpuLevel::Default,
    },
    Build {
        id: "almalinux-9",
        version: "9.8-20260810",
        description: "AlmaLinux 9.8, the generic cloud image of 2026-08-10",
        addresses: &["https://repo.almalinux.org/almalinux/9/cloud/x86_64/images/\
            AlmaLinux-9-GenericCloud-9.8-20260810.x86_64.qcow2"],
        digest: "6bdab6376d46d42e4203ace3733efafc7c5d37c7cb443a6cc74750097002d74b",
        size_bytes: Some(589_299_712),
        level: CpuLevel::Default,
    },
    Build {
        id: "almalinux-10",
        version: "10.2-20260526.0",
        description: "AlmaLinux 10.2, the generic cloud image of 2026-05-26",
        addresses: &["https://repo.almalinux.org/almalinux/10/cloud/x86_64/images/\
            AlmaLinux-10-GenericCloud-10.2-20260526.0.x86_64.qcow2"],
        digest: "47f2218668dd4776be140dd92fa3bea700be1766e2c7d88bdfd6a4b50f477b4d",
        size_bytes: None,
        level: CpuLevel::V3,
    },
    Build {
        id: "rocky-9",
        version: "9.8-20260525.0",
        description: "Rocky Linux 9.8, the generic cloud image of 2026-05-25",
        addresses: &[
            "https://dl.rockylinux.org/pub/rocky/9.8/images/x86_64/\
            Rocky-9-GenericCloud-Base-9.8-20260525.0.x86_64.qcow2",
            "https://dl.rockylinux.org/pub/rocky/9/images/x86_64/\
            Rocky-9-GenericCloud-Base-9.8-20260525.0.x86_64.qcow2",
        ],
        digest: "92c206cc6f790c61583247eefe87890f8828420662c17cacf247cec78ab4eec8",
        size_bytes: Some(645_988_352),
        level: CpuLevel::Default,
    },
    Build {
        id: "rocky-10",
        version: "10.2-20260525.0",
        description: "Rocky Linux 10.2, the generic cloud image of 2026-05-25",
        addresses: &[
            "https://dl.rockylinux.org/pub/rocky/10.2/images/x86_64/\
            Rocky-10-GenericCloud-Base-10.2-20260525.0.x86_64.qcow2",
            "https://dl.rockylinux.org/pub/rocky/10/images/x86_64/\
            Rocky-10-GenericCloud-Base-10.2-20260525.0.x86_64.qcow2",
        ],
        digest: "9fc9e9ff16888bb68ac39b0392e25c9c92684d50c85f1cce6ab549363bbc4b48",
        size_bytes: Some(544_997_376),
        level: CpuLevel::V3,
    },
    Build {
        id: "arch",
        version: "20261001.604814",
        description: "Arch Linux, the cloud image of 2026-10-01",
        addresses: &[
            "https://geo.mirror.pkgbuild.com/images/v20261001.604814/\
            Arch-Linux-x86_64-cloudimg-20261001.604814.qcow2",
            "https://fastly.mirror.pkgbuild.com/images/v20261001.604814/\
            Arch-Linux-x86_64-cloudimg-20261001.604814.qcow2",
        ],
        digest: "360f0fa49db6813bdc8e35bed230a2dc2ae3567b7b5ab74719c0a706e4e34e87",
        size_bytes: Some(578_080_256),
        level: CpuLevel::Default,
    },
];

/// Returns the images of all distributions, by name.
pub(super) fn images() -> impl Iterator<Item = ManagedImageSpec> {
    BUILDS.iter().map(Build::spec)
}

impl Build {
    fn spec(&self) -> ManagedImageSpec {
        let digest = self.digest.to_owned();
        let digest =
            if digest.len() == 128 { Digest::Sha512(digest) } else { Digest::Sha256(digest) };
        let addresses = self.addresses.iter().map(|address| (*address).to_owned()).collect();
        ManagedImageSpec {
            id: self.id.to_owned(),
            version: self.version.to_owned(),
            description: self.description.to_owned(),
            artifacts: vec![ManagedArtifactSpec {
                role: ArtifactRole::Rootfs,
                source: ArtifactSource::Url(addresses),
                digest,
                size_bytes: self.size_bytes,
                pipeline: Vec::new(),
                product_digest: None,
            }],
            profile: QemuProfile {
                command_line: None,
                machine: MachineType::default(),
                tcg_cpu: self.level.tcg_cpu(),
                min_memory_mib: MIN_MEMORY_MIB,
                devices: vec![Device::new(DeviceModel::VirtioRng)],
            },
        }
    }
}

impl CpuLevel {
    fn tcg_cpu(self) -> CpuModel {
        match self {
            Self::Default => CpuModel::default(),
            Self::V3 => CpuModel::max(),
        }
    }
}
