//! Powers of a real QEMU.

use std::fs;

use castra_test_support::Project;
use castra_test_support::capabilities::{assert_powerless, with_inheritable_capabilities};

#[test]
fn qemu_keeps_no_inherited_capability() {
    let project = Project::new();
    let output = with_inheritable_capabilities(&project, &["up"]).output().expect("setpriv runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pid = project.qemu_pid("alpine-minimal");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("reads");
    project.run(&["down"]).ok();
    assert_powerless(&status);
}
