//! Data disks in real VMs: formatted, mounted, kept, and never mistaken for blank ones.

use std::path::PathBuf;
use std::process::Command;

use castra_test_support::Project;

const VM: &str = "web";

/// Command that distinguishes the boots of a guest.
const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

/// Contents of an unfinished formatting's mark: `crates/castra-guest/src/disks/format.rs`.
const MARK: &str = "castra formats this disk";

fn declare(project: &Project, disks: &str) {
    project.write(
        "castra.toml",
        &format!(
            "[[vms]]\nname = \"{VM}\"\nmanaged_image = \"alpine-pypi\"\nmemory = \"512 MiB\"\n\
            disks = [{disks}]\n"
        ),
    );
}

#[track_caller]
fn sh(project: &Project, vm: &str, script: &str) -> String {
    project.run(&["exec", "-n", vm, "--", "sh", "-c", script]).ok().text()
}

fn disk(project: &Project, vm: &str, name: &str) -> PathBuf {
    project.path().join(format!(".castra/disks/{vm}/{name}.qcow2"))
}

/// Returns the size of a mounted filesystem in MiB, as the guest's kernel has it.
fn mebibytes(project: &Project, directory: &str) -> u64 {
    let numbers = sh(project, VM, &format!("stat -f -c '%S %b' {directory}"));
    let numbers = numbers.split_whitespace().map(|word| word.parse::<u64>().expect("a number"));
    numbers.product::<u64>() >> 20
}

#[test]
fn a_disk_is_mounted_and_kept_through_everything() {
    let project = Project::new();
    declare(
        &project,
        "{ name = \"data\", size = \"1 GiB\", guest = \"/srv/data\" }, \
         { name = \"raw\", size = \"64 MiB\" }",
    );
    let up = project.run(&["up"]).ok();
    assert!(!up.stderr.contains("warning"), "{}", up.stderr);
    let mounts = sh(&project, VM, "grep ' /srv/data ' /proc/mounts");
    assert!(mounts.starts_with("/dev/vdb /srv/data ext4 rw"), "{mounts}");
    let links = "for disk in data raw; do readlink -f /dev/disk/by-id/virtio-$disk; done";
    assert_eq!(sh(&project, VM, links), "/dev/vdb\n/dev/vdc\n");
    // A partition on the other disk, which is the user's affair.
    sh(
        &project,
        VM,
        "seq 20000 > /srv/data/kept && printf 'n\\np\\n1\\n\\n\\nw\\n' | fdisk /dev/vdc >/dev/null \
        2>&1; mkfs.ext4 -q /dev/vdc1 && mount /dev/vdc1 /mnt && seq 7 > /mnt/seven && umount /mnt \
        && sync",
    );
    let sum = sh(&project, VM, "md5sum < /srv/data/kept");

    // Memory and disks stay together, and a clone's are its own.
    project.run(&["suspend"]).ok();
    project.run(&["clone", VM, "twin"]).ok();
    project.run(&["up", VM, "twin"]).ok();
    assert_eq!(sh(&project, "twin", "md5sum < /srv/data/kept"), sum);
    sh(&project, "twin", "rm /srv/data/kept; echo twin > /srv/data/own; sync");
    project.run(&["down", "--force", "twin"]).ok();
    assert_eq!(
        sh(&project, VM, "md5sum < /srv/data/kept; ls /srv/data | wc -l"),
        sum.clone() + "2\n"
    );

    // The power fails once the guest has written something out.
    sh(&project, VM, "echo synced > /srv/data/synced && sync /srv/data/synced");
    let pid = project.qemu_pid(VM).to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().expect("runs").success());
    project.run(&["up"]).ok();
    assert_eq!(
        sh(&project, VM, "md5sum < /srv/data/kept; cat /srv/data/synced"),
        sum.clone() + "synced\n"
    );
    project.run(&["down"]).ok();

    // A fresh system, restored from a template in which these disks were blank.
    project.run(&["clean", "-y", "--disks", VM]).ok().says("castra clean web --data-disk data");
    let up = project.run(&["up"]).ok().says("from its warm template");
    assert!(!up.stderr.contains("warning"), "{}", up.stderr);
    let found = "md5sum < /srv/data/kept; mount /dev/vdc1 /mnt && cat /mnt/seven | wc -l; \
        grep -c vdb /proc/mounts";
    assert_eq!(sh(&project, VM, found), sum + "7\n1\n");
    // Its reboot by itself mounts the disk, too.
    let boot = sh(&project, VM, BOOT_ID);
    sh(&project, VM, "umount /mnt; (sleep 1; reboot) >/dev/null 2>&1 &");
    let rebooted = || {
        let ran = project.run(&["exec", "-n", VM, "--", "sh", "-c", BOOT_ID]);
        ran.code == Some(0) && ran.text() != boot
    };
    let mut looks = 0;
    while !rebooted() {
        looks += 1;
        assert!(looks < 100, "it has not rebooted");
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    let text = sh(&project, VM, "cat /proc/cmdline; ls /srv/data");
    assert!(text.contains("castra.disk=data:/srv/data,") && text.contains("kept"), "{text}");
    project.run(&["down"]).ok();
    for name in ["data", "raw"] {
        let path = disk(&project, VM, name);
        castra_test_support::tool("qemu-img", &["check", "-q", path.to_str().expect("UTF-8")]);
    }
}

#[test]
fn only_blank_disks_are_formatted() {
    let project = Project::new();
    let plain = |name: &str| format!("{{ name = \"{name}\", size = \"64 MiB\" }}");
    declare(&project, &[plain("a"), plain("b"), plain("c"), plain("e")].join(", "));
    project.run(&["up"]).ok();
    // Something unknown on one, an unfinished formatting on another, and something between ends
    // that are blank.
    sh(
        &project,
        VM,
        &format!(
            "echo precious | dd of=/dev/vdc bs=1 seek=70000 2>/dev/null; \
            echo torn | dd of=/dev/vdd bs=1 seek=5000 2>/dev/null; \
            echo {MARK} | dd of=/dev/vdd bs=4096 seek=16383 conv=notrunc 2>/dev/null; \
            echo amidst | dd of=/dev/vde bs=1M seek=32 2>/dev/null; sync"
        ),
    );
    let at = |name: &str, size: &str| {
        format!("{{ name = \"{name}\", size = \"{size}\", guest = \"/srv/{name}\" }}")
    };
    let all = ["a", "b", "c", "e"].map(|name| at(name, "64 MiB")).join(", ");
    declare(&project, &all);
    let restarted = project.run(&["restart"]).ok();
    let restarted =
        restarted.says("disk `b` is not mounted on /srv/b: it has data that castra does not know");
    let restarted = restarted.says("it has the remains of a formatting that was interrupted");
    let restarted = restarted.says("/srv/e: it has no filesystem, and was written to");
    restarted.says("until it is mounted, /srv/e is empty and read-only");
    // Nothing is written below the mount point, not even by root.
    let written = "touch /srv/b/lost 2>&1; mkdir /srv/e/lost 2>&1; ls -A /srv/b /srv/e";
    let refused = sh(&project, VM, written);
    assert_eq!(refused.matches("Read-only file system").count(), 2, "{refused}");
    assert_eq!(refused.matches("lost").count(), 2, "{refused}");
    let status = project.run(&["status", "--json"]).ok();
    let fault = "is not mounted on /srv/e: it has no filesystem, and was written to";
    assert!(status.text().contains(fault), "{}", status.text());
    let state = "dd if=/dev/vdc bs=1 skip=70000 count=8 2>/dev/null; \
        dd if=/dev/vde bs=1M skip=32 count=1 2>/dev/null | head -c 6; \
        echo; grep -o ' /srv/[abce] ext4' /proc/mounts; echo kept > /srv/a/kept; sync";
    assert_eq!(sh(&project, VM, state), "preciousamidst\n /srv/a ext4\n");

    // The filesystem grows with its disk, and the lack of mkfs.ext4 is one warning with a way out.
    sh(
        &project,
        VM,
        "for it in $(which -a mkfs.ext4); do mv $it $it.gone; done; ! which mkfs.ext4",
    );
    let all = [at("a", "256 MiB"), at("d", "64 MiB")].join(", ");
    declare(&project, &all);
    let restarted = project.run(&["restart"]).ok();
    let restarted = restarted.says("disk `b` of VM `web` is not in castra.toml any more");
    restarted.says("disk `d` is blank, and the VM has no mkfs.ext4").says("e2fsprogs");
    assert!(mebibytes(&project, "/srv/a") > 200);
    assert_eq!(sh(&project, VM, "cat /srv/a/kept"), "kept\n");
    sh(
        &project,
        VM,
        "for it in /sbin/mkfs.ext4 /usr/sbin/mkfs.ext4; do mv $it.gone $it; done; true",
    );
    project.run(&["restart"]).ok();
    assert!(mebibytes(&project, "/srv/d") > 40);
    project.run(&["down"]).ok();
}
