//! SFTP session of a copy: limits, attributes, and removal of interrupted files.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use castra_sftp::{Attributes, Client, Code, Failure, Request};
use tokio::sync::Semaphore;

use super::super::SshError;
use super::super::connection::Connection;
use super::Noted;
use crate::sanitize::sanitize_text;

/// Bytes of a file per request. Below every server's limit, and large enough that requests cost
/// little.
pub(super) const PIECE_BYTES: u32 = 64 * 1024;

/// Maximum number of requests with data in flight: a full window of pieces.
const PIECES: usize = 32;

/// Time for the guest to remove the files that an interrupted copy has created.
const REMOVE_LIMIT: Duration = Duration::from_secs(5);

/// `S_IFMT` and its values, which SFTP shares with Linux.
const TYPE_BITS: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// Type of the file at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Directory,
    File,
    Link,
    Other,
}

impl Sort {
    pub(super) fn of(attributes: &Attributes) -> Self {
        match attributes.mode.unwrap_or(0) & TYPE_BITS {
            DIRECTORY => Self::Directory,
            REGULAR => Self::File,
            LINK => Self::Link,
            _ => Self::Other,
        }
    }
}

/// Files of this host that transfers have left half-written.
#[derive(Clone, Default)]
pub(super) struct Interrupted(Noted<PathBuf>);

impl Interrupted {
    pub(super) fn note(&self, path: PathBuf) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(path);
    }

    pub(super) fn take(&self) -> Vec<PathBuf> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An SFTP session, shared by the tasks of one copy.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) sftp: Client,
    pub(super) pieces: Arc<Semaphore>,
    pub(super) interrupted: Interrupted,
    /// Files that this copy has created in the guest and not yet finished.
    unfinished: Noted<Bytes>,
}

impl Session {
    pub(super) async fn open(
        connection: &Connection,
        interrupted: Interrupted,
    ) -> Result<Self, SshError> {
        let (incoming, outgoing) = connection.files().await?;
        let (ours, theirs) = tokio::io::duplex(PIECES * PIECE_BYTES as usize);
        tokio::spawn(castra_flow::relay(incoming, outgoing, theirs, None));
        // No time limit: the connection itself notices a guest that is gone; a slow disk is no
        // reason to give up.
        let sftp = Client::start(ours).await.map_err(|_| SshError::NotStarted { what: "SFTP" })?;
        let pieces = Arc::new(Semaphore::new(PIECES));
        Ok(Self { sftp, pieces, interrupted, unfinished: Arc::new(Mutex::default()) })
    }

    /// Returns the attributes of a path, following links; `None` if it does not exist.
    pub(super) async fn stat(&self, path: &[u8]) -> Result<Option<Attributes>, SshError> {
        match self.sftp.attributes(Request::Stat { path: Bytes::copy_from_slice(path) }).await {
            Ok(found) => Ok(Some(found)),
            Err(failure) if failure.is(Code::NO_SUCH_FILE) => Ok(None),
            Err(failure) => Err(failed("look at", path)(failure)),
        }
    }

    pub(super) fn begin(&self, path: Bytes) {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner).push(path);
    }

    pub(super) fn finish(&self, path: &Bytes) {
        self.unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|other| other != path);
    }

    /// Removes from the guest the files that an interrupted copy has created, as far as the guest
    /// answers.
    pub(super) async fn remove_unfinished(&self) {
        let paths =
            std::mem::take(&mut *self.unfinished.lock().unwrap_or_else(PoisonError::into_inner));
        let remove = async {
            for path in paths {
                let _ = self.sftp.done(Request::Remove { path }).await;
            }
        };
        let _ = tokio::time::timeout(REMOVE_LIMIT, remove).await;
    }
}

/// Returns a guest's path in displayable form.
pub(super) fn shown(path: &[u8]) -> String {
    sanitize_text(&String::from_utf8_lossy(path))
}

/// Makes the error for a guest's file.
pub(super) fn failed<'a>(
    what: &'static str,
    path: &'a [u8],
) -> impl Fn(Failure) -> SshError + Copy + 'a {
    move |failure| match failure {
        Failure::Status { code, words } => SshError::GuestFile {
            what,
            path: shown(path),
            reason: shown(&words),
            missing: code == Code::NO_SUCH_FILE,
        },
        Failure::Ended => SshError::Lost,
    }
}
