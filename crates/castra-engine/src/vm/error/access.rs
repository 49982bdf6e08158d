//! Errors of reaching a guest that runs.

use std::fmt;
use std::path::PathBuf;

use crate::error::{Explain, Kind};
use crate::layout::SocketsLayout;

/// Reason why a running guest cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The VM was booted natively by an earlier castra, without a way in.
    #[error("VM `{vm}` boots natively, and an earlier castra has started it without a way in")]
    NoAgent {
        /// The VM.
        vm: String,
    },
    /// A guest that was ready no longer answers.
    #[error(
        "the guest of VM `{vm}` is not responding: it was ready, but has been silent for \
        {limit_secs} s"
    )]
    GuestSilent {
        /// The VM.
        vm: String,
        /// The limit in seconds.
        limit_secs: u64,
    },
    /// Something has removed the sockets of a running VM.
    #[error("cannot {attempt} VM `{vm}`: its sockets in {} are gone", directory.display())]
    SocketsGone {
        /// The VM.
        vm: String,
        /// Operation that is not possible without them.
        attempt: Attempt,
        /// Directory in which the sockets were.
        directory: PathBuf,
    },
    /// The VM's console is in use.
    #[error("the console of VM `{vm}` is in use{}", by_process(*pid))]
    ConsoleTaken {
        /// The VM.
        vm: String,
        /// Pid of the connected process, if the kernel knows it.
        pid: Option<i32>,
    },
    /// The socket of the VM's console is gone.
    #[error("cannot reach the console of VM `{vm}`: its socket {} is gone", socket.display())]
    NoConsole {
        /// The VM.
        vm: String,
        /// The socket.
        socket: PathBuf,
    },
}

/// Operation that needs the sockets of a running VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// Asking its agent whether commands can run.
    LookInto,
    /// Saving its memory.
    Suspend,
    /// Asking its guest to shut down.
    Stop,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LookInto => "look into",
            Self::Suspend => "suspend",
            Self::Stop => "stop",
        })
    }
}

impl AccessError {
    /// Returns the error of a VM whose sockets are gone.
    pub(in crate::vm) fn sockets_gone(vm: &str, attempt: Attempt, sockets: &SocketsLayout) -> Self {
        Self::SocketsGone { vm: vm.to_owned(), attempt, directory: sockets.directory().to_owned() }
    }
}

impl Explain for AccessError {
    fn kind(&self) -> Kind {
        match self {
            Self::NoAgent { .. }
            | Self::GuestSilent { .. }
            | Self::SocketsGone { .. }
            | Self::NoConsole { .. } => Kind::Unavailable,
            Self::ConsoleTaken { .. } => Kind::Busy,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoAgent { vm } => format!(
                "`castra restart {vm}` gives its own SSH server a key and a port; `castra logs \
                {vm}` shows its console."
            ),
            Self::GuestSilent { vm, .. } => format!(
                "`castra console {vm}` and `castra logs {vm}` show what it is doing. `castra \
                restart {vm}` restarts it."
            ),
            Self::SocketsGone { vm, attempt: Attempt::Stop, .. } => format!(
                "They were removed while the VM was running, perhaps by a cleaner of temporary \
                 files or a logout, so its guest cannot be asked to shut down. Shut it down from \
                 inside, or cut its power: castra down --force {vm}"
            ),
            Self::SocketsGone { vm, attempt: Attempt::LookInto | Attempt::Suspend, .. } => format!(
                "They were removed while the VM was running, perhaps by a cleaner of temporary \
                files or a logout. The VM keeps running; `castra restart {vm}` shuts it down and \
                creates new ones."
            ),
            Self::ConsoleTaken { vm, .. } => format!(
                "Disconnect there with Ctrl-]. `castra logs -f {vm}` shows the console meanwhile."
            ),
            Self::NoConsole { vm, .. } => format!(
                "It was removed while the VM was running, perhaps by a cleaner of temporary files \
                or a logout. The VM keeps running: `castra logs -f {vm}` shows its console, and \
                `castra restart {vm}` creates new sockets."
            ),
        })
    }
}

fn by_process(pid: Option<i32>) -> String {
    pid.map_or(String::new(), |pid| format!(" by process {pid}"))
}
