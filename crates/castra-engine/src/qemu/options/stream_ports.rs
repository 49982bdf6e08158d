//! Number of stream ports of a machine.

use serde::{Deserialize, Serialize};

use crate::layout::MAX_STREAM_PORTS;

/// Number of the agent's stream ports, at most [`MAX_STREAM_PORTS`]: so many have room on their bus
/// beside the control port. A property of the machine, which its saved states require.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct StreamPortCount(u32);

impl StreamPortCount {
    /// No ports, as in machines without an agent and those of earlier castras.
    pub const NONE: Self = Self(0);
    /// Ports of a machine whose guest has this castra's agent.
    pub const OF_AGENT: Self = Self(castra_wire::STREAM_PORTS);

    /// Returns the number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// Returns `true` if there are none.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

const _: () = assert!(castra_wire::STREAM_PORTS <= MAX_STREAM_PORTS);

impl TryFrom<u32> for StreamPortCount {
    type Error = String;

    fn try_from(count: u32) -> Result<Self, String> {
        if count > MAX_STREAM_PORTS {
            return Err(format!("{count} stream ports (the limit is {MAX_STREAM_PORTS})"));
        }
        Ok(Self(count))
    }
}

impl From<StreamPortCount> for u32 {
    fn from(count: StreamPortCount) -> Self {
        count.0
    }
}
