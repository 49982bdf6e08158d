//! Forwards into a real VM: a service is reached wherever in the guest it listens, and keeps its
//! port.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use castra_test_support::{Ended, Project, eventually, eventually_in_guest};

/// Time for a boot on a busy machine that emulates.
const LONG: Duration = Duration::from_secs(240);

#[test]
fn a_service_is_reached_wherever_it_listens() {
    let project = Project::new();
    let port = declare(&project);
    project.run(&["up"]).ok();
    assert_eq!(behind(port), None);
    assert!(project.run(&["ports"]).ok().text().contains("nothing listens"));
    // The port itself is free, so each may have it, whatever was there before.
    for address in ["127.0.0.1", "0.0.0.0", "10.0.2.15", "::1"] {
        listen(&project, address);
        reaches(port, address);
        assert!(!project.run(&["ports"]).ok().text().contains("only"), "{address}");
        assert_eq!(service(&project), "reachable", "{address}");
        sh(&project, "kill $(cat /run/service.pid)").ok();
    }
    assert_eq!(behind(port), None);

    listen(&project, "127.0.0.1");
    project.run(&["suspend"]).ok();
    project.run(&["up"]).ok();
    reaches(port, "127.0.0.1");
    // Containers and others that reach the guest's address have no access to its loopback
    // interface.
    let inside =
        sh(&project, "nc -w 5 10.0.2.15 61022 < /dev/null; nc -w 5 127.0.0.1 61022 < /dev/null");
    assert_eq!(inside.text(), "");

    // Only the kernel's command line configures the agent of a guest that reboots by itself.
    let at_boot =
        format!("echo '::respawn:{SERVER} -s 127.0.0.1 -e echo rebooted' >> /etc/inittab; sync");
    sh(&project, &format!("{at_boot}; (sleep 1; reboot) </dev/null >/dev/null 2>&1 &")).ok();
    eventually_in_guest("the service of the new boot", LONG, || {
        behind(port).as_deref() == Some("rebooted\n")
    });
}

/// Command of a server that greets clients one after the other.
const SERVER: &str = "/usr/bin/nc -lk -p 8000";

/// Declares one VM whose port 8000 is forwarded; returns the port of this machine.
fn declare(project: &Project) -> u16 {
    let holder = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = holder.local_addr().expect("an address").port();
    let image = "managed_image = { name = \"alpine-pypi\", version = \"v1\" }";
    let forward = format!("[[vms.port_forwards]]\nhost = {port}\nguest = 8000\n");
    project.write("castra.toml", &format!("[[vms]]\nname = \"web\"\n{image}\n{forward}"));
    port
}

fn sh(project: &Project, line: &str) -> Ended {
    project.run(&["exec", "web", "--", "sh", "-c", line])
}

/// Starts a service that reports the address it listens on.
fn listen(project: &Project, address: &str) {
    let serve = format!(
        "{SERVER} -s {address} -e echo {address} </dev/null >/dev/null 2>&1 & echo $! > \
        /run/service.pid"
    );
    sh(project, &serve).ok();
}

/// Returns the greeting of the service behind a port of this machine, or `None` if there is none.
fn behind(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text).filter(|text| !text.is_empty())
}

fn reaches(port: u16, address: &str) {
    eventually(address, Duration::from_secs(60), || {
        behind(port).as_deref() == Some(&format!("{address}\n"))
    });
}

/// Returns the answer of `castra ports` about the service.
fn service(project: &Project) -> String {
    let ports = project.run(&["ports", "--json"]).ok().document("ports");
    let ports = ports["ports"].as_array().expect("an array").clone();
    let forward = ports.iter().find(|port| port["purpose"] == "forward").expect("the forward");
    forward["service"].as_str().expect("the agent reports it").to_owned()
}
