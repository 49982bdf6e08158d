//! Distributions of the catalog: the builds that are compiled in, and where newer ones are found.
//!
//! Addresses and digests were copied from at least two public lists that agree (of other tools, of
//! packagers, of people who verified the publisher's signature) unless a comment says otherwise,
//! addresses of checksum files from several programs that read them. **None was ever fetched by the
//! authors**, whose machines reach no distribution's server; a digest that is wrong is an error and
//! never another image.

use super::distributions::{Build, Channel, CpuLevel, Dated, Distribution, Signing};

/// Distributions by name.
pub(super) const DISTRIBUTIONS: [Distribution; 15] = [
    Distribution {
        id: "debian-12",
        description: "Debian 12 (bookworm), the generic cloud image",
        addresses: &["https://cloud.debian.org/images/cloud/bookworm/{version}/\
                debian-12-genericcloud-amd64-{version}.qcow2"],
        level: CpuLevel::Default,
        channel: Channel {
            publisher: "debian",
            lists: &["https://cloud.debian.org/images/cloud/bookworm/latest/SHA512SUMS"],
            signing: Signing::None,
            alias: Some("debian-12-genericcloud-amd64.qcow2"),
            dated: Some(Dated {
                listing: "https://cloud.debian.org/images/cloud/bookworm/",
                name: "{version}",
                list: "https://cloud.debian.org/images/cloud/bookworm/{version}/SHA512SUMS",
            }),
        },
        builds: &[Build {
            version: "20260923-2610",
            digest: "3d94c9dd66d8a283fde060b8810373b7ae04038b956ee00d553d1ae564f6fbde\
                aa2fd6e7404e87e53348b5a9509170f3ea7c0731ba737590c5c4cb8d559a47f8",
            size_bytes: None,
        }],
    },
    Distribution {
        id: "debian-13",
        description: "Debian 13 (trixie), the generic cloud image",
        addresses: &["https://cloud.debian.org/images/cloud/trixie/{version}/\
                debian-13-genericcloud-amd64-{version}.qcow2"],
        level: CpuLevel::Default,
        channel: Channel {
            publisher: "debian",
            lists: &["https://cloud.debian.org/images/cloud/trixie/latest/SHA512SUMS"],
            signing: Signing::None,
            alias: Some("debian-13-genericcloud-amd64.qcow2"),
            dated: Some(Dated {
                listing: "https://cloud.debian.org/images/cloud/trixie/",
                name: "{version}",
                list: "https://cloud.debian.org/images/cloud/trixie/{version}/SHA512SUMS",
            }),
        },
        builds: &[Build {
            version: "20261001-2618",
            digest: "f46f0671a6e5bdec5291ab8972bae2f10e5408c2f64a74078f11efc2f06a436a\
                9d0313ed50e0472542eeabf780e9f7c792ac0a314c6c20507fcd9fd81b468c3d",
            size_bytes: Some(341_508_096),
        }],
    },
    Distribution {
        id: "ubuntu-22.04",
        description: "Ubuntu 22.04 LTS (jammy), the server cloud image",
        addresses: &["https://cloud-images.ubuntu.com/releases/jammy/release-{version}/\
                ubuntu-22.04-server-cloudimg-amd64.img"],
        level: CpuLevel::Default,
        channel: Channel {
            publisher: "ubuntu",
            lists: &["https://cloud-images.ubuntu.com/releases/jammy/release/SHA256SUMS"],
            signing: Signing::Detached(".gpg"),
            alias: Some("ubuntu-22.04-server-cloudimg-amd64.img"),
            dated: Some(Dated {
                listing: "https://cloud-images.ubuntu.com/releases/jammy/",
                name: "release-{version}",
                list: "https://cloud-images.ubuntu.com/releases/jammy/release-{version}/SHA256SUMS",
            }),
        },
        builds: &[Build {
            version: "20260826",
            digest: "c0a5af17e6c0f76351fe07e2fffef3011dab1facb8a8ed5701dcf648dabd4f0a",
            size_bytes: None,
        }],
    },
    Distribution {
        id: "ubuntu-24.04",
        description: "Ubuntu 24.04 LTS (noble), the server cloud image",
        addresses: &["https://cloud-images.ubuntu.com/releases/noble/release-{version}/\
                ubuntu-24.04-server-cloudimg-amd64.img"],
        level: CpuLevel::Default,
        channel: Channel {
            publisher: "ubuntu",
            lists: &["https://cloud-images.ubuntu.com/releases/noble/release/SHA256SUMS"],
            signing: Signing::Detached(".gpg"),
            alias: Some("ubuntu-24.04-server-cloudimg-amd64.img"),
            dated: Some(Dated {
                listing: "https://cloud-images.ubuntu.com/releases/noble/",
                name: "release-{version}",
                list: "https://cloud-images.ubuntu.com/releases/noble/release-{version}/SHA256SUMS",
            }),
        },
        builds: &[Build {
            version: "20260926",
            digest: "6a81c37564db9b1ee84e141922625e1d7c5b389b99bb3c572e0243607d5bb4d2",
            size_bytes: Some(625_612_288),
        }],
    },
    Distribution {
        id: "ubuntu-26.04",
        description: "Ubuntu 26.04 LTS (resolute), the server cloud image",
        addresses: &["https://cloud-images.ubuntu.com/releases/resolute/release-{version}/\
                ubuntu-26.04-server-cloudimg-amd64.img"],
        level: CpuLevel::Default,
        channel: Channel {
            publisher: "ubuntu",
            lists: &["https://cloud-images.ubuntu.com/releases/resolute/release/SHA256SUMS"],
            signing: Signing::Detached(".gpg"),
            alias: Some("ubuntu-26.04-server-cloudimg-amd64.img"),
            dated: Some(Dated {
                listing: "https://cloud-images.ubuntu.com/releases/resolute/",
                name: "release-{version}",
                list: "https://cloud-images.ubuntu.com/releases/resolute/release-{version}/\
                    SHA256SUMS",
            }),
        },
        builds: &[Build {
            version: "20260520",
            digest: "dced94c031cc1f23dee14419a3723a5b110df9938de0ac31913a2bfd07c755b4",
            size_bytes: Some(858_720_256),
        }],
    },
    Distribution {
        id: "fedora-42",
        description: "Fedora 42, the generic cloud image",
        addresses: &[
            "https://dl.fedoraproject.org/pub/archive/fedora/linux/releases/42/Cloud/x86_64/\
                images/Fedora-Cloud-Base-Generic-{version}.x86_64.qcow2",
            "https://archives.fedoraproject.org/pub/archive/fedora/linux/releases/42/Cloud/x86_64/\
                images/Fedora-Cloud-Base-Generic-{version}.x86_64.qcow2",
        ],
        level: CpuLevel::Default,
        channel: Channel {
            publisher: "fedora",
            lists: &[
                "https://dl.fedoraproject.org/pub/archive/fedora/linux/releases/42/Cloud/x86_64/\
                    images/Fedora-Cloud-42-1.1-x86_64-CHECKSUM",
                "https://archives.fedoraproject.org/pub/archive/fedora/linux/releases/42/Cloud/\
                    x86_64/images/Fedora-Cloud-42-1.1-x86_64-CHECKSUM",
            ],
            signing: Signing::Inline,
            alias: None,
            dated: None,
        },
        builds: &[Build {
            version: "42-1.1",
            digest: "e401a4db2e5e04d1967b6729774faa96da629bcf3ba90b67d8d9cce9906bec0f",
            size_bytes: Some(532_217_856),
        }],
    },
    Distribution {
        id: "fedora-43",
        description: "Fedora 43, the generic cloud image",
        addresses: &[
            "https://download.fedoraproject.org/pub/fedora/linux/releases/43/Cloud/x86_64/images/\
                Fedora-Cloud-Base-Generic-{version}.x86_64.qcow2",
            "https://dl.fedoraproject.org/pub/archive/fedora/linux/releases/43/Cloud/x86_64/\
                images/Fedora-Cloud-Base-Generic-{version}.x86_64.qcow2",
        ],
        level: CpuLevel::Default,
        channel: Channel {
            publisher: "fedora",
            lists: &[
                "https://download.fedoraproject.org/pub/fedora/linux/releases/43/Cloud/x86_64/\
                    images/Fedora-Cloud-43-1.6-x86_64-CHECKSUM",
                "https://dl.fedoraproject.org/pub/archive/fedora/linux/releases/43/Cloud/x86_64/\
                    images/Fedora-Cloud-43-1.6-x86_64-CHECKSUM",
            ],
            signing: Signing::Inline,
            alias: None,
            dated: None,
        },
        builds: &[Build {
            version: "43-1.6",
            digest: "846574c8a97cd2d8dc1f231062d73107cc85cbbbda56335e264a46e3a6c8ab2f",
            size_bytes: None,
        }],
    },
    Distribution {
        id: "fedora-44",
        description: "Fedora 44, the generic cloud image",
        addresses: &[
            "https://download.fedoraproject.org/pub/fedora/linux/releases/44/Cloud/x86_64/images/\
                Fedora-Cloud-Base-Generic-{version}.x86_64.qcow2",
            "https://dl.fedoraproject.org/pub/fedora/linux/releases/44/Cloud/x86_64/images/\
                Fedora-Cloud-Base-Generic-{version}.x86_64.qcow2",
        ],
        level: CpuLevel::Default,
        channel: Channel {
            publisher: "fedora",
            lists: &[
                "https://download.fedoraproject.org/pub/fedora/linux/releases/44/Cloud/x86_64/\
                    images/Fedora-Cloud-44-1.7-x86_64-CHECKSUM",
                "https://dl.fedoraproject.org/pub/fedora/linux/releases/44/Cloud/x86_64/images/\
                    Fedora-Cloud-44-1.7-x86_64-CHECKSUM",
            ],
            signing: Signing::Inline,
            alias: None,
            dated: None,
        },
        builds: &[Build {
            version: "44-1.7",
            digest: "28680fe5b371a5a82ebf43a31926e086a168e59949d03969c5093e7071f90b7f",
            size_bytes: None,
        }],
    },
    Distribution {
        id: "almalinux-9",
        description: "AlmaLinux {release}, the generic cloud image",
        addresses: &["https://repo.almalinux.org/almalinux/9/cloud/x86_64/images/\
                AlmaLinux-9-GenericCloud-{version}.x86_64.qcow2"],
        level: CpuLevel::Default,
        channel: Channel {
            publisher: "almalinux",
            lists: &["https://repo.almalinux.org/almalinux/9/cloud/x86_64/images/CHECKSUM"],
            signing: Signing::Detached(".asc"),
            alias: Some("AlmaLinux-9-GenericCloud-latest.x86_64.qcow2"),
            dated: None,
        },
        builds: &[Build {
            version: "9.8-20260810",
            digest: "6bdab6376d46d42e4203ace3733efafc7c5d37c7cb443a6cc74750097002d74b",
            size_bytes: Some(589_299_712),
        }],
    },
    Distribution {
        id: "almalinux-10",
        description: "AlmaLinux {release}, the generic cloud image",
        addresses: &["https://repo.almalinux.org/almalinux/10/cloud/x86_64/images/\
                AlmaLinux-10-GenericCloud-{version}.x86_64.qcow2"],
        level: CpuLevel::V3,
        channel: Channel {
            publisher: "almalinux",
            lists: &["https://repo.almalinux.org/almalinux/10/cloud/x86_64/images/CHECKSUM"],
            signing: Signing::Detached(".asc"),
            alias: Some("AlmaLinux-10-GenericCloud-latest.x86_64.qcow2"),
            dated: None,
        },
        builds: &[Build {
            version: "10.2-20260526.0",
            digest: "47f2218668dd4776be140dd92fa3bea700be1766e2c7d88bdfd6a4b50f477b4d",
            size_bytes: None,
        }],
    },
    Distribution {
        id: "rocky-9",
        description: "Rocky Linux {release}, the generic cloud image",
        addresses: &[
            "https://dl.rockylinux.org/pub/rocky/{release}/images/x86_64/\
                Rocky-9-GenericCloud-Base-{version}.x86_64.qcow2",
            "https://dl.rockylinux.org/pub/rocky/9/images/x86_64/\
                Rocky-9-GenericCloud-Base-{version}.x86_64.qcow2",
        ],
        level: CpuLevel::Default,
        channel: Channel {
            publisher: "rocky",
            lists: &["https://dl.rockylinux.org/pub/rocky/9/images/x86_64/CHECKSUM"],
            signing: Signing::Detached(".asc"),
            alias: Some("Rocky-9-GenericCloud-Base.latest.x86_64.qcow2"),
            dated: None,
        },
        builds: &[Build {
            version: "9.8-20260525.0",
            digest: "92c206cc6f790c61583247eefe87890f8828420662c17cacf247cec78ab4eec8",
            size_bytes: Some(645_988_352),
        }],
    },
    Distribution {
        id: "rocky-10",
        description: "Rocky Linux {release}, the generic cloud image",
        addresses: &[
            "https://dl.rockylinux.org/pub/rocky/{release}/images/x86_64/\
                Rocky-10-GenericCloud-Base-{version}.x86_64.qcow2",
            "https://dl.rockylinux.org/pub/rocky/10/images/x86_64/\
                Rocky-10-GenericCloud-Base-{version}.x86_64.qcow2",
        ],
        level: CpuLevel::V3,
        channel: Channel {
            publisher: "rocky",
            lists: &["https://dl.rockylinux.org/pub/rocky/10/images/x86_64/CHECKSUM"],
            signing: Signing::Detached(".asc"),
            alias: Some("Rocky-10-GenericCloud-Base.latest.x86_64.qcow2"),
            dated: None,
        },
        builds: &[Build {
            version: "10.2-20260525.0",
            digest: "9fc9e9ff16888bb68ac39b0392e25c9c92684d50c85f1cce6ab549363bbc4b48",
            size_bytes: Some(544_997_376),
        }],
    },
    Distribution {
        id: "opensuse-leap-15.6",
        description: "openSUSE Leap 15.6, the minimal cloud image",
        addresses: &["https://download.opensuse.org/distribution/leap/15.6/appliances/\
                openSUSE-Leap-15.6-Minimal-VM.x86_64-15.6.0-Cloud-Build{version}.qcow2"],
        level: CpuLevel::Default,
        channel: Channel {
            publisher: "opensuse",
            lists: &["https://download.opensuse.org/distribution/leap/15.6/appliances/\
                    openSUSE-Leap-15.6-Minimal-VM.x86_64-Cloud.qcow2.sha256"],
            signing: Signing::Detached(".asc"),
            alias: Some("openSUSE-Leap-15.6-Minimal-VM.x86_64-Cloud.qcow2"),
            dated: Some(Dated {
                listing: "https://download.opensuse.org/distribution/leap/15.6/appliances/",
                name: "openSUSE-Leap-15.6-Minimal-VM.x86_64-15.6.0-Cloud-Build{version}.qcow2",
                list: "https://download.opensuse.org/distribution/leap/15.6/appliances/\
                    openSUSE-Leap-15.6-Minimal-VM.x86_64-15.6.0-Cloud-Build{version}.qcow2.sha256",
            }),
        },
        builds: &[Build {
            version: "19.146",
            digest: "0a5720416d423f98aacaa793a57d56ec045e3dd25cd88713952660ad00da53bd",
            size_bytes: None,
        }],
    },
    Distribution {
        id: "opensuse-leap-16.0",
        description: "openSUSE Leap 16.0, the minimal cloud image",
        addresses: &["https://download.opensuse.org/distribution/leap/16.0/appliances/\
                Leap-16.0-Minimal-VM.x86_64-Cloud-Build{version}.qcow2"],
        level: CpuLevel::Default,
        channel: Channel {
            publisher: "opensuse",
            lists: &["https://download.opensuse.org/distribution/leap/16.0/appliances/\
                    Leap-16.0-Minimal-VM.x86_64-Cloud.qcow2.sha256"],
            signing: Signing::Detached(".asc"),
            alias: Some("Leap-16.0-Minimal-VM.x86_64-Cloud.qcow2"),
            dated: Some(Dated {
                listing: "https://download.opensuse.org/distribution/leap/16.0/appliances/",
                name: "Leap-16.0-Minimal-VM.x86_64-Cloud-Build{version}.qcow2",
                list: "https://download.opensuse.org/distribution/leap/16.0/appliances/\
                    Leap-16.0-Minimal-VM.x86_64-Cloud-Build{version}.qcow2.sha256",
            }),
        },
        // The digest is in one public list only.
        builds: &[Build {
            version: "18.71",
            digest: "c1a6c50c51a44719946626c5d3ea22b844f1e831e6abf5f31f463c65a26a6fdc",
            size_bytes: None,
        }],
    },
    Distribution {
        id: "arch",
        description: "Arch Linux, the cloud image",
        addresses: &[
            "https://geo.mirror.pkgbuild.com/images/v{version}/\
                Arch-Linux-x86_64-cloudimg-{version}.qcow2",
            "https://fastly.mirror.pkgbuild.com/images/v{version}/\
                Arch-Linux-x86_64-cloudimg-{version}.qcow2",
        ],
        level: CpuLevel::Default,
        channel: Channel {
            publisher: "arch",
            lists: &["https://geo.mirror.pkgbuild.com/images/latest/\
                    Arch-Linux-x86_64-cloudimg.qcow2.SHA256"],
            signing: Signing::Detached(".sig"),
            alias: Some("Arch-Linux-x86_64-cloudimg.qcow2"),
            dated: Some(Dated {
                listing: "https://geo.mirror.pkgbuild.com/images/",
                name: "v{version}",
                list: "https://geo.mirror.pkgbuild.com/images/v{version}/\
                    Arch-Linux-x86_64-cloudimg-{version}.qcow2.SHA256",
            }),
        },
        builds: &[Build {
            version: "20261001.604814",
            digest: "360f0fa49db6813bdc8e35bed230a2dc2ae3567b7b5ab74719c0a706e4e34e87",
            size_bytes: Some(578_080_256),
        }],
    },
];
