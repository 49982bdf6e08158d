//! Errors of the command line itself.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use castra_engine::error::{Explain, Kind, kind_of_io};

#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error("{} already exists", path.display())]
    AlreadyThere { path: PathBuf },
    #[error("cannot {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the limit on open files is {limit}, and castra needs {least}")]
    FewDescriptors { limit: u64, least: u64 },
    #[error("cannot {action}")]
    Exhausted { action: &'static str, source: io::Error },
    #[error("cannot write to stdout")]
    Stdout(#[from] io::Error),
    #[error("stdin, stdout or stderr is closed")]
    Streams(#[source] io::Error),
    #[error("cannot allocate a terminal: neither stdin nor stdout is one")]
    NoTerminal,
    #[error("{} has a VM on another image: `{vm}`", root.display())]
    HasVm { vm: String, root: PathBuf },
    #[error("{what} has no JSON output")]
    NoJson { what: &'static str },
    #[error("no such log: {}", path.display())]
    NoLog { path: PathBuf, vm: Option<String> },
    #[error("refusing to remove disks: stdin is not a terminal to confirm at")]
    NobodyToAsk,
    #[error("refusing to take over a state directory: stdin is not a terminal to confirm at")]
    NoConsent,
    #[error("cannot copy several sources to {path}: not a directory")]
    NotADirectory { path: String },
    #[error("{count} entries of {tree} could not be copied: not regular files")]
    LeftOut { count: usize, tree: String },
    #[error("`{copy}` has no destination")]
    NoDestination { copy: String },
    #[error("the {what} `{text}` cannot be part of an ssh configuration")]
    NotForSshConfig { what: &'static str, text: String },
    #[error("cannot reach the SSH server of VM `{vm}` at {address}")]
    NoSsh { vm: String, address: SocketAddr, source: io::Error },
    #[error("none of these paths is in a VM: {}", paths.join(", "))]
    NothingRemote { paths: Vec<String> },
    #[error("cannot copy between VMs, or from several VMs at once: {}", paths.join(", "))]
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
            Self::File { source, .. } | Self::Stdout(source) | Self::Streams(source) => {
                kind_of_io(source)
            }
            Self::FewDescriptors { .. } | Self::Exhausted { .. } => Kind::HostNotCapable,
            Self::NoLog { .. } => Kind::NotFound,
            Self::NoSsh { .. } => Kind::Unavailable,
            Self::NoTerminal
            | Self::NoJson { .. }
            | Self::HasVm { .. }
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
            Self::FewDescriptors { least, .. } => {
                Some(format!("Raise it, for instance by `ulimit -n {least}`."))
            }
            Self::Exhausted { .. } => Some(
                "This process or this user has reached a limit: `ulimit -a` shows them, and \
                `systemctl show -p TasksMax` that of a service."
                    .into(),
            ),
            Self::AlreadyThere { path } => {
                Some(format!("Edit {}, or move it away first.", path.display()))
            }
            Self::NotForSshConfig { what: "path", .. } => Some(
                "Move the project to a directory without quotes, backslashes and control \
                characters in its path."
                    .into(),
            ),
            Self::NoSsh { vm, .. } => {
                Some(format!("`castra exec {vm} -- true` shows what is wrong with it."))
            }
            Self::NotForSshConfig { .. } => Some(
                "A user name consists of letters, digits and, after the first character, - _ . @ +"
                    .into(),
            ),
            Self::NobodyToAsk => {
                Some("--yes removes them without asking; --dry-run shows them.".into())
            }
            Self::NoConsent => Some("--yes takes it over without asking.".into()),
            Self::NoTerminal => Some("Omit --tty, or run castra in a terminal.".into()),
            Self::NoJson { .. } => Some("Omit --json.".into()),
            Self::HasVm { .. } => Some(
                "Use another directory. Or run `castra init` and add a second VM to the \
                castra.toml that it writes; `castra clean --disks` removes a stopped VM."
                    .into(),
            ),
            Self::File { path, source, .. } if kind_of_io(source) == Kind::Permission => {
                Some(format!(
                    "Give yourself access to {}, or work in a directory of your own.",
                    path.display()
                ))
            }
            Self::File { .. } | Self::Stdout(_) | Self::Streams(_) => None,
            Self::NoDestination { .. } => {
                Some("Write SRC:DST, for instance --cp ./site:/srv".into())
            }
            Self::LeftOut { .. } => {
                Some("Archive them inside instead, for instance with `tar`.".into())
            }
            Self::NotADirectory { .. } => Some("Create the directory first.".into()),
            Self::NoLog { vm: Some(vm), .. } => {
                Some(format!("The next `castra up {vm}` creates it."))
            }
            Self::NoLog { vm: None, .. } => Some("Fetching an image creates it.".into()),
            Self::NothingRemote { .. } => {
                Some("Write a path in a VM as VM:PATH, or :PATH where there is only one VM.".into())
            }
            Self::TooManyRemotes { .. } => Some(
                "Either all sources or the destination must be in one VM. Copy in two steps, \
                through this machine."
                    .into(),
            ),
        }
    }
}
