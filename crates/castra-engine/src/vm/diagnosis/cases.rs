//! Table of known causes, from the certain to the vague. Each case matches messages of QEMU, Linux,
//! mkinitfs, dracut or systemd that have been the same for many versions.

use crate::error::FILE_SIZE_HINT;
use crate::qemu::{Accelerator, INSTALL_FULL_QEMU};
use crate::vm::timeline::Phase;

use super::host::locked_file;
use super::{Diagnosis, Evidence};

/// Free space in MiB below which the host's disk counts as full.
const FULL_DISK_MIB: u64 = 16;
/// Least memory in MiB to advise for a guest that has run out of it.
const ENOUGH_MEMORY_MIB: u64 = 512;
/// Processes per CPU from which on an emulated guest is slow because of the load.
const BUSY: f64 = 2.0;

const SIGKILL: i32 = 9;
const SIGXFSZ: i32 = 25;
const SIGSYS: i32 = 31;

/// One case: returns a diagnosis if it applies.
pub(super) type Case = fn(&Evidence<'_>) -> Option<Diagnosis>;

/// Every case; the first that applies is used.
pub(super) const CASES: &[Case] = &[
    port_taken,
    networking_missing,
    disk_in_use,
    host_memory,
    file_size_limit,
    host_disk_full,
    sandbox,
    machine_unknown,
    kernel_unreadable,
    hardware,
    killed,
    guest_memory,
    no_root_named,
    no_root_disk,
    root_of_another_kind,
    root_damaged,
    no_init,
    disk_errors,
    panicked,
    emergency_shell,
    silent_hardware,
    busy_host,
];

fn probably(cause: impl Into<String>, advice: impl Into<String>) -> Option<Diagnosis> {
    Some(Diagnosis { cause: cause.into(), advice: advice.into(), is_final: false })
}

/// Returns a diagnosis for which waiting does not help.
fn finally(cause: impl Into<String>, advice: impl Into<String>) -> Option<Diagnosis> {
    Some(Diagnosis { cause: cause.into(), advice: advice.into(), is_final: true })
}

fn has(text: &str, words: &[&str]) -> bool {
    words.iter().any(|word| text.contains(word))
}

/// Returns the rest of the first line that contains `words`, from there on.
fn line_of<'a>(text: &'a str, words: &str) -> Option<&'a str> {
    let at = text.find(words)?;
    text[at..].lines().next().map(str::trim)
}

fn is_stuck_in_initramfs(console: &str) -> bool {
    has(
        console,
        &[
            "initramfs emergency recovery shell",
            "Mounting root failed",
            "Mounting root: failed",
            "Entering emergency mode",
            "Dropping to a shell!",
        ],
    )
}

fn has_panicked(console: &str) -> bool {
    console.contains("Kernel panic - not syncing") && !console.contains("Rebooting in")
}

fn port_taken(e: &Evidence<'_>) -> Option<Diagnosis> {
    let said = has(
        e.qemu,
        &["Could not set up host forwarding rule", "could not set up host forwarding rule"],
    );
    said.then_some(())?;
    probably(
        "another program is using a port that this VM forwards",
        "`ss -ltnup` shows who has it. Stop that program, or choose another host port in \
        castra.toml.",
    )
}

/// Recognises QEMU's messages for a backend that it was built without: those of 7.1 and 7.2, of
/// versions that leave the name out of the schema, and of earlier ones.
fn networking_missing(e: &Evidence<'_>) -> Option<Diagnosis> {
    let words = [
        "network backend 'user' is not compiled into this binary",
        "Parameter 'type' does not accept value 'user'",
        "Parameter 'type' expects a netdev backend type",
    ];
    has(e.qemu, &words).then_some(())?;
    Some(feature_missing("it was built without user networking (slirp)"))
}

/// Returns the diagnosis of a QEMU without a feature, with the advice of `castra doctor`.
pub(super) fn feature_missing(reason: &str) -> Diagnosis {
    Diagnosis {
        cause: format!("QEMU lacks a feature that VMs need: {reason}"),
        advice: INSTALL_FULL_QEMU.to_owned(),
        is_final: true,
    }
}

fn disk_in_use(e: &Evidence<'_>) -> Option<Diagnosis> {
    let file = locked_file(e.qemu)?;
    let holder = e.host.disk_holder.as_deref().unwrap_or("another process");
    probably(
        format!("{} is in use by {holder}", file.display()),
        "Two writers would destroy the disk, so QEMU refuses to start. Stop that process; if it \
         is a VM of another project, give this one a disk of its own.",
    )
}

fn host_memory(e: &Evidence<'_>) -> Option<Diagnosis> {
    has(e.qemu, &["Cannot allocate memory", "cannot set up guest memory"]).then_some(())?;
    let left = e.host.available_mib.map_or(String::new(), |mib| format!("; {mib} MiB available"));
    probably(
        format!("QEMU could not allocate the {} MiB of memory of the VM{left}", e.memory_mib),
        "Give the VM less `memory` in castra.toml, or stop other VMs. A limit may also apply: \
        `ulimit -v`, or that of a container.",
    )
}

fn file_size_limit(e: &Evidence<'_>) -> Option<Diagnosis> {
    (e.signal == Some(SIGXFSZ) || has(e.qemu, &["File too large"])).then_some(())?;
    probably(
        "a file written by QEMU reached this shell's file-size limit (SIGXFSZ)",
        FILE_SIZE_HINT,
    )
}

fn host_disk_full(e: &Evidence<'_>) -> Option<Diagnosis> {
    let is_full = e.host.free_disk_mib.is_some_and(|mib| mib < FULL_DISK_MIB);
    (is_full || has(e.qemu, &["No space left on device"])).then_some(())?;
    let left = e.host.free_disk_mib.map_or("nothing".into(), |mib| format!("{mib} MiB"));
    probably(
        format!(
            "this machine's disk is full ({left} left where the VM's disk is), and the guest is \
            waiting for room"
        ),
        "Free some space: `castra image prune` and `castra template prune` do.",
    )
}

fn sandbox(e: &Evidence<'_>) -> Option<Diagnosis> {
    let said = has(e.qemu, &["seccomp", "-sandbox"]);
    (e.signal == Some(SIGSYS) || said).then_some(())?;
    probably(
        "QEMU made a system call that its sandbox forbids, or has no sandbox (SIGSYS)",
        "This build of QEMU does not work with the sandbox. Use your distribution's QEMU; \
        CASTRA_QEMU selects another binary.",
    )
}

fn machine_unknown(e: &Evidence<'_>) -> Option<Diagnosis> {
    let words = [
        "unsupported machine type",
        "unable to find CPU model",
        "is not a valid device model name",
        "Unknown chardev",
        "invalid accelerator",
    ];
    let line = e.qemu.lines().find(|line| has(line, &words))?;
    let line = line.split_once(": ").map_or(line, |(_program, said)| said);
    probably(
        format!("this QEMU does not support the image's machine: {line}"),
        "Update QEMU, or change `machine`, `cpu` or `devices` of the image in castra.toml.",
    )
}

fn kernel_unreadable(e: &Evidence<'_>) -> Option<Diagnosis> {
    let words = [
        "could not open kernel file",
        "could not load kernel",
        "invalid kernel header",
        "error reading initrd",
    ];
    let line = words.iter().find_map(|words| line_of(e.qemu, words))?;
    probably(
        format!("QEMU cannot load the kernel or its initramfs: {line}"),
        "`castra image verify` checks the image's files and repairs damaged ones. The kernel of \
        an image of your own must be a bzImage.",
    )
}

fn hardware(e: &Evidence<'_>) -> Option<Diagnosis> {
    let words = [
        "KVM: entry failed",
        "failed to set MSR",
        "KVM internal error",
        "failed to initialize kvm",
        "ioctl(KVM_",
    ];
    let line = words.iter().find_map(|words| line_of(e.qemu, words))?;
    probably(
        format!(
            "hardware virtualization does not work here ({line}); nested virtualization often has \
            only part of it"
        ),
        "CASTRA_ACCELERATOR=tcg avoids it.",
    )
}

fn killed(e: &Evidence<'_>) -> Option<Diagnosis> {
    (e.signal == Some(SIGKILL)).then_some(())?;
    let memory = e
        .host
        .available_mib
        .map_or(String::new(), |mib| format!(", {mib} MiB of memory are available now"));
    match e.host.oom_kills {
        Some(0) => probably(
            format!(
                "QEMU was killed (SIGKILL), by a user or a container's limit: the kernel's OOM \
                killer has not run{memory}"
            ),
            format!("`castra up {}` starts it again.", e.vm),
        ),
        Some(kills) => probably(
            format!(
                "QEMU was killed (SIGKILL), probably by the kernel's OOM killer: it has killed \
                {kills} processes since this machine booted{memory}"
            ),
            "Give the VM less `memory` in castra.toml, or stop other VMs.",
        ),
        None => probably(
            format!(
                "QEMU was killed (SIGKILL), perhaps by the kernel's OOM killer: castra cannot see \
                its count here{memory}"
            ),
            "`dmesg` as root may show why. Give the VM less `memory` in castra.toml, or stop \
            other VMs.",
        ),
    }
}

fn guest_memory(e: &Evidence<'_>) -> Option<Diagnosis> {
    let words = [
        "System is deadlocked on memory",
        "Out of memory: Killed process",
        "Out of memory and no killable processes",
        "Initramfs unpacking failed: write error",
    ];
    has(e.console, &words).then_some(())?;
    let cause = format!("the guest ran out of memory: it has {} MiB", e.memory_mib);
    let more = (e.memory_mib * 2).max(ENOUGH_MEMORY_MIB);
    let advice = format!("Give it more: memory = \"{more} MiB\" in castra.toml.");
    if has_panicked(e.console) { finally(cause, advice) } else { probably(cause, advice) }
}

/// Returns the device that mkinitfs could not mount, and the reason.
fn unmounted(console: &str) -> Option<(&str, &str)> {
    let line = line_of(console, "mount: mounting ")?;
    let (device, rest) = line.strip_prefix("mount: mounting ")?.split_once(" on ")?;
    Some((device, rest.split_once("failed: ")?.1.trim()))
}

/// Recognises messages of initramfs-tools and of dracut, which then wait for a command.
fn no_root_named(e: &Evidence<'_>) -> Option<Diagnosis> {
    let words = ["No root device specified", "No or empty root= argument", "Empty root= argument"];
    has(e.console, &words).then_some(())?;
    finally(
        "the kernel's command line names no root filesystem",
        "Add `root=` to `command_line` of the image in castra.toml: the VM's disk is /dev/vda.",
    )
}

fn no_root_disk(e: &Evidence<'_>) -> Option<Diagnosis> {
    let is_missing =
        unmounted(e.console).is_some_and(|(_, reason)| reason == "No such file or directory");
    let by_kernel = has_panicked(e.console) && e.console.contains("VFS: Unable to mount root fs");
    let by_dracut = e.console.contains("does not exist") && is_stuck_in_initramfs(e.console);
    (is_missing || by_kernel || by_dracut).then_some(())?;
    let device = unmounted(e.console)
        .map_or("the root filesystem".into(), |(device, _)| format!("`{device}`"));
    finally(
        format!(
            "the guest cannot find {device}: `root=` names no disk of the guest, or its initramfs \
            lacks a driver for virtio disks"
        ),
        "The VM's disk is /dev/vda. Look at `command_line` of the image in castra.toml: \
        root=/dev/vda, and for Alpine modules=ext4,virtio_blk,virtio_net.",
    )
}

fn root_of_another_kind(e: &Evidence<'_>) -> Option<Diagnosis> {
    let (device, reason) = unmounted(e.console)?;
    (reason == "No such device").then_some(())?;
    finally(
        format!(
            "the guest's kernel does not support the filesystem that `rootfstype=` names for \
            `{device}`"
        ),
        "Name the right one, and its module, in `command_line` of the image in castra.toml: \
        rootfstype=ext4 modules=ext4,…",
    )
}

fn root_damaged(e: &Evidence<'_>) -> Option<Diagnosis> {
    let (device, reason) = unmounted(e.console)?;
    finally(
        format!("the guest cannot mount `{device}`: {reason}"),
        "Is it the filesystem that `rootfstype=` names? If the VM's disk is damaged, `castra \
        down` the VM and check the disk with `qemu-img check`.",
    )
}

fn no_init(e: &Evidence<'_>) -> Option<Diagnosis> {
    let words =
        ["No working init found", "Requested init", "No init found", "switch_root: can't execute"];
    has(e.console, &words).then_some(())?;
    finally(
        "the root filesystem has no init that the kernel can run",
        "Does the image contain a complete system? `init=` in its `command_line` selects another \
        program.",
    )
}

fn disk_errors(e: &Evidence<'_>) -> Option<Diagnosis> {
    let words = [
        "EXT4-fs error",
        "I/O error, dev vd",
        "Buffer I/O error on dev vd",
        "XFS (vda): Corruption",
    ];
    let line = words.iter().find_map(|words| line_of(e.console, words))?;
    let free = e
        .host
        .free_disk_mib
        .map_or(String::new(), |mib| format!(" ({mib} MiB free on this machine's)"));
    probably(
        format!("the guest cannot read or write its disk{free}: {line}"),
        "`castra image verify` checks the base of the VM's disk, `qemu-img check` the disk itself.",
    )
}

fn panicked(e: &Evidence<'_>) -> Option<Diagnosis> {
    has_panicked(e.console).then_some(())?;
    let line = line_of(e.console, "Kernel panic - not syncing")?;
    finally(
        format!("the guest's kernel gave up: {line}"),
        format!("`castra logs {}` shows what came before.", e.vm),
    )
}

fn emergency_shell(e: &Evidence<'_>) -> Option<Diagnosis> {
    let by_systemd = e.console.contains("You are in emergency mode");
    (by_systemd || is_stuck_in_initramfs(e.console)).then_some(())?;
    finally(
        "the guest dropped to an emergency shell",
        format!("`castra logs {}` shows what failed.", e.vm),
    )
}

fn silent_hardware(e: &Evidence<'_>) -> Option<Diagnosis> {
    let is_silent = e.phase == Phase::Kernel && e.console.trim().is_empty();
    (is_silent && e.accelerator != Accelerator::Tcg).then_some(())?;
    probably(
        format!("the guest's CPU does not run under {}", e.accelerator.name()),
        "CASTRA_ACCELERATOR=tcg avoids hardware virtualization.",
    )
}

/// Blames the load, but only for a QEMU that still runs: one that has ended was not slow.
fn busy_host(e: &Evidence<'_>) -> Option<Diagnosis> {
    (!e.has_ended).then_some(())?;
    let (load, cpus) = (e.host.load?, e.host.cpus?);
    e.host.load_per_cpu().filter(|load| *load >= BUSY)?;
    let emulated = if e.accelerator == Accelerator::Tcg {
        ", and an emulated guest needs a full one"
    } else {
        ""
    };
    probably(
        format!("this machine is busy: {load:.1} processes compete for its {cpus} CPUs{emulated}"),
        "Wait until it is less busy, or give the boot more time: --boot-timeout SECS.",
    )
}
