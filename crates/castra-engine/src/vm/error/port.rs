//! Errors of the host's ports that a VM forwards.

use crate::error::{Explain, Kind};
use crate::guest::{LiveForward, MAX_ADDED_FORWARDS};
use crate::sockets::{PortOwner, Protocol};

/// Reason why a VM cannot forward a port of the host.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The port is in use.
    #[error(
        "port {port}/{protocol} of this machine, which VM `{vm}` forwards, is in use{}",
        by(owner)
    )]
    Taken {
        /// The VM.
        vm: String,
        /// The port.
        port: u16,
        /// Protocol of the port.
        protocol: Protocol,
        /// Owner of the port.
        owner: PortOwner,
    },
    /// The user lacks the right to the port.
    #[error("this user may not use port {port}/{protocol} of this machine")]
    Forbidden {
        /// The port.
        port: u16,
        /// Protocol of the port.
        protocol: Protocol,
    },
    /// The VM boots natively.
    #[error(
        "no port can be added to VM `{vm}` while it runs: it boots natively, without Castra's agent"
    )]
    Native {
        /// The VM.
        vm: String,
    },
    /// The VM has too many added forwards.
    #[error("VM `{vm}` cannot have more than {MAX_ADDED_FORWARDS} added ports")]
    TooMany {
        /// The VM.
        vm: String,
    },
    /// The companion cannot open the port.
    #[error("VM `{vm}` does not forward {forward}: {reason}")]
    Refused {
        /// The VM.
        vm: String,
        /// The forward.
        forward: LiveForward,
        /// The reason.
        reason: String,
    },
    /// The port leads to another port of the same VM already.
    #[error(
        "port {} of this machine leads to port {} of VM `{vm}` already",
        .forward.host, .forward.guest
    )]
    Added {
        /// The VM.
        vm: String,
        /// The forward that it has.
        forward: LiveForward,
    },
    /// The port would lead to two ports of the VM.
    #[error(
        "port {host} of this machine cannot lead to two ports of VM `{vm}`: {} and {}",
        .guests.0, .guests.1
    )]
    Contradictory {
        /// The VM.
        vm: String,
        /// The port of this machine.
        host: u16,
        /// The ports in the guest.
        guests: (u16, u16),
    },
    /// No port of this machine leads there.
    #[error("no port of this machine leads to {} of VM `{vm}`", named(*guest))]
    NotForwarded {
        /// The VM.
        vm: String,
        /// The port in the guest, or any.
        guest: Option<u16>,
    },
    /// The port was not added.
    #[error("port {host} of this machine was not added to VM `{vm}`")]
    NotAdded {
        /// The VM.
        vm: String,
        /// The port of this machine.
        host: u16,
    },
    /// The port is one of castra.toml.
    #[error("port {host} of this machine was not added to VM `{vm}`: castra.toml declares it")]
    Declared {
        /// The VM.
        vm: String,
        /// The port of this machine.
        host: u16,
    },
}

impl Explain for PortError {
    fn kind(&self) -> Kind {
        match self {
            Self::Taken { .. } | Self::Refused { .. } | Self::Added { .. } => Kind::Busy,
            Self::Forbidden { .. } => Kind::Permission,
            Self::Native { .. } => Kind::Unavailable,
            Self::NotForwarded { .. } => Kind::NotFound,
            Self::TooMany { .. }
            | Self::Contradictory { .. }
            | Self::NotAdded { .. }
            | Self::Declared { .. } => Kind::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Taken { owner: PortOwner::Vm { vm, project: None }, .. } => {
                format!("Stop that VM (castra down {vm}), or choose another host port.")
            }
            Self::Taken { owner: PortOwner::Vm { vm, project: Some(project) }, .. } => format!(
                "Stop that VM (castra down {vm}, in {}), or choose another host port.",
                project.display()
            ),
            Self::Taken { owner: PortOwner::Process { .. }, .. } => {
                "Stop that program, or choose another host port.".into()
            }
            Self::Taken { port, owner: PortOwner::OtherUser | PortOwner::Unknown, .. } => format!(
                "`ss -ltnup 'sport = :{port}'` shows who has it. Stop that program, or choose \
                another host port."
            ),
            Self::Forbidden { .. } => "Choose a host port of 1024 or above.".into(),
            Self::Native { .. } => {
                "Declare its ports in castra.toml, and `castra restart` it.".into()
            }
            Self::Refused { vm, .. } => {
                format!("Once that is solved, `castra up {vm}` forwards it.")
            }
            Self::TooMany { vm } => format!("`castra port rm {vm} PORT` removes one."),
            Self::Added { vm, forward } => {
                format!("`castra port rm {vm} {}` closes it.", forward.host)
            }
            Self::Contradictory { guests, .. } => {
                format!("Choose another port of this machine for {}.", guests.1)
            }
            Self::NotForwarded { vm, guest } => {
                let port = guest.map_or("PORT".to_owned(), |port| port.to_string());
                format!(
                    "`castra port add {vm} {port}` forwards it; `castra up {vm} --ports auto` \
                    forwards whatever listens."
                )
            }
            Self::NotAdded { vm, .. } => format!("`castra ports {vm}` shows those that were."),
            Self::Declared { vm, .. } => {
                format!("Remove it from castra.toml, and `castra restart {vm}`.")
            }
        })
    }
}

fn named(guest: Option<u16>) -> String {
    guest.map_or("a port".to_owned(), |port| format!("port {port}"))
}

fn by(owner: &PortOwner) -> String {
    if *owner == PortOwner::Unknown { String::new() } else { format!(" by {owner}") }
}
