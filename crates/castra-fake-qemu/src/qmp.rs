//! QEMU's machine protocol, served well or badly.

use std::collections::HashMap;
use std::io::{self, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

use crate::machine::Machine;

/// Size of an answer that no QEMU would give.
const GIANT_BYTES: usize = 10_000_000;

/// Returns the listening socket with this number, which castra has passed on.
#[expect(unsafe_code, reason = "an inherited descriptor is known by its number alone")]
pub(crate) fn listener(number: RawFd) -> UnixListener {
    // SAFETY: castra passes these sockets to this process only, each number is taken once.
    unsafe { UnixListener::from_raw_fd(number) }
}

/// Serves one client after another, as QEMU does.
pub(crate) fn serve(machine: &Machine) {
    let mut files = HashMap::new();
    for stream in listener(machine.arguments.qmp).incoming().flatten() {
        // A client that disconnects is not an error.
        let _ = converse(machine, &stream, &mut files);
    }
}

fn converse(
    machine: &Machine,
    stream: &UnixStream,
    files: &mut HashMap<String, OwnedFd>,
) -> io::Result<()> {
    if machine.behaviour.has("qmp-silent") {
        return hear(stream, |_, _| Ok(()));
    }
    if machine.behaviour.has("qmp-garbage") {
        send(stream, b"SSH-2.0-OpenSSH_9.2\r\n")?;
    } else {
        let version = json!({ "qemu": { "major": 7, "minor": 2, "micro": 0 }, "package": "" });
        send_json(stream, &json!({ "QMP": { "version": version, "capabilities": [] } }))?;
    }
    hear(stream, |line, file| {
        let request: Value = serde_json::from_slice(line)?;
        let command = request["execute"].as_str().unwrap_or_default();
        if spoil(machine, stream)? {
            return Ok(());
        }
        let answer = execute(machine, command, &request["arguments"], file, files);
        let key = if answer.get("class").is_some() { "error" } else { "return" };
        // Gone before it has answered, as QEMU may be.
        send_json(stream, &json!({ key: answer, "id": request["id"] }))?;
        if command == "quit" && !machine.behaviour.has("ignores-quit") {
            machine.end("by quit");
        }
        Ok(())
    })
}

/// Returns `true` if something other than an answer was sent.
fn spoil(machine: &Machine, stream: &UnixStream) -> io::Result<bool> {
    let behaviour = &machine.behaviour;
    if behaviour.has("qmp-half-line") {
        send(stream, b"{\"return\": ")?;
    } else if behaviour.has("qmp-giant-line") {
        send(stream, &vec![b'x'; GIANT_BYTES])?;
        send(stream, b"\n")?;
    } else if behaviour.has("qmp-wrong-id") {
        send_json(stream, &json!({ "return": {}, "id": "of another" }))?;
    } else if behaviour.has("qmp-reset") {
        return Err(io::ErrorKind::ConnectionReset.into());
    } else {
        return Ok(false);
    }
    Ok(true)
}

fn execute(
    machine: &Machine,
    command: &str,
    arguments: &Value,
    file: Option<OwnedFd>,
    files: &mut HashMap<String, OwnedFd>,
) -> Value {
    let mut named = || {
        let name = arguments["uri"].as_str().and_then(|uri| uri.strip_prefix("fd:"));
        name.and_then(|name| files.remove(name))
    };
    match command {
        "qmp_capabilities" | "quit" | "migrate-set-parameters" | "migrate_cancel" => {}
        "query-status" => {
            let (status, is_running) = machine.status();
            return json!({ "status": status, "running": is_running });
        }
        "query-chardev" => {
            let is_there = !machine.behaviour.has("agent-gone");
            return json!([{ "label": "qmp", "frontend-open": true },
                { "label": "control", "frontend-open": is_there }]);
        }
        "cont" => machine.cont(),
        "stop" => machine.stop(),
        // A paused guest does not notice.
        "system_powerdown" if machine.behaviour.has("ignores-powerdown") || !machine.status().1 => {
        }
        "system_powerdown" => machine.end("by its power button"),
        "getfd" => match (arguments["fdname"].as_str(), file) {
            (Some(name), Some(file)) => drop(files.insert(name.to_owned(), file)),
            _ => return refusal("No file descriptor supplied via SCM_RIGHTS"),
        },
        "migrate-set-capabilities" => {
            machine.leave_memory_out(arguments["capabilities"][0]["state"] == true);
        }
        "migrate" => match named() {
            Some(file) => machine.save(file),
            None => return refusal("File descriptor named 'castra-state' has not been found"),
        },
        "migrate-incoming" => match named() {
            Some(file) => machine.load(file),
            None => return refusal("File descriptor named 'castra-state' has not been found"),
        },
        "query-migrate" => {
            return match machine.is_saved() {
                Some(true) => json!({ "status": "completed" }),
                Some(false) => json!({ "status": "failed", "error-desc": "the disk is full" }),
                None => json!({}),
            };
        }
        other => return refusal(&format!("The command {other} has not been found")),
    }
    json!({})
}

fn refusal(description: &str) -> Value {
    json!({ "class": "GenericError", "desc": description })
}

/// Passes each line to `on_line`, with the file that came along, until the client disconnects.
fn hear(
    stream: &UnixStream,
    mut on_line: impl FnMut(&[u8], Option<OwnedFd>) -> io::Result<()>,
) -> io::Result<()> {
    let mut held = Vec::new();
    let mut file = None;
    loop {
        let mut chunk = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut chunk)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(mut files) = message {
                file = files.next();
            }
        }
        if received.bytes == 0 {
            return Ok(());
        }
        held.extend_from_slice(&chunk[..received.bytes]);
        while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = held.drain(..=end).collect();
            on_line(&line, file.take())?;
        }
    }
}

fn send_json(stream: &UnixStream, value: &Value) -> io::Result<()> {
    send(stream, format!("{value}\r\n").as_bytes())
}

fn send(mut stream: &UnixStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)
}
