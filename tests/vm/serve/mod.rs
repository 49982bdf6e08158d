//! `castra serve` and `castra mcp`: sandboxes by the E2B API and as tools.

mod mcp;
mod sdk;
mod server;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use castra_engine::layout::SocketsLayout;
use castra_engine::qemu::MachineStatus;
use castra_test_support::{Project, eventually, linked_cache};
use serde_json::{Value, json};

use server::{Answer, Sandbox, Server, events, stdout_of};

/// Returns a project with the cache that all tests of servers share: their template must be in no
/// other test's.
fn project() -> Project {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("serve-cache");
    if !cache.exists() {
        let made = linked_cache().keep();
        if fs::rename(&made, &cache).is_err() {
            // Another test was faster.
            fs::remove_dir_all(&made).expect("removed");
        }
    }
    Project::with_cache(cache)
}

/// Returns what is left of sandboxes.
fn left(project: &Project) -> Vec<String> {
    ["sandboxes", "snapshots", ".castra/vms"].map(|directory| names(project, directory)).concat()
}

/// Returns the names in a directory of the server's.
fn names(project: &Project, directory: &str) -> Vec<String> {
    let directory = project.path().join("served").join(directory);
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn base() -> Value {
    json!({ "templateID": "base", "timeout": 300 })
}

#[test]
fn sandboxes_outlive_a_server_that_is_killed() {
    let project = project();
    let server = Server::start(&project, &[]);
    let kept = server.create(&json!({ "templateID": "base", "metadata": { "name": "kept" } }));
    let short = server.create(&json!({ "templateID": "base", "timeout": 300 }));
    server.control(&format!("POST /sandboxes/{}/pause", short.id), &json!({})).is(204);
    let brief = server.create(&json!({ "templateID": "base", "timeout": 1 }));
    let stream = server.start_command(&kept, "echo begun; exec sleep 1000");
    assert_eq!(server.command(&kept, "echo $((6 * 7))"), "42\n");
    server.kill();
    drop(stream);

    let server = Server::start(&project, &[]);
    let known = server.control("GET /v2/sandboxes", &Value::Null).is(200).json();
    let known: Vec<_> = known.as_array().expect("a list").iter().collect();
    let state = |id: &str| known.iter().find(|it| it["sandboxID"] == id).map(|it| &it["state"]);
    assert_eq!(state(&kept.id), Some(&json!("running")));
    assert_eq!(state(&short.id), Some(&json!("paused")));
    assert_ne!(state(&brief.id), Some(&json!("paused")), "its time was over");
    // What ran there still runs, and is found again.
    let processes = server.call(&kept, "process.Process/List", &json!({})).is(200).json();
    assert_eq!(processes["processes"].as_array().map(Vec::len), Some(1), "{processes}");
    let connected = server.control(&format!("POST /v2/sandboxes/{}/connect", short.id), &json!({}));
    assert_eq!(Sandbox::of(&connected.is(201).json()).token, short.token);
    assert_eq!(server.command(&short, "echo here"), "here\n");
    eventually("the end of its time", Duration::from_secs(20), || {
        server.control(&format!("GET /sandboxes/{}", brief.id), &Value::Null).status == 404
    });
    server.end();
    assert_eq!(left(&project), Vec::<String>::new());
    assert_eq!(project.processes(), Vec::<String>::new());
}

/// Waits until a VM is ready besides the sandboxes, and returns its name.
fn ready(project: &Project) -> String {
    let mut ready = None;
    eventually("a VM that is ready", Duration::from_secs(400), || {
        let known = names(project, "sandboxes");
        let is_free = |vm: &String| !known.iter().any(|record| record.starts_with(vm.as_str()));
        ready = names(project, ".castra/vms").into_iter().find(is_free);
        ready.as_ref().is_some_and(|vm| is_paused(project, vm))
    });
    ready.expect("it was found")
}

/// Returns `true` if the VM has started, and its processors stand still.
fn is_paused(project: &Project, vm: &str) -> bool {
    let record = project.path().join(format!("served/.castra/vms/{vm}/vm.json"));
    let record: Value =
        serde_json::from_slice(&fs::read(record).unwrap_or_default()).unwrap_or_default();
    record["progress"] == "running"
        && record["boot"]["sockets"].as_str().is_some_and(|sockets| {
            let status = MachineStatus::glance(&SocketsLayout::new(sockets.into()));
            status == Some(MachineStatus::Paused)
        })
}

#[test]
fn a_sandbox_that_is_ready_is_handed_out_and_makes_room_for_others() {
    let project = project();
    let server = Server::start(&project, &["--max-vms", "2"]);
    let vm = ready(&project);
    std::thread::sleep(Duration::from_secs(5));
    let sandbox = server.create(&base());
    assert_eq!(sandbox.id, vm);
    let before = now();
    let inside = server.command(&sandbox, "date +%s").trim().parse::<u64>().expect("a time");
    assert!((before.saturating_sub(1)..=now() + 1).contains(&inside), "{inside}, not {before}");

    // The next one has the last room, until it is needed.
    let vm = ready(&project);
    let isolated = json!({ "templateID": "base", "allow_internet_access": false });
    let other = server.create(&isolated);
    assert_eq!(server.command(&other, "echo here"), "here\n");
    assert_ne!(other.id, vm);
    assert!(!names(&project, ".castra/vms").contains(&vm));
    server.control("POST /v2/sandboxes", &base()).is(429);

    // One that its server left is removed by the next.
    server.control(&format!("DELETE /sandboxes/{}", other.id), &Value::Null).is(204);
    let vm = ready(&project);
    server.kill();
    let server = Server::start(&project, &["--pool", "0"]);
    assert_eq!(names(&project, ".castra/vms"), [sandbox.id.as_str()]);
    assert_ne!(sandbox.id, vm);
    assert_eq!(server.command(&sandbox, "echo here"), "here\n");
    server.end();

    // One that is ready or is being made ends with its server.
    let server = Server::start(&project, &[]);
    ready(&project);
    server.end();
    Server::start(&project, &["--pool", "2"]).end();
    assert_eq!(left(&project), Vec::<String>::new());
    assert_eq!(project.processes(), Vec::<String>::new());
}

/// Returns the time, in seconds since the Unix epoch.
fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("it is after 1970").as_secs()
}

#[test]
fn a_request_resumes_a_sandbox_that_is_paused_or_just_being() {
    let project = project();
    let server = Server::start(&project, &["--pool", "0"]);
    let wish = json!({ "templateID": "base", "timeout": 300, "autoResume": { "enabled": true } });
    let sandbox = server.create(&wish);
    let pause = format!("POST /sandboxes/{}/pause", sandbox.id);
    let state = || {
        let shown = server.control(&format!("GET /sandboxes/{}", sandbox.id), &Value::Null);
        shown.is(200).json()["state"].clone()
    };
    std::thread::scope(|scope| {
        let pausing = scope.spawn(|| server.control(&pause, &json!({})).status);
        // It begins while its memory is saved, or before or after that on a busy machine.
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(server.command(&sandbox, "echo here"), "here\n");
        assert_eq!(pausing.join().expect("no panic"), 204);
    });
    if state() == "running" {
        server.control(&pause, &json!({})).is(204);
    }
    // Not for a caller without its token.
    let stranger = Sandbox { id: sandbox.id.clone(), token: server.token.clone() };
    server.call(&stranger, "process.Process/List", &json!({})).is(401);
    assert_eq!(state(), "paused");
    assert_eq!(server.command(&sandbox, "echo here"), "here\n");
    assert_eq!(state(), "running");
    server.end();
    assert_eq!(left(&project), Vec::<String>::new());
}

#[test]
fn a_connection_outlives_a_request_that_is_refused_before_its_body_has_ended() {
    let project = project();
    let server = Server::start(&project, &["--pool", "0"]);
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
    let host = format!("Host: 127.0.0.1:{}\r\n", server.port);
    for _ in 0..3 {
        let head = format!(
            "POST /process.Process/Start HTTP/1.1\r\n{host}E2b-Sandbox-Id: none\r\n\
            Content-Type: application/connect+json\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        stream.write_all(format!("{head}2\r\n{{}}\r\n").as_bytes()).expect("sent");
        std::thread::sleep(Duration::from_millis(200));
        stream.write_all(b"0\r\n\r\n").expect("sent");
        let mut answer = [0; 4096];
        let length = stream.read(&mut answer).expect("an answer");
        let answer = String::from_utf8_lossy(&answer[..length]).to_lowercase();
        assert!(answer.starts_with("http/1.1 502 "), "{answer}");
        assert!(!answer.contains("connection: close"), "{answer}");
    }
    server.end();
}

#[test]
fn a_fork_takes_everything_along_and_no_output_is_lost() {
    let project = project();
    let server = Server::start(&project, &[]);
    let sandbox = server.create(&base());
    let _sleeping = server.start_command(&sandbox, "exec sleep 1000");
    let count = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo $i; sleep 0.02; done";
    let mut counting = server.start_command(&sandbox, count);
    let mut first = [0; 400];
    counting.read_exact(&mut first).expect("it counts");
    let forked =
        server.control(&format!("POST /sandboxes/{}/fork", sandbox.id), &json!({ "count": 2 }));
    let forks: Vec<_> = forked.is(201).json().as_array().expect("a list").clone();
    let forks: Vec<_> = forks.iter().map(|fork| Sandbox::of(&fork["sandbox"])).collect();
    let snapshot = format!("POST /sandboxes/{}/snapshots", sandbox.id);
    let snapshot = server.control(&snapshot, &json!({ "name": "counting" })).is(201).json();

    // The first one continues, and its follower has each line once.
    let mut all = first.to_vec();
    counting.read_to_end(&mut all).expect("the rest");
    let body = all.windows(4).position(|it| it == b"\r\n\r\n").expect("a head") + 4;
    let counted: Vec<u8> = events(&all[body..]).iter().flat_map(stdout_of).collect();
    let expected: String = (1..=200).map(|number| format!("{number}\n")).collect();
    assert_eq!(String::from_utf8(counted).expect("is text"), expected);

    // The others have the process, and names and tokens of their own.
    let restored = server.create(&json!({ "templateID": "counting", "timeout": 300 }));
    let mut names = vec![server.command(&sandbox, "hostname")];
    for other in forks.iter().chain([&restored]) {
        let list = server.call(other, "process.Process/List", &json!({})).is(200).json();
        assert!(list.to_string().contains("exec sleep 1000"), "{list}");
        let stranger = Sandbox { id: other.id.clone(), token: sandbox.token.clone() };
        let refused = server.call(&stranger, "process.Process/List", &json!({}));
        assert_eq!(refused.status, 401);
        names.push(server.command(other, "hostname"));
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 4, "{names:?}");
    let id = snapshot["snapshotID"].as_str().expect("a name");
    server.control(&format!("DELETE /templates/{id}"), &Value::Null).is(204);
    server.end();
    assert_eq!(left(&project), Vec::<String>::new());
}

#[test]
fn no_other_is_let_in_and_none_into_another_sandbox() {
    let project = project();
    let server = Server::start(&project, &["--max-vms", "2", "--memory-budget", "2GiB"]);
    let wish = base().to_string();
    let create = |headers: &[(&str, &str)]| {
        server.request("POST /v2/sandboxes", headers, wish.as_bytes()).status
    };
    let key = ("X-API-Key", &*server.token);
    assert_eq!(create(&[]), 401);
    assert_eq!(create(&[("X-API-Key", "e2b_0000000000000000000000000000000000000000")]), 401);
    // A page in a browser, under a name that leads to this machine, and by its origin.
    assert_eq!(create(&[key, ("Host", "evil.example:80")]), 403);
    assert_eq!(create(&[key, ("Origin", "http://evil.example")]), 403);
    let (one, other) = (server.create(&base()), server.create(&base()));
    let full = server.control("POST /v2/sandboxes", &base()).is(429);
    assert!(full.headers.contains("\r\nretry-after: "), "{}", full.headers);

    // Each has a token of its own.
    let stat = json!({ "path": "/etc/passwd" });
    let stranger = Sandbox { id: other.id.clone(), token: one.token.clone() };
    for token in [&one.token, "", &server.token] {
        let caller = Sandbox { id: other.id.clone(), token: token.to_owned() };
        assert_eq!(
            server.call(&caller, "filesystem.Filesystem/Stat", &stat).status,
            401,
            "{token}"
        );
    }
    server.call(&other, "filesystem.Filesystem/Stat", &stat).is(200);
    let read = |sandbox: &Sandbox, path: &str| -> Answer {
        server.request(&format!("GET /files?path={path}"), &sandbox.headers("text/plain"), b"")
    };
    assert_eq!(read(&stranger, "/etc/hostname").status, 401);
    // Paths are the guest's, whatever they look like.
    assert_eq!(server.command(&one, "echo inside > /tmp/secret; cat /tmp/secret"), "inside\n");
    fs::write("/tmp/castra-test-outside", "outside").expect("written");
    let outside = read(&one, "../../../../../../tmp/castra-test-outside").status;
    fs::remove_file("/tmp/castra-test-outside").expect("removed");
    assert_eq!(outside, 404);
    assert_eq!(read(&one, "/../../tmp/secret").body, b"inside\n");
    assert_eq!(read(&other, "/tmp/secret").status, 404);
    for id in ["..", "../one", "%2e%2e", "a/b", ""] {
        let answer = server.control(&format!("DELETE /sandboxes/{id}"), &Value::Null);
        assert!((400..500).contains(&answer.status), "{id}: {}", answer.status);
    }
    for path in ["volumes", "secrets"] {
        server.control(&format!("GET /{path}"), &Value::Null).is(501);
    }
    server.end();
    assert_eq!(left(&project), Vec::<String>::new());
}
