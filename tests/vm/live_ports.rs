//! Ports that are forwarded to a VM while it runs.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use castra_test_support::{Ended, Project, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const VM: &str = "alpine-minimal";

/// Time for a guest on a busy machine.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn added_ports_lead_to_the_vm_until_it_stops() {
    let project = running();
    let port = free_port();
    listen(&project, 8000);
    project.run(&["port", "add", VM, &format!("{port}:8000")]).ok();
    assert_eq!(echoed(port, b"both ways").as_deref(), Some(&b"both ways"[..]));
    // Much more than any buffer on the way.
    let bytes: Vec<u8> = (0..4_000_000_u32).flat_map(u32::to_le_bytes).collect();
    assert!(echoed(port, &bytes).is_some_and(|echo| echo == bytes));
    let listed = only(&project, "added");
    assert_eq!(
        (listed["host"].as_u64(), listed["guest"].as_u64()),
        (Some(port.into()), Some(8000))
    );
    assert_eq!((&listed["active"], &listed["service"]), (&true.into(), &"reachable".into()));

    // It is there again after a suspend, and when its companion was killed.
    project.run(&["suspend"]).ok();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    project.run(&["up"]).ok();
    assert_eq!(echoed(port, b"resumed").as_deref(), Some(&b"resumed"[..]));
    kill_process(companion(&project), Signal::KILL).expect("killed");
    let words = "no live port leads to VM";
    eventually("its end", LONG, || project.run(&["status"]).ok().stderr.contains(words));
    sh(&project, "true").ok();
    assert_eq!(echoed(port, b"restarted").as_deref(), Some(&b"restarted"[..]));

    // A clone has ports of its own.
    project.run(&["clone", VM, "twin"]).ok();
    project.run(&["up"]).ok();
    project.run(&["up", "twin"]).ok();
    assert_eq!(only(&project, "added")["vm"], VM);
    project.run(&["down", "--force", "twin"]).ok();

    project.run(&["port", "rm", VM, &format!("{port}:8000")]).ok();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    project.run(&["port", "add", VM, &format!("{port}:8000")]).ok();
    project.run(&["down", "--force"]).ok();
    let _free = TcpListener::bind(("127.0.0.1", port)).expect("free again");
    project.run(&["up"]).ok();
    assert_eq!(purposes(&project), ["ssh"]);
    project.run(&["down", "--force"]).ok();
}

#[test]
fn a_port_that_cannot_be_added_changes_nothing() {
    let project = running();
    let (port, taken) = (free_port(), TcpListener::bind("127.0.0.1:0").expect("bound"));
    let taken_port = taken.local_addr().expect("an address").port();
    let add = |words: &[&str]| project.run(&[&["port", "add", VM], words].concat());
    // All or none.
    add(&[&format!("{port}:80"), &taken_port.to_string()]).code(75).says("is in use by");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    add(&["53:53/udp"]).code(64).says("only TCP ports");
    add(&["0:80"]).code(64).says("is not a port");
    add(&["1-3:1-2"]).code(64).says("the same number of ports");
    add(&[&format!("{port}:80")]).ok();
    add(&[&format!("{port}:80")]).ok();
    add(&[&format!("{port}:81")]).code(75).says(&format!("`castra port rm {VM} {port}`"));
    project.run(&["port", "rm", VM, "1"]).code(64).says("was not added");
    project.run(&["port", "rm", VM, &format!("{port}:81")]).code(64).says("was not added");
    // A service that is not there resets the connection, as on this machine.
    let mut client = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    assert!(client.read(&mut [0]).is_err());

    // A port that was taken while the VM was suspended: it runs without.
    project.run(&["suspend"]).ok();
    let thief = TcpListener::bind(("127.0.0.1", port)).expect("free");
    project.run(&["up"]).ok().says("in use");
    project.run(&["status"]).ok().says("does not lead to VM");
    drop(thief);
    project.run(&["up"]).ok();
    assert_eq!(only(&project, "added")["active"], true);
    project.run(&["down", "--force"]).ok();
    project.run(&["port", "add", VM, "80"]).code(69);
}

#[test]
fn what_listens_has_a_port_as_long_as_it_listens() {
    let project = Project::new();
    let holder = TcpListener::bind("127.0.0.1:0").expect("bound");
    let taken = holder.local_addr().expect("an address").port();
    let port = free_port();
    project.write("castra.toml", &declared("port_forwards = \"auto\"\n"));
    project.run(&["up"]).ok();
    // The agent's own port and sshd's have none.
    assert_eq!(purposes(&project), ["ssh"]);

    listen(&project, port);
    listen(&project, taken);
    sh(&project, "nc -lk -p 80 -e cat </dev/null >/dev/null 2>&1 &").ok();
    sh(&project, "nc -lk -p 22 -e cat </dev/null >/dev/null 2>&1 &").ok();
    let of = |guest: u16| found(&project, guest);
    eventually("the ports", LONG, || [port, taken, 80].iter().all(|port| of(*port).is_some()));
    assert_eq!(of(port), Some(port));
    assert!(of(taken).is_some_and(|host| host != taken) && of(22).is_none());
    assert!(of(80).is_some_and(|host| host >= 8080));
    assert_eq!(echoed(port, b"found").as_deref(), Some(&b"found"[..]));
    assert_eq!(echoed(of(80).expect("a port"), b"80").as_deref(), Some(&b"80"[..]));
    sh(&project, "true").ok();
    assert!(!sh(&project, "true").ok().stderr.contains("leads to"), "announced once");

    // Opened by hand, or without a browser.
    let url = format!("http://127.0.0.1:{port}/\n");
    let open = project.run(&["open", VM, &port.to_string()]).ok();
    assert_eq!(open.text(), url);
    project.run(&["open", VM, "9"]).code(66).says("castra port add");

    project.run(&["suspend"]).ok();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    project.run(&["up"]).ok().says(&format!("127.0.0.1:{port} leads to its port {port}"));
    assert_eq!(echoed(port, b"resumed").as_deref(), Some(&b"resumed"[..]));

    // One that is closed stays closed.
    project.run(&["port", "rm", VM, &port.to_string()]).ok();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    sh(&project, "kill $(pidof nc)").ok();
    eventually("their end", LONG, || purposes(&project) == ["ssh"]);
    project.run(&["down", "--force"]).ok();
}

#[test]
fn a_throwaway_vm_forwards_what_listens() {
    let project = Project::new();
    let port = free_port();
    let serve = format!("nc -l -p {port} -e cat; sleep 3");
    let ended = std::thread::scope(|scope| {
        let words = ["run", "--ports", "auto", "-n", "--", "sh", "-c", serve.as_str()];
        let run = scope.spawn(move || project.run(&words));
        eventually("an echo", 4 * LONG, || echoed(port, b"run").as_deref() == Some(&b"run"[..]));
        run.join().expect("ended")
    });
    ended.ok().says(&format!("run: 127.0.0.1:{port} leads to its port {port}"));
}

#[test]
fn a_hostile_guest_gets_no_more_than_its_share() {
    let project = running();
    project.run(&["up", "--ports", "auto"]).ok();
    let flood = "for port in $(seq 20000 20199); do nc -l -p $port </dev/null & done \
        >/dev/null 2>&1";
    sh(&project, flood).ok();
    let count = || ports(&project).iter().filter(|port| port["purpose"] == "auto").count();
    eventually("all that it gets", LONG, || count() == 128);
    project.run(&["ports"]).ok().says("no more than 128");
    sh(&project, "killall nc").ok();
    eventually("their end", LONG, || count() == 0);
    project.run(&["down", "--force"]).ok();
}

fn running() -> Project {
    let project = Project::new();
    project.write("castra.toml", &declared(""));
    project.run(&["up"]).ok();
    project
}

fn declared(ports: &str) -> String {
    let image = "managed_image = { name = \"alpine-pypi\", version = \"v1\" }";
    format!("[[vms]]\nname = \"{VM}\"\n{image}\n{ports}")
}

/// Returns the port of this machine that has found one of the guest's.
fn found(project: &Project, guest: u16) -> Option<u16> {
    let ports = ports(project);
    let is_it = |port: &&Value| port["purpose"] == "auto" && port["guest"] == guest;
    let port = ports.iter().find(is_it)?["host"].as_u64()?;
    u16::try_from(port).ok()
}

fn sh(project: &Project, script: &str) -> Ended {
    project.run(&["exec", "-n", VM, "--", "sh", "-c", script])
}

/// Starts a service on the guest's loopback interface that returns what it gets.
fn listen(project: &Project, port: u16) {
    let serve = format!("nc -lk -s 127.0.0.1 -p {port} -e cat </dev/null >/dev/null 2>&1 &");
    sh(project, &serve).ok();
    let is_there = || sh(project, &format!("nc -z 127.0.0.1 {port}")).code == Some(0);
    eventually("the service", LONG, is_there);
}

fn free_port() -> u16 {
    let holder = TcpListener::bind("127.0.0.1:0").expect("bound");
    holder.local_addr().expect("an address").port()
}

/// Sends bytes to the service behind a port, and returns what it returns.
fn echoed(port: u16, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let mut sender = stream.try_clone().expect("cloned");
    let bytes = bytes.to_vec();
    let sent = std::thread::spawn(move || {
        sender.write_all(&bytes).and_then(|()| sender.shutdown(Shutdown::Write)).is_ok()
    });
    let mut echo = Vec::new();
    stream.set_read_timeout(Some(LONG)).expect("set");
    stream.read_to_end(&mut echo).ok()?;
    sent.join().expect("ended").then_some(echo)
}

fn ports(project: &Project) -> Vec<Value> {
    let ports = project.run(&["ports", "--json"]).ok().document("ports");
    ports["ports"].as_array().expect("an array").clone()
}

/// Returns the only port with this purpose.
#[track_caller]
fn only(project: &Project, purpose: &str) -> Value {
    let ports = ports(project);
    let mut of_purpose = ports.iter().filter(|port| port["purpose"] == purpose);
    let found = of_purpose.next().cloned();
    assert_eq!(of_purpose.next(), None, "{ports:?}");
    found.unwrap_or_else(|| panic!("{ports:?}"))
}

fn purposes(project: &Project) -> Vec<String> {
    let purpose = |port: &Value| port["purpose"].as_str().expect("a word").to_owned();
    ports(project).iter().map(purpose).collect()
}

fn companion(project: &Project) -> Pid {
    let status = project.run(&["status", "--json", VM]).ok().document("status");
    let pid = status["vms"][0]["companion_pid"].as_i64().expect("a process");
    Pid::from_raw(i32::try_from(pid).expect("a number")).expect("a process")
}
