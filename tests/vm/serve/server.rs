//! A `castra serve`, and requests to it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use castra_test_support::Project;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Time for any answer: the first sandbox of a cache makes its template.
const LIMIT: Duration = Duration::from_secs(400);

/// A server that runs.
pub(super) struct Server {
    child: Child,
    /// Directory of its VMs, which outlive it.
    vms: PathBuf,
    pub(super) port: u16,
    pub(super) token: String,
}

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: String,
    pub(super) body: Vec<u8>,
}

/// A sandbox, as its maker knows it.
pub(super) struct Sandbox {
    pub(super) id: String,
    pub(super) token: String,
}

impl Server {
    /// Starts a server whose sandboxes are in the project.
    pub(super) fn start(project: &Project, options: &[&str]) -> Self {
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--state", "served"];
        let mut command = project.castra(&[&arguments, options].concat());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let value = |line: Option<std::io::Result<String>>| {
            let line = line.expect("a line").expect("is text");
            line.split_once('=').expect("a variable").1.to_owned()
        };
        let mut lines = stdout.lines();
        let url = value(lines.next());
        assert_eq!(value(lines.next()), url);
        let token = value(lines.next());
        let port = url.rsplit(':').next().expect("a port").parse().expect("a number");
        let vms = project.path().join("served/.castra/vms");
        Self { child, vms, port, token }
    }

    /// Ends the server as a crash would.
    pub(super) fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    /// Sends a request, and returns what has come once the server closes the connection.
    pub(super) fn request(&self, request: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let stream = self.send(request, headers, body);
        Answer::read(stream)
    }

    /// Sends a request, and returns the connection.
    pub(super) fn send(&self, request: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connects");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        let has_host = headers.iter().any(|(name, _)| *name == "Host");
        // In HTTP/1.0, an answer ends with its connection.
        let mut text = format!("{request} HTTP/1.0\r\nContent-Length: {}\r\n", body.len());
        if !has_host {
            text.push_str(&format!("Host: 127.0.0.1:{}\r\n", self.port));
        }
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{text}\r\n").as_bytes()).expect("sends");
        // A server that refuses does not read it.
        let _ = stream.write_all(body);
        stream
    }

    /// Sends a request to the control plane.
    pub(super) fn control(&self, request: &str, body: &Value) -> Answer {
        self.request(request, &[("X-API-Key", &self.token)], body.to_string().as_bytes())
    }

    /// Makes a sandbox.
    pub(super) fn create(&self, wish: &Value) -> Sandbox {
        let answer = self.control("POST /v2/sandboxes", wish).is(201);
        Sandbox::of(&answer.json())
    }

    /// Calls a service of a sandbox.
    pub(super) fn call(&self, sandbox: &Sandbox, method: &str, message: &Value) -> Answer {
        let headers = sandbox.headers("application/json");
        let message = message.to_string();
        self.request(&format!("POST /{method}"), &headers, message.as_bytes())
    }

    /// Starts a command, and returns the connection on which its events arrive.
    pub(super) fn start_command(&self, sandbox: &Sandbox, line: &str) -> TcpStream {
        let process = json!({ "cmd": "/bin/bash", "args": ["-l", "-c", line] });
        let headers = sandbox.headers("application/connect+json");
        let message = json!({ "process": process, "stdin": false }).to_string();
        let mut body = vec![0];
        body.extend(u32::try_from(message.len()).expect("is short").to_be_bytes());
        body.extend(message.as_bytes());
        self.send("POST /process.Process/Start", &headers, &body)
    }

    /// Runs a command to its end, and returns its stdout.
    pub(super) fn command(&self, sandbox: &Sandbox, line: &str) -> String {
        let answer = Answer::read(self.start_command(sandbox, line)).is(200);
        let mut stdout = Vec::new();
        for event in events(&answer.body) {
            stdout.extend(stdout_of(&event));
        }
        String::from_utf8(stdout).expect("is text")
    }

    /// Ends all sandboxes, and then the server.
    pub(super) fn end(mut self) {
        for sandbox in self
            .control("GET /v2/sandboxes", &Value::Null)
            .is(200)
            .json()
            .as_array()
            .expect("a list")
        {
            let id = sandbox["sandboxID"].as_str().expect("a name");
            self.control(&format!("DELETE /sandboxes/{id}"), &Value::Null).is(204);
        }
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::INT).expect("asked to end");
        assert!(self.child.wait().expect("ended").success());
    }
}

impl Server {
    /// Ends the VMs that a test leaves when it fails.
    fn end_vms(&self) {
        for vm in fs::read_dir(&self.vms).into_iter().flatten().flatten() {
            let pid = fs::read_to_string(vm.path().join("qemu.pid")).unwrap_or_default();
            if let Some(pid) = pid.trim().parse().ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended is as wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            self.end_vms();
        }
    }
}

impl Sandbox {
    pub(super) fn of(made: &Value) -> Self {
        let text = |name: &str| made[name].as_str().expect("is there").to_owned();
        Self { id: text("sandboxID"), token: text("envdAccessToken") }
    }

    pub(super) fn headers<'a>(&'a self, kind: &'a str) -> [(&'a str, &'a str); 3] {
        [("E2b-Sandbox-Id", &self.id), ("X-Access-Token", &self.token), ("Content-Type", kind)]
    }
}

impl Answer {
    pub(super) fn read(mut stream: TcpStream) -> Self {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("an answer");
        let end = all.windows(4).position(|it| it == b"\r\n\r\n").expect("a head");
        let headers = String::from_utf8(all[..end].to_vec()).expect("is text");
        let status = headers.split(' ').nth(1).expect("a status").parse().expect("a number");
        Self { status, headers: headers.to_lowercase(), body: all[end + 4..].to_vec() }
    }

    /// Checks the status.
    pub(super) fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("is JSON")
    }
}

/// Returns the events of a stream, but for its end.
pub(super) fn events(mut bytes: &[u8]) -> Vec<Value> {
    let mut events = Vec::new();
    while let Some(([flags, length @ ..], rest)) = bytes.split_first_chunk::<5>() {
        let length = u32::from_be_bytes(*length) as usize;
        let (message, rest) = rest.split_at(length);
        if *flags == 0 {
            events
                .push(serde_json::from_slice::<Value>(message).expect("is JSON")["event"].clone());
        } else {
            assert_eq!(message, b"{}", "{}", String::from_utf8_lossy(message));
        }
        bytes = rest;
    }
    events
}

/// Returns the bytes that an event brings.
pub(super) fn stdout_of(event: &Value) -> Vec<u8> {
    use base64::Engine as _;
    let text = event["data"]["stdout"].as_str().unwrap_or_default();
    base64::engine::general_purpose::STANDARD.decode(text).expect("is base64")
}
