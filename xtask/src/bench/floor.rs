//! Lower bound of a warm start: the same QEMU restores the same template by a few hand-made calls,
//! and one `ssh` runs a command in it. No records, no checks, no sandbox, and the disk exists
//! already.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use castra_wire::{HostMessage, Personality, Secret};

use super::common::only_entry;
use super::plain::{chardev, command_line_of, disk_value, helper};

/// Time after which an operation counts as hung.
const LIMIT: Duration = Duration::from_secs(60);
/// Interval at which a socket that does not exist yet is tried.
const RETRY: Duration = Duration::from_millis(1);

/// Parameters for restoring a template by hand.
pub(super) struct Floor {
    program: PathBuf,
    arguments: Vec<String>,
    directory: PathBuf,
    state: PathBuf,
    overlay: PathBuf,
    backing_file: String,
    port: String,
}

impl Floor {
    /// Takes QEMU's arguments from the VM that runs in `directory` and was restored from a
    /// template.
    pub(super) fn like_the_running_vm(directory: &Path) -> Result<Self, String> {
        let state_root = directory.join(".castra");
        let vm = only_entry(&state_root.join("vms"))?;
        let (program, words) = command_line_of(&vm)?;
        let memory =
            words.iter().find_map(|word| word.split("mem-path=").nth(1)).ok_or("the VM booted")?;
        let template = Path::new(memory).parent().ok_or("no template")?.to_owned();
        let layer = only_entry(&state_root.join("templates"))?;
        let layer = layer.file_name().ok_or("no layer")?.to_string_lossy().into_owned();
        let forward = words.iter().find_map(|word| word.split("hostfwd=tcp:127.0.0.1:").nth(1));
        let port = forward.and_then(|rest| rest.split('-').next()).ok_or("no port")?.to_owned();
        let own = directory.join("floor");
        fs::create_dir_all(&own).map_err(|error| error.to_string())?;
        for key in ["host_key", "client_key"] {
            fs::copy(vm.join(key), own.join(key)).map_err(|error| error.to_string())?;
        }
        let overlay = state_root.join("floor.qcow2");
        let arguments = arguments(&words, &own, &overlay);
        let backing_file = format!("templates/{layer}/disk.qcow2");
        let state = template.join("device.state");
        Ok(Self { program, arguments, directory: own, state, overlay, backing_file, port })
    }

    /// Measures the time from QEMU's start to the first command's output.
    pub(super) fn to_first_output(&self) -> Result<Duration, String> {
        let overlay = self.overlay.to_string_lossy();
        // The disk is created before the clock starts.
        let create =
            ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &self.backing_file, &overlay];
        helper("qemu-img", &create)?;
        let message = self.personality()?;
        let started = Instant::now();
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let mut qemu = command.spawn().map_err(|error| error.to_string())?;
        let outcome = self.bring_up(&mut qemu, &message).map(|()| started.elapsed());
        let _ = qemu.kill();
        let _ = qemu.wait();
        fs::remove_file(&self.overlay).map_err(|error| error.to_string())?;
        outcome
    }

    fn bring_up(&self, qemu: &mut Child, message: &[u8]) -> Result<(), String> {
        let mut qmp = Lines::connect(&self.directory.join("qmp.sock"), qemu)?;
        qmp.next()?;
        let ignore = r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"x-ignore-shared","state":true}]}}"#;
        let load = format!(
            r#"{{"execute":"migrate-incoming","arguments":{{"uri":"exec:cat {}"}}}}"#,
            self.state.display()
        );
        for command in [r#"{"execute":"qmp_capabilities"}"#, ignore, &load] {
            qmp.ask(command)?;
        }
        while qmp.ask(r#"{"execute":"query-status"}"#)?.contains("inmigrate") {}
        qmp.ask(r#"{"execute":"cont"}"#)?;
        let mut control = Lines::connect(&self.directory.join("control.sock"), qemu)?;
        control.socket.get_mut().write_all(message).map_err(|error| error.to_string())?;
        while !control.next()?.contains("\"personalised\"") {}
        let key = self.directory.join("client_key");
        let options = [
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
        ];
        let target = [
            "-p",
            &self.port,
            "-i",
            &key.to_string_lossy(),
            "root@127.0.0.1",
            "cat /etc/alpine-release",
        ];
        helper("ssh", &[&["-F", "/dev/null"], options.as_slice(), target.as_slice()].concat())
            .map(drop)
    }

    fn personality(&self) -> Result<Vec<u8>, String> {
        let client_key = self.directory.join("client_key");
        let public = helper("ssh-keygen", &["-y", "-f", &client_key.to_string_lossy()])?;
        let host_key =
            fs::read(self.directory.join("host_key")).map_err(|error| error.to_string())?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(castra_wire::encode(&HostMessage::Personalise(Personality {
            time_unix_ns: u64::try_from(now.as_nanos()).unwrap_or_default(),
            entropy: Secret::new(vec![7; 64]),
            hostname: "floor".into(),
            machine_id: "0".repeat(32),
            host_key: Secret::new(host_key),
            authorized_keys: vec![public.trim().to_owned()],
            relays: None,
            disks: None,
        })))
    }
}

/// Returns QEMU's arguments with paths of sockets instead of inherited ones, and without the
/// sandbox, since QEMU's `exec:` starts a process.
fn arguments(words: &[String], directory: &Path, overlay: &Path) -> Vec<String> {
    let mut changed = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(option) = words.next() {
        let value = words.next_if(|next| !next.starts_with('-'));
        let value = match (option.as_str(), value) {
            ("-sandbox" | "-pidfile", _) => continue,
            ("-chardev", Some(value)) => {
                let (id, directory) = (chardev(value), directory.display());
                Some(format!("socket,id={id},path={directory}/{id}.sock,server=on,wait=off"))
            }
            ("-blockdev", Some(value)) => match disk_value(value, overlay) {
                Some(value) => Some(value),
                None => continue,
            },
            (_, value) => value.cloned(),
        };
        changed.push(option.clone());
        changed.extend(value);
    }
    changed
}

/// A socket for lines of text.
struct Lines {
    socket: BufReader<UnixStream>,
}

impl Lines {
    fn connect(path: &Path, qemu: &mut Child) -> Result<Self, String> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match UnixStream::connect(path) {
                Ok(socket) => {
                    socket.set_read_timeout(Some(LIMIT)).map_err(|error| error.to_string())?;
                    return Ok(Self { socket: BufReader::new(socket) });
                }
                Err(error) if Instant::now() > deadline || !matches!(qemu.try_wait(), Ok(None)) => {
                    return Err(format!("{}: {error}", path.display()));
                }
                Err(_) => std::thread::sleep(RETRY),
            }
        }
    }

    fn next(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.socket.read_line(&mut line) {
            Ok(0) => Err("QEMU has gone".into()),
            Ok(_) => Ok(line),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Sends a command and returns the answer; skips events.
    fn ask(&mut self, command: &str) -> Result<String, String> {
        self.socket
            .get_mut()
            .write_all(format!("{command}\n").as_bytes())
            .map_err(|error| error.to_string())?;
        loop {
            let line = self.next()?;
            if line.contains("\"error\"") {
                return Err(line);
            }
            if line.contains("\"return\"") {
                return Ok(line);
            }
        }
    }
}
