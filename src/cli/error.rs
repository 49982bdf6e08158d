//! Errors of the command line itself.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::error::{Explain, Kind, kind_of_io};

#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error("{} is there already", path.display())]
    AlreadyThere { path: PathBuf },
    #[error("cannot {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot write to stdout")]
    Stdout(#[from] io::Error),
    #[error("stdin, stdout or stderr is closed")]
    Streams(#[source] io::Error),
    #[error("there is no terminal here to give to the command")]
    NoTerminal,
    #[error("{what} cannot be told as JSON")]
    NoJson { what: &'static str },
    #[error("there is no log {}", path.display())]
    NoLog { path: PathBuf, vm: Option<String> },
    #[error("disks are removed only after a question, and there is no terminal to ask at")]
    NobodyToAsk,
    #[error("a state directory is taken over only after a question, and there is no terminal to ask at")]
    NoConsent,
    #[error("several things cannot be copied onto {path}, which is no directory")]
    NotADirectory { path: String },
    #[error("{count} of the entries of {tree} could not be copied, since they are no files")]
    LeftOut { count: usize, tree: String },
    #[error("`{copy}` says not where to copy to")]
    NoDestination { copy: String },
    #[error("the command did not end within {secs} s and was ended with its VM")]
    TimedOut { secs: f64 },
    #[error("the {what} `{text}` cannot be written into an ssh configuration")]
    NotForSshConfig { what: &'static str, text: String },
    #[error("cannot reach the SSH server of VM `{vm}` at {address}")]
    NoSsh { vm: String, address: SocketAddr, source: io::Error },
    #[error("none of these paths is in a VM: {}", paths.join(", "))]
    NothingRemote { paths: Vec<String> },
    #[error("cannot copy from VM to VM, or from different VMs at once: {}", paths.join(", "))]
    TooManyRemotes { paths: Vec<String> },
}

impl Explain for CliError {
    fn kind(&self) -> Kind {
        match self {
            Self::AlreadyThere { .. } => Kind::CannotCreate,
            Self::LeftOut { .. } => Kind::Io,
            Self::File { action: "create", source, .. } if kind_of_io(source) == Kind::Io => {
                Kind::CannotCreate
            }
            Self::File { source, .. } | Self::Stdout(source) | Self::Streams(source) => kind_of_io(source),
            Self::NoLog { .. } => Kind::NotFound,
            Self::TimedOut { .. } | Self::NoSsh { .. } => Kind::Unavailable,
            Self::NoTerminal
            | Self::NoJson { .. }
            | Self::NobodyToAsk
            | Self::NoConsent
            | Self::NotADirectory { .. }
            | Self::NoDestination { .. }
            | Self::NothingRemote { .. }
            | Self::NotForSshConfig { .. }
            | Self::TooManyRemotes { .. } => Kind::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::AlreadyThere { path } => Some(format!("Edit {}, or move it away first.", path.display())),
            Self::NotForSshConfig { what: "path", .. } => {
                Some("Move the project to a directory without quotes, backslashes and control characters in its path.".into())
            }
            Self::NoSsh { vm, .. } => Some(format!("`castra exec {vm} -- true` tells what is wrong with it.")),
            Self::NotForSshConfig { .. } => {
                Some("A user's name has letters, digits, and - _ . @ + after the first.".into())
            }
            Self::NobodyToAsk => Some("--yes says that they may go; --dry-run shows them.".into()),
            Self::NoConsent => Some("--yes says that it is yours.".into()),
            Self::NoTerminal => Some("Leave --tty out, or run castra in a terminal.".into()),
            Self::NoJson { .. } => Some("Leave --json out.".into()),
            Self::File { path, source, .. } if kind_of_io(source) == Kind::Permission => Some(format!(
                "Make {} accessible for yourself, or work in a directory of your own.",
                path.display()
            )),
            Self::File { .. } | Self::Stdout(_) | Self::Streams(_) => None,
            Self::NoDestination { .. } => Some("Write SRC:DST, for instance --cp ./site:/srv".into()),
            Self::TimedOut { .. } => Some("--timeout SECS gives it more time.".into()),
            Self::LeftOut { .. } => Some("Archive them inside instead, for instance with `tar`.".into()),
            Self::NotADirectory { .. } => Some("Make the directory first.".into()),
            Self::NoLog { vm: Some(vm), .. } => Some(format!("It is written by the next `castra up {vm}`.")),
            Self::NoLog { vm: None, .. } => Some("It is written when an image is fetched.".into()),
            Self::NothingRemote { .. } => {
                Some("Write a path in a VM as VM:PATH, or :PATH where there is only one VM.".into())
            }
            Self::TooManyRemotes { .. } => Some(
                "Either all sources or the destination are in one VM; copy in two steps over this machine."
                    .into(),
            ),
        }
    }
}
