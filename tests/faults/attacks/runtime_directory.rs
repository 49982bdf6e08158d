//! The directory of sockets without a login session: `/tmp/castra-UID`, which any user of this
//! machine can create first, with links in it to the files of the user who comes later.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::PathBuf;

use castra_test_support::Fake;
use castra_test_support::skip;
use sha2::{Digest as _, Sha256};

use crate::attacks::snapshot::{assert_untouched, snapshot};

/// Id of another user.
const OTHER: u32 = 12_345;

/// Returns a project whose VM has run, the directory of its VMs' sockets, and a directory of the
/// user's with names of sockets.
fn stopped() -> (Fake, PathBuf, PathBuf) {
    let fake = Fake::new(&["web"]);
    fake.run(&["up"]).ok();
    let castra = fake.runtime_directory().join("castra");
    let digest = Sha256::digest(fake.path().join(".castra").as_os_str().as_encoded_bytes());
    let digest: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    assert!(castra.join(&digest).join("web/qmp.sock").exists(), "sockets are elsewhere by now");
    fake.run(&["down", "--force"]).ok();
    let theirs = fake.home().join("documents");
    for name in [
        "thesis.txt",
        "qmp.sock",
        "control.sock",
        "console.sock",
        "stream-0.sock",
        "stream-0.lock",
        "web/qmp.sock",
        "folder/file",
    ] {
        let path = theirs.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, "the only copy").expect("written");
    }
    fs::create_dir(theirs.join("empty")).expect("made");
    let _ = fs::remove_dir_all(&castra);
    (fake, castra.join(digest), theirs)
}

/// Insists that the user's files stay as they are, whatever a command prints.
#[track_caller]
fn touches_nothing(fake: &Fake, theirs: &std::path::Path) {
    let before = snapshot(theirs);
    for arguments in [
        &["status"][..],
        &["up"],
        &["up", "--cold"],
        &["run", "--", "true"],
        &["down"],
        &["down", "--force"],
        &["doctor", "--fix"],
        &["clean"],
        &["clean", "--disks", "--yes"],
    ] {
        fake.run(arguments);
        assert_untouched(theirs, &before);
    }
}

#[test]
fn links_in_the_place_of_directories_of_sockets_are_not_followed() {
    for (place, target) in
        [("castra", ""), ("project", ""), ("project", "none-yet"), ("vm", ""), ("vm", "empty")]
    {
        let (fake, project, theirs) = stopped();
        let place = match place {
            "castra" => project.parent().expect("a parent").to_owned(),
            "project" => project,
            _ => project.join("web"),
        };
        fs::create_dir_all(place.parent().expect("a parent")).expect("made");
        symlink(theirs.join(target), &place).expect("linked");
        touches_nothing(&fake, &theirs);
    }
}

#[test]
fn directories_of_another_user_are_not_gone_through() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can give a directory away");
    }
    let (fake, project, theirs) = stopped();
    let castra = project.parent().expect("a parent");
    fs::create_dir(castra).expect("made");
    symlink(&theirs, &project).expect("linked");
    chown(castra, Some(OTHER), None).expect("given away");
    touches_nothing(&fake, &theirs);
    // Files of their own that they have put there are not castra's either.
    fs::remove_file(&project).expect("removed");
    fs::create_dir_all(project.join("web")).expect("made");
    fs::write(project.join("web/qmp.sock"), "theirs").expect("written");
    touches_nothing(&fake, castra);
}

#[test]
fn a_session_directory_of_another_user_is_not_used() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can give a directory away");
    }
    let fake = Fake::new(&["web"]);
    chown(fake.runtime_directory(), Some(OTHER), None).expect("given away");
    fake.run(&["up"]).ok();
    let sockets = fake.run(&["status", "--json"]).ok();
    assert!(sockets.code == Some(0));
    assert_eq!(fs::read_dir(fake.runtime_directory()).expect("a directory").count(), 0);
    fake.run(&["down", "--force"]).ok();
}
