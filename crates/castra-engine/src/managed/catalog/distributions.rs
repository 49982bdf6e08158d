//! Cloud images of distributions, as their publishers built them, in dated builds.
//!
//! Each is a qcow2 with a partition table and a kernel of its own, which boots with Castra's agent:
//! see `vm/kernel`. Some builds are compiled in; newer ones are found by asking the publisher, and
//! are pinned in a project's `castra.lock`.

use crate::files::Digest;
use crate::qemu::{CpuModel, Device, DeviceModel, MachineType};

use super::super::spec::{
    ArtifactRole, ArtifactSource, ManagedArtifactSpec, ManagedImageSpec, QemuProfile,
};
use super::builds::DISTRIBUTIONS;

/// Least memory in which these systems start all their services.
const MIN_MEMORY_MIB: u64 = 512;

/// Place of the version in a template.
const VERSION: &str = "{version}";
/// Place of the version up to its first dash, which some publishers use as a directory.
const RELEASE: &str = "{release}";

/// Cloud image of a distribution for x86-64.
pub(crate) struct Distribution {
    pub(crate) id: &'static str,
    /// Template.
    pub(super) description: &'static str,
    /// Templates, tried in order.
    pub(super) addresses: &'static [&'static str],
    pub(super) level: CpuLevel,
    pub(crate) channel: Channel,
    /// Builds that are compiled in, newest first.
    pub(super) builds: &'static [Build],
}

/// Files by which a publisher announces the newest build of an image.
pub(crate) struct Channel {
    /// Name of the publisher, under which `castra.toml` names its keys.
    pub(crate) publisher: &'static str,
    /// Addresses of the checksum file of the newest build, tried in order.
    pub(crate) lists: &'static [&'static str],
    pub(crate) signing: Signing,
    /// Undated name of the newest build in that file.
    pub(crate) alias: Option<&'static str>,
    /// Dated builds, where the checksum file names none.
    pub(crate) dated: Option<Dated>,
}

/// Dated builds, each in a directory of its own or beside the others.
pub(crate) struct Dated {
    /// Address that lists the directories or files.
    pub(crate) listing: &'static str,
    /// Template of the name of a directory or file.
    pub(crate) name: &'static str,
    /// Template of the address of the checksum file of a build.
    pub(crate) list: &'static str,
}

/// Form in which a publisher signs a checksum file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signing {
    /// Not at all.
    None,
    /// Inside the file.
    Inline,
    /// In a file beside it, whose name has this end in addition.
    Detached(&'static str),
}

/// A dated build that is compiled in.
pub(super) struct Build {
    pub(super) version: &'static str,
    /// SHA-256 or SHA-512 by its length.
    pub(super) digest: &'static str,
    pub(super) size_bytes: Option<u64>,
}

/// Instructions for which a distribution is compiled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CpuLevel {
    /// No more than the default CPU has.
    Default,
    /// x86-64-v3, with AVX2. QEMU 7.2 cannot emulate that well enough: guests hang.
    V3,
}

/// Returns the built-in images of all distributions, by name.
pub(super) fn images() -> impl Iterator<Item = ManagedImageSpec> {
    DISTRIBUTIONS.iter().flat_map(Distribution::images)
}

impl Distribution {
    /// Returns the distribution of this name.
    pub(crate) fn named(id: &str) -> Option<&'static Self> {
        DISTRIBUTIONS.iter().find(|distribution| distribution.id == id)
    }

    /// Returns all distributions.
    pub(crate) fn all() -> impl Iterator<Item = &'static Self> {
        DISTRIBUTIONS.iter()
    }

    /// Returns the builds that are compiled in, newest first.
    pub(crate) fn images(&self) -> impl Iterator<Item = ManagedImageSpec> {
        self.builds.iter().map(|build| {
            let digest = match build.digest.len() {
                128 => Digest::Sha512(build.digest.to_owned()),
                _ => Digest::Sha256(build.digest.to_owned()),
            };
            self.image(build.version, self.addresses_of(build.version), digest, build.size_bytes)
        })
    }

    /// Returns the description of a build.
    pub(crate) fn image(
        &self,
        version: &str,
        addresses: Vec<String>,
        digest: Digest,
        size_bytes: Option<u64>,
    ) -> ManagedImageSpec {
        let date = date_in(version).map_or_else(String::new, |date| format!(" of {date}"));
        ManagedImageSpec {
            id: self.id.to_owned(),
            version: version.to_owned(),
            description: filled(self.description, version) + &date,
            artifacts: vec![ManagedArtifactSpec {
                role: ArtifactRole::Rootfs,
                source: ArtifactSource::Url(addresses),
                digest,
                size_bytes,
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

    /// Returns the addresses of a build.
    pub(crate) fn addresses_of(&self, version: &str) -> Vec<String> {
        self.addresses.iter().map(|address| filled(address, version)).collect()
    }

    /// Returns the version of the build in a file of this name, if it is a dated name of this
    /// image.
    pub(crate) fn version_in<'a>(&self, file_name: &'a str) -> Option<&'a str> {
        let address = self.addresses.first()?;
        version_in(address.rsplit('/').next()?, file_name)
    }
}

impl Dated {
    /// Returns the version of the build in a directory or file of this name.
    pub(crate) fn version_in<'a>(&self, name: &'a str) -> Option<&'a str> {
        // A directory without a date is no build: `release`, `12`. The name of a file is long
        // enough to be no other.
        let is_file = !self.name.ends_with(VERSION);
        version_in(self.name, name).filter(|version| is_file || date_in(version).is_some())
    }

    /// Returns the address of the checksum file of a build.
    pub(crate) fn list_of(&self, version: &str) -> String {
        filled(self.list, version)
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

/// Returns the numbers of a version, by which versions of one image are compared.
pub(crate) fn numbers_of(version: &str) -> Vec<u64> {
    let numbers = version.split(|one: char| !one.is_ascii_digit()).filter(|one| !one.is_empty());
    numbers.map(|digits| digits.parse().unwrap_or(u64::MAX)).collect()
}

fn filled(template: &str, version: &str) -> String {
    let release = version.split('-').next().unwrap_or(version);
    template.replace(VERSION, version).replace(RELEASE, release)
}

/// Returns what stands for the version in a name made from a template, if it can be one: digits
/// with dots and dashes between them.
fn version_in<'a>(template: &str, name: &'a str) -> Option<&'a str> {
    let (start, end) = template.split_once(VERSION)?;
    let version = name.strip_prefix(start)?.strip_suffix(end)?;
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let (first, last) = (version.as_bytes().first()?, version.as_bytes().last()?);
    let is_version = is_digit(first)
        && is_digit(last)
        && version.bytes().all(|byte| is_digit(&byte) || b".-".contains(&byte));
    is_version.then_some(version)
}

/// Returns the date in a version, as in `20261001-2618`, in the form of ISO 8601.
fn date_in(version: &str) -> Option<String> {
    let is_date = |part: &&str| part.len() == 8 && part.starts_with("20");
    let date = version.split(['.', '-']).find(is_date)?;
    let is_digits = date.bytes().all(|byte| byte.is_ascii_digit());
    is_digits.then(|| format!("{}-{}-{}", &date[..4], &date[4..6], &date[6..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distribution(id: &str) -> &'static Distribution {
        Distribution::named(id).expect("a distribution")
    }

    #[test]
    fn templates_become_addresses_and_descriptions() {
        let rocky = distribution("rocky-9");
        assert_eq!(
            rocky.addresses_of("9.9-20270101.0")[0],
            "https://dl.rockylinux.org/pub/rocky/9.9/images/x86_64/\
            Rocky-9-GenericCloud-Base-9.9-20270101.0.x86_64.qcow2"
        );
        let description = |id: &str| {
            let image = distribution(id).images().next().expect("a build");
            image.description
        };
        assert_eq!(
            description("almalinux-9"),
            "AlmaLinux 9.8, the generic cloud image of 2026-08-10"
        );
        assert_eq!(description("fedora-42"), "Fedora 42, the generic cloud image");
        for image in images() {
            let ArtifactSource::Url(urls) = &image.artifacts[0].source else { panic!("URLs") };
            assert!(urls.iter().all(|url| !url.contains(['{', '}'])), "{urls:?}");
        }
    }

    #[test]
    fn a_dated_name_is_told_from_others() {
        for (id, name, version) in [
            ("almalinux-9", "AlmaLinux-9-GenericCloud-9.8-20260810.x86_64.qcow2", "9.8-20260810"),
            ("fedora-44", "Fedora-Cloud-Base-Generic-44-1.7.x86_64.qcow2", "44-1.7"),
            ("arch", "Arch-Linux-x86_64-cloudimg-20261001.604814.qcow2", "20261001.604814"),
        ] {
            assert_eq!(distribution(id).version_in(name), Some(version));
        }
        for name in [
            "AlmaLinux-9-GenericCloud-latest.x86_64.qcow2",
            "AlmaLinux-9-GenericCloud-ext4-9.8-20260810.x86_64.qcow2",
            "AlmaLinux-9-GenericCloud-9.8-20260810.x86_64_v2.qcow2",
            "AlmaLinux-9-GenericCloud-9.8/../20260810.x86_64.qcow2",
            "AlmaLinux-9-GenericCloud-.x86_64.qcow2",
            "AlmaLinux-9-GenericCloud-9.x86_64.qcow2/..",
        ] {
            assert_eq!(distribution("almalinux-9").version_in(name), None, "{name}");
        }
        assert_eq!(distribution("ubuntu-24.04").version_in("ubuntu-24.04.img"), None);
        let dated = distribution("ubuntu-24.04").channel.dated.as_ref().expect("directories");
        assert_eq!(dated.version_in("release-20260926"), Some("20260926"));
        for other in ["release", "release-", "20260926", "release-2026", "release-20260926x"] {
            assert_eq!(dated.version_in(other), None, "{other}");
        }
        let leap = distribution("opensuse-leap-16.0").channel.dated.as_ref().expect("files");
        let name = |middle: &str| format!("Leap-16.0-Minimal-VM.x86_64-{middle}.qcow2");
        assert_eq!(leap.version_in(&name("Cloud-Build18.72")), Some("18.72"));
        for other in ["Cloud", "Cloud-Build", "kvm-and-xen-Build18.72"] {
            assert_eq!(leap.version_in(&name(other)), None, "{other}");
        }
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (older, newer) in [
            ("9.8-20260810", "9.10-20270101"),
            ("20261001-2618", "20261001-2619"),
            ("20260926", "20260926.1"),
            ("42-1.1", "42-1.10"),
        ] {
            assert!(numbers_of(older) < numbers_of(newer), "{older} {newer}");
        }
    }
}
