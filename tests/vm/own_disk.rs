//! A distribution's disk that boots with its own kernel.

#![cfg(target_os = "linux")]

use std::fs;

use castra_test_support::{Project, tool};

/// Checks of a guest whose `up` has just returned: what it prints is compared with [`EXPECTED`].
const CHECKS: &str = "
systemctl is-active local-fs.target
test \"$(df --output=size -BM / | tail -n 1 | tr -dc 0-9)\" -gt 2700 && echo grown
grep -q ^nameserver /etc/resolv.conf && echo names
ip -4 route get 10.0.2.2 | grep -q 'dev eth0' && echo reachable
findmnt -no OPTIONS / | grep -q '^rw' && echo writable
";
const EXPECTED: &str = "active\ngrown\nnames\nreachable\nwritable\n";

#[test]
fn a_distributions_disk_is_grown_and_usable_once_it_is_ready() {
    let Some(image) = castra_test_support::disks::debian_with_sshd() else { return };
    let project = Project::new();
    fs::copy(&image.disk, project.path().join("debian.qcow2")).expect("copied");
    let config = "[[vms]]\nname = \"own\"\nbase_image = \"debian.qcow2\"\nmemory = \"512 MiB\"\n\
        disk = \"3 GiB\"\n";
    project.write("castra.toml", config);
    project.run(&["up"]).ok();
    let said = project.run(&["exec", "own", "--", "sh", "-c", CHECKS]).text();
    assert_eq!(said, EXPECTED);
    project.run(&["down"]).ok();
    let text = |name: &str| project.path().join(name).to_str().expect("UTF-8").to_owned();
    let (overlay, raw) = (text(".castra/own-overlay.qcow2"), text("raw"));
    tool("qemu-img", &["convert", "-O", "raw", &overlay, &raw]);
    tool("sfdisk", &["--verify", &raw]);
    let dump = tool("sfdisk", &["--dump", &raw]);
    assert_eq!(String::from_utf8_lossy(&dump.stderr), "", "it has nothing to complain about");
}
