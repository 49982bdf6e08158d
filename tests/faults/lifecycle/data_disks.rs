//! Data disks of VMs: made, attached, grown, detached, kept and removed.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use castra_test_support::{Fake, tool};
use serde_json::Value;

/// A stand-in whose VM has data disks.
struct Lives {
    fake: Fake,
    without: String,
}

impl Lives {
    fn new() -> Self {
        let fake = Fake::new(&["vm"]);
        let without = fs::read_to_string(fake.path().join("castra.toml")).expect("read");
        Self { fake, without }
    }

    fn declare(&self, disks: &str) {
        self.fake.write("castra.toml", &format!("{}disks = [{disks}]\n", self.without));
    }

    fn disk(&self, vm: &str, name: &str) -> PathBuf {
        self.fake.path().join(format!(".castra/disks/{vm}/{name}.qcow2"))
    }

    fn inode(&self, name: &str) -> Option<u64> {
        fs::metadata(self.disk("vm", name)).ok().map(|disk| disk.ino())
    }

    /// Returns the data disks of the last QEMU.
    fn attached(&self) -> Vec<String> {
        let journal = self.fake.journal("vm");
        let last = journal.lines().rev().take_while(|line| !line.ends_with(" started"));
        let disks = last.filter_map(|line| line.split_once(" data disk "));
        let mut names: Vec<String> = disks.map(|(_, name)| name.to_owned()).collect();
        names.reverse();
        names
    }

    fn shown(&self) -> Vec<(String, bool)> {
        let status = self.fake.status("vm");
        let disks = status["data_disks"].as_array().expect("a list");
        let one = |disk: &Value| {
            let name = disk["name"].as_str().expect("a name").to_owned();
            (name, disk["attached"].as_bool().expect("a truth"))
        };
        disks.iter().map(one).collect()
    }
}

const DATA: &str = "{ name = \"data\", size = \"64 MiB\", guest = \"/srv/my data\" }";
const BOTH: &str = "{ name = \"data\", size = \"64 MiB\", guest = \"/srv/my data\" }, \
    { name = \"raw\", size = \"1 MiB\" }";

#[test]
fn a_disk_is_made_once_and_outlives_its_vm() {
    let lives = Lives::new();
    lives.declare(BOTH);
    let path = lives.disk("vm", "data");
    // Only a disk that nothing was ever written to may be formatted.
    for order in ["data+", "data"] {
        lives.fake.run(&["up", "--cold"]).ok();
        assert_eq!(lives.attached(), ["data", "raw"]);
        lives.fake.run(&["down"]).ok();
        let journal = lives.fake.journal("vm");
        let orders = format!(" castra.disk={order}:/srv/my%20data,");
        assert!(journal.contains(&orders), "{order}: {journal}");
        tool("qemu-io", &["-c", "write 1M 512", path.to_str().expect("UTF-8")]);
    }
    let made = lives.inode("data").expect("is there");
    let mode = fs::metadata(lives.disk("vm", "data")).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let clean = lives.fake.run(&["clean", "--disks", "-y", "vm"]).ok();
    clean.says("castra clean vm --data-disk data").says("castra clean vm --data-disk raw");
    lives.fake.run(&["up"]).ok();
    assert_eq!(lives.attached(), ["data", "raw"]);
    assert_eq!(lives.inode("data"), Some(made));
    // A VM that runs loses nothing.
    lives.fake.run(&["clean", "-y", "--data-disks"]).ok().says("leaving it alone");
    lives.fake.run(&["down"]).ok();
    lives.fake.run(&["clean", "--data-disk", "data"]).code(64).says("--yes");
    lives.fake.run(&["clean", "-y", "--data-disk", "other"]).code(66).says("data, raw");
    lives.fake.run(&["clean", "-y", "--data-disk", "data"]).ok();
    assert_eq!(lives.inode("data"), None);
    lives.fake.run(&["up"]).ok();
    assert!(lives.inode("data").is_some());
    lives.fake.run(&["down"]).ok();
    assert_eq!(lives.fake.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn a_disk_that_is_not_declared_any_more_is_detached_and_kept() {
    let lives = Lives::new();
    lives.declare(BOTH);
    lives.fake.run(&["up"]).ok();
    let made = lives.inode("raw");
    lives.declare(DATA);
    lives.fake.run(&["up"]).ok().says("castra restart vm");
    let restarted = lives.fake.run(&["restart"]).ok();
    restarted.says("disk `raw` of VM `vm` is not in castra.toml any more: it is detached");
    assert_eq!(lives.attached(), ["data"]);
    assert_eq!(lives.shown(), [("data".to_owned(), true), ("raw".to_owned(), false)]);
    let again = lives.fake.run(&["restart"]).ok();
    assert!(!again.stderr.contains("detached"), "{}", again.stderr);
    lives.declare(BOTH);
    lives.fake.run(&["restart"]).ok();
    assert_eq!(lives.attached(), ["data", "raw"]);
    assert_eq!(lives.inode("raw"), made);
    lives.fake.run(&["down"]).ok();
}

#[test]
fn a_disk_grows_and_never_shrinks() {
    let lives = Lives::new();
    lives.declare(DATA);
    lives.fake.run(&["up"]).ok();
    lives.fake.run(&["down"]).ok();
    let size = || lives.fake.status("vm")["data_disks"][0]["size_bytes"].clone();
    lives.declare(&DATA.replace("64 MiB", "128 MiB"));
    lives.fake.run(&["up"]).ok();
    assert_eq!(size(), 128 << 20);
    lives.fake.run(&["down"]).ok();
    lives.declare(DATA);
    let up = lives.fake.run(&["up"]).code(65);
    let up = up.says("disk `data` of VM `vm` has 128 MiB and cannot shrink to 64 MiB");
    up.says("castra clean vm --data-disk data");
    assert_eq!(lives.fake.state("vm"), "stopped");
    assert_eq!(size(), 128 << 20);
}

#[test]
fn a_disk_that_is_gone_or_none_is_an_error_and_not_replaced() {
    let lives = Lives::new();
    lives.declare(DATA);
    lives.fake.run(&["up"]).ok();
    lives.fake.run(&["down"]).ok();
    let (disk, away) = (lives.disk("vm", "data"), lives.fake.path().join("away"));
    fs::rename(&disk, &away).expect("moved");
    let up = lives.fake.run(&["up"]).code(66);
    up.says("disk `data` of VM `vm` is gone").says("castra clean vm --data-disk data");
    assert!(!disk.exists());
    fs::write(&disk, "no disk").expect("written");
    lives.fake.run(&["up"]).code(65).says("disk `data` of VM `vm` is damaged");
    assert_eq!(fs::read_to_string(&disk).expect("read"), "no disk");
    fs::remove_file(&disk).expect("removed");
    std::os::unix::fs::symlink(&away, &disk).expect("linked");
    lives.fake.run(&["up"]).says("data.qcow2");
    assert_eq!(lives.fake.state("vm"), "stopped");
    fs::remove_file(&disk).expect("removed");
    // What the hint names.
    lives.fake.run(&["clean", "-y", "vm", "--data-disk", "data"]).ok();
    lives.fake.run(&["up"]).ok();
    assert!(disk.exists() && away.exists());
    lives.fake.run(&["down"]).ok();
}

#[test]
fn a_disk_with_a_backing_file_draws_in_no_other_file() {
    let lives = Lives::new();
    lives.declare(DATA);
    lives.fake.run(&["up"]).ok();
    lives.fake.run(&["down"]).ok();
    let disk = lives.disk("vm", "data");
    let disk = disk.to_str().expect("UTF-8");
    let secret = lives.fake.path().join("secret.qcow2");
    let secret = secret.to_str().expect("UTF-8");
    castra_test_support::tool("qemu-img", &["create", "-q", "-f", "qcow2", secret, "64M"]);
    let planted = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", secret, disk, "64M"];
    castra_test_support::tool("qemu-img", &planted);
    for words in [&["up"][..], &["up", "--cold"]] {
        lives.fake.run(words).code(65).says("backing file");
    }
    assert_eq!(lives.fake.state("vm"), "stopped");
}

#[test]
fn memory_meets_no_other_data_disk() {
    let lives = Lives::new();
    lives.declare(DATA);
    lives.fake.run(&["up"]).ok();
    lives.fake.run(&["suspend"]).ok();
    // The definition may change meanwhile: the machine may not.
    lives.declare(BOTH);
    lives.fake.run(&["up"]).ok().says("resumes with the disks that it was suspended with");
    assert_eq!(lives.attached(), ["data"]);
    lives.fake.run(&["suspend"]).ok();

    let disk = lives.disk("vm", "data");
    let saved = fs::read(&disk).expect("read");
    // A copy of it is the same disk, and a changed one is not.
    let copy = disk.with_extension("copy");
    fs::write(&copy, &saved).expect("written");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).expect("set");
    fs::rename(&copy, &disk).expect("moved");
    lives.fake.run(&["up"]).ok();
    lives.fake.run(&["suspend"]).ok();
    let mut changed = saved.clone();
    changed.extend([0; 512]);
    fs::write(&disk, &changed).expect("written");
    lives.fake.run(&["up"]).code(65).says("its disk `data` has changed since");
    assert_eq!(lives.fake.state("vm"), "suspended");
    lives.fake.run(&["clone", "vm", "twin"]).code(65).says("its disk `data` has changed since");
    lives.fake.run(&["up", "--discard-suspended"]).ok();
    assert_eq!(lives.attached(), ["data", "raw"]);
    lives.fake.run(&["down"]).ok();
}

#[test]
fn a_clone_has_copies_and_never_those_of_another_vm() {
    let lives = Lives::new();
    lives.declare(DATA);
    lives.fake.run(&["up"]).ok();
    lives.fake.run(&["suspend"]).ok();
    let kept = lives.disk("twin", "data");
    fs::create_dir_all(kept.parent().expect("a directory")).expect("made");
    fs::write(&kept, b"QFI\xfb of an earlier twin").expect("written");
    let refused = lives.fake.run(&["clone", "vm", "twin"]).code(73);
    refused.says("VM `twin` cannot get disk `data`").says("castra clean twin --data-disk data");
    assert_eq!(fs::read(&kept).expect("read"), b"QFI\xfb of an earlier twin");
    lives.fake.run(&["clean", "-y", "twin", "--data-disk", "data"]).ok();
    lives.fake.run(&["clone", "vm", "twin"]).ok();
    let bytes = |vm: &str| fs::read(lives.disk(vm, "data")).expect("read");
    assert!(bytes("vm") == bytes("twin"));
    lives.fake.run(&["up", "vm", "twin"]).ok();
    assert_eq!(lives.fake.status("twin")["data_disks"][0]["guest"], "/srv/my data");
    lives.fake.run(&["down"]).ok();
    lives.fake.run(&["up", "twin"]).ok();
    lives.fake.run(&["down"]).ok();
}
