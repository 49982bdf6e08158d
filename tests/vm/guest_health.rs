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
fn a_network_that_is_down_is_named() {
    let project = Project::new();
    project.run(&["up"]).ok();
    // In the background, since the connection of this command ends with the link.
    let cut = "(sleep 1; ip link set eth0 down) </dev/null >/dev/null 2>&1 &";
    project.run(&["exec", "--", "sh", "-c", cut]).ok();
    eventually("the link is down", LIMIT, || !status(&project)["network_fault"].is_null());
    assert_eq!(
        status(&project)["network_fault"],
        json!({"kind": "interface-down", "interface": "eth0"})
    );
    project
        .run(&["exec", "--", "true"])
        .code(255)
        .says("the interface eth0 is down")
        .says("castra restart");
    project.run(&["up"]).code(69).says("the interface eth0 is down");
    project.run(&["restart"]).ok();
    project.run(&["exec", "--", "true"]).ok();
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
