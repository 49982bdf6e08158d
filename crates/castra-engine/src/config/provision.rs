//! Steps that prepare a VM's disk before the VM exists.

use std::fmt;
use std::path::PathBuf;

use crate::qemu::Network;

/// Longest form of a step in a message, in characters.
const MAX_SHOWN: usize = 60;

/// Maximum number of steps of a VM: each is a layer of its disk.
pub const MAX_STEPS: usize = 32;

/// Longest command of a step, in bytes; longer ones are scripts.
pub(super) const MAX_COMMAND_BYTES: usize = 32 * 1024;

/// Longest name of a secret, in bytes.
const MAX_SECRET_BYTES: usize = 255;

/// Prefix of a secret that is a variable of castra's environment.
const OF_ENVIRONMENT: &str = "env:";

/// A step that prepares a VM's disk, as root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvisionStep {
    /// The work of the step.
    pub action: StepAction,
    /// Secrets that its program sees, in the order of their names. Each has a name of its own.
    pub secrets: Vec<StepSecret>,
    /// Network of its machine. That of an isolated VM is isolated in any case.
    pub network: Network,
}

/// Work of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepAction {
    /// Lines for the shell.
    Run(String),
    /// A script of the project's.
    Script(ProjectPath),
    /// A file or directory of the project's that is copied.
    Copy {
        /// Source on this machine.
        from: ProjectPath,
        /// Absolute path in the VM.
        to: String,
    },
}

/// A variable of castra's environment whose value a step sees. The value is never a part of the
/// configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepSecret {
    /// Name of the variable, on this machine and in the VM: letters, digits and `_`.
    pub name: String,
    /// Directory of the project that asks for it. Absolute.
    pub root: PathBuf,
}

/// Returns the name of the variable in `env:NAME`.
pub(super) fn secret_name(text: &str) -> Option<&str> {
    let name = text.strip_prefix(OF_ENVIRONMENT)?;
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let begins_well = name.starts_with(|c: char| !c.is_ascii_digit());
    Some(name).filter(|name| is_plain && begins_well && name.len() <= MAX_SECRET_BYTES)
}

impl StepAction {
    /// Returns the step without secrets, with the network that its VM has.
    pub fn alone(self) -> ProvisionStep {
        ProvisionStep { action: self, secrets: Vec::new(), network: Network::Full }
    }
}

/// Path of a file or directory inside a project, which a stranger may have written. Whether links
/// lead elsewhere is found out when it is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectPath {
    /// Directory of the project. Absolute.
    pub root: PathBuf,
    /// Path below it, made of names only; empty for the directory itself.
    pub below: PathBuf,
    /// State root, of which nothing is ever read. Absolute.
    pub state_root: PathBuf,
}

impl fmt::Display for ProjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.below.as_os_str().is_empty() {
            true => f.write_str("."),
            false => self.below.display().fmt(f),
        }
    }
}

impl fmt::Display for StepAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(command) => f.write_str(&first_line(command)),
            Self::Script(path) => write!(f, "script {path}"),
            Self::Copy { from, to } => write!(f, "copy {from} to {to}"),
        }
    }
}

impl fmt::Display for ProvisionStep {
    /// Writes one short line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.action.fmt(f)?;
        if !self.secrets.is_empty() {
            let names: Vec<&str> = self.secrets.iter().map(|secret| secret.name.as_str()).collect();
            write!(f, " (with {})", names.join(", "))?;
        }
        match self.network {
            Network::Full => Ok(()),
            Network::Isolated => f.write_str(" (isolated)"),
        }
    }
}

/// Returns the first line of a command, shortened if it is long; `…` marks what is left out.
fn first_line(command: &str) -> String {
    let mut lines = command.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.next().unwrap_or_default();
    let mut shown: String = line.chars().take(MAX_SHOWN).collect();
    if shown.len() < line.len() || lines.next().is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_shown_as_one_short_line() {
        let shown = |command: &str| StepAction::Run(command.to_owned()).alone().to_string();
        assert_eq!(shown("apk add nginx"), "apk add nginx");
        assert_eq!(shown("\n  apk add nginx\n"), "apk add nginx");
        assert_eq!(shown("set -e\ntrue"), "set -e…");
        assert_eq!(shown(&"ä".repeat(80)), format!("{}…", "ä".repeat(MAX_SHOWN)));
        let path = |below: &str| ProjectPath {
            root: "/p".into(),
            below: below.into(),
            state_root: "/p/.castra".into(),
        };
        let copy = StepAction::Copy { from: path(""), to: "/srv".to_owned() };
        assert_eq!(copy.to_string(), "copy . to /srv");
        let secret = |name: &str| StepSecret { name: name.to_owned(), root: "/p".into() };
        let script = ProvisionStep {
            action: StepAction::Script(path("a/b.sh")),
            secrets: vec![secret("A"), secret("B")],
            network: Network::Isolated,
        };
        assert_eq!(script.to_string(), "script a/b.sh (with A, B) (isolated)");
    }

    #[test]
    fn a_secret_is_a_variable_with_a_plain_name() {
        assert_eq!(secret_name("env:_Token2"), Some("_Token2"));
        let long = format!("env:{}", "a".repeat(MAX_SECRET_BYTES + 1));
        for bad in [
            "",
            "TOKEN",
            "env:",
            "env:A=B",
            "env:2A",
            "env:A\0",
            "env:A B",
            "env:\u{e4}",
            "ENV:A",
            &long,
        ] {
            assert_eq!(secret_name(bad), None, "{bad}");
        }
    }
}
