//! Growing the disk of a VM, running or stopped.

use castra_test_support::Project;
use serde_json::Value;

const VM: &str = "alpine-minimal";
const GIB: u64 = 1 << 30;

/// Returns the size of the guest's root filesystem in bytes, as its kernel has it.
fn root_bytes(project: &Project, vm: &str) -> u64 {
    let ran = project.run(&["exec", "-n", vm, "--", "stat", "-f", "-c", "%S %b", "/"]).ok();
    let numbers: Vec<u64> =
        ran.text().split_whitespace().map(|word| word.parse().expect("a number")).collect();
    numbers.iter().product()
}

/// Resizes a disk, and returns castra's document.
fn resized(project: &Project, vm: &str, size: &str) -> Value {
    let ran = project.run(&["--json", "resize", vm, size]).ok();
    serde_json::from_slice(&ran.stdout).expect("JSON")
}

/// Returns `true` if a filesystem fills so many GiB, but for its own tables.
fn fills(bytes: u64, gib: u64) -> bool {
    bytes > gib * GIB / 100 * 95 && bytes <= gib * GIB
}

#[test]
fn a_disk_grows_under_a_vm_that_runs_and_under_one_that_does_not() {
    let project = Project::new();
    project.run(&["up"]).ok();
    assert!(fills(root_bytes(&project, VM), 10));
    project.run(&["exec", "-n", VM, "--", "sh", "-c", "seq 9999 >/root/kept; sync"]).ok();

    let grown = resized(&project, VM, "20GiB");
    assert_eq!(
        (&grown["before_bytes"], &grown["disk_bytes"]),
        (&(10 * GIB).into(), &(20 * GIB).into())
    );
    assert_eq!(grown["root_bytes"], root_bytes(&project, VM));
    assert!(fills(root_bytes(&project, VM), 20));
    let again = resized(&project, VM, "20GiB");
    assert_eq!(
        (&again["before_bytes"], &again["root_bytes"]),
        (&(20 * GIB).into(), &grown["root_bytes"])
    );
    project.run(&["resize", VM, "19GiB"]).code(64).says("cannot shrink to 19 GiB");

    // The memory of a suspended VM fits no other disk, and a resumed one has the new size.
    project.run(&["suspend", VM]).ok();
    project.run(&["resize", VM, "30GiB"]).code(69).says("castra up");
    project.run(&["clone", VM, "twin"]).ok();
    project.run(&["up", VM, "twin"]).ok();
    assert!(fills(root_bytes(&project, VM), 20) && fills(root_bytes(&project, "twin"), 20));
    assert!(resized(&project, "twin", "24GiB")["note"].is_null());
    assert!(fills(root_bytes(&project, "twin"), 24) && fills(root_bytes(&project, VM), 20));

    project.run(&["down"]).ok();
    let later = resized(&project, VM, "30GiB");
    assert!(later["root_bytes"].is_null() && later["note"].is_null(), "{later}");
    let up = project.run(&["up", VM, "twin"]).ok();
    assert!(!up.stderr.contains("can only grow"), "{}", up.stderr);
    assert!(fills(root_bytes(&project, VM), 30) && fills(root_bytes(&project, "twin"), 24));
    let kept = project.run(&["exec", "-n", VM, "--", "md5sum", "/root/kept"]).ok();
    let twins = project.run(&["exec", "-n", "twin", "--", "md5sum", "/root/kept"]).ok();
    assert_eq!(kept.stdout, twins.stdout);
    project.run(&["down"]).ok();
}
