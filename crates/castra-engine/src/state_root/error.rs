//! Reasons not to use a state root, and the way out of each.

use std::io;
use std::path::{Path, PathBuf};

use crate::context::RuntimeContext;
use crate::error::{Explain, Kind, kind_of_io};
use crate::layout::UserStateLayout;
use crate::trusted::Distrust;

/// Reason why a state root is not used.
#[derive(Debug, thiserror::Error)]
pub enum StateRootError {
    /// The state root is not empty, and has no mark of this user's.
    #[error("{} was not created by your castra, so nothing in it is used", root.display())]
    Foreign {
        /// The state root.
        root: PathBuf,
    },
    /// Git tracks a file in the state root.
    #[error("git tracks {} in {}, so everyone who can write to that repository controls its \
        contents", file.display(), tree.display())]
    Tracked {
        /// The state root.
        root: PathBuf,
        /// The working tree.
        tree: PathBuf,
        /// Tracked file, relative to the working tree.
        file: PathBuf,
    },
    /// An entry has a type, an owner or a mode that castra does not rely on.
    #[error("cannot rely on {}", path.display())]
    Refused {
        /// Path of the entry.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file has names outside the state root.
    #[error(
        "{} has a hard link outside the state directory, through which it can be changed",
        path.display()
    )]
    HardLink {
        /// The file.
        path: PathBuf,
    },
    /// A file or directory cannot be examined or written to.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// Failed action.
        action: &'static str,
        /// Path of the file or directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The user's key is not available.
    #[error("cannot {action} {}, the key that signs your state directories", path.display())]
    Key {
        /// Failed action: `read` or `create`.
        action: &'static str,
        /// Path of the key.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// No directory is known in which to keep a key.
    #[error(
        "neither HOME nor XDG_STATE_HOME is set, so there is no place for the key that signs your \
        state directories"
    )]
    NoHome,
}

impl Explain for StateRootError {
    fn kind(&self) -> Kind {
        match self {
            Self::Foreign { .. } | Self::Tracked { .. } | Self::HardLink { .. } => Kind::Permission,
            Self::Io { action: "create", source, .. }
            | Self::Key { action: "create", source, .. }
                if kind_of_io(source) == Kind::Io =>
            {
                Kind::CannotCreate
            }
            Self::Refused { source, .. } | Self::Io { source, .. } | Self::Key { source, .. } => {
                kind_of_io(source)
            }
            Self::NoHome => Kind::CannotCreate,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Foreign { root } => Some(format!(
                "It may have come with a repository or an archive. If it is your own, from another \
                machine or an earlier castra: `castra adopt` shows what is in it and takes it \
                over. If not, move it out of the way: mv {0} {0}.untrusted",
                root.display()
            )),
            Self::Tracked { tree, file, .. } => Some(format!(
                "If you added it yourself: `git -C {} rm -r -q --cached {}` untracks the files \
                and keeps them; everyone who has the repository knows the SSH keys in it.",
                tree.display(),
                top_of(file).display()
            )),
            Self::Refused { path, source } => {
                Distrust::of(source).map(|distrust| distrust.way_out(path))
            }
            Self::HardLink { path } => Some(format!(
                "Make it a file of its own: cp -p {0} {0}.copy && mv {0}.copy {0}",
                path.display()
            )),
            Self::Key { action: "create", .. } => Some(
                "Set XDG_STATE_HOME to a writable directory of your own, always the same one."
                    .into(),
            ),
            Self::Key { path, source, .. } if Distrust::of(source).is_some() => Some(format!(
                "{} and its directory must be yours alone (chmod 600 and 700).",
                path.display()
            )),
            Self::Key { path, .. } => Some(format!(
                "Make it readable, or bring it back from a backup. Without it: move {} away, and \
                `castra adopt` each project once.",
                path.display()
            )),
            Self::NoHome => Some("Set HOME, or XDG_STATE_HOME to a directory of yours.".into()),
            Self::Io { path, source, .. } => (kind_of_io(source) == Kind::Permission).then(|| {
                let directory = path.parent().unwrap_or(path).display();
                format!(
                    "Castra keeps its state beside your work: make {directory} writable for \
                    yourself, or work in a directory of your own. To keep the state elsewhere, \
                    name a directory as `state_dir` in castra.toml and in CASTRA_ALLOW_OUTSIDE."
                )
            }),
        }
    }
}

/// Returns the part of a tracked path up to `.castra`, or the whole path if it has no such
/// component.
fn top_of(file: &Path) -> PathBuf {
    let mut top = PathBuf::new();
    for part in file.components() {
        top.push(part);
        if part.as_os_str().eq_ignore_ascii_case(crate::layout::STATE_DIRECTORY) {
            break;
        }
    }
    top
}

impl RuntimeContext {
    /// Returns the directory of the user's key.
    pub(super) fn user_state(&self) -> Result<&UserStateLayout, StateRootError> {
        self.user_state.as_ref().ok_or(StateRootError::NoHome)
    }
}
