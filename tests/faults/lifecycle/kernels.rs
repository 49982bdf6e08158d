//! The kernel of a VM's own disk: read before each boot, kept, and told apart from none.

use std::fs;
use std::path::Path;

use castra_test_support::disks::{kernel_of_version, qcow2_of, system_disk};
use castra_test_support::{Fake, tool};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

const OLD: &str = "6.1.0-13-test";
const NEW: &str = "6.1.0-15-test";
const OPTIONS: &str = "root=/dev/vda ro quiet";

fn own_disk(more: &str) -> String {
    format!("[[vms]]\nname = \"web\"\nbase_image = \"mine.qcow2\"\nmemory = \"64 MiB\"\n{more}")
}

/// Returns a project with a VM on a disk that has one kernel.
fn with_system(more: &str) -> Fake {
    let fake = Fake::new(&["vm"]);
    fake.write("castra.toml", &own_disk(more));
    system_disk(&fake.path().join("mine.raw"), &[OLD], OPTIONS);
    convert(&fake, &[], "mine.raw", "mine.qcow2");
    fake
}

fn convert(fake: &Fake, options: &[&str], from: &str, to: &str) {
    let [from, to] = [from, to].map(|name| text(&fake.path().join(name)));
    tool("qemu-img", &[&["convert", "-f", "raw", "-O", "qcow2"], options, &[&from, &to]].concat());
}

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// Writes to the VM's disk what a guest would have written that has these kernels now.
fn install(fake: &Fake, versions: &[&str]) {
    system_disk(&fake.path().join("now.raw"), versions, OPTIONS);
    replace(fake, "now.raw");
}

fn replace(fake: &Fake, raw: &str) {
    let below = text(&fake.path().join("mine.qcow2"));
    let overlay = ".castra/web-overlay.qcow2";
    fs::remove_file(fake.path().join(overlay)).expect("removed");
    convert(fake, &["-B", &below, "-F", "qcow2"], raw, overlay);
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the digest of the kernel that the VM's last QEMU was given, and its command line.
fn booted(fake: &Fake, vm: &str) -> (String, String) {
    let journal = fake.journal(vm);
    let line = journal.lines().rfind(|line| line.contains(" kernel ")).expect("a kernel");
    let (_, line) = line.split_once(" kernel ").expect("a kernel");
    let (kernel, line) = line.split_once(' ').expect("a command line");
    (sha256(&fs::read(kernel).expect("a kernel")), line.to_owned())
}

#[track_caller]
fn boots(fake: &Fake, version: &str) {
    assert_eq!(booted(fake, "web").0, sha256(&kernel_of_version(version)), "not {version}");
}

fn record(fake: &Fake) -> Value {
    serde_json::from_slice(&fs::read(fake.record("web")).expect("a record")).expect("JSON")
}

#[test]
fn a_disk_of_ones_own_boots_with_its_kernel_and_the_agent() {
    let fake = with_system("");
    fake.run(&["config", "check"]).ok();
    let up = fake.run(&["up", "--cold", "--wait", "services"]).ok();
    assert!(!up.stderr.contains("natively"), "{}", up.stderr);
    assert_eq!(fake.status("web")["agent"], true);
    boots(&fake, OLD);
    let expected = format!(
        "{OPTIONS} rw net.ifnames=0 cryptomgr.notests cloud-init=disabled console=ttyS0 \
        no_timer_check kfence.sample_interval=0 rdinit=/castra/agent"
    );
    assert_eq!(booted(&fake, "web").1, expected);
    let initramfs = fs::read(fake.path().join(".castra/vms/web/initramfs")).expect("read");
    assert!(initramfs.starts_with(b"initramfs 6.1.0-13-test"), "the disk's comes first");
    assert!(initramfs.windows(12).any(|part| part == b"castra/agent"), "the agent follows");
    let kernel = record(&fake)["boot"]["kernel"].clone();
    assert_eq!(kernel["kernel_sha256"], sha256(&kernel_of_version(OLD)));
    assert_eq!(kernel["initramfs_sha256"], sha256(b"initramfs 6.1.0-13-test"));
    assert_eq!(kernel["version"], OLD);
    assert_eq!(kernel["os"], "Debian of the tests");
    assert_eq!(kernel["entry"], "6.1.0-13-test in /boot/grub/grub.cfg");
    let shown = fake.status("web")["kernel"].clone();
    assert_eq!((&shown["version"], &shown["command_line"]), (&OLD.into(), &OPTIONS.into()));
    assert_eq!(shown["kernel_sha256"], kernel["kernel_sha256"]);
    let details = fake.run(&["status", "-v"]).ok().text();
    assert!(details.contains("Linux 6.1.0-13-test of its disk, Debian of the tests"), "{details}");
}

#[test]
fn a_kernel_that_is_upgraded_in_the_guest_boots_next() {
    let fake = with_system("");
    fake.run(&["up", "--cold"]).ok();
    fake.run(&["down", "--force"]).ok();
    install(&fake, &[NEW, OLD]);
    fake.run(&["up"]).ok();
    boots(&fake, NEW);
    let kept = fs::read_dir(fake.path().join(".castra/vms/web/kernels")).expect("listed").count();
    assert_eq!(kept, 4, "the last one that came up stays until the next start");
    fake.run(&["restart", "--force"]).ok();
    boots(&fake, NEW);
    let kept = fs::read_dir(fake.path().join(".castra/vms/web/kernels")).expect("listed").count();
    assert_eq!(kept, 2);
}

#[test]
fn an_upgrade_that_does_not_come_up_falls_back_to_the_kernel_that_did() {
    let fake = with_system("");
    fake.run(&["up"]).ok();
    fake.run(&["down", "--force"]).ok();
    install(&fake, &[NEW]);
    fake.behave("web", &format!("panics-with:{NEW}"));
    let up = fake.run(&["up"]).ok();
    boots(&fake, OLD);
    let said = "VM `web` does not come up with Linux 6.1.0-15-test as it is on its disk now (";
    assert!(up.stderr.contains(said), "{}", up.stderr);
    assert!(up.stderr.contains("booting Linux 6.1.0-13-test as of its last"), "{}", up.stderr);
    assert_eq!(record(&fake)["boot"]["kernel"]["version"], OLD);
    // The next start tries the disk's own again, which works by now.
    fake.behave("web", "");
    fake.run(&["restart", "--force"]).ok();
    boots(&fake, NEW);
}

#[test]
fn a_disk_without_a_readable_kernel_boots_the_last_one() {
    let fake = with_system("");
    fake.run(&["up"]).ok();
    fake.run(&["down", "--force"]).ok();
    fs::File::create(fake.path().join("now.raw"))
        .and_then(|file| file.set_len(16 << 20))
        .expect("a file");
    // Whatever the guest has done with it: zeros hide what is below.
    let zeros = fake.path().join("now.raw");
    tool("mkswap", &[&text(&zeros)]);
    replace(&fake, "now.raw");
    let up = fake.run(&["up"]).ok();
    boots(&fake, OLD);
    let said = "VM `web` boots Linux 6.1.0-13-test as of its last successful start, since its disk \
        has no usable kernel now: no Linux system";
    assert!(up.stderr.contains(said), "{}", up.stderr);

    // A file that was kept and changed is not the one that came up; the base image has that, too.
    fake.run(&["down", "--force"]).ok();
    for entry in fs::read_dir(fake.path().join(".castra/vms/web/kernels")).expect("listed") {
        fs::write(entry.expect("an entry").path(), "changed").expect("written");
    }
    fake.run(&["up"]).ok();
    boots(&fake, OLD);
}

#[test]
fn without_a_kernel_a_disk_boots_natively_with_a_warning_unless_that_is_asked_for() {
    let fake = Fake::new(&["vm"]);
    qcow2_of(&fake.path().join("mine.qcow2"), &castra_test_support::disks::boot_sector());
    let warning = "VM `web` boots natively, without Castra's agent: no Linux system that can be \
        booted was found on the disk: ";
    fake.write("castra.toml", &own_disk(""));
    let up = fake.run(&["up"]).ok();
    assert!(up.stderr.contains(warning), "{}", up.stderr);
    assert_eq!(fake.status("web")["agent"], false);
    fake.run(&["down", "--force"]).ok();

    fake.write("castra.toml", &own_disk("boot_profile = \"native\"\n"));
    let up = fake.run(&["up"]).ok();
    assert!(!up.stderr.contains(warning), "{}", up.stderr);
    fake.run(&["down", "--force"]).ok();

    fake.write("castra.toml", &own_disk("boot_profile = \"managed\"\n"));
    fake.run(&["up"]).code(65).says("VM `web` cannot boot with the kernel of");
    fake.run(&["clean", "--disks", "--yes", "web"]).ok();
    let checked = fake.run(&["config", "check"]).code(65).text();
    assert!(checked.contains("no Linux system that can be booted was found"), "{checked}");
    fake.run(&["up"]).code(65).says("no Linux system that can be booted was found");
    assert!(!fake.path().join(".castra/web-overlay.qcow2").exists(), "a disk was made");
}

#[test]
fn a_disk_with_a_kernel_needs_no_boot_code_unless_it_boots_natively() {
    let fake = with_system("boot_profile = \"native\"\n");
    fake.run(&["up"]).code(65).says("has no boot code");
    fake.write("castra.toml", &own_disk("boot_profile = \"managed\"\n"));
    fake.run(&["up"]).ok();
    assert_eq!(fake.status("web")["agent"], true);
}

#[test]
fn what_a_disk_says_is_not_obeyed_by_a_terminal() {
    let fake = Fake::new(&["vm"]);
    fake.write("castra.toml", &own_disk("boot_profile = \"managed\"\n"));
    let evil = "6.1\u{1b}]0;owned\u{7}";
    system_disk(&fake.path().join("mine.raw"), &[evil], "ro");
    tool("debugfs", &["-w", "-R", "rm /boot/initrd.img-6.1", &text(&fake.path().join("mine.raw"))]);
    convert(&fake, &[], "mine.raw", "mine.qcow2");
    let up = fake.run(&["up"]);
    assert!(!up.stderr.contains('\u{1b}') && !up.stderr.contains('\u{7}'), "{:?}", up.stderr);
}

#[test]
fn a_suspended_vm_resumes_with_its_kernel_and_so_does_its_clone() {
    let fake = with_system("");
    fake.run(&["up"]).ok();
    fake.run(&["suspend"]).ok();
    fake.run(&["clone", "web", "other"]).ok();
    fake.run(&["up", "web"]).ok();
    boots(&fake, OLD);
    fake.run(&["up", "other"]).ok();
    let journal = fake.journal("other");
    assert!(journal.contains(&sha256(&kernel_of_version(OLD))), "{journal}");
    fake.run(&["restart", "--force", "other"]).ok();
    assert_eq!(fake.status("other")["agent"], true);
}

#[test]
fn new_vms_on_a_disk_are_restored_from_its_template() {
    let fake = with_system("");
    let two = own_disk("") + &own_disk("").replace("web", "two");
    fake.write("castra.toml", &two);
    let up = fake.run(&["up", "web"]).ok();
    assert!(up.stderr.contains("template"), "{}", up.stderr);
    assert_eq!(record(&fake)["boot"]["start"], "template");
    assert_eq!(record(&fake)["boot"]["kernel"]["version"], OLD);
    boots(&fake, OLD);
    let templates = || {
        let list = fake.run(&["template", "list", "--json"]).ok().document("template list");
        list["templates"].as_array().expect("a list").len()
    };
    assert_eq!(templates(), 1);
    fake.run(&["up", "two"]).ok();
    assert_eq!(fake.record("two").metadata().map(|_| templates()).expect("a record"), 1);
    let restored = fs::read_to_string(fake.record("two")).expect("a record");
    assert!(restored.contains("\"start\": \"template\""), "{restored}");

    // A boot reads the disk, which has what the template's had.
    fake.run(&["restart", "--force", "web"]).ok();
    assert_eq!(record(&fake)["boot"]["start"], "boot");
    boots(&fake, OLD);

    // Another content of the base is another template.
    fake.run(&["down", "--force"]).ok();
    fake.run(&["clean", "--disks", "--yes"]).ok();
    system_disk(&fake.path().join("mine.raw"), &[OLD, NEW], OPTIONS);
    convert(&fake, &[], "mine.raw", "mine.qcow2");
    fake.run(&["up", "web"]).ok();
    assert_eq!(record(&fake)["boot"]["start"], "template");
    assert_eq!(templates(), 2);
}
