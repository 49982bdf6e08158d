//! Mounts in a real Debian, whose kernel has FUSE as a module.

#![cfg(target_os = "linux")]

use std::fs;

use castra_test_support::{Project, disks};

#[track_caller]
fn sh(project: &Project, vm: &str, script: &str) -> String {
    project.run(&["exec", "-n", vm, "--", "sh", "-c", script]).ok().text()
}

#[test]
fn debian_has_mounts_through_suspends_and_in_clones() {
    let Some(disk) = disks::real("bookworm-ext4") else { return };
    let project = Project::new();
    let shared = project.path().join("shared");
    fs::create_dir(&shared).expect("a directory");
    fs::copy(disk, project.path().join("own.qcow2")).expect("copied");
    project.write(
        "castra.toml",
        "[[vms]]\nname = \"one\"\nbase_image = \"own.qcow2\"\nmemory = \"512 MiB\"\n\
        disk = \"3 GiB\"\nmounts = [{ host = \"shared\", guest = \"/srv/src\" }]\n",
    );
    project.run(&["up", "--allow-mounts"]).ok();
    let both_ways = |vm: &str| {
        fs::write(shared.join("from-host"), format!("for {vm}\n")).expect("written");
        let copy = "cat /srv/src/from-host > /tmp/read && cp /tmp/read /srv/src/from-guest && \
            sync /srv/src/from-guest && cat /tmp/read";
        assert_eq!(sh(&project, vm, copy), format!("for {vm}\n"));
        let back = fs::read_to_string(shared.join("from-guest")).expect("read");
        assert_eq!(back, format!("for {vm}\n"));
        fs::remove_file(shared.join("from-guest")).expect("removed");
    };
    both_ways("one");

    project.run(&["suspend"]).ok();
    let up = project.run(&["up"]).ok();
    assert!(!up.stderr.contains("mount"), "{}", up.stderr);
    std::thread::sleep(std::time::Duration::from_secs(1));
    both_ways("one");
    project.run(&["clone", "one", "two"]).ok();
    let up = project.run(&["up", "two"]).ok();
    assert!(!up.stderr.contains("mount"), "{}", up.stderr);
    std::thread::sleep(std::time::Duration::from_secs(1));
    both_ways("two");
    project.run(&["down", "--force", "two"]).ok();

    // A kernel without FUSE.
    sh(
        &project,
        "one",
        "umount /srv/src /sys/fs/fuse/connections && sleep 1 && modprobe -r fuse && \
        rm -f /dev/fuse && echo install fuse /bin/false > /etc/modprobe.d/no-fuse.conf",
    );
    let mount = project.run(&["mount", "one", "shared:/mnt/src"]).code(69);
    mount.says("the guest's kernel has no FUSE: /dev/fuse is missing");
    project.run(&["down", "--force"]).ok();
}
