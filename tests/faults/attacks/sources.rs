//! Sources of images that a cloned repository names: addresses of the host's own network, and paths
//! that are not files.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use castra_test_support::Project;
use castra_test_support::http::{Reply, Server};

fn project(source: &str) -> Project {
    let project = Project::isolated();
    project.write(
        "castra.toml",
        &format!(
            "[images.disk.rootfs]\n{source}\nsha256 = \"{}\"\n\
             pipeline = [{{ convert = {{ from = \"raw\", to = \"qcow2\" }} }}]\n\
             [[vms]]\nname = \"dev\"\nmanaged_image = \"disk\"\n",
            "ab".repeat(32)
        ),
    );
    project
}

/// Starts a server that nothing may connect to.
fn forbidden() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("set");
    listener
}

fn was_connected_to(listener: &TcpListener) -> bool {
    listener.accept().is_ok()
}

#[test]
fn addresses_of_this_machine_and_its_networks_are_not_connected_to() {
    let inner = forbidden();
    let port = inner.local_addr().expect("bound").port();
    for host in
        ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433", "0x7f.1", "127.1"]
    {
        let mut project = project(&format!("url = \"http://{host}:{port}/secret\""));
        project.set("CASTRA_ALLOW_PRIVATE_SOURCES", "");
        let ended = project.run(&["image", "pull"]);
        assert!(!was_connected_to(&inner), "{host}: {}", ended.stderr);
        assert_ne!(ended.code, Some(0), "{host}");
    }
    for host in [
        "169.254.169.254",
        "10.255.255.1",
        "[fd00::1]",
        "[fe80::1]",
        "[::1]",
        "100.64.0.1",
        "224.0.0.1",
    ] {
        let mut project = project(&format!("url = \"http://{host}/latest/meta-data\""));
        project.set("CASTRA_ALLOW_PRIVATE_SOURCES", "");
        let ended = project.run(&["image", "pull"]);
        ended.code(69).says("which is not a public address").says("CASTRA_ALLOW_PRIVATE_SOURCES=");
    }
}

#[test]
fn a_redirect_does_not_lead_to_an_address_that_is_not_allowed() {
    let inner = forbidden();
    let target = format!("http://{}/secret", inner.local_addr().expect("bound"));
    let location = target.clone();
    let outer = Server::start(move |_| Reply::new(302, b"").header("Location", &location));
    let mut project = project(&format!("url = \"{}\"", outer.url("/disk")));
    // Allows the first server only.
    let address = outer.url("").trim_start_matches("http://").trim_end_matches('/').to_owned();
    project.set("CASTRA_ALLOW_PRIVATE_SOURCES", address);
    project.run(&["image", "pull"]).code(69).says("which is not a public address");
    assert_eq!(outer.requests().len(), 1);
    assert!(!was_connected_to(&inner), "{target}");
}

#[test]
fn a_proxy_is_not_asked_for_an_address_that_is_not_public() {
    let proxy = Server::start(|_| Reply::new(200, b"secret"));
    let mut project = project("url = \"http://169.254.169.254/latest/meta-data\"");
    project.set("CASTRA_ALLOW_PRIVATE_SOURCES", "");
    project.set("http_proxy", proxy.url(""));
    project.run(&["image", "pull"]).code(69).says("which is not a public address");
    assert!(proxy.requests().is_empty());
}

#[test]
fn no_file_switches_the_check_off() {
    let inner = forbidden();
    let url = format!("http://{}/disk", inner.local_addr().expect("bound"));
    let mut project = project(&format!("url = \"{url}\""));
    project.write(".env", "CASTRA_ALLOW_PRIVATE_SOURCES=1\n");
    project.set("CASTRA_ALLOW_PRIVATE_SOURCES", "");
    project.run(&["image", "pull"]).code(69);
    assert!(!was_connected_to(&inner));
}

#[test]
fn a_local_source_that_is_no_file_is_refused_at_once() {
    let nodes = tempfile::tempdir().expect("a directory");
    let fifo = nodes.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo runs").success());
    std::os::unix::fs::symlink(&fifo, nodes.path().join("link")).expect("linked");
    std::os::unix::fs::symlink("/dev/zero", nodes.path().join("zero")).expect("linked");
    for name in ["fifo", "link", "zero", ""] {
        let path = nodes.path().join(name);
        for pull in [["image", "pull"], ["config", "check"]] {
            let project = project(&format!("path = \"{}\"", path.display()));
            let mut child = project.castra(&pull).spawn().expect("castra runs");
            let mut waited = 0;
            let status = loop {
                if let Some(status) = child.try_wait().expect("is ours") {
                    break status;
                }
                assert!(waited < 600, "{name:?} holds {pull:?} up");
                waited += 1;
                std::thread::sleep(Duration::from_millis(100));
            };
            assert!(pull == ["config", "check"] || !status.success(), "{name:?}");
        }
    }
}
