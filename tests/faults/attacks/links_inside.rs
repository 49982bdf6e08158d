//! A state directory with a valid mark in which a stranger has put links: in place of directories,
//! whose targets castra would write to and empty, and second names of the user's files, which logs
//! and saved memory would overwrite. It comes from an archive of the user's own `.castra` that was
//! changed on the way.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use castra_test_support::Fake;

use crate::attacks::snapshot::{assert_untouched, snapshot};

/// Every command that writes or removes something of a stopped VM.
const COMMANDS: [&[&str]; 8] = [
    &["status"],
    &["timeline"],
    &["up"],
    &["down", "--force"],
    &["image", "pull"],
    &["clean"],
    &["clean", "--records"],
    &["clean", "--disks", "--yes"],
];

/// Returns a project whose VM has run, and a directory of the user's.
fn stopped() -> (Fake, PathBuf) {
    let fake = Fake::new(&["web"]);
    fake.run(&["up"]).ok();
    fake.run(&["down", "--force"]).ok();
    let theirs = fake.home().join("documents");
    fs::create_dir_all(theirs.join("v1")).expect("made");
    // More than the number of starts that are kept.
    for number in 1..=30 {
        fs::write(theirs.join(format!("{number}.json")), "mine").expect("written");
    }
    for name in ["v1/thesis.txt", "thesis.txt", ".castra-mine", "disk.qcow2"] {
        fs::write(theirs.join(name), format!("the only copy of {name}")).expect("written");
    }
    (fake, theirs)
}

fn remove(path: &Path) {
    let _ = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
}

#[test]
fn a_link_in_the_place_of_a_directory_is_refused_by_all_commands() {
    let (fake, theirs) = stopped();
    let before = snapshot(&theirs);
    let digest = "a".repeat(64);
    let template = format!("templates/{digest}");
    for place in [
        "vms/web/boots",
        "vms/web",
        "vms/other",
        "images/tiny",
        "images/tiny/v1",
        "images/other",
        &template,
        "cache",
        "vms",
        "logs",
        "images",
        "templates",
        "quarantine",
    ] {
        let place = fake.path().join(".castra").join(place);
        let backup = fake.path().join("backup");
        let had = fs::rename(&place, &backup).is_ok();
        symlink(&theirs, &place).expect("linked");
        for arguments in COMMANDS {
            let ended = fake.run(arguments).code(77);
            let says =
                [format!("cannot rely on {}", place.display()), "it is a symbolic link".to_owned()];
            assert!(
                says.iter().all(|says| ended.stderr.contains(says)),
                "{arguments:?}: {}",
                ended.stderr
            );
        }
        assert_untouched(&theirs, &before);
        remove(&place);
        if had {
            fs::rename(&backup, &place).expect("moved back");
        }
    }
    fake.run(&["up"]).ok();
}

#[test]
fn a_file_of_the_users_is_not_written_to_by_a_second_name() {
    let (fake, theirs) = stopped();
    let thesis = theirs.join("thesis.txt");
    // Longer than any log may be.
    fs::write(&thesis, "the only copy\n".repeat(1 << 18)).expect("written");
    let before = snapshot(&theirs);
    let names = [
        "logs/web-console.log",
        "logs/web-qemu.log",
        "logs/castra.log",
        "logs/image-manager.log",
        "vms/web/qemu.pid",
        "vms/web/initramfs",
        "vms/web/known_hosts",
        "vms/web/machine.state",
        "vms/web/.machine.state.new",
        "vms/web/clone.json",
        ".gitignore",
    ];
    for name in names {
        let place = fake.path().join(".castra").join(name);
        remove(&place);
        fs::hard_link(&thesis, &place).expect("linked");
        for arguments in [
            &["status"][..],
            &["image", "pull"],
            &["up"],
            &["ssh-config"],
            &["suspend"],
            &["up"],
            &["down", "--force"],
        ] {
            fake.run(arguments).ok();
            assert_untouched(&theirs, &before);
        }
        remove(&place);
    }
}
