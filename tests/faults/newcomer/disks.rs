//! Images and disks that are missing or invalid.

use std::fs;
use std::path::PathBuf;

use castra_test_support::Fake;
use castra_test_support::http::{Reply, Server};
use castra_test_support::{Project, bootable_qcow2, qcow2_of};

use crate::newcomer::transcript::{holds, transcript};

const OWN_DISK: &str = "[[vms]]\nname = \"web\"\nbase_image = \"mine.qcow2\"\n";

#[test]
fn a_base_image_that_is_none() {
    let project = Project::isolated();
    project.write("castra.toml", OWN_DISK);
    holds("base_image_missing", &transcript(&project, &["up"]));
    project.write("mine.qcow2", "this is no disk");
    holds("base_image_not_a_qcow2", &transcript(&project, &["up"]));
}

#[test]
fn a_base_image_that_goes() {
    let fake = Fake::new(&["vm"]);
    let disk = fake.path().join("mine.qcow2");
    bootable_qcow2(&disk);
    fake.write("castra.toml", OWN_DISK);
    fake.run(&["up"]).ok();
    fake.run(&["down", "--force"]).ok();
    std::fs::remove_file(disk).expect("removed");
    holds("base_image_gone", &transcript(&fake, &["up"]));
}

#[test]
fn a_file_of_an_image_that_is_missing() {
    let fake = Fake::new(&["vm"]);
    fs::remove_file(fake.path().join("image/kernel")).expect("removed");
    holds("image_file_missing", &transcript(&fake, &["up"]));
    fake.run(&["image", "pull"]).code(66);
}

/// Returns a project with a stopped VM, and the path of its disk.
fn stopped() -> (Fake, PathBuf) {
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    fake.run(&["down", "--force"]).ok();
    let disk = fake.path().join(".castra/vm-overlay.qcow2");
    (fake, disk)
}

#[test]
fn a_disk_that_goes_is_not_replaced_by_an_empty_one() {
    let (fake, disk) = stopped();
    let kept = disk.with_extension("kept");
    fs::rename(&disk, &kept).expect("moved");
    holds("disk_gone", &transcript(&fake, &["up"]));
    assert!(!disk.exists(), "a disk was made");
    fs::rename(&kept, &disk).expect("moved back");
    fake.run(&["up"]).ok();
    // The memory of a suspended VM is not dropped for a disk that does not exist.
    fake.run(&["suspend"]).ok();
    fs::rename(&disk, &kept).expect("moved");
    for words in [&["up"][..], &["up", "--discard-suspended"], &["clone", "vm", "copy"]] {
        fake.run(words).code(66).says("the disk of VM `vm` is gone");
    }
    fs::rename(&kept, &disk).expect("moved back");
    fake.run(&["up"]).ok();
    assert_eq!(fake.state("vm"), "running");
    fake.run(&["down", "--force"]).ok();
    // The way out, for one who gives up the data.
    fs::remove_file(&disk).expect("removed");
    fake.run(&["clean", "--disks", "vm"]).ok();
    fake.run(&["up"]).ok();
}

#[test]
fn a_disk_that_castra_toml_no_longer_names_is_not_replaced_either() {
    let (fake, disk) = stopped();
    let text = fs::read_to_string(fake.path().join("castra.toml")).expect("read");
    fake.write("castra.toml", &format!("{text}overlay = \"elsewhere.qcow2\"\n"));
    holds("disk_renamed", &transcript(&fake, &["up"]));
    assert!(!fake.path().join("elsewhere.qcow2").exists(), "a disk was made");
    let named = format!("{text}overlay = \".castra/vm-overlay.qcow2\"\n");
    fake.write("castra.toml", &named);
    fake.run(&["up"]).ok();
    assert!(disk.exists());
}

#[test]
fn a_damaged_disk_is_not_taken_for_one_of_another_image() {
    let (fake, disk) = stopped();
    let whole = fs::read(&disk).expect("read");
    for damaged in [&b""[..], b"garbage", &whole[..50], &[0; 4096]] {
        fs::write(&disk, damaged).expect("written");
        let stderr = fake.run(&["up"]).code(65).says("the disk of VM `vm` is damaged").stderr;
        assert!(!stderr.contains("base_image") && !stderr.contains("rebase"), "{stderr}");
    }
    holds("disk_damaged", &transcript(&fake, &["up"]));
    castra_test_support::qcow2_of(&disk, &[]);
    fake.run(&["up"]).code(65).says("has no backing file");
    // The way out, for one who gives up the data.
    fs::rename(&disk, disk.with_extension("damaged")).expect("moved");
    fake.run(&["clean", "--disks", "vm"]).ok();
    fake.run(&["up"]).ok();
}

#[test]
fn a_base_image_that_no_bios_boots() {
    let mut fake = Fake::new(&["vm"]);
    fake.write("castra.toml", OWN_DISK);
    let disk = fake.path().join("mine.qcow2");
    qcow2_of(&disk, &[]);
    holds("base_image_blank", &transcript(&fake, &["up"]));
    let mut uefi = castra_test_support::disks::boot_sector();
    // An EFI system partition and no boot code.
    uefi[..2].fill(0);
    uefi[450] = 0xef;
    qcow2_of(&disk, &uefi);
    holds("base_image_for_uefi", &transcript(&fake, &["up"]));
    assert!(!fake.path().join(".castra/web-overlay.qcow2").exists(), "a disk was put on it");
    let checked = fake.run(&["config", "check"]).code(65);
    assert!(checked.text().contains("boots only by UEFI"), "{}", checked.text());

    // The user may bring a firmware or an installer.
    fake.set("CASTRA_UNSAFE_QEMU_ARGS", "-boot d");
    fake.run(&["config", "check"]).ok();
    fake.run(&["up"]).ok();
    fake.run(&["down", "--force"]).ok();
    fake.set("CASTRA_UNSAFE_QEMU_ARGS", "");
    // Nothing was installed on the disk that it has by now.
    fake.run(&["up"]).code(65).says("web-overlay.qcow2 boots only by UEFI");
    assert_eq!(fake.state("web"), "stopped");
}

#[test]
fn a_vm_without_an_agent() {
    let fake = Fake::new(&["vm"]);
    bootable_qcow2(&fake.path().join("mine.qcow2"));
    fake.write("castra.toml", OWN_DISK);
    holds("services_without_an_agent", &transcript(&fake, &["up", "--wait", "services"]));
    assert!(!fake.path().join(".castra/web-overlay.qcow2").exists(), "a disk was made");
    fake.run(&["up"]).ok().says("castra cannot see inside");
    // Once more while it runs; and it is not stopped for a start that would fail.
    fake.run(&["up"]).ok().says("castra cannot see inside");
    fake.run(&["up", "--wait", "services"]).code(69);
    fake.run(&["restart", "--wait", "services"]).code(69).says("which `--wait services` needs");
    assert_eq!(fake.state("web"), "running");
    assert_eq!(fake.status("web")["agent"], false);
    let details = fake.run(&["status", "-v"]).ok().text();
    assert!(details.contains("no castra agent"), "{details}");
    fake.run(&["down", "--force"]).ok();
}

/// Returns a project whose every proxy and index leads nowhere, pip's included, so that nothing is
/// reached whatever the user's settings are.
fn without_a_network() -> Project {
    let mut project = Project::isolated();
    for variable in ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"] {
        // The discard port, at which nothing listens.
        project.set(variable, "http://127.0.0.1:9");
    }
    project.set("PIP_CONFIG_FILE", "/dev/null");
    project.set("PIP_RETRIES", "1");
    project
}

#[test]
fn no_network_and_nothing_cached() {
    let project = without_a_network();
    holds("no_network", &transcript(&project, &["up"]));
    holds("offline", &transcript(&project, &["--offline", "up"]));
}

#[test]
fn a_download_that_breaks_off() {
    let content = vec![b'x'; 64 * 1024];
    let server = Server::start(move |request| Reply::file(request, &content, None).cut(10_000));
    let project = Project::isolated();
    let digest = "0".repeat(64);
    project.write(
        "castra.toml",
        &format!(
            "[images.mine.rootfs]\nurl = \"{}\"\nsize = 65536\nsha256 = \"{digest}\"\n[[vms]]\n\
            name = \"web\"\nmanaged_image = \"mine\"\n",
            server.url("/disk.qcow2"),
        ),
    );
    holds("interrupted_download", &transcript(&project, &["up"]));
}
