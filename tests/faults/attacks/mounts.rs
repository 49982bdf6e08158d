//! A stranger's `castra.toml` or record that would show a VM other directories than the user wants.

use std::fs;
use std::os::unix::fs::symlink;

use castra_test_support::Fake;

const VM: &str = "web";

/// Returns a project whose VM has these mounts.
fn fake(mounts: &str) -> Fake {
    let fake = Fake::new(&[VM]);
    declare(&fake, mounts);
    fake
}

fn declare(fake: &Fake, mounts: &str) {
    let text = fs::read_to_string(fake.path().join("castra.toml")).expect("read");
    fake.write(
        "castra.toml",
        &text.replace("name = \"web\"", &format!("name = \"web\"\n{mounts}")),
    );
}

#[test]
fn a_file_alone_shows_no_other_directory_and_lets_no_vm_write() {
    for mount in [
        "{ host = \"~\", guest = \"/x\", read_only = true }",
        "{ host = \"..\", guest = \"/x\", read_only = true }",
        "{ host = \"link\", guest = \"/x\", read_only = true }",
        "{ host = \".\", guest = \"/x\" }",
    ] {
        let fake = fake(&format!("mounts = [{mount}]"));
        symlink(fake.home(), fake.path().join("link")).expect("linked");
        fake.run(&["up"]).code(77).says("castra.toml lets VM `web` read");
        assert_eq!(fake.disk(VM), None, "{mount}: a disk was made");
        assert_eq!(fake.state(VM), "not-created");
    }
}

#[test]
fn a_directory_that_cannot_be_mounted_is_named_before_anything_starts() {
    for (mount, code, reason) in [
        ("{ host = \"nowhere\", guest = \"/x\", read_only = true }", 74, "nowhere"),
        ("{ host = \"castra.toml\", guest = \"/x\" }", 64, "not a directory"),
        ("{ host = \"/\", guest = \"/x\" }", 64, "root of this machine"),
        ("{ host = \".\", guest = \"/proc/x\" }", 65, "directory of the guest's system"),
    ] {
        let fake = fake(&format!("mounts = [{mount}]"));
        fake.run(&["up", "--allow-mounts"]).code(code).says(reason);
        assert_eq!(fake.disk(VM), None, "{mount}");
    }
}

#[test]
fn castras_own_directories_are_not_mounted() {
    for host in [".castra", ".castra/vms", ".CASTRA/x", "state"] {
        let fake = Fake::new(&[VM]);
        fake.run(&["up"]).ok();
        fake.run(&["down", "--force"]).ok();
        fs::create_dir_all(fake.path().join(".CASTRA/x")).expect("made");
        symlink(fake.user_state().join("castra"), fake.path().join("state")).expect("linked");
        let mount = format!("{{ host = \"{host}\", guest = \"/x\", read_only = true }}");
        declare(&fake, &format!("mounts = [{mount}]"));
        fake.run(&["up", "--allow-mounts"]).code(64).says("castra keeps disks and keys there");
    }
}

#[test]
fn all_mounts_that_need_consent_are_named() {
    let first = "{ host = \".\", guest = \"/a\" }";
    let second = "{ host = \"..\", guest = \"/b\", read_only = true }";
    let fake = fake(&format!("mounts = [{first}, {second}]"));
    let refused = fake.run(&["up"]).code(77);
    let says = refused.stderr.clone();
    assert!(says.contains("read and write \"/") && says.contains(", and read \"/"), "{says}");
}
