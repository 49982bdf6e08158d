//! Images and disks that are missing or invalid.

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
