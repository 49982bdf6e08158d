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
cd /run/castra/seed && stat -c %a . user-data && cat user-data && grep '^local-hostname' meta-data
grep -o 'ds=[^ ]*' /proc/cmdline
";
const EXPECTED: &str = "active\ngrown\nnames\nreachable\nwritable\n700\n600\n#cloud-config\n\
    local-hostname: castra\nds=nocloud;s=/run/castra/seed/\n";

#[test]
fn a_distributions_disk_is_grown_and_usable_once_it_is_ready() {
    let Some(disk) = castra_test_support::disks::real("bookworm-ext4") else { return };
    let project = Project::new();
    fs::copy(disk, project.path().join("debian.qcow2")).expect("copied");
    let config = "[[vms]]\nname = \"own\"\nbase_image = \"debian.qcow2\"\nmemory = \"512 MiB\"\n\
        disk = \"3 GiB\"\ncloud_init = { user_data = \"user-data\" }\n";
    project.write("castra.toml", config);
    project.write("user-data", "#cloud-config\n");
    project.run(&["up"]).ok();
    let said = project.run(&["exec", "own", "--", "sh", "-c", CHECKS]).text();
    assert_eq!(said, EXPECTED);
    project.run(&["status"]).ok().says("cloud-init is not installed");
    fs::remove_file(project.path().join("user-data")).expect("removed");
    project.run(&["down"]).ok();
    project.run(&["up"]).code(66).says("user-data").says("`cloud_init`");
    let text = |name: &str| project.path().join(name).to_str().expect("UTF-8").to_owned();
    let (overlay, raw) = (text(".castra/own-overlay.qcow2"), text("raw"));
    tool("qemu-img", &["convert", "-O", "raw", &overlay, &raw]);
    tool("sfdisk", &["--verify", &raw]);
    let dump = tool("sfdisk", &["--dump", &raw]);
    assert_eq!(String::from_utf8_lossy(&dump.stderr), "", "it has nothing to complain about");
}
