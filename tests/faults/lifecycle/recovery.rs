//! Every line of docs/recovery.md: the state is reached, castra names it as the page does, and the
//! way out works.

use std::fs;
use std::time::Duration;

use castra_test_support::Fake;
use castra_test_support::{CP_A, Ended, eventually};
use rustix::process::Signal;

use crate::lifecycle::property::{in_namespace, park_and_kill};

const PAGE: &str = include_str!("../../../docs/recovery.md");

/// A case: reaches the state of a line, and takes its way out.
type Case = fn(&Fake);

/// Cases, by the first cell of their lines.
const CASES: [(&str, Case); 20] = [
    ("`not-created`", not_created),
    ("`stopped`", stopped),
    ("`starting`", starting),
    ("`running`", running),
    ("`running`, and the guest does not answer", silent),
    ("`running`, and its network is down", network_down),
    ("`running`, without one of its data disks", without_data_disk),
    ("`running`, and QEMU is stopped", frozen),
    ("`running`, and its sockets are gone", without_sockets),
    ("`disk-full`", disk_full),
    ("`stopping`", stopping),
    ("`suspending`", suspending),
    ("`suspended`", suspended),
    ("`resuming`", resuming),
    ("`elsewhere`", elsewhere),
    ("`crashed`", crashed),
    ("`copied`", copied),
    ("`unknown`", unknown),
    ("`unrecorded`", unrecorded),
    ("`orphaned`", orphaned),
];

/// Lines about companions, which need a real guest: `tests/vm/mounts_trouble.rs` and
/// `tests/vm/live_ports.rs`.
const IN_REAL_VMS: [&str; 5] = [
    "`running`, and its mounts are not reached",
    "`running`, without one of its mounts",
    "`running`, and no live port leads to it",
    "`running`, without one of its live ports",
    "any, with a process that has outlived the VM",
];

#[test]
fn every_state_has_a_line_and_its_way_out_works() {
    let table = PAGE.lines().skip_while(|line| !line.starts_with("| ---")).skip(1);
    let rows: Vec<&str> = table
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.split('|').nth(1).expect("a first cell").trim())
        .collect();
    let (real, rows): (Vec<_>, Vec<_>) =
        rows.into_iter().partition(|row| IN_REAL_VMS.contains(row));
    assert_eq!(real, IN_REAL_VMS);
    assert_eq!(rows, CASES.map(|(row, _)| row));
    for (row, case) in CASES {
        println!("{row}");
        case(&Fake::new(&["vm"]));
    }
}

/// Insists on the state, in JSON and in the table for people, and returns the table. `status` waits
/// only a moment for a QEMU, so on a busy machine a later call may be the first to know.
#[track_caller]
fn is(fake: &Fake, state: &str) -> Ended {
    let limit = Duration::from_secs(60);
    eventually(&format!("it is {state}"), limit, || fake.state("vm") == state);
    let word = state.replace("not-created", "not created");
    let mut shown = None;
    eventually(&format!("{word} is shown"), limit, || {
        let table = fake.run(&["status"]).ok();
        let is_shown = table.text().contains(&word);
        shown = Some(table);
        is_shown
    });
    shown.expect("a table")
}

#[track_caller]
fn comes_up(fake: &Fake) {
    fake.run(&["up", "vm"]).ok();
    is(fake, "running");
    let journal = fake.journal("vm");
    assert!(!journal.contains("mismatched") && !journal.contains("doubled"), "{journal}");
}

fn up(fake: &Fake) {
    fake.run(&["up", "--cold"]).ok();
}

fn not_created(fake: &Fake) {
    is(fake, "not-created");
    comes_up(fake);
}

fn stopped(fake: &Fake) {
    up(fake);
    fake.run(&["down"]).ok();
    is(fake, "stopped");
    comes_up(fake);
}

fn starting(fake: &Fake) {
    fake.behave("vm", "guest-silent");
    fake.run(&["up", "--cold", "--no-wait"]).ok();
    is(fake, "starting");
    fake.behave("vm", "");
    comes_up(fake);
    assert_eq!(fake.journal("vm").matches("started").count(), 1, "{}", fake.journal("vm"));
}

fn running(fake: &Fake) {
    up(fake);
    is(fake, "running");
}

fn silent(fake: &Fake) {
    up(fake);
    fake.behave("vm", "guest-silent");
    is(fake, "running");
    fake.run(&["up", "--boot-timeout", "1"])
        .code(69)
        .says("is not responding")
        .says("castra restart vm");
    fake.behave("vm", "");
    fake.run(&["restart", "vm"]).ok();
    is(fake, "running");
}

fn network_down(fake: &Fake) {
    up(fake);
    fake.behave("vm", "link-down");
    is(fake, "running").says("network is down");
    fake.run(&["up"]).code(69).says("the interface eth0 is down").says("castra restart vm");
    fake.behave("vm", "");
    fake.run(&["restart", "vm"]).ok();
    is(fake, "running");
}

fn without_data_disk(fake: &Fake) {
    let plain = fs::read_to_string(fake.path().join("castra.toml")).expect("read");
    let disks = "disks = [{ name = \"data\", size = \"1 MiB\", guest = \"/data\" }]\n";
    fake.write("castra.toml", &format!("{plain}{disks}"));
    fake.behave("vm", "disk-foreign");
    let reason = "disk `data` is not mounted on /data: it has LUKS";
    fake.run(&["up", "vm"]).ok().says(reason);
    let status = is(fake, "running").says(reason).says("castra restart vm");
    drop(status);
    let verbose = fake.run(&["status", "-v"]).ok().text();
    assert!(verbose.contains("used, not mounted at /data\n"), "{verbose}");
    let fault = |fake: &Fake| fake.status("vm")["data_disks"][0]["mount_fault"].clone();
    assert_eq!(fault(fake), "is not mounted on /data: it has LUKS");
    fake.behave("vm", "");
    fake.run(&["restart", "vm"]).ok();
    assert_eq!(fault(fake), serde_json::Value::Null);
    fake.write("castra.toml", &plain);
    is(fake, "running");
}

fn frozen(fake: &Fake) {
    up(fake);
    fake.signal("vm", Signal::STOP);
    is(fake, "running").says("is frozen");
    fake.signal("vm", Signal::CONT);
    eventually("it continues", Duration::from_secs(60), || {
        !fake.run(&["status"]).stderr.contains("is frozen")
    });
    fake.signal("vm", Signal::STOP);
    fake.run(&["down", "vm"]).ok();
    assert!(fake.journal("vm").ends_with("ended by its guest\n"), "{}", fake.journal("vm"));
}

/// Takes the way out that gives something up: the stand-in has no SSH server, so the other one is
/// in `vm/lifecycle.rs`.
fn without_sockets(fake: &Fake) {
    up(fake);
    fs::remove_dir_all(fake.runtime_directory().join("castra")).expect("removed");
    let shown = is(fake, "running");
    assert!(shown.stderr.contains("has lost its sockets"), "{}", shown.stderr);
    fake.run(&["up", "vm"]).ok().says("its sockets in").says("castra restart vm");
    for command in ["suspend", "down"] {
        fake.run(&[command, "vm"]).code(69).says("its sockets in");
        is(fake, "running");
    }
    fake.run(&["down", "--force", "vm"]).ok();
    comes_up(fake);
}

fn disk_full(fake: &Fake) {
    up(fake);
    fake.behave("vm", "disk-full");
    is(fake, "disk-full").says("is full");
    fake.behave("vm", "");
    comes_up(fake);
}

fn stopping(fake: &Fake) {
    up(fake);
    fake.behave("vm", "guest-silent ignores-powerdown");
    let mut down = fake.castra(&["down"]);
    let mut down = down.stderr(std::process::Stdio::null()).spawn().expect("runs");
    eventually("the stop begins", Duration::from_secs(60), || fake.state("vm") == "stopping");
    down.kill().expect("is ours");
    down.wait().expect("ends");
    is(fake, "stopping");
    fake.behave("vm", "");
    fake.run(&["down", "vm"]).ok();
    is(fake, "stopped");
}

fn suspending(fake: &Fake) {
    up(fake);
    park_and_kill(fake.castra(&["suspend"]), "suspend-stopped");
    is(fake, "suspending");
    comes_up(fake);
    park_and_kill(fake.castra(&["suspend"]), "suspend-saved");
    is(fake, "suspending");
    fake.run(&["suspend", "vm"]).ok();
    is(fake, "suspended");
}

fn suspended(fake: &Fake) {
    up(fake);
    fake.run(&["suspend"]).ok();
    is(fake, "suspended");
    comes_up(fake);
}

fn resuming(fake: &Fake) {
    up(fake);
    fake.run(&["suspend"]).ok();
    park_and_kill(fake.castra(&["up"]), "resume-loaded");
    is(fake, "resuming");
    comes_up(fake);
}

fn elsewhere(fake: &Fake) {
    up(fake);
    let inside = Ended::of(in_namespace(fake.castra(&["status", "--json"])));
    // Without a namespace it is an ordinary run; the tests of namespaces report that they were
    // skipped.
    let text = inside.text();
    assert!(text.contains("\"elsewhere\"") || text.contains("\"running\""), "{text}");
    fake.run(&["down", "vm"]).ok();
    is(fake, "stopped");
}

fn crashed(fake: &Fake) {
    up(fake);
    fake.signal("vm", Signal::KILL);
    eventually("the crash is seen", Duration::from_secs(60), || fake.state("vm") == "crashed");
    is(fake, "crashed").says("its QEMU was killed");
    comes_up(fake);
}

fn copied(fake: &Fake) {
    up(fake);
    let copy = fake.copy("copy", CP_A);
    assert_eq!(copy.state("vm"), "copied");
    let shown = copy.run(&["status"]).ok().says("is a copy of the one in");
    assert!(shown.text().contains("copied"), "{}", shown.text());
    copy.run(&["up", "vm"]).ok();
    assert_eq!(copy.state("vm"), "running");
    is(fake, "running");
}

fn unknown(fake: &Fake) {
    up(fake);
    let disk = fake.disk("vm");
    fs::write(fake.record("vm"), "{").expect("written");
    let shown = fake.run(&["status"]);
    assert!(shown.stderr.contains("the record of VM `vm` is damaged"), "{}", shown.stderr);
    assert!(shown.stderr.contains("The VM is running: `castra down vm`"), "{}", shown.stderr);
    assert!(shown.text().lines().any(|row| row.starts_with("vm ") && row.contains("unknown")));
    assert_eq!(fake.state("vm"), "unknown");
    fake.run(&["down", "vm"]).ok();
    let again = fake.run(&["down", "vm"]).code(65).says("castra clean --records vm").stderr;
    assert!(!again.contains("castra down"), "{again}");
    fake.run(&["clean", "--records", "vm"]).ok();
    comes_up(fake);
    assert_eq!(fake.disk("vm"), disk);
}

fn unrecorded(fake: &Fake) {
    up(fake);
    fake.run(&["down"]).ok();
    let (disk, console) = (fake.disk("vm"), fake.path().join(".castra/logs/vm-console.log"));
    fs::write(&console, "its last words").expect("written");
    fs::write(fake.record("vm"), "{").expect("written");
    // What explains the damage stays.
    fake.run(&["clean"]).ok();
    fake.run(&["clean", "--records"]).ok();
    assert!(fake.run(&["logs", "vm"]).ok().text().contains("its last words"));
    is(fake, "unrecorded").says("`castra up vm` starts it from that disk");
    comes_up(fake);
    assert_eq!(fake.disk("vm"), disk);
}

fn orphaned(fake: &Fake) {
    up(fake);
    fs::remove_dir_all(fake.path().join(".castra")).expect("removed");
    let listed = || fake.run(&["list"]).ok().text();
    assert!(listed().contains("orphaned"), "{}", listed());
    fake.run(&["clean", "--orphans", "--yes"]).ok();
    assert!(!listed().contains("orphaned"), "{}", listed());
    assert_eq!(fake.processes(), Vec::<String>::new());
}
