//! Keys of the server and of its clients.

use std::sync::Arc;

use russh::keys::PublicKey;
use russh::server::Config;

/// Keys of one personalisation.
pub(super) struct Identity {
    pub(super) config: Arc<Config>,
    pub(super) authorized: Vec<PublicKey>,
}

impl Identity {
    /// Returns `true` if this key may log in.
    pub(super) fn admits(&self, key: &PublicKey) -> bool {
        self.authorized.iter().any(|authorized| authorized.key_data() == key.key_data())
    }
}
