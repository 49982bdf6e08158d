//! Reasons for refusing a path of a configuration for writing.

use std::path::{Component, Path, PathBuf};

use super::diagnostics::Problem;
use crate::error::{Explain, Kind};
use crate::layout::STATE_DIRECTORY;
use crate::sanitize::sanitize_text;

/// Environment variable that lists additional directories, separated by `:`, in which a
/// configuration may place disks and state.
pub const ALLOW_OUTSIDE: &str = "CASTRA_ALLOW_OUTSIDE";

/// Error for a path in a configuration where it must not make castra write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutOfBounds {
    /// The path is not in the project.
    #[error("{} is outside the project{}", shown(.path), leading(.leads_to.as_deref()))]
    Outside {
        /// Path as it is configured.
        path: PathBuf,
        /// Target, if symbolic links lead elsewhere.
        leads_to: Option<PathBuf>,
    },
    /// The path is in a hidden directory, or a hidden file.
    #[error(
        "{} is in a hidden location: `{}` begins with a dot",
        shown(.path), sanitize_text(.name)
    )]
    Hidden {
        /// The path.
        path: PathBuf,
        /// Hidden component.
        name: String,
    },
    /// The path is in the `.castra` of another project.
    #[error("{} belongs to another project", shown(.path))]
    OtherProject {
        /// The path.
        path: PathBuf,
    },
    /// Castra keeps its own files at this path.
    #[error("{} is reserved for castra", shown(.path))]
    Reserved {
        /// The path.
        path: PathBuf,
    },
    /// The path of a disk is a symbolic link.
    #[error("the disk {} is a symbolic link", shown(.path))]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// The path of a disk is another kind of file.
    #[error("{} already exists and is not a qcow2 disk", shown(.path))]
    NotADisk {
        /// The file.
        path: PathBuf,
    },
    /// The path of a state root is a file.
    #[error("{} already exists and is not a directory", shown(.path))]
    NotADirectory {
        /// The file.
        path: PathBuf,
    },
    /// The state root is the project's directory or above it.
    #[error("the state directory {} holds the project itself", shown(.path))]
    HoldsProject {
        /// The directory.
        path: PathBuf,
    },
    /// The state root is a symbolic link that is not trusted.
    #[error("the state directory {} is a symbolic link to {}, {why}", shown(.path), shown(.target))]
    StateLink {
        /// The link.
        path: PathBuf,
        /// Target of the link.
        target: PathBuf,
        /// The reason, as a relative clause.
        why: String,
    },
    /// Symbolic links of the path cannot be resolved.
    #[error("cannot follow {}: {reason}", shown(.path))]
    Unresolved {
        /// The path.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
}

impl OutOfBounds {
    fn advice(&self) -> String {
        match self {
            Self::Outside { path, leads_to } => {
                format!(
                    "Name a path inside the project. {}",
                    allow(leads_to.as_ref().unwrap_or(path))
                )
            }
            Self::Hidden { path, .. } => format!(
                "Castra writes to no hidden file or directory except `{STATE_DIRECTORY}`. Choose \
                another name. {}",
                allow(path)
            ),
            Self::OtherProject { path } => {
                format!("Name a path that only this project uses. {}", allow(path))
            }
            Self::Reserved { .. } => {
                "Choose another name for the disk, or remove `overlay`.".to_owned()
            }
            Self::Link { path } => format!(
                "Name the file itself in `overlay`, or move it to {}. A disk may be on another \
                filesystem if you allow it: {ALLOW_OUTSIDE}=DIRECTORY.",
                path.display()
            ),
            Self::NotADisk { .. } => {
                "Name a file that does not exist yet, or move that one away first.".to_owned()
            }
            Self::NotADirectory { .. } => {
                "Name a directory for castra alone, or move the file away.".to_owned()
            }
            Self::HoldsProject { .. } => {
                format!("Name a directory for castra alone, for instance `{STATE_DIRECTORY}`.")
            }
            Self::StateLink { path, target, .. } => format!(
                "If you made this link, point it to an empty directory of your own that only you \
                can write to. If it came with the project, remove {}. {}",
                path.display(),
                allow(target)
            ),
            Self::Unresolved { .. } => "Name a path that resolves, or remove the link.".to_owned(),
        }
    }
}

impl Problem for OutOfBounds {
    fn label(&self) -> String {
        "castra must not write there".to_owned()
    }

    fn help(&self) -> String {
        self.advice()
    }
}

impl Explain for OutOfBounds {
    fn kind(&self) -> Kind {
        Kind::Data
    }

    fn hint(&self) -> Option<String> {
        Some(self.advice())
    }
}

/// Returns the remedy that only the user has. A hidden place is not suggested: it holds keys and
/// settings.
fn allow(place: &Path) -> String {
    let is_hidden = |component: Component<'_>| {
        let name = component.as_os_str();
        name.as_encoded_bytes().starts_with(b".") && name != STATE_DIRECTORY
    };
    if place.components().any(is_hidden) {
        return format!(
            "{ALLOW_OUTSIDE} lists further directories in which you let configurations place \
            disks and state."
        );
    }
    format!(
        "If you trust this configuration, allow that location: {ALLOW_OUTSIDE}={}",
        place.display()
    )
}

fn shown(path: &Path) -> String {
    format!("`{}`", sanitize_text(&path.to_string_lossy()))
}

fn leading(target: Option<&Path>) -> String {
    target
        .map_or_else(String::new, |target| format!(": a symbolic link leads to {}", shown(target)))
}
