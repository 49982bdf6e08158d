//! Real guests that get into trouble by themselves: a clock that was left behind, and a network
//! that is down.

use std::thread;
use std::time::Duration;

use castra_engine::cancel::Cancel;
use castra_engine::layout::SocketsLayout;
use castra_engine::qemu::Qmp;
use castra_engine::wait::WaitLimit;
use castra_test_support::{Project, eventually};
use serde_json::{Value, json};

const VM: &str = "alpine-minimal";

/// Time for what takes seconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_clock_that_stood_still_is_set_by_the_agent() {
    let project = Project::new();
    project.run(&["up"]).ok();
    assert!(ahead_ms(&project).is_some_and(|ahead| ahead.abs() < 2000), "{:?}", ahead_ms(&project));
    let mut qmp = qmp(&project);
    qmp.execute("stop", json!({})).expect("stops");
    thread::sleep(Duration::from_secs(5));
    qmp.execute("cont", json!({})).expect("continues");
    drop(qmp);
    // No command of castra sets it.
    eventually("the clock is right", LIMIT, || {
        thread::sleep(Duration::from_millis(500));
        ahead_ms(&project).is_some_and(|ahead| ahead.abs() < 2000)
    });
    // Whatever has set it.
    project.run(&["exec", "--", "sh", "-c", "date -s @1000000000"]).ok();
    eventually("the clock is right", LIMIT, || {
        thread::sleep(Duration::from_millis(500));
        ahead_ms(&project).is_some_and(|ahead| ahead.abs() < 2000)
    });
}

#[test]
fn a_network_that_is_down_is_named_and_commands_still_run() {
    let project = Project::new();
    project.run(&["up"]).ok();
    project.run(&["exec", "--", "ip", "link", "set", "eth0", "down"]).ok();
    eventually("the link is down", LIMIT, || !status(&project)["network_fault"].is_null());
    assert_eq!(
        status(&project)["network_fault"],
        json!({"kind": "interface-down", "interface": "eth0"})
    );
    project.run(&["up"]).code(69).says("the interface eth0 is down").says("castra restart");
    let file = project.path().join("from-guest");
    let goal = file.to_str().expect("is text");
    project.run(&["cp", &format!("{VM}:/etc/passwd"), goal]).ok();
    assert!(std::fs::read_to_string(file).expect("is copied").starts_with("root:"));
    project.run(&["exec", "--", "ip", "link", "set", "eth0", "up"]).ok();
    eventually("the network is back", LIMIT, || status(&project)["network_fault"].is_null());
    project.run(&["up"]).ok();
}

fn status(project: &Project) -> Value {
    let ended = project.run(&["status", "--json"]).ok();
    let document: Value = serde_json::from_slice(&ended.stdout).expect("JSON");
    document["vms"][0].clone()
}

/// Returns the milliseconds by which the guest's clock is ahead of this machine's, if the guest
/// reports its time within a second.
fn ahead_ms(project: &Project) -> Option<i64> {
    status(project)["clock_ahead_ms"].as_i64()
}

fn qmp(project: &Project) -> Qmp {
    let record = project.path().join(format!(".castra/vms/{VM}/vm.json"));
    let record: Value =
        serde_json::from_slice(&std::fs::read(record).expect("a record")).expect("JSON");
    let sockets = SocketsLayout::new(record["boot"]["sockets"].as_str().expect("sockets").into());
    Qmp::connect(&sockets.qmp(), WaitLimit::new(LIMIT, &Cancel::new())).expect("QEMU answers")
}
