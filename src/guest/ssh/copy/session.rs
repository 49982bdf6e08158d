use std::sync::Arc;

use russh::ChannelMsg;
use russh_sftp::client::error::Error;
use russh_sftp::client::rawsession::RawSftpSession;
use russh_sftp::protocol::{FileAttributes, StatusCode};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::super::SshError;
use super::super::connection::Connection;
use crate::harmless::harmless_text;

/// Bytes of a file in one request. Below every server's limit, and large enough that requests cost little.
pub(super) const PIECE_BYTES: u32 = 64 * 1024;

/// Requests under way at once: a full window of pieces.
const PIECES: usize = 32;

/// Files under way at once.
const FILES: usize = 16;

/// `S_IFMT` and its values, which SFTP shares with Linux.
const TYPE_BITS: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Directory,
    File,
    Link,
    Other,
}

impl Sort {
    pub(super) fn of(attributes: &FileAttributes) -> Self {
        match attributes.permissions.unwrap_or(0) & TYPE_BITS {
            DIRECTORY => Self::Directory,
            REGULAR => Self::File,
            LINK => Self::Link,
            _ => Self::Other,
        }
    }
}

/// An SFTP session, shared by the tasks of one copy.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) sftp: Arc<RawSftpSession>,
    pub(super) pieces: Arc<Semaphore>,
}

impl Session {
    pub(super) async fn open(connection: &Connection) -> Result<Self, SshError> {
        let mut channel = connection.session().await?;
        channel.request_subsystem(true, "sftp").await.map_err(|_| SshError::Lost)?;
        loop {
            match channel.wait().await {
                Some(ChannelMsg::Success) => break,
                Some(ChannelMsg::Failure) => return Err(SshError::NotStarted { what: "SFTP" }),
                Some(_) => {}
                None => return Err(SshError::Lost),
            }
        }
        let (ours, theirs) = tokio::io::duplex(PIECES * PIECE_BYTES as usize);
        let (incoming, outgoing) = castra_flow::split(channel, connection.flow());
        tokio::spawn(castra_flow::relay(incoming, outgoing, theirs, None));
        let config = russh_sftp::client::Config {
            // The connection itself notices a guest that is gone; a slow disk is no reason to give up.
            request_timeout_secs: u64::MAX,
            ..russh_sftp::client::Config::default()
        };
        let sftp = RawSftpSession::new_with_config(ours, config);
        sftp.init().await.map_err(|_| SshError::NotStarted { what: "SFTP" })?;
        Ok(Self { sftp: Arc::new(sftp), pieces: Arc::new(Semaphore::new(PIECES)) })
    }

    /// What is at a path, links followed; nothing if nothing is there.
    pub(super) async fn stat(&self, path: &str) -> Result<Option<FileAttributes>, SshError> {
        match self.sftp.stat(path).await {
            Ok(found) => Ok(Some(found.attrs)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(failed("look at", path)(error)),
        }
    }
}

fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Status(status) if status.status_code == StatusCode::NoSuchFile)
}

/// The error for a guest's file.
pub(super) fn failed<'a>(what: &'static str, path: &'a str) -> impl Fn(Error) -> SshError + Copy + 'a {
    move |error| match &error {
        Error::Status(status) => SshError::GuestFile {
            what,
            path: harmless_text(path),
            reason: harmless_text(&status.error_message),
            missing: is_missing(&error),
        },
        _ => SshError::Lost,
    }
}

/// Runs many transfers, some at once, and tells of each piece that arrived.
pub(super) struct Transfers<'a> {
    tasks: JoinSet<Result<(), SshError>>,
    arrived: mpsc::UnboundedReceiver<u64>,
    arrival: mpsc::UnboundedSender<u64>,
    progress: &'a mut dyn FnMut(u64),
    pub(super) bytes: u64,
}

impl<'a> Transfers<'a> {
    pub(super) fn new(progress: &'a mut dyn FnMut(u64)) -> Self {
        let (arrival, arrived) = mpsc::unbounded_channel();
        Self { tasks: JoinSet::new(), arrived, arrival, progress, bytes: 0 }
    }

    /// Starts a transfer; waits first if enough are under way. It gets the sender to tell of its pieces.
    pub(super) async fn start<F>(
        &mut self,
        transfer: impl FnOnce(mpsc::UnboundedSender<u64>) -> F,
    ) -> Result<(), SshError>
    where
        F: Future<Output = Result<(), SshError>> + Send + 'static,
    {
        self.wait_until_below(FILES).await?;
        self.tasks.spawn(transfer(self.arrival.clone()));
        Ok(())
    }

    /// Waits for all of them.
    pub(super) async fn finish(mut self) -> Result<u64, SshError> {
        self.wait_until_below(1).await?;
        while let Ok(bytes) = self.arrived.try_recv() {
            self.tell(bytes);
        }
        Ok(self.bytes)
    }

    async fn wait_until_below(&mut self, limit: usize) -> Result<(), SshError> {
        while self.tasks.len() >= limit {
            tokio::select! {
                // A task that panicked took its transfer with it.
                Some(done) = self.tasks.join_next() => done.map_err(|_| SshError::Lost)??,
                Some(bytes) = self.arrived.recv() => self.tell(bytes),
            }
        }
        Ok(())
    }

    fn tell(&mut self, bytes: u64) {
        self.bytes += bytes;
        (self.progress)(bytes);
    }
}
