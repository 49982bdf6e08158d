//! Errors of the host's ports that a VM forwards.

use crate::error::{Explain, Kind};
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
}

impl Explain for PortError {
    fn kind(&self) -> Kind {
        match self {
            Self::Taken { .. } => Kind::Busy,
            Self::Forbidden { .. } => Kind::Permission,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Taken { owner: PortOwner::Vm { vm, project: None }, .. } => format!(
                "Stop that VM (castra down {vm}), or choose another host port in castra.toml."
            ),
            Self::Taken { owner: PortOwner::Vm { vm, project: Some(project) }, .. } => format!(
                "Stop that VM (castra down {vm}, in {}), or choose another host port in \
                castra.toml.",
                project.display()
            ),
            Self::Taken { owner: PortOwner::Process { .. }, .. } => {
                "Stop that program, or choose another host port in castra.toml.".into()
            }
            Self::Taken { port, owner: PortOwner::OtherUser | PortOwner::Unknown, .. } => format!(
                "`ss -ltnup 'sport = :{port}'` shows who has it. Stop that program, or choose \
                another host port in castra.toml."
            ),
            Self::Forbidden { .. } => "Choose a host port of 1024 or above in castra.toml.".into(),
        })
    }
}

fn by(owner: &PortOwner) -> String {
    if *owner == PortOwner::Unknown { String::new() } else { format!(" by {owner}") }
}
