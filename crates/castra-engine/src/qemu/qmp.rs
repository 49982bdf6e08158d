//! A small client of the QEMU machine protocol: short sessions, every wait bounded.

use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

use crate::cancel::Interrupted;
use crate::wait::{Wait, WaitEnd, WaitLimit, connect_at_once};

/// Interval between tries of a connection while QEMU's queue is full.
const RETRY: Duration = Duration::from_millis(5);

/// Longest line that is accepted, in bytes. QEMU's answers to Castra's commands are a few KiB.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Maximum number of events skipped before one answer: a peer that sends more is not QEMU.
const MAX_EVENTS_PER_ANSWER: usize = 1000;

/// A session. QEMU serves one client at a time, so it is dropped as soon as possible.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    limit: WaitLimit,
    version: String,
}

/// Reason why a session failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket failed.
    #[error("the QMP socket failed")]
    Io(#[from] io::Error),
    /// No answer arrived in time.
    #[error("no response on the QMP socket within {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// The user interrupted it.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// QEMU closed the connection, or died.
    #[error("QEMU closed the QMP connection")]
    Closed,
    /// The peer does not speak the protocol.
    #[error("not QMP: {0}")]
    Malformed(String),
    /// QEMU refused a command.
    #[error("QEMU refused {command}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's message.
        description: String,
    },
}

/// Returns `true` if a process listens at this socket. Never waits.
pub fn is_listened_at(socket: &Path) -> bool {
    match connect_at_once(socket) {
        // A full queue belongs to a listener, too.
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        Ok(_) => true,
    }
}

impl Qmp {
    /// Opens a session in which each wait, this one included, has this limit.
    ///
    /// # Errors
    /// Every variant of [`QmpError`] but `Refused`.
    pub fn connect(socket: &Path, limit: WaitLimit) -> Result<Self, QmpError> {
        let wait = limit.begin();
        loop {
            match connect_at_once(socket) {
                // The queue of connections is full; a blocking `connect` might never return.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait.sleep(RETRY)?,
                other => return Self::greet(other?, limit),
            }
        }
    }

    /// Opens a session on an existing connection.
    ///
    /// # Errors
    /// As for [`Self::connect`].
    pub fn greet(stream: UnixStream, limit: WaitLimit) -> Result<Self, QmpError> {
        let wait = limit.begin();
        let mut session = Self { stream: BufReader::new(stream), limit, version: String::new() };
        let greeting = session.read(&wait)?;
        session.version = version(&greeting["QMP"]["version"]["qemu"]).ok_or_else(|| {
            QmpError::Malformed(format!("a greeting without a version: {greeting}"))
        })?;
        session.execute("qmp_capabilities", json!({}))?;
        Ok(session)
    }

    /// Returns QEMU's version, from its greeting.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Executes one command and returns its `return` value.
    ///
    /// # Errors
    /// Every variant of [`QmpError`].
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        tracing::debug!(command, "QMP");
        self.write(&request(command, arguments))?;
        self.answer(command)
    }

    /// Passes QEMU an open file, which later commands refer to by this name.
    ///
    /// # Errors
    /// As for [`Self::execute`].
    pub fn send_file(&mut self, name: &str, file: BorrowedFd<'_>) -> Result<(), QmpError> {
        let line = request("getfd", json!({ "fdname": name }));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files = [file];
        ancillary.push(SendAncillaryMessage::ScmRights(&files));
        let sent = sendmsg(
            self.stream.get_ref(),
            &[IoSlice::new(&line)],
            &mut ancillary,
            SendFlags::empty(),
        )
        .map_err(|errno| failed(errno.into()))?;
        // The file accompanies the first byte; so short a line is usually sent whole, else the rest
        // follows.
        self.write(&line[sent..])?;
        self.answer("getfd").map(drop)
    }

    fn answer(&mut self, command: &str) -> Result<Value, QmpError> {
        let wait = self.limit.begin();
        for _ in 0..MAX_EVENTS_PER_ANSWER {
            let mut answer = self.read(&wait)?;
            if answer.get("event").is_some() {
                continue;
            }
            if answer["id"] != command {
                return Err(QmpError::Malformed(format!(
                    "unexpected response to {command}: {answer}"
                )));
            }
            if let Some(description) = answer["error"]["desc"].as_str() {
                return Err(QmpError::Refused {
                    command: command.into(),
                    description: description.into(),
                });
            }
            return Ok(answer["return"].take());
        }
        Err(QmpError::Malformed(format!(
            "{MAX_EVENTS_PER_ANSWER} events and no response to {command}"
        )))
    }

    /// Waits until the machine is shut down. Returns the reason in QEMU's words, such as
    /// `guest-shutdown`. The session must have begun before; a shutdown during another wait is
    /// missed, and then [`QmpError::Closed`].
    ///
    /// # Errors
    /// Every variant of [`QmpError`] but `Refused`.
    pub fn await_shutdown(&mut self) -> Result<String, QmpError> {
        let wait = self.limit.begin();
        loop {
            let message = self.read(&wait)?;
            if message["event"] == "SHUTDOWN" {
                return Ok(message["data"]["reason"].as_str().unwrap_or_default().to_owned());
            }
        }
    }

    /// Asks QEMU to end at once. A QEMU that is gone before it has answered is no error.
    ///
    /// # Errors
    /// Every other failure.
    pub fn quit(&mut self) -> Result<(), QmpError> {
        match self.execute("quit", json!({})) {
            Ok(_) | Err(QmpError::Closed) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn read(&mut self, wait: &Wait) -> Result<Value, QmpError> {
        let mut line = Vec::new();
        // A line may arrive in pieces; each wait gets the rest of the time.
        while !line.ends_with(b"\n") {
            if line.len() as u64 >= MAX_LINE_BYTES {
                return Err(QmpError::Malformed(format!(
                    "a line of more than {MAX_LINE_BYTES} bytes"
                )));
            }
            self.stream.get_ref().set_read_timeout(Some(wait.slice()?))?;
            let room = MAX_LINE_BYTES - line.len() as u64;
            match (&mut self.stream).take(room).read_until(b'\n', &mut line) {
                Ok(0) => return Err(QmpError::Closed),
                Ok(_) => {}
                Err(error) if is_early(&error) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        serde_json::from_slice(&line).map_err(|error| QmpError::Malformed(error.to_string()))
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), QmpError> {
        let wait = self.limit.begin();
        while !bytes.is_empty() {
            self.stream.get_ref().set_write_timeout(Some(wait.slice()?))?;
            match self.stream.get_mut().write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if is_early(&error) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }
}

/// Returns `true` if nothing is wrong except that a slice of the wait is over.
fn is_early(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

fn failed(error: io::Error) -> QmpError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => QmpError::Closed,
        _ => QmpError::Io(error),
    }
}

impl From<WaitEnd> for QmpError {
    fn from(end: WaitEnd) -> Self {
        match end {
            WaitEnd::Over(limit) => Self::Silent(limit),
            WaitEnd::Interrupted(interrupted) => Self::Interrupted(interrupted),
        }
    }
}

fn request(command: &str, arguments: Value) -> Vec<u8> {
    let mut request = json!({ "execute": command, "id": command });
    if arguments.as_object().is_some_and(|map| !map.is_empty()) {
        request["arguments"] = arguments;
    }
    let mut line = request.to_string().into_bytes();
    line.push(b'\n');
    line
}

fn version(qemu: &Value) -> Option<String> {
    Some(format!(
        "{}.{}.{}",
        qemu["major"].as_u64()?,
        qemu["minor"].as_u64()?,
        qemu["micro"].as_u64()?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::Cancel;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}"#;
    const LIMIT: Duration = Duration::from_millis(200);

    fn limit(length: Duration) -> WaitLimit {
        WaitLimit::new(length, &Cancel::new())
    }

    /// Opens a session with a peer that answers each line with the next of these, then closes.
    fn session(answers: &'static [&'static str]) -> Result<Qmp, QmpError> {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        std::thread::spawn(move || {
            let mut writer = theirs.try_clone().expect("cloned");
            let mut reader = BufReader::new(theirs);
            writeln!(writer, "{GREETING}").expect("greeted");
            for answer in answers {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0
                    || writer.write_all(answer.as_bytes()).is_err()
                {
                    return;
                }
            }
            // Stays open until the client has gone, so that silence is not an end.
            let _ = reader.read_to_end(&mut Vec::new());
        });
        Qmp::greet(ours, limit(LIMIT))
    }

    const READY: &str = "{\"return\": {}, \"id\": \"qmp_capabilities\"}\n";

    #[test]
    fn events_are_skipped_and_the_answer_comes_back() {
        let event = "{\"event\": \"RESUME\", \"timestamp\": {}}\n\
            {\"return\": {\"status\": \"running\"}, \"id\": \"query-status\"}\n";
        let mut qmp = session(Box::leak(Box::new([READY, event]))).expect("greeted");
        assert_eq!(qmp.version(), "7.2.22");
        assert_eq!(qmp.execute("query-status", json!({})).expect("answered")["status"], "running");
    }

    #[test]
    fn a_shutdown_has_its_reason() {
        let down = "{\"return\": {}, \"id\": \"qmp_capabilities\"}\n\
            {\"event\": \"RESUME\"}\n\
            {\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-reset\"}}\n";
        let mut qmp = session(Box::leak(Box::new([down]))).expect("greeted");
        assert_eq!(qmp.await_shutdown().expect("shut down"), "guest-reset");
        assert!(matches!(qmp.await_shutdown(), Err(QmpError::Silent(_))));
    }

    #[test]
    fn a_refusal_has_qemus_words() {
        let refusal = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such device\"}, \
            \"id\": \"device_del\"}\n";
        let mut qmp = session(Box::leak(Box::new([READY, refusal]))).expect("greeted");
        let error = qmp.execute("device_del", json!({ "id": "x" })).expect_err("refused");
        assert_eq!(error.to_string(), "QEMU refused device_del: no such device");
    }

    #[test]
    fn half_a_line_is_silence_not_an_answer() {
        let mut qmp = session(&[READY, "{\"return\": "]).expect("greeted");
        assert!(matches!(qmp.execute("query-status", json!({})), Err(QmpError::Silent(_))));
    }

    #[test]
    fn an_interruption_ends_the_wait_for_an_answer() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let cancel = Cancel::new();
        let limit = WaitLimit::new(Duration::from_secs(3600), &cancel);
        let waiting = std::thread::spawn(move || Qmp::greet(ours, limit));
        cancel.cancel();
        assert!(matches!(waiting.join().expect("no panic"), Err(QmpError::Interrupted(_))));
    }

    #[test]
    fn a_queue_that_is_full_is_waited_for_no_longer_than_the_limit() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("qmp.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
        let waiting: Vec<_> =
            std::iter::from_fn(|| connect_at_once(&path).ok()).take(100_000).collect();
        assert!(!waiting.is_empty());
        assert!(matches!(Qmp::connect(&path, limit(LIMIT)), Err(QmpError::Silent(LIMIT))));
    }

    #[test]
    fn an_answer_to_something_else_is_refused() {
        let mut qmp = session(&[READY, "{\"return\": {}, \"id\": \"stop\"}\n"]).expect("greeted");
        assert!(matches!(qmp.execute("cont", json!({})), Err(QmpError::Malformed(_))));
    }

    #[test]
    fn an_endless_line_is_refused() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        std::thread::spawn(move || while theirs.write_all(&[b'x'; 65536]).is_ok() {});
        assert!(matches!(
            Qmp::greet(ours, limit(Duration::from_secs(20))),
            Err(QmpError::Malformed(_))
        ));
    }

    #[test]
    fn a_closed_connection_is_distinguished_from_silence() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        drop(theirs);
        assert!(matches!(Qmp::greet(ours, limit(LIMIT)), Err(QmpError::Closed)));
    }
}
