//! A disk of one's own, booted with the kernel that is on it.

use castra_test_support::{Project, disks};

/// Makes the guest's own disk boot another entry, whose initramfs is cut off.
const BROKEN_UPGRADE: &str = "cd /boot && cp vmlinuz-own vmlinuz-new && head -c 100000 \
    initramfs-own > initramfs-new && sed -i 's/-own/-new/' extlinux.conf && sync";
/// Makes it boot a whole one.
const UPGRADE: &str = "cd /boot && (cat initramfs-own; head -c 512 /dev/zero) > initramfs-new && \
    sync";

#[test]
fn an_own_disk_boots_with_its_kernel_and_the_one_that_its_guest_installs() {
    let project = Project::new();
    disks::with_own_kernel(&disks::alpine(), &project.path());
    // Shut down each time: the reader replays no journal without checksums, as this disk has it.
    let vm = |name: &str| format!("[[vms]]\nname = \"{name}\"\nbase_image = \"own.qcow2\"\n");
    project.write("castra.toml", &(vm("own") + &vm("other")));
    project.run(&["up", "own"]).ok();
    let output =
        |vm: &str, command: &str| project.run(&["exec", vm, "--", "sh", "-c", command]).ok();
    let line = output("own", "cat /proc/cmdline").text();
    assert!(line.starts_with("root=/dev/vda rootfstype=ext4"), "{line}");
    assert!(
        line.contains(
            " quiet rw net.ifnames=0 cryptomgr.notests cloud-init=disabled console=ttyS0 "
        ),
        "{line}"
    );
    // The second VM of the disk is restored from what the first one has left.
    project.run(&["up", "other"]).ok();
    let timeline = project.run(&["timeline", "other"]).ok().text();
    assert!(timeline.contains("template"), "{timeline}");
    assert_eq!(output("other", "hostname").text().trim(), "other");

    output("own", BROKEN_UPGRADE);
    project.run(&["down", "own"]).ok();
    project.run(&["up", "own"]).ok().says("does not come up with Linux");
    let before = project.run(&["status", "--json", "own"]).ok().document("status");

    output("own", UPGRADE);
    project.run(&["down", "own"]).ok();
    let up = project.run(&["up", "own"]).ok();
    assert!(!up.stderr.contains("does not come up"), "{}", up.stderr);
    let after = project.run(&["status", "--json", "own"]).ok().document("status");
    let initramfs =
        |document: &serde_json::Value| document["vms"][0]["kernel"]["initramfs_sha256"].clone();
    assert_ne!(initramfs(&before), initramfs(&after));
    output("own", "true");
    project.run(&["down", "--force"]).ok();
}
