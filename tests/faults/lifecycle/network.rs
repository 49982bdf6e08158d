//! A guest that runs, but whose network is down: every command that needs the network reports that
//! soon, with the way out.

use std::time::{Duration, Instant};

use castra_test_support::Fake;
use serde_json::{Value, json};

/// Castra's SSH client alone would wait for 30 s, and longer with a second attempt.
const SOON: Duration = Duration::from_secs(25);

const DOWN: &str = "the guest of VM `vm` is running, but its network is down: the interface eth0 \
    is down";

fn with_a_vm(words: &str) -> Fake {
    let fake = Fake::new(&["vm"]);
    fake.behave("vm", words);
    fake.run(&["up", "--cold"]).ok();
    fake
}

#[test]
fn a_link_that_is_down_is_named_by_every_command_that_needs_it() {
    let fake = with_a_vm("ssh-silent");
    fake.behave("vm", "ssh-silent link-down");
    let started = Instant::now();
    for (arguments, code) in [
        (&["exec", "--", "true"][..], 255),
        (&["shell"], 69),
        (&["cp", "castra.toml", ":/tmp"], 69),
        (&["up"], 69),
    ] {
        let ended = fake.run(arguments).code(code).says(DOWN).says("`ip link set eth0 up`");
        ended.says("`castra restart vm`");
    }
    assert!(started.elapsed() < 4 * SOON, "{:?}", started.elapsed());
    fake.run(&["status"])
        .ok()
        .says("its network is down: the interface eth0 is down")
        .says("castra restart vm");
    let status = fake.status("vm");
    assert_eq!(status["state"], "running");
    assert_eq!(status["network_fault"], json!({"kind": "interface-down", "interface": "eth0"}));
    fake.behave("vm", "");
    fake.run(&["up"]).ok();
    assert_eq!(fake.status("vm")["network_fault"], Value::Null);
}

#[test]
fn a_network_that_is_complete_and_silent_counts_as_down_after_a_while() {
    let fake = with_a_vm("ssh-silent");
    let started = Instant::now();
    fake.run(&["exec", "--", "true"]).code(255).says("its network is down").says("firewall");
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    assert_eq!(fake.status("vm")["network_fault"], Value::Null, "status tries no SSH");
    let doctor = fake.run(&["doctor"]).text();
    assert!(doctor.contains("its SSH port does not, as behind a firewall"), "{doctor}");
    fake.behave("vm", "");
    assert!(!fake.run(&["doctor"]).text().contains("firewall"));
}

#[test]
fn an_older_agent_is_taken_at_no_word() {
    let fake = with_a_vm("guest-old link-down clock-behind:40");
    fake.run(&["up"]).ok();
    let status = fake.status("vm");
    assert_eq!((&status["network_fault"], &status["clock_ahead_ms"]), (&Value::Null, &Value::Null));
}

#[test]
fn the_guests_clock_is_compared_with_this_machines() {
    let fake = with_a_vm("");
    let ahead_ms =
        || fake.status("vm")["clock_ahead_ms"].as_i64().expect("the guest says its time");
    assert!(ahead_ms().abs() < 20_000, "{}", ahead_ms());
    fake.behave("vm", "clock-behind:3600");
    assert!((-3_620_000..-3_580_000).contains(&ahead_ms()), "{}", ahead_ms());
}
