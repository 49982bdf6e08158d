//! Images that are named on the command line, for directories without a `castra.toml`.

use std::fs;

use castra_test_support::disks::system_disk;
use castra_test_support::{Fake, bootable_qcow2, tool};

/// Returns a directory without a castra.toml, with a disk that a VM can boot.
fn with_disk() -> Fake {
    let fake = Fake::new(&["vm"]);
    fs::remove_file(fake.path().join("castra.toml")).expect("removed");
    let (raw, disk) = (fake.path().join("raw"), fake.path().join("My disk.qcow2"));
    system_disk(&raw, &["6.1.0-13-test"], "root=/dev/vda ro");
    let [from, to] = [&raw, &disk].map(|path| path.to_str().expect("UTF-8"));
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", from, to]);
    fake
}

#[test]
fn a_disk_is_chosen_once_and_used_by_every_command_after_that() {
    let fake = with_disk();
    let disk = fake.path().join("My disk.qcow2");
    let before = fs::read(&disk).expect("read");
    fake.run(&["up", "--cold", "--image", "My disk.qcow2"]).ok();
    assert_eq!(fake.status("My-disk")["agent"], true);
    fake.run(&["up"]).ok();
    fake.run(&["down", "--force"]).ok();
    fake.run(&["up", "--cold", "--image", "./My disk.qcow2"]).ok();
    let shown = fake.run(&["status", "--json"]).ok().text();
    assert_eq!(shown.matches("\"state\"").count(), 1, "{shown}");
    assert_eq!(fs::read(&disk).expect("read"), before, "never written to");

    // A castra.toml keeps the VM.
    fake.run(&["init"]).ok();
    let written = fs::read_to_string(fake.path().join("castra.toml")).expect("written");
    assert!(written.contains("name = \"My-disk\"") && written.contains("base_image = "));
    fake.run(&["config", "check"]).ok();
    fake.run(&["up"]).ok().says("running");
    fake.run(&["up", "--image", "My disk.qcow2"]).code(64).says("without a castra.toml");

    fake.run(&["down", "--force"]).ok();
    fake.run(&["clean", "--disks", "--yes"]).ok();
    assert!(!fake.path().join(".castra").exists(), "nothing is left");
}

#[test]
fn another_image_does_not_replace_a_vm() {
    let fake = with_disk();
    fake.run(&["up", "--cold", "--image", "My disk.qcow2"]).ok();
    bootable_qcow2(&fake.path().join("other.qcow2"));
    let refused = fake.run(&["up", "--image", "other.qcow2"]).code(64);
    refused.says("has a VM on another image: `My-disk`").says("hint: Use another directory.");
    fake.run(&["up"]).ok();
    assert_eq!(fake.status("My-disk")["state"], "running");
}

#[test]
fn an_image_of_which_nothing_came_is_not_kept() {
    let fake = with_disk();
    let chosen = fake.path().join(".castra/image.json");
    fake.run(&["up", "--image", "debain-13"]).code(66).says("Did you mean debian-13");
    assert!(!fake.path().join(".castra").exists(), "nothing was made");
    for missing in ["none.qcow2", "./debian-13"] {
        fake.run(&["up", "--image", missing]).code(66);
        assert!(!chosen.exists(), "{missing}");
    }
    fs::write(fake.path().join("text.qcow2"), "no disk").expect("written");
    fake.run(&["up", "--image", "text.qcow2"]).code(65);
    assert!(!chosen.exists());
    fake.run(&["up", "--image", "debian-13", "--offline"]).code(69);
    assert!(!chosen.exists());
    fake.run(&["up", "--cold", "--image", "My disk.qcow2"]).ok();
    assert!(chosen.exists());
}

#[test]
fn a_choice_that_cannot_be_read_names_the_way_out() {
    let fake = with_disk();
    fake.run(&["up", "--cold", "--image", "My disk.qcow2"]).ok();
    let chosen = fake.path().join(".castra/image.json");
    for planted in ["{", "{\"file\":\"relative.qcow2\"}", "{\"managed\":{\"name\":\"../x\"}}"] {
        fs::write(&chosen, planted).expect("written");
        fake.run(&["up"]).code(65).says("image.json").says("castra up --image NAME");
    }
    fake.run(&["status"]).ok();
    fake.run(&["up", "--image", "My disk.qcow2"]).ok();
    fake.run(&["up"]).ok();
}

#[test]
fn a_throwaway_vm_runs_on_a_disk_of_ones_own() {
    let fake = with_disk();
    fake.run(&["run", "--image", "none.qcow2", "--", "true"]).code(255).says("none.qcow2");
    fake.run(&["run", "--image", "debain-13", "--", "true"]).code(255).says("debian-13");
}
