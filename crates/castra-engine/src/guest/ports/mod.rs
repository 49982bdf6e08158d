//! Live forwards: ports of 127.0.0.1 that a VM's companion opens and closes while the guest runs.
//!
//! ```text
//! client ── 127.0.0.1:HOST ── companion ── stream port ── agent ── service on port GUEST
//! ```
//!
//! The agent connects to the service as a program of the guest does, wherever that listens. The
//! guest's network plays no part.

mod auto;
mod connection;
mod forwards;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(super) use forwards::Forwards;

/// Maximum number of forwards that users add to a running VM.
pub const MAX_ADDED_FORWARDS: usize = 128;

/// A TCP port of 127.0.0.1 and the guest's port that it leads to.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct LiveForward {
    /// Port on 127.0.0.1.
    pub host: u16,
    /// Port in the guest.
    pub guest: u16,
}

impl fmt::Display for LiveForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "127.0.0.1:{} → {}", self.host, self.guest)
    }
}

/// State of a forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", content = "reason", rename_all = "kebab-case")]
pub enum LiveState {
    /// The companion listens.
    Open,
    /// The port of this machine cannot be opened, for this reason.
    Failed(String),
}

/// Origin of a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LiveOrigin {
    /// The user has added it.
    Added,
    /// Something listens on the guest's port.
    Auto,
}

/// A forward and its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LivePort {
    /// The forward.
    pub forward: LiveForward,
    /// Origin of the forward.
    pub origin: LiveOrigin,
    /// State of the forward.
    pub state: LiveState,
    /// Set if the forward has opened by itself, and the user does not know of it yet.
    pub is_new: bool,
}

/// Forwards of a companion.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LivePorts {
    /// The forwards and their states.
    pub ports: Vec<LivePort>,
    /// Reason why something that listens in the guest is not forwarded.
    pub trouble: Option<String>,
}

/// Forwards that a companion shall have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PortPlan {
    /// Forwards that the user has added.
    pub added: Vec<LiveForward>,
    /// Set if what listens in the guest is forwarded.
    pub auto: Option<AutoPlan>,
}

/// Plan for forwards of whatever listens in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AutoPlan {
    /// Ports of the guest that are not forwarded.
    pub skip: Vec<u16>,
    /// Ports of this machine that are left free, since other VMs declare them.
    pub avoid: Vec<u16>,
    /// Ports that led to the guest before, which it gets again if they are free.
    pub last: Vec<LiveForward>,
}
