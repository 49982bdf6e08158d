//! Files of a system.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use castra_test_support::noise;

/// Version in the kernel's header.
pub(crate) const VERSION: &str = "6.1.0-13-test";
/// Path of the kernel.
pub(crate) const KERNEL: &str = "boot/vmlinuz-6.1.0-13-test";
/// Path of the initramfs.
pub(crate) const INITRAMFS: &str = "boot/initrd.img-6.1.0-13-test";

/// Returns a file with the header of an x86 kernel.
pub(crate) fn kernel(version: &str) -> Vec<u8> {
    let mut kernel = noise(1_500_000);
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x20e..0x210].copy_from_slice(&0x3000_u16.to_le_bytes());
    let text = format!("{version} (root@host) #1\0");
    kernel[0x3200..0x3200 + text.len()].copy_from_slice(text.as_bytes());
    kernel
}

/// Makes the files of a system with a kernel and an initramfs, and without a boot loader.
pub(crate) fn system(root: &Path) {
    for directory in ["boot", "etc", "usr/lib/many", &format!("usr/lib/modules/{VERSION}")] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    let write = |path: &str, content: &[u8]| fs::write(root.join(path), content).expect("written");
    write("usr/lib/os-release", b"ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian 12\"\n");
    write(KERNEL, &kernel(VERSION));
    write(INITRAMFS, &noise(3_000_001));
    write(&format!("usr/lib/modules/{VERSION}/modules.dep"), b"kernel/a.ko:\n");
    for number in 0..600 {
        write(&format!("usr/lib/many/file-{number:03}"), &noise(number));
    }
}

/// Adds links of every kind: good ones, loops, and those that would leave the system.
pub(crate) fn links(root: &Path) {
    let deep = "a/".repeat(30) + "../".repeat(30).as_str() + "usr/lib/os-release";
    for (path, target) in [
        ("lib", "usr/lib"),
        ("etc/os-release", "../usr/lib/os-release"),
        ("etc/absolute", "/lib/os-release"),
        ("etc/outside", "../../../../../../../etc/passwd"),
        ("etc/loop", "loop"),
        ("etc/ping", "pong"),
        ("etc/pong", "ping"),
        ("etc/long", deep.as_str()),
        ("etc/dangling", "nowhere"),
        ("etc/through", "absolute/more"),
    ] {
        symlink(target, root.join(path)).expect("a link");
    }
}
