//! Paths in the file: written relative to it, with `~` for the home directory, or absolute;
//! normalised to absolute ones.

use std::path::{Path, PathBuf};

use super::super::diagnostics::{Problem, quoted};
use crate::files::normalise;

/// Error for a path that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PathProblem {
    #[error("the path is empty")]
    Empty,
    #[error("the path {} contains a control character", quoted(.0))]
    ControlCharacter(String),
    #[error("{} names the home directory of another user", quoted(.0))]
    OtherUsersHome(String),
    #[error("{} needs a home directory, and HOME is not set", quoted(.0))]
    NoHome(String),
    #[error("{} names a directory, not a file", quoted(.0))]
    NotAFile(String),
}

impl Problem for PathProblem {
    fn help(&self) -> String {
        match self {
            Self::Empty => "Write a path relative to this file, or remove the key.",
            Self::ControlCharacter(_) => {
                "Remove it; in \"…\" a backslash starts an escape, in '…' it does not."
            }
            Self::OtherUsersHome(_) => "Only `~/` is supported: write the directory itself.",
            Self::NoHome(_) => "Write the directory itself, or set HOME to an absolute path.",
            Self::NotAFile(_) => "Add the name of the file.",
        }
        .to_owned()
    }
}

/// Resolves `text`, from a file in the directory `root`, into an absolute path.
pub(super) fn resolve(
    text: &str,
    root: &Path,
    home: Option<&Path>,
) -> Result<PathBuf, PathProblem> {
    if text.is_empty() {
        return Err(PathProblem::Empty);
    }
    if text.contains(char::is_control) {
        return Err(PathProblem::ControlCharacter(text.to_owned()));
    }
    let Some(below_home) = text.strip_prefix('~') else {
        return Ok(normalise(&root.join(text)));
    };
    if !below_home.is_empty() && !below_home.starts_with('/') {
        return Err(PathProblem::OtherUsersHome(text.to_owned()));
    }
    let home = home.ok_or_else(|| PathProblem::NoHome(text.to_owned()))?;
    Ok(normalise(&home.join(below_home.trim_start_matches('/'))))
}

/// Resolves a path that must name a file, like [`resolve`].
pub(super) fn resolve_file(
    text: &str,
    root: &Path,
    home: Option<&Path>,
) -> Result<PathBuf, PathProblem> {
    let path = resolve(text, root, home)?;
    let last = text.rsplit('/').next().unwrap_or(text);
    if matches!(last, "" | "." | ".." | "~") {
        Err(PathProblem::NotAFile(text.to_owned()))
    } else {
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn relative_to_the_file_and_normalised() {
        let root = Path::new("/work/project");
        for (text, expected) in [
            ("images/a.qcow2", "/work/project/images/a.qcow2"),
            ("./a//b/../c", "/work/project/a/c"),
            ("../shared/a", "/work/shared/a"),
            ("../../../../a", "/a"),
            ("/abs/./a", "/abs/a"),
            ("~", "/home/ada"),
            ("~/a", "/home/ada/a"),
            ("~//etc", "/home/ada/etc"),
            ("a~b", "/work/project/a~b"),
        ] {
            assert_eq!(
                resolve(text, root, Some(Path::new("/home/ada"))),
                Ok(expected.into()),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_file() {
        for text in ["a/", ".", "..", "a/..", "~", "~/"] {
            let problem = resolve_file(text, Path::new("/p"), Some(Path::new("/home/ada")));
            assert_eq!(problem, Err(PathProblem::NotAFile(text.into())));
        }
    }

    #[test]
    fn homes_that_are_not_there() {
        let root = Path::new("/p");
        assert_eq!(resolve("~/a", root, None), Err(PathProblem::NoHome("~/a".into())));
        assert_eq!(
            resolve("~bob/a", root, None),
            Err(PathProblem::OtherUsersHome("~bob/a".into()))
        );
    }

    proptest! {
        #[test]
        fn always_absolute_and_normal(text in any::<String>()) {
            if let Ok(path) = resolve(&text, Path::new("/work/project"), Some(Path::new("/home/\
                ada"))) {
                prop_assert!(path.is_absolute());
                prop_assert_eq!(normalise(&path), path.clone());
                prop_assert!(path.components().all(|component| component != Component::ParentDir));
            }
        }
    }
}
