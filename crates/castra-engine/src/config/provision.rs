//! Steps that prepare a VM's disk before the VM exists.

use std::fmt;
use std::path::PathBuf;

/// Longest form of a step in a message, in characters.
const MAX_SHOWN: usize = 60;

/// Maximum number of steps of a VM: each is a layer of its disk.
pub(super) const MAX_STEPS: usize = 32;

/// Longest command of a step, in bytes; longer ones are scripts.
pub(super) const MAX_COMMAND_BYTES: usize = 32 * 1024;

/// A step that prepares a VM's disk, as root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProvisionStep {
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

impl fmt::Display for ProvisionStep {
    /// Writes one short line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(command) => f.write_str(&first_line(command)),
            Self::Script(path) => write!(f, "script {path}"),
            Self::Copy { from, to } => write!(f, "copy {from} to {to}"),
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
        let shown = |command: &str| ProvisionStep::Run(command.to_owned()).to_string();
        assert_eq!(shown("apk add nginx"), "apk add nginx");
        assert_eq!(shown("\n  apk add nginx\n"), "apk add nginx");
        assert_eq!(shown("set -e\ntrue"), "set -e…");
        assert_eq!(shown(&"ä".repeat(80)), format!("{}…", "ä".repeat(MAX_SHOWN)));
        let path = |below: &str| ProjectPath {
            root: "/p".into(),
            below: below.into(),
            state_root: "/p/.castra".into(),
        };
        let copy = ProvisionStep::Copy { from: path(""), to: "/srv".to_owned() };
        assert_eq!(copy.to_string(), "copy . to /srv");
        assert_eq!(ProvisionStep::Script(path("a/b.sh")).to_string(), "script a/b.sh");
    }
}
