//! The port of a VM's SSH server, which stays the same as long as possible, since its user may have
//! saved it.

use std::net::TcpListener;

use castra_test_support::Fake;
use serde_json::json;

/// Returns the port of a running VM's SSH server.
fn ssh_port(fake: &Fake, vm: &str) -> u16 {
    let port = fake.status(vm)["ssh_port"].as_u64().expect("it runs");
    port.try_into().expect("a port")
}

#[test]
fn a_vm_keeps_its_port_however_it_is_stopped_and_started() {
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    let port = ssh_port(&fake, "vm");
    let restarts: [&[&str]; 5] =
        [&["restart"], &["down"], &["suspend"], &["down", "--force"], &["suspend"]];
    for stop in restarts {
        fake.run(stop).ok();
        fake.run(&["up"]).ok();
        assert_eq!(ssh_port(&fake, "vm"), port, "{stop:?}");
    }
    fake.signal("vm", rustix::process::Signal::KILL);
    castra_test_support::eventually("its end", std::time::Duration::from_secs(60), || {
        !fake.lives("vm")
    });
    fake.run(&["up"]).ok();
    assert_eq!(ssh_port(&fake, "vm"), port, "killed");
}

#[test]
fn a_port_that_is_taken_is_given_up_for_another_and_so_is_one_that_qemu_cannot_have() {
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    for stop in ["down", "suspend"] {
        let port = ssh_port(&fake, "vm");
        fake.run(&[stop]).ok();
        let _holder = TcpListener::bind(("127.0.0.1", port)).expect("free once the VM is stopped");
        fake.run(&["up"]).ok();
        assert_ne!(ssh_port(&fake, "vm"), port, "{stop}");
    }
    let port = ssh_port(&fake, "vm");
    fake.run(&["down"]).ok();
    // The fourth and fifth starts find the port taken that castra found free.
    fake.behave("vm", "port-taken:4");
    fake.run(&["up"]).ok();
    assert_eq!(fake.journal("vm").matches("started").count(), 5);
    assert_ne!(ssh_port(&fake, "vm"), port);
}

/// A disk without a guest that used it would cost the VM its warm template.
#[test]
fn a_declared_port_that_is_taken_is_found_before_anything_is_made() {
    let holder = TcpListener::bind("127.0.0.1:0").expect("bound");
    let fake = Fake::with_port("vm", holder.local_addr().expect("an address").port());
    let refused = fake.run(&["up"]).code(75).says("which VM `vm` forwards, is in use");
    assert!(!refused.stderr.contains("template"), "{}", refused.stderr);
    assert_eq!((fake.disk("vm"), fake.state("vm").as_str()), (None, "not-created"));
    drop(holder);
    fake.run(&["up"]).ok().says("restoring from its warm template");
}

#[test]
fn a_clone_leaves_its_original_the_port() {
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    let port = ssh_port(&fake, "vm");
    fake.run(&["suspend"]).ok();
    fake.run(&["clone", "vm", "copy"]).ok();
    fake.run(&["up", "copy"]).ok();
    let of_copy = ssh_port(&fake, "copy");
    assert_ne!(of_copy, port);
    fake.run(&["up", "vm"]).ok();
    assert_eq!(ssh_port(&fake, "vm"), port);
    fake.run(&["down"]).ok();
    fake.run(&["up", "copy", "vm"]).ok();
    assert_eq!((ssh_port(&fake, "vm"), ssh_port(&fake, "copy")), (port, of_copy));
}

#[test]
fn a_port_of_roots_in_a_record_is_not_taken() {
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    fake.run(&["down"]).ok();
    let honest = std::fs::read(fake.record("vm")).expect("reads");
    for port in [0, 22, 1023] {
        fake.edit_record("vm", |record| record["ssh_port"] = json!(port));
        fake.run(&["up"]).code(65).says(&format!("never chose port {port}"));
    }
    for (port, code) in [(json!(65_536), 65), (json!(-1), 65), (json!("22"), 65), (json!(null), 0)]
    {
        std::fs::write(fake.record("vm"), &honest).expect("writes");
        fake.edit_record("vm", |record| record["ssh_port"] = port);
        fake.run(&["up"]).code(code);
    }
}

/// Returns the answer of `castra ports` about the service behind the VM's forward, in JSON and to
/// people.
fn service(fake: &Fake) -> (serde_json::Value, String) {
    let ports = fake.run(&["ports", "--json"]).ok().document("ports");
    let ports = ports["ports"].as_array().expect("an array").clone();
    let forward = ports.iter().find(|port| port["purpose"] == "forward").expect("the forward");
    let shown = fake.run(&["ports"]).ok();
    (forward["service"].clone(), shown.text() + &shown.stderr)
}

#[test]
fn ports_shows_what_listens_behind_a_forward() {
    let free =
        TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("an address").port();
    let fake = Fake::with_port("vm", free);
    fake.run(&["up", "--cold"]).ok();
    let (service_is, shown) = service(&fake);
    assert_eq!(service_is, "none");
    assert!(shown.contains("active, nothing listens"), "{shown}");
    fake.behave("vm", "loopback-only");
    let (service_is, shown) = service(&fake);
    assert_eq!(service_is, "reachable", "its agent relays");
    assert!(!shown.contains("only"), "{shown}");
    // A VM that an earlier castra started.
    fake.edit_record("vm", |record| {
        drop(record["boot"].as_object_mut().expect("an object").remove("relayed"))
    });
    let (service_is, shown) = service(&fake);
    assert_eq!(service_is, "unreachable");
    assert!(shown.contains("active, listens on 127.0.0.1 only"), "{shown}");
    assert!(shown.contains(&format!("which the forward from port {free} cannot reach")), "{shown}");
    fake.behave("vm", "guest-silent");
    assert_eq!(service(&fake).0, json!(null));
}
