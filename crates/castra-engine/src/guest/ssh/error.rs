//! Errors of SSH connections and copies, with kinds and hints.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Explain, Kind, kind_of_io};
use crate::guest::{NetworkDown, NetworkFault};
use crate::size::ByteSize;

use super::Target;

/// Error of an operation in the guest, over either way in. A failure of the guest's command is no
/// error but a [`GuestExit`](super::GuestExit).
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// Nothing listens at the VM's address.
    #[error("cannot connect to the VM at {address}")]
    Unreachable {
        /// The forwarded port on this host.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
    /// The VM did not answer in time.
    #[error("the VM at {address} did not answer within {} s", limit.as_secs())]
    TooSlow {
        /// The forwarded port on this host.
        address: SocketAddr,
        /// The limit.
        limit: Duration,
    },
    /// The VM's SSH server ended the connection before the login.
    #[error("the SSH handshake with the VM at {address} failed")]
    Handshake {
        /// The forwarded port on this host.
        address: SocketAddr,
        /// The reason.
        source: russh::Error,
    },
    /// The VM runs, according to its agent, but its network is down.
    #[error(transparent)]
    NetworkDown(#[from] NetworkDown),
    /// Another machine answers, or one that pretends to be the VM.
    #[error("the machine at {address} is not this VM: its host key is {found}, not {expected}")]
    HostKeyMismatch {
        /// The forwarded port on this host.
        address: SocketAddr,
        /// Fingerprint of the VM's key.
        expected: String,
        /// Fingerprint of the key that was shown.
        found: String,
    },
    /// The system's own SSH server shows another key than before.
    #[error(
        "the SSH server at {address} is not the one by which this VM was first reached: its host \
        key is {found}, not {expected}"
    )]
    ServerKeyChanged {
        /// The forwarded port on this host.
        address: SocketAddr,
        /// Fingerprint of the key that is pinned.
        expected: String,
        /// Fingerprint of the key that was shown.
        found: String,
        /// File with the pinned key.
        pin: PathBuf,
    },
    /// The key of the system's own SSH server cannot be pinned.
    #[error("cannot write {}", path.display())]
    Pin {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The system's own SSH server does not accept the key.
    #[error("the SSH server in the VM does not accept Castra's key for user {user}")]
    NotAccepted {
        /// The guest's user.
        user: String,
    },
    /// The system's own SSH server cannot do this.
    #[error(
        "the command was not run: the SSH server in the VM, which boots natively, does not take \
        {what}"
    )]
    NotOverOwnServer {
        /// The unsupported request: `more than 128 KiB of arguments`, …
        what: &'static str,
    },
    /// The VM does not accept the key.
    #[error("the VM rejects the key for user {user}")]
    Refused {
        /// The guest's user.
        user: String,
    },
    /// The key is right, but there is no such user in the guest.
    #[error("the VM has no user {user}")]
    UnknownUser {
        /// The guest's user.
        user: String,
    },
    /// The guest's server did not start the requested service.
    #[error("the VM did not start {what}")]
    NotStarted {
        /// Name of the service: `a command`, `a terminal`, `SFTP`.
        what: &'static str,
    },
    /// The arguments and variables are longer than the guest's kernel allows.
    #[error("the command was not run: its arguments and variables are too long for the VM")]
    TooLong,
    /// The guest's agent belongs to an older castra, or is not castra's, and accepts less.
    #[error(
        "the command was not run: the agent in this VM comes from an older castra and does \
        not support {what}"
    )]
    OldAgent {
        /// The unsupported request: `more than 128 KiB of arguments`, …
        what: &'static str,
    },
    /// The connection ended before the command did.
    #[error("the connection to the VM was lost")]
    Lost,
    /// A captured output is longer than the caller wanted.
    #[error("the command printed more than {}", ByteSize(*limit_bytes as u64))]
    TooMuchOutput {
        /// The caller's limit.
        limit_bytes: usize,
    },
    /// The terminal or a stream of this process failed.
    #[error("cannot {what}")]
    Local {
        /// The failed action, as a verb and its object.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// A file on this host cannot be read or written.
    #[error("cannot {what} {}", path.display())]
    LocalFile {
        /// Failed action: `read`, `write`, …
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file in the guest cannot be read or written.
    #[error("cannot {what} {path} in the VM: {reason}")]
    GuestFile {
        /// Failed action: `read`, `write`, …
        what: &'static str,
        /// The file.
        path: String,
        /// Message of the guest's SFTP server.
        reason: String,
        /// True if the file does not exist.
        missing: bool,
    },
    /// Several sources would overwrite one file.
    #[error("cannot copy several files to {}: not a directory", path.display())]
    ManyOntoOne {
        /// The destination.
        path: PathBuf,
    },
    /// The caller cancelled the operation.
    #[error("interrupted")]
    Interrupted,
    /// A copy ended in the middle of files of this host that existed before.
    #[error("incomplete because the copy ended: {}", list(paths))]
    Incomplete {
        /// Incomplete files.
        paths: Vec<PathBuf>,
        /// Reason for the end of the copy.
        source: Box<SshError>,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl SshError {
    /// Converts the error for a guest whose agent answers: if SSH is still silent, the guest has no
    /// network.
    pub fn of_ready_guest(self, target: &Target) -> Self {
        match (self, &target.agent) {
            (Self::TooSlow { .. }, Some(agent)) => {
                NetworkDown { vm: agent.vm.clone(), fault: NetworkFault::Silent }.into()
            }
            (other, _) => other,
        }
    }

    /// Returns `true` if nothing has run yet: the guest did not answer, or has no keys.
    pub fn is_before_login(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::TooSlow { .. }
                | Self::Handshake { .. }
                | Self::Refused { .. }
        )
    }
}

impl Explain for SshError {
    fn kind(&self) -> Kind {
        match self {
            Self::NetworkDown(down) => down.kind(),
            Self::Unreachable { .. }
            | Self::TooSlow { .. }
            | Self::Handshake { .. }
            | Self::NotStarted { .. }
            | Self::OldAgent { .. }
            | Self::Lost => Kind::Unavailable,
            Self::HostKeyMismatch { .. }
            | Self::ServerKeyChanged { .. }
            | Self::NotAccepted { .. }
            | Self::Refused { .. } => Kind::Permission,
            Self::NotOverOwnServer { .. } => Kind::Unavailable,
            Self::Pin { source, .. } => kind_of_io(source),
            Self::UnknownUser { .. } => Kind::NotFound,
            Self::ManyOntoOne { .. } | Self::TooLong => Kind::Usage,
            Self::Interrupted => Kind::Interrupted,
            Self::Incomplete { source, .. } => source.kind(),
            Self::TooMuchOutput { .. } => Kind::Data,
            Self::Local { source, .. } | Self::LocalFile { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Kind::NotFound,
                _ => kind_of_io(source),
            },
            Self::GuestFile { missing, .. } => {
                if *missing {
                    Kind::NotFound
                } else {
                    Kind::Io
                }
            }
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NetworkDown(down) => return down.hint(),
            Self::Unreachable { .. } | Self::Lost => {
                "`castra status` shows whether the VM is running, and `castra logs` why it may \
                not be."
            }
            Self::TooSlow { .. } | Self::Handshake { .. } => {
                "It may still be booting, or have hung: see `castra logs`."
            }
            Self::HostKeyMismatch { .. } => {
                "Another program has taken the VM's port, or its keys were replaced. Restart the \
                VM with `castra down` and `castra up`."
            }
            Self::ServerKeyChanged { pin, .. } => {
                return Some(format!(
                    "If you have replaced its host keys, delete {}: the next connection pins the \
                    new one.",
                    pin.display()
                ));
            }
            Self::NotAccepted { user } if user == "root" => {
                "Its /root/.ssh/authorized_keys was changed, or its server no longer lets root in \
                with a key: `PermitRootLogin`, `PubkeyAuthentication`. Log in by `castra console`, \
                if its system uses the serial console."
            }
            Self::NotAccepted { .. } => {
                "A VM that boots natively knows Castra's key for root only. Add it to the user's \
                ~/.ssh/authorized_keys, for instance from root's."
            }
            Self::NotOverOwnServer { .. } => {
                "Send long input on stdin, or as a file with `castra cp`."
            }
            Self::Refused { .. } => {
                "The keys in the VM's directory have changed since it was started. Restart it with \
                 `castra down` and `castra up`."
            }
            Self::UnknownUser { .. } => {
                "Name a user of the guest's /etc/passwd, for instance root."
            }
            Self::NotStarted { .. } => "The guest may have run out of memory or terminals.",
            Self::TooLong => {
                "Linux limits one to 128 KiB and all together to 2 MiB. Send long input on stdin, \
                 or as a file with `castra cp`."
            }
            Self::OldAgent { .. } => "`castra restart` updates the agent in the VM.",
            Self::ManyOntoOne { .. } => "Create the directory first.",
            Self::Incomplete { .. } => {
                "Copy them again: they mix old and new contents, or hold only part of the new."
            }
            Self::Interrupted
            | Self::Pin { .. }
            | Self::TooMuchOutput { .. }
            | Self::Local { .. }
            | Self::LocalFile { .. }
            | Self::GuestFile { .. } => {
                return None;
            }
        };
        Some(hint.to_owned())
    }
}
