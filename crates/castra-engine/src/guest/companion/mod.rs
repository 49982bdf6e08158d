//! A VM's companion: the process of castra's that works for a guest while that runs.
//!
//! Only a VM that needs one has it: it serves the VM's mounts, and forwards ports to the guest. It
//! talks to the guest's agent over one stream port, and ends with QEMU, whose end closes the port.
//! Castra talks to it over a socket beside QEMU's:
//!
//! ```text
//! guest ── agent ── stream port ── companion ── directories and ports of this machine
//!                                      │
//!   castra up, mount, port, suspend ───┘ companion.sock
//! ```

mod client;
mod confine;
mod process;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::mounts::{Mount, MountState};
use super::ports::{LivePorts, PortPlan};

pub use client::Companion;
pub(super) use confine::limit_thread;
pub use process::accompany;

/// Order of castra's to a companion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
enum Order {
    /// Mounts a directory, and answers once it is mounted or cannot be. One that is mounted as it
    /// shall be is left alone.
    Mount {
        /// The directory and its place.
        mount: Mount,
        /// Directories that the guest does not see, wherever in it they are.
        hidden: Vec<PathBuf>,
    },
    /// Unmounts a directory.
    Unmount { guest: String },
    /// Has the guests' requests wait from now until the connection is closed.
    Drain,
    /// Asks for all mounts.
    List,
    /// Opens these ports of this machine, and closes all others. Asks for all ports.
    Forward(PortPlan),
    /// Asks for all ports. With `is_announced`, all count as announced.
    Ports { is_announced: bool },
}

/// Answer of a companion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", content = "with", rename_all = "kebab-case")]
enum Answer {
    /// The order is carried out.
    Done,
    /// The order is not carried out, for this reason.
    Failed(String),
    /// The mounts and their states.
    Mounts(Vec<(Mount, MountState)>),
    /// The forwards and their states.
    Ports(LivePorts),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::ports::{AutoPlan, LiveForward, LiveOrigin, LivePort, LiveState};

    const FORWARD: LiveForward = LiveForward { host: 8080, guest: 80 };
    const OPEN: LivePort = LivePort {
        forward: FORWARD,
        origin: LiveOrigin::Auto,
        state: LiveState::Open,
        is_new: true,
    };

    fn mount(guest: &str) -> Mount {
        Mount { host: "/home".into(), guest: guest.into(), read_only: false, notify: false }
    }

    #[test]
    fn orders_survive_their_way() {
        for order in [
            Order::Mount { mount: mount("/src"), hidden: vec!["/home/.cache".into()] },
            Order::Unmount { guest: "/src".into() },
            Order::Drain,
            Order::List,
            Order::Forward(PortPlan {
                added: vec![FORWARD],
                auto: Some(AutoPlan { skip: vec![22], avoid: vec![80], last: vec![FORWARD] }),
            }),
            Order::Ports { is_announced: true },
        ] {
            let line = serde_json::to_string(&order).expect("encoded");
            assert_eq!(serde_json::from_str::<Order>(&line).expect("decoded"), order, "{line}");
        }
        let state = LiveState::Failed("taken".into());
        let failed = LivePort { origin: LiveOrigin::Added, state, ..OPEN };
        for answer in [
            Answer::Done,
            Answer::Failed("busy".into()),
            Answer::Ports(LivePorts { ports: vec![OPEN, failed], trouble: Some("many".into()) }),
            Answer::Mounts(vec![
                (mount("/src"), MountState::Mounted),
                (mount("/b"), MountState::Failed("gone".into())),
                (mount("/c"), MountState::Unnotified("too many".into())),
            ]),
        ] {
            let line = serde_json::to_string(&answer).expect("encoded");
            assert_eq!(serde_json::from_str::<Answer>(&line).expect("decoded"), answer, "{line}");
        }
    }
}
