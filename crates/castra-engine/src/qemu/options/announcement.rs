//! Announcement of a guest's address.

use serde::{Deserialize, Serialize};

/// Announcement of a guest's address to its network once its machine has been loaded from a saved
/// state. Part of the network card, and so of the state.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Announcement {
    /// The guest announces itself, as every guest of an earlier castra does.
    #[default]
    Made,
    /// The guest announces nothing: there are no switches behind user-mode networking, and the
    /// guest would do so before anything else.
    Omitted,
}

impl Announcement {
    /// Returns `true` if the guest announces itself.
    pub fn is_made(&self) -> bool {
        *self == Self::Made
    }
}
