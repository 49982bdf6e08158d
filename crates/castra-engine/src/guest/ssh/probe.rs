//! One attempt to log in, for a wait until that is possible.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::login::Login;
use super::silence::Ear;
use super::{SshError, Target, block_on, until_cancelled};
use crate::cancel::Cancel;

/// Time for the server's first bytes: a connection to a guest that does not answer yet stays so.
const GREETING_LIMIT: Duration = Duration::from_secs(5);
/// Time for the whole login, which under emulation takes a second, and on a busy machine more.
const LOGIN_LIMIT: Duration = Duration::from_secs(60);

/// Outcome of an attempt to log in.
#[derive(Debug)]
pub enum Probe {
    /// The server accepts the key.
    Accepted,
    /// Nothing answers: the guest has no address yet, or drops packets.
    Silent,
    /// The connection was closed before the server said anything: nothing listens.
    Closed,
    /// The server does not accept the key.
    Refused,
}

/// Tries to log in once.
///
/// # Errors
/// Those that no further attempt changes, and [`SshError::Interrupted`].
pub fn probe(cancel: &Cancel, target: &Target) -> Result<Probe, SshError> {
    block_on(async {
        let ear = Ear::default();
        let greeting = async {
            sleep(GREETING_LIMIT).await;
            if ear.has_heard() {
                std::future::pending::<()>().await;
            }
        };
        let login = timeout(LOGIN_LIMIT, Login::establish(target, &ear));
        let attempt = tokio::select! {
            attempt = login => attempt,
            () = greeting => return Ok(Probe::Silent),
            () = until_cancelled(cancel) => return Err(SshError::Interrupted),
        };
        match attempt {
            Ok(Ok(_)) => Ok(Probe::Accepted),
            Err(_) => Ok(Probe::Silent),
            Ok(Err(SshError::NotAccepted { .. } | SshError::Refused { .. })) => Ok(Probe::Refused),
            Ok(Err(SshError::Unreachable { .. })) => Ok(Probe::Closed),
            // A server that is just starting or ending breaks off, too.
            Ok(Err(SshError::Handshake { source, .. })) if !is_final(&source) => {
                Ok(if ear.has_heard() { Probe::Silent } else { Probe::Closed })
            }
            Ok(Err(error)) => Err(error),
        }
    })
}

/// Returns `true` if another attempt would fail in the same way.
fn is_final(error: &russh::Error) -> bool {
    matches!(error, russh::Error::NoCommonAlgo { .. })
}
