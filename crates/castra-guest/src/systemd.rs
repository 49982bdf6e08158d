//! systemd as the guest's init: what it says about the boot.
//!
//! It is asked over its private socket, in the least of D-Bus that this takes: a process of
//! `systemctl` costs an emulated CPU a tenth of a second, and before the bus is up, `systemctl`
//! uses the same socket.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use castra_wire::AgentTask;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::cloud_init;
use crate::events::{EventSender, Milestone};
use crate::kernel_fs::KernelFs;
use crate::log::log;

/// Socket on which systemd serves root without a bus.
const SOCKET: &str = "/run/systemd/private";

/// Interval at which [`FILESYSTEMS_SIGN`] is looked for, and at which systemd is asked once that is
/// there.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Interval between questions once commands can run. systemd sets up its whole interface for each
/// connection, and sends it what happens to all units as long as it lasts: an emulated CPU has
/// better things to do.
const ASK_EVERY: Duration = Duration::from_millis(800);

/// Part of the time since the start after which systemd is asked although there is no sign yet, so
/// that a system without it is not much later than it has to be.
const SHARE_WITHOUT_SIGN: u32 = 4;

/// File that systemd leaves for the journal when it starts a service which is ordered after the
/// local filesystems. One of the initrd's systemd may be there from the beginning.
const FILESYSTEMS_SIGN: &str = "/run/systemd/units/invocation:systemd-tmpfiles-setup.service";

/// Time for one answer. systemd answers between two of its tasks.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Time after which commands run although the local filesystems are not mounted. systemd itself
/// waits 90 s for a device that is missing, and then enters emergency mode.
const USABLE_LIMIT: Duration = Duration::from_secs(100);

/// Largest message; what systemd sends are names and states.
const MAX_MESSAGE_BYTES: u32 = 1 << 20;

/// Returns `true` if the root's init is systemd. Right after the root is entered, PID 1 has not
/// started it yet.
pub(crate) fn is_init(kernel_fs: &KernelFs) -> bool {
    let command_line = kernel_fs.proc.read("cmdline").unwrap_or_default();
    let mut inits = command_line.split_whitespace().filter_map(|word| word.strip_prefix("init="));
    let init = Path::new(inits.next_back().unwrap_or("/sbin/init"));
    let program = fs::canonicalize(init).unwrap_or_default();
    program.file_name().is_some_and(|name| name == "systemd")
}

/// Reports when commands can run. Ends once the services are up and, if it has data of the user's,
/// cloud-init is done: it ends after the default target, and after its own failure there is no sign
/// of it but that systemd has nothing left to do.
pub(crate) async fn follow(events: &EventSender) {
    let start = Instant::now();
    let (mut is_usable, mut is_in_maintenance) = (false, false);
    let mut asked = start;
    loop {
        sleep(LOOK_EVERY).await;
        let has_sign = !is_usable && fs::symlink_metadata(FILESYSTEMS_SIGN).is_ok();
        let pause = if is_usable { ASK_EVERY } else { start.elapsed() / SHARE_WITHOUT_SIGN };
        if !has_sign && asked.elapsed() < pause {
            continue;
        }
        // Not ready to answer yet, or about to become the root's systemd.
        let look = spawn_blocking(Look::take).await.map_err(io::Error::from).flatten();
        let look = look.unwrap_or_default();
        asked = Instant::now();
        if look.is_in_maintenance && !is_in_maintenance {
            let reason = "the system is in emergency or rescue mode; `systemctl --failed` and \
                          `journalctl -xb` in the VM say why";
            log(reason);
            events.failed(AgentTask::FollowBoot, reason);
        }
        is_in_maintenance = look.is_in_maintenance;
        let is_late = start.elapsed() >= USABLE_LIMIT;
        if !is_usable && (look.has_filesystems || look.is_up || is_in_maintenance || is_late) {
            is_usable = true;
            if is_late {
                let seconds = USABLE_LIMIT.as_secs();
                log(format!("systemd has not mounted the local filesystems after {seconds} s"));
            }
            events.reached(Milestone::Usable);
        }
        let is_waiting = !look.has_finished && cloud_init::is_awaited();
        if look.is_up && !is_waiting {
            return;
        }
    }
}

/// State of a boot.
#[derive(Debug, Default)]
struct Look {
    /// The local filesystems are mounted.
    has_filesystems: bool,
    /// Emergency or rescue mode.
    is_in_maintenance: bool,
    /// The services are started, successfully or not.
    is_up: bool,
    /// No job is left.
    has_finished: bool,
}

impl Look {
    fn take() -> io::Result<Self> {
        let mut manager = Manager::connect(Path::new(SOCKET))?;
        let state = manager.property("/org/freedesktop/systemd1", "Manager", "SystemState")?;
        // A service that waits for long does not make all others wait: the default target is
        // active before the last job is done, and after it has failed.
        let has_finished = matches!(state.as_str(), "running" | "degraded");
        Ok(Self {
            has_filesystems: has_finished || manager.is_active("local_2dfs_2etarget")?,
            is_in_maintenance: state == "maintenance",
            is_up: has_finished || manager.is_active("default_2etarget")?,
            has_finished,
        })
    }
}

/// Connection to systemd.
struct Manager(BufReader<UnixStream>);

impl Manager {
    fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        let mut manager = Self(BufReader::new(stream));
        // The user is root, and 30 is the digit 0 in hexadecimal ("Authentication Protocol" in the
        // specification of D-Bus).
        manager.0.get_mut().write_all(b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n")?;
        let mut answer = String::new();
        (&mut manager.0).take(256).read_line(&mut answer)?;
        if answer.starts_with("OK ") { Ok(manager) } else { Err(io::Error::other(answer)) }
    }

    fn is_active(&mut self, unit: &str) -> io::Result<bool> {
        let path = format!("/org/freedesktop/systemd1/unit/{unit}");
        Ok(self.property(&path, "Unit", "ActiveState")? == "active")
    }

    /// Returns a property that is a text.
    fn property(&mut self, path: &str, interface: &str, name: &str) -> io::Result<String> {
        let interface = format!("org.freedesktop.systemd1.{interface}");
        self.0.get_mut().write_all(&get_property(path, &interface, name))?;
        loop {
            // Signals may come before the answer, to the only question there is.
            let (kind, body) = self.receive()?;
            match kind {
                METHOD_RETURN => {
                    return text_in_variant(&body).ok_or_else(|| io::ErrorKind::InvalidData.into());
                }
                ERROR => return Err(io::Error::other("systemd refuses")),
                _ => {}
            }
        }
    }

    /// Returns the kind and the body of the next message.
    fn receive(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut fixed = [0; 16];
        self.0.read_exact(&mut fixed)?;
        let number =
            |at: usize| u32::from_le_bytes([0_usize, 1, 2, 3].map(|offset| fixed[at + offset]));
        let (body_bytes, fields_bytes) = (number(4), number(12));
        if fixed[0] != b'l' || body_bytes.max(fields_bytes) > MAX_MESSAGE_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut skipped = vec![0; fields_bytes.next_multiple_of(8) as usize];
        self.0.read_exact(&mut skipped)?;
        let mut body = vec![0; body_bytes as usize];
        self.0.read_exact(&mut body)?;
        Ok((fixed[1], body))
    }
}

/// Kinds of messages ("Message Format" in the specification of D-Bus).
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;

/// Returns the call of `org.freedesktop.DBus.Properties.Get`.
fn get_property(path: &str, interface: &str, name: &str) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, interface);
    text(&mut body, name);
    let mut fields = Vec::new();
    let names = [(1, b'o', path), (2, b's', "org.freedesktop.DBus.Properties"), (3, b's', "Get")];
    for (code, kind, value) in names {
        fields.resize(fields.len().next_multiple_of(8), 0);
        fields.extend([code, 1, kind, 0]);
        text(&mut fields, value);
    }
    fields.resize(fields.len().next_multiple_of(8), 0);
    // The body's signature: two texts.
    fields.extend(*b"\x08\x01g\0\x02ss\0");
    let mut call = vec![b'l', METHOD_CALL, 0, 1];
    call.extend(length(&body));
    call.extend(1_u32.to_le_bytes());
    call.extend(length(&fields));
    call.extend(&fields);
    call.resize(call.len().next_multiple_of(8), 0);
    call.extend(body);
    call
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(length(text.as_bytes()));
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes()
}

/// Returns the text in a variant, which begins with its signature.
fn text_in_variant(body: &[u8]) -> Option<String> {
    let (signature, rest) = body.split_at_checked(4)?;
    let (length, rest) = rest.split_at_checked(4)?;
    let length = u32::from_le_bytes(length.try_into().ok()?);
    let text = rest.get(..usize::try_from(length).ok()?)?;
    (signature == b"\x01s\0\0").then(|| String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// The call as the specification lays it out.
    const CALL: &[u8] = b"l\x01\0\x01\x38\0\0\0\x01\0\0\0\x68\0\0\0\
\x01\x01o\0\x19\0\0\0/org/freedesktop/systemd1\0\0\0\0\0\0\0\
\x02\x01s\0\x1f\0\0\0org.freedesktop.DBus.Properties\0\
\x03\x01s\0\x03\0\0\0Get\0\0\0\0\0\
\x08\x01g\0\x02ss\0\
\x20\0\0\0org.freedesktop.systemd1.Manager\0\0\0\0\
\x0b\0\0\0SystemState\0";

    #[test]
    fn a_question_is_valid_dbus() {
        let call = get_property(
            "/org/freedesktop/systemd1",
            "org.freedesktop.systemd1.Manager",
            "SystemState",
        );
        assert_eq!(call.escape_ascii().to_string(), CALL.escape_ascii().to_string());
    }

    #[test]
    fn an_answer_is_found_behind_a_signal() {
        let path = std::env::temp_dir().join(format!("castra-systemd-{}", std::process::id()));
        let listener = UnixListener::bind(&path).expect("listens");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = vec![0; b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n".len() + CALL.len()];
            stream.write_all(b"OK 0123456789abcdef\r\n").expect("writes");
            stream.read_exact(&mut request).expect("reads");
            assert!(request.ends_with(CALL));
            stream
                .write_all(b"l\x04\0\x01\x04\0\0\0\x01\0\0\0\x02\0\0\0ab\0\0\0\0\0\0body")
                .expect("writes");
            let answer = b"l\x02\0\x01\x10\0\0\0\x02\0\0\0\0\0\0\0\x01s\0\0\x07\0\0\0running\0";
            stream.write_all(answer).expect("writes");
        });
        let mut manager = Manager::connect(&path).expect("connects");
        let state = manager.property("/org/freedesktop/systemd1", "Manager", "SystemState");
        assert_eq!(state.expect("answers"), "running");
        server.join().expect("served");
        fs::remove_file(&path).expect("tidies up");
    }

    #[test]
    fn other_variants_are_no_text() {
        assert_eq!(text_in_variant(b"\x01s\0\0\x02\0\0\0ab\0").as_deref(), Some("ab"));
        for body in [&b"\x01u\0\0\x02\0\0\0ab\0"[..], b"\x01s\0\0\x09\0\0\0ab\0", b"\x01s", b""] {
            assert_eq!(text_in_variant(body), None);
        }
    }
}
