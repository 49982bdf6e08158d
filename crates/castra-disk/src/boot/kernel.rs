//! Kernel files: which names they have, and the version inside.

use super::version;
use crate::fields::{le16, le32};

/// Beginnings of the names of kernels.
const KERNELS: [&str; 4] = ["vmlinuz", "vmlinux", "kernel", "Image"];
/// Names of the initramfs of a version, where `*` stands for it.
const INITRAMFS: [&str; 5] =
    ["initrd.img-*", "initramfs-*.img", "initrd-*", "initramfs-*", "initrd-*.img"];
/// Name of the initramfs of a kernel without a version.
const UNVERSIONED: &str = "initrd.img";
/// Names that are no kernels for ordinary boots.
const UNUSUAL: [&str; 4] = ["rescue", "fallback", "kdump", ".old"];

/// Kernel with its initramfs in one directory, by names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) kernel: String,
    pub(super) initramfs: String,
}

/// Returns the kernels that have an initramfs, the newest first.
pub(super) fn pairs(names: &[String]) -> Vec<Pair> {
    let mut kernels: Vec<(&str, &str)> = names.iter().filter_map(|name| version_of(name)).collect();
    kernels.sort_by(|left, right| version::compare(right.1, left.1));
    let pair = |(kernel, version): (&str, &str)| {
        let mut candidates = INITRAMFS.map(|pattern| pattern.replace('*', version)).to_vec();
        if version.is_empty() {
            candidates = vec![UNVERSIONED.to_owned()];
        }
        let initramfs = candidates.into_iter().find(|name| names.contains(name))?;
        Some(Pair { kernel: kernel.to_owned(), initramfs })
    };
    kernels.into_iter().filter_map(pair).collect()
}

/// Returns name and version of a kernel. A kernel without a version, usually a link to the newest
/// one, has an empty version and thereby the lowest.
fn version_of(name: &str) -> Option<(&str, &str)> {
    let rest = KERNELS.iter().find_map(|kernel| name.strip_prefix(kernel))?;
    let version = if rest.is_empty() { rest } else { rest.strip_prefix('-')? };
    let is_usual = !UNUSUAL.iter().any(|unusual| name.contains(unusual));
    is_usual.then_some((name, version))
}

/// Returns the version in the header of an x86 kernel (`kernel_version` of
/// Documentation/arch/x86/boot.rst), which is the name of its directory of modules.
pub(super) fn version_inside(kernel: &[u8]) -> Option<String> {
    if le32(kernel, 0x202)? != u32::from_le_bytes(*b"HdrS") {
        return None;
    }
    let at = usize::from(le16(kernel, 0x20e)?) + 0x200;
    let text = kernel.get(at..)?.get(..256)?;
    let end = text.iter().position(|byte| matches!(byte, 0 | b' '))?;
    version_name(&text[..end])
}

/// Returns text that may name a directory of modules.
pub(super) fn version_name(text: &[u8]) -> Option<String> {
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-+~".contains(byte);
    let is_version = text.first().is_some_and(u8::is_ascii_digit) && text.iter().all(is_name);
    is_version.then(|| String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest(names: &[&str]) -> Option<(String, String)> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        pairs(&names).into_iter().next().map(|pair| (pair.kernel, pair.initramfs))
    }

    #[test]
    fn the_newest_kernel_with_an_initramfs_is_first() {
        let pair = |kernel: &str, initramfs: &str| Some((kernel.to_owned(), initramfs.to_owned()));
        let debian = [
            "vmlinuz-6.1.0-9-amd64",
            "initrd.img-6.1.0-9-amd64",
            "vmlinuz-6.1.0-13-amd64",
            "initrd.img-6.1.0-13-amd64",
            "vmlinuz-6.1.0-15-amd64",
            "vmlinuz.old",
            "config-6.1.0-13-amd64",
        ];
        let expected = pair("vmlinuz-6.1.0-13-amd64", "initrd.img-6.1.0-13-amd64");
        assert_eq!(newest(&debian), expected);
        let fedora = [
            "vmlinuz-0-rescue-abc",
            "initramfs-0-rescue-abc.img",
            "vmlinuz-6.11.4-301.fc41.x86_64",
            "initramfs-6.11.4-301.fc41.x86_64.img",
            "initramfs-6.11.4-301.fc41.x86_64kdump.img",
        ];
        let expected =
            pair("vmlinuz-6.11.4-301.fc41.x86_64", "initramfs-6.11.4-301.fc41.x86_64.img");
        assert_eq!(newest(&fedora), expected);
        let arch = ["initramfs-linux-fallback.img", "initramfs-linux.img", "vmlinuz-linux"];
        assert_eq!(newest(&arch), pair("vmlinuz-linux", "initramfs-linux.img"));
        let alpine = ["vmlinuz-virt", "initramfs-virt"];
        assert_eq!(newest(&alpine), pair("vmlinuz-virt", "initramfs-virt"));
        assert_eq!(newest(&["vmlinuz", "initrd.img"]), pair("vmlinuz", "initrd.img"));
        assert_eq!(newest(&["vmlinuz-6.1"]), None);
    }

    #[test]
    fn the_version_inside_is_a_name() {
        let mut kernel = vec![0; 0x1000];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        kernel[0x300..0x310].copy_from_slice(b"6.1.0-13-amd64 (");
        assert_eq!(version_inside(&kernel).as_deref(), Some("6.1.0-13-amd64"));
        kernel[0x300..0x303].copy_from_slice(b"../");
        assert_eq!(version_inside(&kernel), None);
        assert_eq!(version_inside(&kernel[..0x280]), None);
    }
}
