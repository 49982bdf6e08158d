//! Data disks of VMs: made, attached, grown, detached, kept and removed.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use castra_engine::failpoint::Point;
use castra_test_support::{Fake, tool};
use serde_json::Value;

use crate::lifecycle::property::park_and_kill;

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
        let refused = lives.fake.run(words).code(65).says("has a backing file");
        let refused = refused.says("Castra's data disks have none");
        assert!(!refused.stderr.contains("allow_backing_file"), "{}", refused.stderr);
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

#[test]
fn only_what_was_made_for_an_interrupted_clone_is_removed() {
    let lives = Lives::new();
    lives.declare(DATA);
    lives.fake.run(&["up"]).ok();
    lives.fake.run(&["suspend"]).ok();
    let (theirs, others) = (lives.disk("twin", "data"), b"QFI\xfb of the user");
    for point in [Point::CloneBegun, Point::CloneFrozen, Point::CloneDataCopied] {
        let clone = lives.fake.castra(&["clone", "vm", "twin"]);
        assert!(park_and_kill(clone, point.name()).is_none(), "it passes {}", point.name());
        fs::create_dir_all(theirs.parent().expect("a directory")).expect("made");
        fs::write(&theirs, others).expect("written");
        lives.fake.run(&["clone", "vm", "twin"]).code(73).says("cannot get disk `data`");
        assert_eq!(fs::read(&theirs).expect("read"), others);
        fs::remove_file(&theirs).expect("removed");
    }
    lives.fake.run(&["clone", "vm", "twin"]).ok();
    lives.fake.run(&["up", "vm", "twin"]).ok();
    lives.fake.run(&["down"]).ok();
}

#[test]
fn a_clone_that_fails_is_undone() {
    let lives = Lives::new();
    lives.declare(DATA);
    lives.fake.run(&["up"]).ok();
    lives.fake.run(&["suspend"]).ok();
    let record = || fs::read_to_string(lives.fake.path().join(".castra/vms/vm/vm.json"));
    let (before, disk) =
        (record().expect("read"), lives.fake.path().join(".castra/vm-overlay.qcow2"));
    let inode = |path: &Path| fs::metadata(path).expect("is there").ino();
    let of_disk = inode(&disk);
    let overlays = || {
        let names = fs::read_dir(lives.fake.path().join(".castra")).expect("listed");
        let names = names.map(|entry| entry.expect("an entry").file_name().into_string());
        let names = names.map(|name| name.expect("UTF-8"));
        names.filter(|name| name.contains("overlay")).collect::<Vec<_>>()
    };
    // Nothing can be copied into a file.
    let blocked = lives.fake.path().join(".castra/disks/twin");
    fs::write(&blocked, "").expect("written");
    lives.fake.run(&["clone", "vm", "twin"]).code(73).says("disks/twin");
    assert_eq!(record().expect("read"), before);
    assert_eq!(inode(&disk), of_disk);
    let mode = fs::metadata(&disk).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(overlays(), ["vm-overlay.qcow2"]);
    let status = lives.fake.run(&["status"]).ok();
    assert!(!status.text().contains("twin"), "{}", status.text());
    fs::remove_file(&blocked).expect("removed");
    lives.fake.run(&["clone", "vm", "twin"]).ok();
    lives.fake.run(&["up", "vm", "twin"]).ok();
    lives.fake.run(&["down"]).ok();
}

#[test]
fn a_renamed_vm_gets_a_hint_at_the_disk_under_its_old_name() {
    let lives = Lives::new();
    lives.declare(DATA);
    lives.fake.run(&["up"]).ok();
    lives.fake.run(&["down"]).ok();
    let (old, made) = (lives.disk("vm", "data"), lives.inode("data"));
    let text = fs::read_to_string(lives.fake.path().join("castra.toml")).expect("read");
    let renamed = text.replace("name = \"vm\"", "name = \"box\"");
    assert_ne!(text, renamed);
    lives.fake.write("castra.toml", &renamed);
    let up = lives.fake.run(&["up"]).ok();
    let up = up.says("disk `data` of VM `box` is new and blank; that of VM `vm`");
    up.says(old.to_str().expect("UTF-8")).says("castra down vm box && mv -i");
    // As it says.
    let new = lives.disk("box", "data");
    lives.fake.run(&["down", "vm", "box"]).ok();
    fs::rename(&old, &new).expect("moved");
    let again = lives.fake.run(&["up", "box"]).ok();
    assert!(!again.stderr.contains("new and blank"), "{}", again.stderr);
    assert_eq!(fs::metadata(&new).ok().map(|disk| disk.ino()), made);
    lives.fake.run(&["down", "box"]).ok();
}

#[test]
fn what_is_no_file_is_named_and_not_removed() {
    let lives = Lives::new();
    lives.declare(DATA);
    lives.fake.run(&["up"]).ok();
    lives.fake.run(&["down"]).ok();
    let (disk, away) = (lives.disk("vm", "data"), lives.fake.path().join("away"));
    fs::rename(&disk, &away).expect("moved");
    let other = lives.disk("vm", "other");
    std::os::unix::fs::symlink(&away, &disk).expect("linked");
    tool("mkfifo", &[other.to_str().expect("UTF-8")]);
    for (name, path, what) in [("data", &disk, "link"), ("other", &other, "regular file")] {
        let clean = lives.fake.run(&["clean", "-y", "vm", "--data-disk", name]).ok();
        clean.says(path.to_str().expect("UTF-8")).says(what);
        assert!(path.symlink_metadata().is_ok() && away.exists(), "{name}");
    }
}
