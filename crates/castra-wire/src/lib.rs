//! Protocol between Castra on the host and its agent in the guest.
//!
//! The two talk over a virtio-serial port named [`PORT_NAME`], one JSON object per line. The host
//! may come and go: each time it opens the port it sends [`HostMessage::Attach`], and the agent
//! answers with [`GuestMessage::Hello`], which lists everything that has happened so far. From then
//! on the agent pushes every further [`Stage`] as it is reached.
//!
//! Bytes that the agent sent to one host may reach the next, since guest and port buffer them. Each
//! host therefore chooses a [`Session`], which accompanies every message in its [`Envelope`] and is
//! repeated in every answer: a host drops messages that belong to another host's session.
//!
//! ```text
//! host                                   agent
//!  │ attach ────────────────────────────► │
//!  │ ◄──────── hello {stages so far, …}   │
//!  │ personalise ───────────────────────► │  (may come at any stage; idempotent)
//!  │ ◄────────────────── personalised     │
//!  │ ◄──────── stage ready, stage services│
//!  │ sync ──────────────────────────────► │  (before a suspend)
//!  │ ◄──────────────────────── synced     │
//!  │ listeners ─────────────────────────► │
//!  │ ◄────────────────────── listeners    │
//!  │ settle ────────────────────────────► │  (for a template, and only without a personality)
//!  │ ◄─────────────────────── settled     │
//!  │ provision ─────────────────────────► │  (for a layer, and only without a personality)
//!  │ ◄───────────────── provisionable     │
//!  │ inspect ───────────────────────────► │
//!  │ ◄──────── inspected {time, network}  │
//!  │ grow-root ─────────────────────────► │  (its disk has been resized)
//!  │ ◄──────────────────── root-grown     │
//!  │ power-off ─────────────────────────► │
//!  │ ◄────────────────── powering-off     │
//! ```
//!
//! [`ExecHeader`] is what the host's SSH client sends before a command's stdin.
//!
//! This crate does no I/O: [`encode`] and [`decode`] turn messages into lines and back.

mod change;
mod disk;
mod envelope;
mod exec;
mod file_event;
mod lines;
mod listeners;
mod message;
mod mount;
mod program_report;
mod records;
pub mod stream;

pub use change::{Change, ChangeKind, Changes, MAX_CHANGES, NUDGER_UID};
pub use disk::{DISKS_ON_COMMAND_LINE, DiskFault, DiskOrder, disks_on_command_line};
pub use envelope::{Envelope, Session};
pub use exec::{
    EXEC_SUBSYSTEM, ExecHeader, ExecHeaderError, MALFORMED_SIGNAL, MAX_EXEC_HEADER_BYTES,
    StartDirectory, TOO_LONG_SIGNAL, exec_header_bytes,
};
pub use file_event::{FileEvent, FileEventKind};
pub use lines::Lines;
pub use listeners::{ListenerReport, ListenerReportError, ListenerReports, MAX_REPORTED_PORTS};
pub use message::{
    AgentTask, CloudInitState, Condition, GuestMessage, HostMessage, Listener, NetworkState,
    Personality, Reach, Relay, RootGrowth, Secret, ServicePort, Stage, StageReached, Transport,
};
pub use mount::{
    MAX_MOUNT_MESSAGE_BYTES, MAX_MOUNT_STATE_BYTES, MountDecoder, MountMessage, MountMessageError,
};
pub use program_report::ProgramReport;
pub use records::{MAX_RECORD_BYTES, RecordError, Records};

/// Name of the virtio-serial port, as QEMU's `virtserialport,name=` and
/// `/sys/class/virtio-ports/*/name` give it.
pub const PORT_NAME: &str = "castra.control";

/// Number of stream ports of a VM with an agent. QEMU serves one client per port, so this is the
/// number of castra processes that can reach the guest over one at the same time.
pub const STREAM_PORTS: u32 = 12;

/// Beginning of the names of the virtio-serial ports for streams; their index follows.
pub const STREAM_PORT_PREFIX: &str = "castra.stream.";

/// Version of this protocol. Incremented when an old peer would misunderstand a new one.
pub const PROTOCOL_VERSION: u32 = 1;

/// TCP port of the agent's SSH server inside the guest. Port 22 is left to the guest's own sshd.
pub const SSH_PORT: u16 = 6022;

/// First of the TCP ports on which the agent accepts forwarded connections for services. They lie
/// above the range from which Linux picks ephemeral ports (`ip_local_port_range`).
pub const FIRST_RELAY_PORT: u16 = 61022;

/// Maximum number of relays of a guest: all of them are on the kernel's command line, which holds
/// 2048 bytes.
pub const MAX_RELAYS: usize = 64;

/// Kernel command-line parameter that lists the relays, for a guest that reboots while no host is
/// attached: `castra.relay=PORT:TO,…`.
pub const RELAYS_ON_COMMAND_LINE: &str = "castra.relay";

/// Longest line either side accepts, in bytes. A longer one is discarded up to its newline.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// The guest's address on QEMU's user-mode network.
pub const GUEST_ADDRESS: [u8; 4] = [10, 0, 2, 15];

/// Prefix length of the network, in bits.
pub const NETWORK_PREFIX_BITS: u8 = 24;

/// Address of the host's end of QEMU's user-mode network: the guest's default route.
pub const GATEWAY_ADDRESS: [u8; 4] = [10, 0, 2, 2];

/// Address of QEMU's built-in DNS forwarder.
pub const DNS_ADDRESS: [u8; 4] = [10, 0, 2, 3];

/// Reason why a line could not be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The line is longer than [`MAX_LINE_BYTES`].
    #[error("a line of {0} bytes on the control port (the limit is {MAX_LINE_BYTES})")]
    TooLong(usize),
    /// The line is not a known message.
    #[error("not a control message: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Encodes a message as one line, newline included.
pub fn encode<M: serde::Serialize>(message: &M) -> Vec<u8> {
    // The messages hold strings, numbers and vectors only, so serialising them cannot fail.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Decodes the message on a line, with or without its newline.
///
/// # Errors
/// [`DecodeError::TooLong`] past [`MAX_LINE_BYTES`], else [`DecodeError::Malformed`].
pub fn decode<M: serde::de::DeserializeOwned>(line: &[u8]) -> Result<M, DecodeError> {
    if line.len() > MAX_LINE_BYTES {
        return Err(DecodeError::TooLong(line.len()));
    }
    Ok(serde_json::from_slice(line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let hello = GuestMessage::Hello {
            protocol: PROTOCOL_VERSION,
            agent_version: "0.1.0".into(),
            kernel: "6.18.56-0-virt".into(),
            personalised: false,
            stages: vec![StageReached { stage: Stage::Initramfs, uptime_ms: 2310 }],
            uptime_ms: Some(2400),
            root_mounted_ms: None,
        };
        let line = encode(&hello);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(decode::<GuestMessage>(&line).expect("decodes"), hello);
    }

    #[test]
    fn the_hello_of_an_older_agent_is_understood() {
        let line = br#"{"type":"hello","protocol":1,"agent_version":"0.1.0","kernel":"6","personalised":true,"stages":[]}"#;
        let hello = decode::<GuestMessage>(line).expect("decodes");
        assert!(
            matches!(hello, GuestMessage::Hello { uptime_ms: None, root_mounted_ms: None, .. }),
            "{hello:?}"
        );
    }

    #[test]
    fn the_personality_of_an_older_host_is_understood_and_leaves_relays_alone() {
        let line = br#"{"type":"personalise","time_unix_ns":1,"entropy":"","hostname":"web","machine_id":"0","host_key":"","authorized_keys":[]}"#;
        let message = decode::<HostMessage>(line).expect("decodes");
        assert!(
            matches!(
                &message,
                HostMessage::Personalise(personality) if personality.relays.is_none()
            ),
            "{message:?}"
        );
    }

    #[test]
    fn an_envelope_adds_its_session_and_may_lack_it() {
        let message =
            Envelope { session: Some(Session::new(u64::MAX)), message: HostMessage::Attach };
        let line = encode(&message);
        assert_eq!(line, b"{\"session\":18446744073709551615,\"type\":\"attach\"}\n");
        assert_eq!(decode::<Envelope<HostMessage>>(&line).expect("decodes"), message);
        // Both directions between this version and peers that predate sessions.
        assert_eq!(decode::<HostMessage>(&line).expect("decodes"), HostMessage::Attach);
        let older = decode::<Envelope<HostMessage>>(b"{\"type\":\"attach\"}").expect("decodes");
        assert_eq!(older, Envelope { session: None, message: HostMessage::Attach });
    }

    #[test]
    fn every_message_of_a_newer_host_is_understood_by_an_older_agent() {
        let ports = vec![ServicePort { transport: Transport::Tcp, port: 80 }];
        for message in [
            HostMessage::Attach,
            HostMessage::PowerOff,
            HostMessage::Sync,
            HostMessage::Settle,
            HostMessage::Provision { time_unix_ns: 1, entropy: Secret::new(vec![1; 64]) },
            HostMessage::Inspect,
            HostMessage::Listeners { ports },
        ] {
            let line =
                encode(&Envelope { session: Some(Session::new(7)), message: message.clone() });
            assert_eq!(decode::<HostMessage>(&line).expect("decodes"), message);
        }
    }

    #[test]
    fn a_secret_is_not_printed() {
        let secret = Secret::new(b"host key".to_vec());
        assert_eq!(format!("{secret:?}"), "Secret(8 bytes)");
    }

    #[test]
    fn garbage_and_giants_are_errors() {
        assert!(matches!(decode::<HostMessage>(b"login: "), Err(DecodeError::Malformed(_))));
        let giant = vec![b' '; MAX_LINE_BYTES + 1];
        assert!(matches!(decode::<HostMessage>(&giant), Err(DecodeError::TooLong(_))));
    }
}
