//! Records of other castras, of other times, and damaged ones.

use std::fs;
use std::path::PathBuf;

use castra_test_support::Fake;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// A record as the first castra with `"format": 1` wrote it, which must stay readable.
const FIRST_OF_FORMAT_1: &str = include_str!("record-format-1.json");

fn stopped() -> Fake {
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    fake.run(&["down"]).ok();
    fake
}

/// Rewrites the record of this castra's VM as the first castra would have written it.
fn as_first(record: &mut Value) {
    let mut first: Value = serde_json::from_str(FIRST_OF_FORMAT_1).expect("is JSON");
    first["base"]["content"] = record["base"]["content"].take();
    *record = first;
}

#[test]
fn an_early_record_is_read_and_used() {
    let fake = stopped();
    let disk = fake.disk("vm");
    fake.edit_record("vm", as_first);
    // Its boot is long over, and its QEMU left no pid file: it ended by itself.
    assert_eq!(fake.state("vm"), "stopped");
    fake.run(&["up"]).ok();
    assert_eq!(fake.state("vm"), "running");
    fake.run(&["down"]).ok();
    assert_eq!(fake.disk("vm"), disk);
}

#[test]
fn a_vm_that_an_earlier_castra_started_is_reported_and_stopped() {
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    fake.edit_record("vm", |record| {
        let (sockets, port) = (record["boot"]["sockets"].take(), record["boot"]["ssh_port"].take());
        as_first(record);
        record["boot"]["sockets"] = sockets;
        record["boot"]["ssh_port"] = port;
    });
    assert_eq!(fake.state("vm"), "running");
    fake.run(&["suspend"]).code(69).says("was started by an earlier castra").says("castra down vm");
    assert_eq!(fake.state("vm"), "running");
    fake.run(&["up"]).ok();
    fake.run(&["down"]).ok();
    assert_eq!(fake.state("vm"), "stopped");
}

#[test]
fn a_vm_suspended_by_an_earlier_castra_keeps_its_cpu_until_it_boots() {
    const EARLIER: &str = "qemu64,+rdrand";
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    fake.run(&["suspend"]).ok();
    fake.edit_record("vm", |record| record["suspended"]["boot"]["machine"]["cpu"] = json!(EARLIER));
    let cpu = || {
        let journal = fake.journal("vm");
        let last = journal.lines().rev().find_map(|line| line.split_once(" cpu "));
        last.expect("a start").1.to_owned()
    };
    let default = cpu();
    assert_ne!(default, EARLIER);
    fake.run(&["up"]).ok().says(&format!("with the CPU it was suspended with, `{EARLIER}`"));
    assert_eq!(cpu(), EARLIER);
    // Saved again, it is still the same machine.
    fake.run(&["suspend"]).ok();
    fake.run(&["up"]).ok();
    assert_eq!(cpu(), EARLIER);
    // The definition has not changed.
    assert!(!fake.run(&["up"]).ok().stderr.contains("has changed"));
    fake.run(&["down"]).ok();
    fake.run(&["up"]).ok();
    assert_eq!(cpu(), default);
}

/// QEMU refuses a state that was saved with other ports.
#[test]
fn a_vm_suspended_by_an_earlier_castra_has_no_stream_ports_until_it_boots() {
    let fake = Fake::new(&["vm"]);
    let ports = |boot: &str| {
        let record: Value =
            serde_json::from_slice(&fs::read(fake.record("vm")).expect("a record")).expect("JSON");
        record.pointer(boot).expect("a boot")["machine"]["stream_ports"].clone()
    };
    let sockets = || {
        let is_of_stream = |path: &PathBuf| path.to_string_lossy().contains("/vm/stream-");
        fake.leftovers().into_iter().filter(is_of_stream).count()
    };
    fake.run(&["up", "--cold"]).ok();
    assert_eq!((ports("/boot"), sockets()), (json!(12), 12));
    // A lock beside a socket, as a client leaves it.
    let lock = fake.leftovers().into_iter().find(|path| path.ends_with("stream-3.sock"));
    let lock = lock.expect("a socket").with_extension("lock");
    fs::write(&lock, "").expect("written");
    fake.run(&["suspend"]).ok();
    assert!(!lock.exists() && sockets() == 0);
    let earlier = as_saved_without_ports(&fake);
    fake.edit_record("vm", |record| {
        let saved = &mut record["suspended"];
        saved["sha256"] = json!(earlier);
        saved["boot"]["machine"].as_object_mut().expect("a machine").remove("stream_ports");
    });
    fake.run(&["up"]).ok().says("resuming");
    assert_eq!((ports("/boot"), sockets()), (Value::Null, 0));
    // Saved again, and cloned, it is still the same machine.
    fake.run(&["suspend"]).ok();
    fake.run(&["clone", "vm", "new"]).ok();
    fake.run(&["up", "vm", "new"]).ok();
    assert_eq!((ports("/boot"), sockets()), (Value::Null, 0));
    fake.run(&["down"]).ok();
    fake.run(&["up", "vm"]).ok();
    assert_eq!((ports("/boot"), sockets()), (json!(12), 12));
    fake.run(&["down"]).ok();
    assert_eq!(fake.leftovers(), Vec::<PathBuf>::new());
}

/// Rewrites the saved state as that of a machine with the control port alone, and returns its
/// digest.
fn as_saved_without_ports(fake: &Fake) -> String {
    let state = fake.record("vm").with_file_name("machine.state");
    let text = fs::read_to_string(&state).expect("a state");
    let earlier = text.replace("serial ports 13", "serial ports 1");
    assert_ne!(earlier, text);
    fs::write(&state, &earlier).expect("written");
    Sha256::digest(&earlier).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_record_of_a_later_castra_is_left_alone_and_its_vm_can_be_stopped() {
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    fs::write(fake.record("vm"), r#"{"format": 99, "shape": "unknown"}"#).expect("writes");
    for command in [&["up"][..], &["suspend"], &["status"]] {
        fake.run(command).code(65).says("has format 99").says("Update castra");
    }
    fake.run(&["exec", "--", "true"]).code(255).says("Update castra");
    assert_eq!(fake.state("vm"), "unknown");
    assert!(fake.lives("vm"));
    fake.run(&["down"]).ok();
    assert!(!fake.lives("vm"));
    assert!(
        fs::read_to_string(fake.record("vm")).expect("reads").contains("99"),
        "it was written over"
    );
}

#[test]
fn a_damaged_record_is_got_over_by_its_hint() {
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    let (disk, whole) = (fake.disk("vm"), fs::read(fake.record("vm")).expect("reads"));
    for damaged in [&whole[..whole.len() / 2], b"", b"\0\0\0\0", b"[1]"] {
        fs::write(fake.record("vm"), damaged).expect("writes");
        assert_eq!(fake.state("vm"), "unknown");
        fake.run(&["up"])
            .code(65)
            .says("is damaged")
            .says(&fake.record("vm").to_string_lossy())
            .says("castra clean --records vm");
        fake.run(&["down", "vm"]).ok();
        assert!(!fake.lives("vm"));
        fake.run(&["clean", "--records", "vm"]).ok();
        fake.run(&["up", "vm"]).ok();
        assert_eq!(fake.state("vm"), "running");
        assert_eq!(fake.disk("vm"), disk, "the disk was replaced");
    }
}

#[test]
fn a_clone_outlives_its_record() {
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "vm"]).ok();
    fake.run(&["suspend", "vm"]).ok();
    fake.run(&["clone", "vm", "copy"]).ok();
    fake.run(&["up", "copy"]).ok();
    fake.run(&["down", "copy"]).ok();
    let disk = fake.disk("copy");
    fs::write(fake.record("copy"), "{").expect("writes");
    for command in [&["up", "copy"][..], &["restart", "copy"]] {
        fake.run(command).code(65).says("is damaged").says("castra clean --records copy");
    }
    fake.run(&["clean", "--records", "copy"]).ok();
    assert_eq!(fake.state("copy"), "stopped");
    fake.run(&["up", "copy"]).ok();
    assert_eq!((fake.state("copy").as_str(), fake.disk("copy")), ("running", disk));
    // The record is written again, and is that of a clone.
    fake.run(&["down", "copy"]).ok();
    fake.run(&["up", "copy"]).ok();
    // Once it is removed with its disk, nothing of it is left.
    fake.run(&["down", "copy"]).ok();
    fake.run(&["clean", "--disks", "--yes", "copy"]).ok();
    fake.run(&["up", "copy"]).code(66).says("no VM `copy`");
}

#[test]
fn a_host_that_was_restarted_is_a_crash() {
    let fake = Fake::new(&["vm"]);
    let another = || json!("00000000-0000-4000-8000-000000000000");
    fake.run(&["up", "--cold"]).ok();
    // Everything ended with the machine: QEMU by itself, or killed.
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::KILL] {
        fake.signal("vm", signal);
        castra_test_support::eventually("its end", std::time::Duration::from_secs(60), || {
            !fake.lives("vm")
        });
        fake.edit_record("vm", |record| record["boot"]["boot_id"] = another());
        assert_eq!(fake.state("vm"), "crashed");
        assert_eq!(fake.status("vm")["crash"], "this machine was restarted while it was running");
        fake.run(&["up"]).ok().says("this machine was restarted");
        assert_eq!(fake.state("vm"), "running");
    }
    fake.run(&["suspend"]).ok();
    fake.edit_record("vm", |record| record["suspended"]["boot"]["boot_id"] = another());
    assert_eq!(fake.state("vm"), "suspended");
    fake.run(&["up"]).ok();
    assert_eq!(fake.state("vm"), "running");
}

#[test]
fn a_clock_that_jumped_makes_no_absurd_uptime() {
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    let year_ms = 365 * 24 * 3600 * 1000_u64;
    let now_ms = fake.status("vm")["started_unix_ms"].as_u64().expect("it runs");
    for started in [now_ms + year_ms, u64::MAX, 0] {
        fake.edit_record("vm", |record| record["boot"]["started_unix_ms"] = json!(started));
        let uptime_ms = fake.status("vm")["uptime_ms"].as_u64().expect("it runs");
        assert!(uptime_ms < year_ms, "{uptime_ms} ms, started at {started}");
        let table = fake.run(&["status", "-v"]).ok().text();
        let row = table.lines().nth(1).expect("a row");
        assert!(!row.contains(" d "), "{row}");
        fake.run(&["up"]).ok();
    }
}
