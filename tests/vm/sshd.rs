//! Images with an sshd of their own: no two VMs show the same host key, whatever they were made
//! from.

#![cfg(target_os = "linux")]

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use castra_test_support::{Project, eventually_in_guest};

/// Long enough for RSA keys on an emulated CPU that is busy with other tests.
const KEYS_LIMIT: Duration = Duration::from_secs(240);

/// Returns the host keys that the sshd behind a port of this machine shows, without waiting for it.
fn shown(port: u16) -> BTreeSet<String> {
    let port = port.to_string();
    let output = Command::new("ssh-keyscan").args(["-T", "10", "-p", &port, "127.0.0.1"]).output();
    let output = output.expect("`cargo xtask test` installs OpenSSH");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // The first word names the host.
    let keys =
        text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(' '));
    keys.map(|(_, key)| key.to_owned()).collect()
}

/// Returns the host keys, once the guest has created them and its sshd runs: RSA, ECDSA and
/// Ed25519.
#[track_caller]
fn keys(port: u16) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    eventually_in_guest("three host keys", KEYS_LIMIT, || {
        keys = shown(port);
        keys.len() == 3
    });
    keys
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("an address").port()
}

#[test]
fn no_two_vms_show_the_same_host_key() {
    let Some(disk) = castra_test_support::disks::real("bookworm-ext4") else { return };
    let project = Project::new();
    // The same shape as in the tests of real disks, which share its template.
    fs::copy(disk, project.path().join("own.qcow2")).expect("copied");
    let ports = [free_port(), free_port()];
    let mut config = String::new();
    for (name, port) in ["one", "two"].iter().zip(ports) {
        config.push_str(&format!(
            "[[vms]]\nname = \"{name}\"\nbase_image = \"own.qcow2\"\n\
            disk = \"3 GiB\"\nmemory = \"512 MiB\"\n\
            port_forwards = [{{ host = {port}, guest = 22 }}]\n"
        ));
    }
    project.write("castra.toml", &config);
    project.run(&["up"]).ok();
    let [one, two] = ports.map(keys);
    assert!(one.is_disjoint(&two), "{one:?} {two:?}");

    // They persist, as a client that knows them expects.
    project.run(&["restart", "one"]).ok();
    assert_eq!(keys(ports[0]), one);

    // A clone has the memory and the disk of the other VM, and still shows none of its keys.
    project.run(&["suspend", "two"]).ok();
    project.run(&["clone", "two", "three"]).ok();
    project.run(&["up", "three"]).ok();
    let of_clone = || {
        let script = "cat /etc/ssh/ssh_host_*_key.pub; systemctl is-active ssh";
        project.run(&["exec", "three", "--", "sh", "-c", script]).text()
    };
    let is_of_two = |text: &str| {
        two.iter().flat_map(|line| line.split(' ').nth(1)).any(|key| text.contains(key))
    };
    eventually_in_guest("the clone's own keys", KEYS_LIMIT, || {
        let text = of_clone();
        text.lines().count() == 4 && text.ends_with("\nactive\n") && !is_of_two(&text)
    });
    let ids = ["two", "three"].map(|vm| {
        project.run(&["up", vm]).ok();
        project.run(&["exec", vm, "--", "cat", "/etc/machine-id"]).ok().text()
    });
    assert_ne!(ids[0], ids[1]);
}
