//! Shortcuts through an initramfs on an emulated CPU.
//!
//! Nothing of them is left once the root's own init runs.

use std::fs;
use std::io;
use std::path::Path;

use crate::kernel_fs::Tree;

/// Name by which QEMU's emulator presents itself (leaf 0x40000000 of CPUID).
const EMULATOR: &[u8; 12] = b"TCGTCGTCGTCG";

/// Setting of the kernel that randomizes the addresses of programs, below `/proc`.
const RANDOMIZATION: &str = "sys/kernel/randomize_va_space";

/// Scripts and units of an initramfs that have udev announce all devices: those of initramfs-tools
/// and of dracut with systemd.
const COLDPLUGS: [&str; 2] =
    ["scripts/init-top/udev", "usr/lib/systemd/system/systemd-udev-trigger.service"];

/// Command that announces devices, and the option with which it announces subsystems only.
const TRIGGER: &str = "udevadm trigger ";
const OF_SUBSYSTEMS: &str = "--type=subsystems";

/// Subsystems whose devices have no part in finding a root filesystem, and which are most of those
/// that a VM has. The root's udev announces all devices again.
const LEFT_TO_ROOT: [&str; 21] = [
    "acpi",
    "bdi",
    "clockevents",
    "clocksource",
    "event_source",
    "graphics",
    "input",
    "machinecheck",
    "mem",
    "memory",
    "misc",
    "pnp",
    "powercap",
    "rtc",
    "serial-base",
    "serio",
    "thermal",
    "tty",
    "vc",
    "virtio-ports",
    "vtconsole",
];

/// Returns `true` if the CPU is emulated.
pub(crate) fn is_emulated() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0x4000_0000);
    [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat() == EMULATOR
}

/// Has the initramfs's udev announce fewer devices. A script or unit that cannot be changed works
/// as before.
pub(crate) fn shorten_coldplug(initramfs: &Path) {
    for path in COLDPLUGS.map(|path| initramfs.join(path)) {
        let shorter = fs::read_to_string(&path).ok().and_then(|text| without_most_devices(&text));
        if let Some(text) = shorter {
            let _ = fs::write(&path, text);
        }
    }
}

/// Returns a script or unit with options at the commands that announce devices, if it has any.
fn without_most_devices(text: &str) -> Option<String> {
    let options: String =
        LEFT_TO_ROOT.iter().map(|name| format!("--subsystem-nomatch={name} ")).collect();
    let announces = |line: &str| {
        let line = line.trim_start();
        let line = line.strip_prefix("ExecStart=").unwrap_or(line).trim_start_matches('-');
        line.starts_with(TRIGGER) && !line.contains(OF_SUBSYSTEMS)
    };
    let lines = text.split_inclusive('\n').map(|line| {
        if announces(line) {
            line.replacen(TRIGGER, &format!("{TRIGGER}{options}"), 1)
        } else {
            line.to_owned()
        }
    });
    let changed: String = lines.collect();
    (changed != text).then_some(changed)
}

/// Returns how the kernel randomizes the addresses of programs; `None` if it does not.
pub(crate) fn randomization() -> Option<String> {
    let value = Tree::mount("proc").and_then(|proc| proc.read(RANDOMIZATION)).ok()?;
    (value != "0").then_some(value)
}

/// Places programs at fixed addresses from now on. QEMU before version 8 translates code again for
/// each address at which it finds it, and the programs of an initramfs are many and end soon.
pub(crate) fn fix_addresses() -> io::Result<()> {
    Tree::mount("proc")?.write(RANDOMIZATION, "0")
}

/// Randomizes the addresses of programs as before.
pub(crate) fn restore_randomization(proc: &Tree, value: &str) -> io::Result<()> {
    proc.write(RANDOMIZATION, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_left_out_and_subsystems_are_not() {
        let script = "udevadm trigger --type=subsystems --action=add\n\
            udevadm trigger --type=devices --action=add || true\nudevadm settle || true\n";
        let changed = without_most_devices(script).expect("changed");
        let lines: Vec<_> = changed.lines().collect();
        assert_eq!(lines[0], "udevadm trigger --type=subsystems --action=add");
        assert!(lines[1].starts_with("udevadm trigger --subsystem-nomatch=acpi "), "{}", lines[1]);
        assert!(lines[1].ends_with(" --type=devices --action=add || true"), "{}", lines[1]);
        assert_eq!(lines[2..], ["udevadm settle || true"]);

        let unit = "[Service]\nExecStart=-udevadm trigger --type=all --prioritized-subsystem=tty";
        let changed = without_most_devices(unit).expect("changed");
        assert!(changed.contains("\nExecStart=-udevadm trigger --subsystem-nomatch="), "{changed}");
        assert!(changed.ends_with(" --type=all --prioritized-subsystem=tty"), "{changed}");
        assert_eq!(without_most_devices("# udevadm trigger starts later\n"), None);
    }

    #[test]
    fn disks_and_their_controllers_are_announced() {
        for needed in ["block", "pci", "virtio", "scsi", "nvme", "usb", "cpu", "net", "module"] {
            assert!(!LEFT_TO_ROOT.contains(&needed), "{needed}");
        }
    }
}
