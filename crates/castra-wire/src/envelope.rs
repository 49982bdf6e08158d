use serde::{Deserialize, Serialize};

/// A number that a host chooses at random for one connection to the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Session(pub(crate) u64);

impl Session {
    /// Returns the session with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }
}

/// A message and the session it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope<M> {
    /// Session of the host that sends, or of the host that the agent heard from last. `None` from a
    /// peer that predates sessions, and from an agent that has not heard from any host yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
    /// The message.
    #[serde(flatten)]
    pub message: M,
}
