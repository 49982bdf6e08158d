//! Tests of the diagnosis of boots.

use super::*;

/// Actual output of guests and of QEMU 7.2.
const NO_SUCH_DISK: &str = "mount: mounting /dev/vdz on /sysroot failed: No such file or \
    directory\n\
    Mounting root failed. \nLaunching initramfs emergency recovery shell.\n\n\
    sh: can't access tty; job control turned off\n~ # ";
const OTHER_FILESYSTEM: &str = "[    2.932389] Mounting root...\n \
    * Mounting root: mount: mounting /dev/vda on /sysroot failed: No such device\n\
    [    7.791102] Mounting root: failed. \nfailed. \n\
    Launching initramfs emergency recovery shell.\n";
const NOT_THAT_FILESYSTEM: &str =
    "mount: mounting /dev/vda on /sysroot failed: Invalid argument\nMounting root failed.\n";
const DEADLOCKED: &str = "[    1.572004]  </TASK>\n\
    [    1.572004] Kernel Offset: 0x2f000000 from 0xffffffff81000000\n\
    [    1.572004] ---[ end Kernel panic - not syncing: System is deadlocked on memory ]---";
const OOM: &str =
    "[   12.1] Out of memory: Killed process 412 (python3) total-vm:210000kB, anon-rss:80000kB";
const UNABLE: &str =
    "[    2.1] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)";
const NO_INIT: &str = "[    2.1] Kernel panic - not syncing: No working init found.  Try passing \
    init= option to kernel.";
const KILLED_INIT: &str =
    "[    3.0] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100";
const DRACUT: &str = "Warning: /dev/disk/by-uuid/1234 does not exist\n\n\
    Entering emergency mode. Exit the shell to continue.";
const NO_ROOT: &str = "No root device specified. Boot arguments must include a root= parameter.\n\n\
    \nBusyBox v1.35.0 (Debian 1:1.35.0-4+b5) built-in shell (ash)\n(initramfs) ";
const NO_ROOT_DRACUT: &str = "[    3.1] dracut: FATAL: No or empty root= argument\n\
    [    3.1] dracut: Refusing to continue";
const SYSTEMD: &str =
    "You are in emergency mode. After logging in, type \"journalctl -xb\" to view";
const EXT4: &str = "[   4.2] EXT4-fs error (device vda): ext4_find_entry:1683: inode #2: comm \
    init: reading directory lblock 0";
const LOCKED: &str = "qemu-system-x86_64: -blockdev \
    driver=qcow2,node-name=disk,file.driver=file,file.filename=/p/web.qcow2: Failed to get \
    \"write\" lock\nIs another process using the image [/p/web.qcow2]?\n";

fn evidence<'a>(console: &'a str, qemu: &'a str, host: &'a HostFacts) -> Evidence<'a> {
    let (phase, accelerator) = (Phase::Initramfs, Accelerator::Tcg);
    Evidence {
        vm: "web",
        phase,
        console,
        qemu,
        has_ended: false,
        signal: None,
        accelerator,
        memory_mib: 256,
        host,
    }
}

fn text(evidence: &Evidence<'_>) -> String {
    let found = diagnose(evidence).unwrap_or_else(|| panic!("no case for {evidence:?}"));
    format!("{}. {}", found.cause, found.advice)
}

#[test]
fn the_guests_words_have_their_cases() {
    let host = HostFacts::default();
    for (console, cause, is_final) in [
        (NO_SUCH_DISK, "cannot find `/dev/vdz`", true),
        (OTHER_FILESYSTEM, "`rootfstype=` names for `/dev/vda`", true),
        (NOT_THAT_FILESYSTEM, "cannot mount `/dev/vda`: Invalid argument", true),
        (DEADLOCKED, "ran out of memory: it has 256 MiB", true),
        (OOM, "memory = \"512 MiB\"", false),
        (UNABLE, "`root=` names no disk", true),
        (NO_INIT, "has no init", true),
        (KILLED_INIT, "Attempted to kill init! exitcode=0x00000100", true),
        (DRACUT, "cannot find the root filesystem", true),
        (NO_ROOT, "names no root filesystem", true),
        (NO_ROOT_DRACUT, "names no root filesystem", true),
        (SYSTEMD, "emergency shell", true),
        (EXT4, "cannot read or write its disk: EXT4-fs error (device vda)", false),
    ] {
        let evidence = evidence(console, "", &host);
        assert!(text(&evidence).contains(cause), "{console}\n{}", text(&evidence));
        assert_eq!(diagnose(&evidence).map(|found| found.is_final), Some(is_final), "{console}");
    }
}

#[test]
fn the_words_of_qemu_have_their_cases() {
    let host = HostFacts {
        disk_holder: Some("qemu-system-x86 (process 42)".into()),
        available_mib: Some(700),
        ..HostFacts::default()
    };
    for (qemu, cause) in [
        (LOCKED, "/p/web.qcow2 is in use by qemu-system-x86 (process 42)"),
        (
            "qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory",
            "700 MiB available",
        ),
        (
            "qemu-system-x86_64: unsupported machine type\n\
            Use -machine help to list supported machines",
            "unsupported machine type",
        ),
        (
            "qemu-system-x86_64: unable to find CPU model 'nonsense'",
            "unable to find CPU model 'nonsense'",
        ),
        (
            "qemu-system-x86_64: -device nonsense: 'nonsense' is not a valid device model name",
            "'nonsense' is not a valid device",
        ),
        (
            "qemu: could not open kernel file '/nonexistent': No such file or directory",
            "kernel file '/nonexistent'",
        ),
        ("qemu: invalid kernel header", "bzImage"),
        ("qemu: error reading initrd /none: Failed to open file", "error reading initrd /none"),
        ("KVM: entry failed, hardware error 0x80000021", "CASTRA_ACCELERATOR=tcg"),
        ("qemu-system-x86_64: error: failed to set MSR 0x480 to 0x0", "failed to set MSR 0x480"),
        (
            "qemu-system-x86_64: -netdev user,id=net: Could not set up host forwarding rule \
            'tcp::80-:80'",
            "another program",
        ),
        (
            "qemu-system-x86_64: -netdev user,id=net: network backend 'user' is not compiled into \
            this binary",
            "user networking (slirp)",
        ),
        (
            "-netdev user,id=net: Parameter 'type' does not accept value 'user'",
            "it needs seccomp and slirp",
        ),
        ("qemu-system-x86_64: failed to install seccomp syscall filter in the kernel", "sandbox"),
        ("qemu-system-x86_64: could not write: No space left on device", "is full"),
    ] {
        let said = text(&evidence("", qemu, &host));
        assert!(said.contains(cause), "{qemu}\n{said}");
    }
}

#[test]
fn signals_and_the_host_have_their_cases() {
    let host = |oom_kills| HostFacts { oom_kills, available_mib: Some(10), ..HostFacts::default() };
    for (signal, oom_kills, cause) in [
        (9, Some(3), "killed 3 processes"),
        (9, Some(0), "by a user"),
        (9, None, "cannot see its count here, 10 MiB of memory are available now"),
        (25, Some(0), "ulimit -f"),
        (31, Some(0), "SIGSYS"),
    ] {
        let host = host(oom_kills);
        let said = text(&Evidence { signal: Some(signal), ..evidence("", "", &host) });
        assert!(said.contains(cause), "{said}");
    }
    let full = HostFacts { free_disk_mib: Some(3), ..HostFacts::default() };
    assert!(text(&evidence("fine so far", "", &full)).contains("3 MiB left"));
    let busy = HostFacts {
        load: Some(9.0),
        cpus: Some(2),
        free_disk_mib: Some(9_000),
        ..HostFacts::default()
    };
    assert!(
        text(&evidence("fine so far", "", &busy))
            .contains("9.0 processes compete for its 2 CPUs, and an emulated")
    );
    assert!(
        text(&evidence(NO_SUCH_DISK, "", &busy)).contains("/dev/vdz"),
        "what is sure comes first"
    );
    let ended = Evidence { has_ended: true, ..evidence("", "", &busy) };
    assert_eq!(diagnose(&ended), None, "no QEMU ends for want of a CPU");
}

#[test]
fn a_boot_that_looks_well_has_no_cause() {
    let idle = HostFacts {
        load: Some(0.5),
        cpus: Some(2),
        free_disk_mib: Some(9_000),
        ..HostFacts::default()
    };
    assert_eq!(diagnose(&evidence("   OpenRC 0.63 is starting up", "warning: CPUID", &idle)), None);
    // A kernel that will reboot by itself may come up.
    let rebooting = "Kernel panic - not syncing: Attempted to kill init!\nRebooting in 5 seconds..";
    assert_eq!(diagnose(&evidence(rebooting, "", &idle)), None);
    let silent = Evidence { phase: Phase::Kernel, ..evidence("", "", &idle) };
    assert_eq!(diagnose(&silent), None, "an emulated guest may take its time");
    assert!(
        text(&Evidence { accelerator: Accelerator::Kvm, ..silent })
            .contains("does not run under kvm")
    );
}

#[test]
fn trouble_is_reported_in_full() {
    let host = HostFacts::default();
    let words = Words { console: NO_SUCH_DISK.into(), qemu: String::new() };
    let trouble = Trouble {
        phase: Phase::Initramfs,
        in_phase_ms: 40_200,
        usual_ms: Some(310),
        words: last_words(&words),
        diagnosis: diagnose(&evidence(NO_SUCH_DISK, "", &host)),
    };
    let text = trouble.to_string();
    assert!(
        text.starts_with(
            "in phase `initramfs` after 40 s (usual: 0.31 s)\n  | mount: mounting /dev/vdz"
        ),
        "{text}"
    );
    assert!(text.contains("\n  probable cause: the guest cannot find `/dev/vdz`"), "{text}");
}
