//! The host's end of the control port.
//!
//! The other end is a guest that may run anything, so nothing that comes from it is trusted: lines,
//! messages and garbage are limited, every wait has a deadline, and text is sanitised before it
//! leaves this module.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use castra_wire::{
    Condition, DecodeError, Envelope, GuestMessage, HostMessage, Lines, MAX_LINE_BYTES,
    PROTOCOL_VERSION, Personality, RootGrowth, Secret, ServicePort, Session,
};

use crate::cancel::{Cancel, Interrupted};
use crate::error::{Explain, Kind};
use crate::host::random_bytes;
use crate::sanitize::sanitize;
use crate::wait::connect_at_once;

/// Interval at which a wait checks whether it is to stop.
const GLANCE: Duration = Duration::from_millis(50);

/// Interval at which a socket that does not exist yet is tried. QEMU creates it within
/// milliseconds.
const RETRY: Duration = Duration::from_millis(5);

/// Time for the guest to take a message.
const SEND_LIMIT: Duration = Duration::from_secs(10);

/// Bytes that may be skipped on one connection: the rest of a line that an earlier host left
/// behind, and some more.
const MAX_GARBAGE_BYTES: usize = 1024 * 1024;

/// Maximum number of messages on one connection. An agent sends about ten.
const MAX_MESSAGES: u32 = 10_000;

/// An open control port. Dropping it detaches, which does not affect the guest.
#[derive(Debug)]
pub struct ControlPort {
    socket: UnixStream,
    /// Session of this connection, which distinguishes answers to it from messages meant for an
    /// earlier one.
    session: Session,
    cancel: Cancel,
    lines: Lines,
    garbage_bytes: usize,
    messages: u32,
}

/// Error of a conversation with the agent.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// QEMU's socket cannot be reached.
    #[error("cannot reach the guest's control port at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The agent has not sent anything before the deadline.
    #[error("the guest agent did not answer in time")]
    ReadTimeout,
    /// The agent has not taken a message in time.
    #[error("the guest agent is not listening")]
    WriteTimeout,
    /// QEMU has closed its end: the VM is gone.
    #[error("the VM closed its control port")]
    Closed,
    /// Reading or writing failed otherwise.
    #[error("the control port failed")]
    Io(#[source] io::Error),
    /// The guest has sent too many bytes that are no message, or too many messages.
    #[error("the guest is flooding its control port")]
    Flood,
    /// The agent speaks another version of the protocol.
    #[error(
        "the guest agent speaks version {0} of the control protocol, this castra version \
        {PROTOCOL_VERSION}"
    )]
    OtherProtocol(u32),
    /// The agent predates the request.
    #[error("the guest agent is of an earlier castra, which started the VM")]
    TooOld,
    /// A message is too long to be sent.
    #[error("a message of {0} bytes for the guest agent (the limit is {MAX_LINE_BYTES})")]
    TooLong(usize),
    /// The user interrupted it.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl Explain for ControlError {
    fn kind(&self) -> Kind {
        match self {
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Kind::Permission
            }
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::WouldBlock => {
                Kind::Busy
            }
            Self::Connect { .. } | Self::ReadTimeout | Self::WriteTimeout | Self::Closed => {
                Kind::Unavailable
            }
            Self::Io(_) => Kind::Io,
            Self::Flood | Self::OtherProtocol(_) | Self::TooOld | Self::TooLong(_) => Kind::Data,
            Self::Interrupted(_) => Kind::Interrupted,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::WouldBlock => {
                Some("Another castra is talking to this VM. Try again in a moment.".to_owned())
            }
            Self::OtherProtocol(_) => Some(
                "Another version of castra started this VM. Stop it with `castra down` and start \
                it again."
                    .to_owned(),
            ),
            Self::TooLong(_) => Some("Give the VM fewer authorized keys.".to_owned()),
            Self::ReadTimeout | Self::WriteTimeout => {
                Some("`castra logs` shows how far the guest got.".to_owned())
            }
            Self::Connect { .. }
            | Self::Closed
            | Self::Io(_)
            | Self::Flood
            | Self::TooOld
            | Self::Interrupted(_) => None,
        }
    }
}

impl ControlPort {
    /// Connects to QEMU's socket, which may not exist yet.
    ///
    /// # Errors
    /// [`ControlError::Connect`] with the last reason once `deadline` has passed,
    /// [`ControlError::Io`] if there are no random numbers, or [`ControlError::Interrupted`].
    pub fn connect(
        socket: &Path,
        deadline: Instant,
        cancel: &Cancel,
    ) -> Result<Self, ControlError> {
        loop {
            cancel.check()?;
            match connect_at_once(socket) {
                Ok(socket) => return Self::over(socket, cancel),
                Err(error) if may_come(&error) && Instant::now() < deadline => thread::sleep(RETRY),
                Err(source) => {
                    return Err(ControlError::Connect { path: socket.to_owned(), source });
                }
            }
        }
    }

    /// Begins a conversation over a connection to QEMU's socket.
    ///
    /// # Errors
    /// [`ControlError::Io`] if there are no random numbers.
    pub fn over(socket: UnixStream, cancel: &Cancel) -> Result<Self, ControlError> {
        let session = Session::new(u64::from_ne_bytes(random_bytes().map_err(ControlError::Io)?));
        let (cancel, lines) = (cancel.clone(), Lines::new());
        Ok(Self { socket, session, cancel, lines, garbage_bytes: 0, messages: 0 })
    }

    /// Informs the agent that a host is attached. The answer is [`GuestMessage::Hello`], at once or
    /// as soon as the guest's agent runs.
    ///
    /// # Errors
    /// As for [`ControlPort::personalise`].
    pub fn attach(&mut self) -> Result<(), ControlError> {
        self.send(HostMessage::Attach)
    }

    /// Sends the guest its personality. The answer is [`GuestMessage::Personalised`], or a failure
    /// of that task.
    ///
    /// # Errors
    /// [`ControlError::TooLong`], [`ControlError::WriteTimeout`], [`ControlError::Closed`],
    /// [`ControlError::Io`] or [`ControlError::Interrupted`].
    pub fn personalise(&mut self, personality: Personality) -> Result<(), ControlError> {
        self.send(HostMessage::Personalise(personality))
    }

    /// Asks for an orderly shutdown. The answer is [`GuestMessage::PoweringOff`]; later the VM
    /// ends.
    ///
    /// # Errors
    /// As for [`ControlPort::personalise`].
    pub fn power_off(&mut self) -> Result<(), ControlError> {
        self.send(HostMessage::PowerOff)
    }

    /// Asks the guest to write everything to its disk. The answer is [`GuestMessage::Synced`].
    ///
    /// # Errors
    /// As for [`ControlPort::personalise`].
    pub fn sync(&mut self) -> Result<(), ControlError> {
        self.send(HostMessage::Sync)
    }

    /// Asks a guest without a personality to come to rest. The answer is [`GuestMessage::Settled`],
    /// once its boot is over.
    ///
    /// # Errors
    /// As for [`ControlPort::personalise`].
    pub fn settle(&mut self) -> Result<(), ControlError> {
        self.send(HostMessage::Settle)
    }

    /// Asks a guest without a personality to let programs run. The answer is
    /// [`GuestMessage::Provisionable`], once its boot is over.
    ///
    /// # Errors
    /// As for [`ControlPort::personalise`].
    pub fn provision(&mut self, time_unix_ns: u64, entropy: Secret) -> Result<(), ControlError> {
        self.send(HostMessage::Provision { time_unix_ns, entropy })
    }

    /// Asks for the guest's condition. The answer is [`GuestMessage::Inspected`]; an agent that
    /// predates this query reports a failure of [`castra_wire::AgentTask::Protocol`].
    ///
    /// # Errors
    /// As for [`ControlPort::personalise`].
    pub fn inspect(&mut self) -> Result<(), ControlError> {
        self.send(HostMessage::Inspect)
    }

    /// Asks which of these ports have a service that could answer. The answer is
    /// [`GuestMessage::Listeners`]; an agent that predates this query reports a failure of
    /// [`castra_wire::AgentTask::Protocol`].
    ///
    /// # Errors
    /// As for [`ControlPort::personalise`].
    pub fn listeners(&mut self, ports: Vec<ServicePort>) -> Result<(), ControlError> {
        self.send(HostMessage::Listeners { ports })
    }

    /// Asks the guest to grow its root filesystem to a disk of this size. The answer is
    /// [`GuestMessage::RootGrown`]; an agent that predates this request reports a failure of
    /// [`castra_wire::AgentTask::Protocol`].
    ///
    /// # Errors
    /// As for [`ControlPort::personalise`].
    pub fn grow_root(&mut self, disk_bytes: u64) -> Result<(), ControlError> {
        self.send(HostMessage::GrowRoot { disk_bytes })
    }

    /// Returns the guest's next message. Text in it is safe to print on a terminal. A guest may
    /// send anything at any time: callers that loop over this keep one deadline for the whole loop.
    ///
    /// # Errors
    /// [`ControlError::ReadTimeout`] once `deadline` has passed, [`ControlError::Closed`],
    /// [`ControlError::Flood`], [`ControlError::OtherProtocol`], [`ControlError::Io`] or
    /// [`ControlError::Interrupted`].
    pub fn next(&mut self, deadline: Instant) -> Result<GuestMessage, ControlError> {
        // However much has arrived already: a guest that never stops sending must not outlast a
        // time limit.
        if Instant::now() > deadline {
            return Err(ControlError::ReadTimeout);
        }
        loop {
            if let Some(message) = self.next_held()? {
                return Ok(message);
            }
            self.read(deadline)?;
        }
    }

    /// Returns the next message among the bytes received so far. Skips garbage between messages,
    /// and messages to an earlier host.
    fn next_held(&mut self) -> Result<Option<GuestMessage>, ControlError> {
        while let Some(line) = self.lines.next_line() {
            let bytes = line.as_ref().map_or(0, |line| line.len());
            match line.and_then(castra_wire::decode::<Envelope<GuestMessage>>) {
                Ok(Envelope { session, message }) => {
                    self.messages += 1;
                    if self.messages > MAX_MESSAGES {
                        return Err(ControlError::Flood);
                    }
                    // An agent that predates sessions names none.
                    if session.is_none_or(|session| session == self.session) {
                        tracing::debug!(kind = message.kind(), "from the guest agent");
                        return accept(message).map(Some);
                    }
                }
                Err(DecodeError::TooLong(bytes)) => self.skip(bytes)?,
                Err(DecodeError::Malformed(_)) => self.skip(bytes)?,
            }
        }
        Ok(None)
    }

    fn skip(&mut self, bytes: usize) -> Result<(), ControlError> {
        self.garbage_bytes = self.garbage_bytes.saturating_add(bytes);
        if self.garbage_bytes > MAX_GARBAGE_BYTES { Err(ControlError::Flood) } else { Ok(()) }
    }

    /// Reads the bytes that have arrived, or waits for some.
    fn read(&mut self, deadline: Instant) -> Result<(), ControlError> {
        let mut chunk = [0; 16 * 1024];
        loop {
            self.cancel.check()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ControlError::ReadTimeout);
            }
            self.socket.set_read_timeout(Some(left.min(GLANCE))).map_err(ControlError::Io)?;
            match self.socket.read(&mut chunk) {
                Ok(0) => return Err(ControlError::Closed),
                Ok(length) => {
                    self.lines.push(&chunk[..length]);
                    return Ok(());
                }
                Err(error) => retry_or(error)?,
            }
        }
    }

    fn send(&mut self, message: HostMessage) -> Result<(), ControlError> {
        tracing::debug!(kind = message.kind(), "to the guest agent");
        let line = castra_wire::encode(&Envelope { session: Some(self.session), message });
        if line.len() > MAX_LINE_BYTES {
            return Err(ControlError::TooLong(line.len()));
        }
        // Terminates the line that an earlier host may have left unfinished.
        self.write(&[b"\n", line.as_slice()].concat())
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), ControlError> {
        let deadline = Instant::now() + SEND_LIMIT;
        self.socket.set_write_timeout(Some(GLANCE)).map_err(ControlError::Io)?;
        while !bytes.is_empty() {
            self.cancel.check()?;
            if Instant::now() > deadline {
                return Err(ControlError::WriteTimeout);
            }
            match self.socket.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) => retry_or(error)?,
            }
        }
        Ok(())
    }
}

/// Returns `true` if the socket may exist, or accept, a moment later.
fn may_come(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
    )
}

fn retry_or(error: io::Error) -> Result<(), ControlError> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Err(ControlError::Closed),
        _ => Err(ControlError::Io(error)),
    }
}

fn accept(mut message: GuestMessage) -> Result<GuestMessage, ControlError> {
    match &mut message {
        GuestMessage::Hello { protocol, agent_version, kernel, stages, .. } => {
            if *protocol != PROTOCOL_VERSION {
                return Err(ControlError::OtherProtocol(*protocol));
            }
            sanitize(agent_version);
            sanitize(kernel);
            // Each stage is reached once; a guest may claim otherwise.
            let mut seen = std::collections::HashSet::new();
            stages.retain(|reached| seen.insert(reached.stage));
        }
        GuestMessage::Failed { reason, .. } => sanitize(reason),
        GuestMessage::Notice { text, .. } => sanitize(text),
        GuestMessage::ModulesMissing { kernel, installed } => {
            sanitize(kernel);
            installed.iter_mut().for_each(sanitize);
        }
        GuestMessage::RootGrown(RootGrowth::Failed { reason: text })
        | GuestMessage::RootGrown(RootGrowth::Done { left_to_do: Some(text), .. }) => {
            sanitize(text);
        }
        GuestMessage::Inspected(Condition { network, cloud_init, .. }) => {
            network.iter_mut().flat_map(|network| &mut network.interface).for_each(sanitize);
            cloud_init.iter_mut().flat_map(|state| &mut state.errors).for_each(sanitize);
        }
        GuestMessage::Stage(_)
        | GuestMessage::RootMounted { .. }
        | GuestMessage::Personalised
        | GuestMessage::Settled
        | GuestMessage::Provisionable
        | GuestMessage::Synced
        | GuestMessage::Listeners { .. }
        | GuestMessage::RootGrown(RootGrowth::Done { left_to_do: None, .. })
        | GuestMessage::PoweringOff => {}
    }
    Ok(message)
}

#[cfg(test)]
mod tests;
