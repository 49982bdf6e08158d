//! Copies and moves of projects: nothing done in one touches another.

use std::fs;
use std::path::Path;

use castra_test_support::Fake;
use castra_test_support::{CP_A, CP_R, Copied, TAR};
use serde_json::json;

/// Insists that the VM keeps running and that its guest can be asked to shut down, which takes its
/// sockets.
#[track_caller]
fn is_undisturbed(fake: &Fake) {
    assert_eq!(fake.state("vm"), "running");
    assert_eq!(fake.leftovers().iter().filter(|path| path.ends_with("control.sock")).count(), 1);
    fake.run(&["down"]).ok();
    assert!(fake.journal("vm").ends_with("ended by its guest\n"), "{}", fake.journal("vm"));
}

fn copy_of_running<'a>(fake: &'a Fake, how: &str) -> Copied<'a> {
    fake.run(&["up", "--cold"]).ok();
    fake.copy("copy", how)
}

#[test]
fn a_copy_of_a_running_vm_knows_that_it_is_one_and_touches_nothing() {
    for how in [CP_A, CP_R, TAR] {
        let fake = Fake::new(&["vm"]);
        let copy = copy_of_running(&fake, how);
        assert_eq!(copy.state("vm"), "copied");
        let document = copy.run(&["status", "--json"]).ok().document("status");
        assert_eq!(document["vms"][0]["copy_of"], fake.path().to_str().expect("UTF-8"));
        let original = fake.path().display().to_string();
        copy.run(&["status"]).ok().says(&original).says("in the state after a power cut");
        copy.run(&["exec", "--", "true"]).code(255).says("castra up vm");
        copy.run(&["suspend", "vm"]).code(69).says("copy of a running VM");
        copy.run(&["clone", "vm", "new"]).code(69);
        copy.run(&["down"]).ok().says("was not running");
        copy.run(&["down", "--force"]).ok();
        copy.run(&["clean"]).ok();
        assert_eq!(copy.state("vm"), "copied", "stopping it does not make its disk better");
        is_undisturbed(&fake);
    }
}

#[test]
fn a_copy_starts_from_its_own_disk_beside_the_original() {
    let fake = Fake::new(&["vm"]);
    let copy = copy_of_running(&fake, CP_A);
    copy.run(&["up"]).ok().says("in the state after a power cut");
    assert_eq!(copy.state("vm"), "running");
    copy.run(&["down"]).ok();
    assert_eq!(copy.state("vm"), "stopped");
    copy.run(&["clean", "--disks", "--yes"]).ok();
    is_undisturbed(&fake);
}

/// Copies a disk as `cp` does while it is written to: tables of one moment, and data of another.
#[test]
fn a_disk_that_changed_while_it_was_copied_is_refused() {
    let fake = Fake::new(&["vm"]);
    let copy = copy_of_running(&fake, CP_A);
    let disk = copy.path().join(".castra/vm-overlay.qcow2");
    let mut bytes = fs::read(&disk).expect("reads");
    // The first entry of the first-level table points beyond the end of the file: offsets of
    // docs/interop/qcow2.txt.
    let table = u64::from_be_bytes(bytes[40..48].try_into().expect("eight bytes")) as usize;
    bytes[table..table + 8].copy_from_slice(&(1_u64 << 63 | 1 << 40).to_be_bytes());
    fs::write(&disk, bytes).expect("writes");
    copy.run(&["up"]).code(65).says("changed while it was copied").says("castra suspend vm");
    assert_eq!(copy.state("vm"), "copied");
    assert!(disk.exists());
    is_undisturbed(&fake);
}

/// A record of an earlier castra does not say where its VM was started, and locates the sockets
/// only by their path.
#[test]
fn a_copy_of_an_early_record_touches_no_sockets_either() {
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    fake.edit_record("vm", |record| {
        record["boot"].as_object_mut().expect("a boot").remove("home").expect("was there");
    });
    let copy = fake.copy("copy", CP_A);
    assert_eq!(copy.state("vm"), "crashed");
    copy.run(&["down"]).ok();
    copy.run(&["up", "--cold"]).ok();
    copy.run(&["down"]).ok();
    is_undisturbed(&fake);
}

#[test]
fn a_disk_beside_the_state_directory_is_that_of_its_own_project() {
    for is_early in [false, true] {
        let fake = Fake::new(&["vm"]);
        let text = fs::read_to_string(fake.path().join("castra.toml")).expect("reads");
        let overlay = "managed_image = \"tiny\"\noverlay = \"disks/vm.qcow2\"";
        fake.write("castra.toml", &text.replace("managed_image = \"tiny\"", overlay));
        fs::create_dir(fake.path().join("disks")).expect("made");
        fake.run(&["up", "--cold"]).ok();
        fake.run(&["down"]).ok();
        let disk = |project: &Path| project.join("disks/vm.qcow2");
        if is_early {
            fake.edit_record("vm", |record| record["overlay"] = json!(disk(&fake.path())));
        }
        let copy = fake.copy("copy", CP_A);
        if is_early {
            copy.run(&["clean", "--disks", "--yes"])
                .ok()
                .says("is also the disk of VM `vm` of the project in");
            assert!(disk(&fake.path()).exists() && disk(copy.path()).exists());
        }
        copy.run(&["up", "--cold"]).ok();
        copy.run(&["down"]).ok();
        let status = copy.run(&["status", "--json"]).ok().document("status");
        assert_eq!(status["vms"][0]["overlay"], disk(copy.path()).to_str().expect("UTF-8"));
        copy.run(&["clean", "--disks", "--yes"]).ok();
        assert!(disk(&fake.path()).exists() && !disk(copy.path()).exists());
    }
}

#[test]
fn a_vm_that_was_moved_while_it_ran_stays_within_reach_and_keeps_its_place() {
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    // The copy takes the place of the original, which moves elsewhere.
    let moved = fake.copy("moved", CP_A);
    let elsewhere = fake.path().with_file_name("elsewhere");
    fs::rename(fake.path(), &elsewhere).expect("moved");
    fs::rename(moved.path(), fake.path()).expect("moved");
    fs::rename(&elsewhere, moved.path()).expect("moved");
    assert_eq!(moved.state("vm"), "running");
    assert_eq!(fake.state("vm"), "copied");
    let place = moved.path().display().to_string();
    fake.run(&["up"]).code(75).says("was moved to").says(&place).says("castra down vm");
    fake.run(&["clean"]).ok();
    fake.run(&["down"]).ok();
    assert_eq!(moved.state("vm"), "running");
    moved.run(&["down"]).ok();
    let journal = fs::read_to_string(fake.path().join("fake-qemu/vm.journal")).expect("a journal");
    assert!(journal.ends_with("ended by its guest\n"), "{journal}");
    fake.run(&["up"]).ok();
    assert_eq!((fake.state("vm"), moved.state("vm")), ("running".to_owned(), "stopped".to_owned()));
}

#[test]
fn an_orphan_keeps_its_place_until_it_is_ended() {
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    fs::remove_dir_all(fake.path().join(".castra")).expect("removed");
    fake.run(&["up"]).code(75).says("whose project is gone").says("castra clean --orphans vm");
    fake.run(&["clean", "--orphans", "--yes", "vm"]).ok();
    fake.run(&["up"]).ok();
    assert_eq!(fake.state("vm"), "running");
}
