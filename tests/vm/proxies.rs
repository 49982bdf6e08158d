//! Proxies of this machine for commands in a VM.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::thread;

use castra_test_support::Project;

/// Answers one request as a proxy does, and returns its first line.
fn proxy_once() -> (u16, thread::JoinHandle<String>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let served = thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let lines = BufReader::new(client.try_clone().expect("cloned")).lines();
        let lines: Vec<String> =
            lines.map(|line| line.expect("a line")).take_while(|line| !line.is_empty()).collect();
        let answer = "HTTP/1.0 200 OK\r\nContent-Length: 8\r\n\r\nby proxy";
        client.write_all(answer.as_bytes()).expect("answered");
        lines.into_iter().next().unwrap_or_default()
    });
    (port, served)
}

#[test]
fn a_command_reaches_the_proxy_of_this_machine() {
    let mut project = Project::new();
    project.write(
        "castra.toml",
        "[[vms]]\nname = \"web\"\nproxy = \"host\"\n\
         managed_image = { name = \"alpine-pypi\", version = \"v1\" }\n",
    );
    let (port, served) = proxy_once();
    project.set("http_proxy", format!("http://ada:secret@localhost:{port}"));
    project.set("NO_PROXY", ".example");
    project.run(&["up"]).ok().says("without its user and password");
    let get = ["exec", "-n", "--", "wget", "-q", "-O", "-", "http://anywhere.invalid/page"];
    assert_eq!(project.run(&get).ok().text(), "by proxy");
    let asked = served.join().expect("served");
    assert!(asked.starts_with("GET http://anywhere.invalid/page HTTP/1."), "{asked}");

    let variables = "env | grep -i proxy | sort";
    let all = project.run(&["exec", "-n", "--", "sh", "-c", variables]).ok().text();
    let expected = format!(
        "HTTP_PROXY=http://10.0.2.2:{port}\nNO_PROXY=.example\n\
         http_proxy=http://10.0.2.2:{port}\nno_proxy=.example\n"
    );
    assert_eq!(all, expected);
    let own = ["exec", "-n", "--env", "HTTP_PROXY=mine", "--", "sh", "-c", "echo $HTTP_PROXY"];
    assert_eq!(project.run(&own).ok().text(), "mine\n");
    project.run(&["clone", "web", "twin"]).ok();
    project.run(&["up", "twin"]).ok();
    let twins = project.run(&["exec", "-n", "twin", "--", "sh", "-c", variables]).ok().text();
    assert_eq!(twins, expected);
    project.run(&["down"]).ok();
}
