//! Names of projects, VMs, images and versions. Most become file names below the state root, and
//! none may lead out of it.

use std::path::Path;

use super::super::diagnostics::{Problem, boundary_before, quoted};
use crate::layout::MAX_VM_NAME_BYTES;

/// Longest name of an image or version, in bytes: the name of a lock file contains both and must
/// stay below 255.
pub(in crate::config) const MAX_IMAGE_NAME_BYTES: usize = 64;

/// Longest name of a project, in bytes; names of projects are only shown.
const MAX_PROJECT_NAME_BYTES: usize = 100;

/// Term for a project's name in messages.
const PROJECT: &str = "project name";

/// Error for a name that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NameProblem {
    #[error("the {what} is empty")]
    Empty { what: &'static str },
    #[error("the {what} {} is {} bytes long", quoted(.name), .name.len())]
    TooLong { what: &'static str, name: String, max_bytes: usize },
    #[error("the {what} {} starts with {}", quoted(.name), named(*.first))]
    BadStart { what: &'static str, name: String, first: char },
    #[error("the {what} {} contains {}", quoted(.name), named(*.character))]
    BadCharacter { what: &'static str, name: String, character: char },
}

/// Returns a character as part of a sentence. One that cannot be seen is named.
fn named(character: char) -> String {
    match character {
        ' ' => "a space".to_owned(),
        '\t' => "a tab".to_owned(),
        '\n' => "a line break".to_owned(),
        other => quoted(&other.to_string()),
    }
}

impl Problem for NameProblem {
    fn label(&self) -> String {
        match self {
            Self::TooLong { max_bytes, .. } => format!("at most {max_bytes} bytes"),
            _ => String::new(),
        }
    }

    fn help(&self) -> String {
        match self {
            Self::Empty { what: PROJECT } => "Give it a name, or remove the key.".to_owned(),
            Self::Empty { .. } => "Give it a name, for instance `dev`.".to_owned(),
            Self::TooLong { .. } => "Choose a shorter one.".to_owned(),
            Self::BadStart { what: PROJECT, name, .. }
            | Self::BadCharacter { what: PROJECT, name, .. } => {
                format!("Write for instance {}.", quoted(&safe_project_name(name)))
            }
            Self::BadStart { name, .. } | Self::BadCharacter { name, .. } => {
                let example =
                    safe_file_name(name, MAX_VM_NAME_BYTES).unwrap_or_else(|| "dev".to_owned());
                format!(
                    "Write for instance `{example}`: letters, digits, `-`, `_` and `.`, as in a \
                    file name."
                )
            }
        }
    }
}

/// Returns `true` if a VM can have this name.
pub fn is_vm_name(name: &str) -> bool {
    check_vm_name(name).is_ok()
}

/// Checks the name of a VM.
pub(super) fn check_vm_name(name: &str) -> Result<(), NameProblem> {
    check_file_name("VM name", name, MAX_VM_NAME_BYTES)
}

/// Checks a name that becomes one component of a path; `what` is its term in messages.
pub(super) fn check_file_name(
    what: &'static str,
    name: &str,
    max_bytes: usize,
) -> Result<(), NameProblem> {
    let first = check_length(what, name, max_bytes)?;
    if let Some(character) = name.chars().find(|character| !is_file_name_character(*character)) {
        return Err(NameProblem::BadCharacter { what, name: name.to_owned(), character });
    }
    if !first.is_ascii_alphanumeric() {
        return Err(NameProblem::BadStart { what, name: name.to_owned(), first });
    }
    Ok(())
}

/// Checks the name of a project. Names of projects are only shown, so nearly everything is
/// permitted; anything that could leave a directory or look like an option is not, in case the name
/// is used in a path or as an argument.
pub(super) fn check_project_name(name: &str) -> Result<(), NameProblem> {
    let first = check_length(PROJECT, name, MAX_PROJECT_NAME_BYTES)?;
    if let Some(character) = name.chars().find(|character| !is_project_name_character(*character)) {
        return Err(NameProblem::BadCharacter { what: PROJECT, name: name.to_owned(), character });
    }
    if !is_project_name_start(first) {
        return Err(NameProblem::BadStart { what: PROJECT, name: name.to_owned(), first });
    }
    Ok(())
}

/// Returns the name of a project that does not set one: its directory's name, made safe.
pub(in crate::config) fn project_name_of(root: &Path) -> String {
    safe_project_name(&root.file_name().unwrap_or_default().to_string_lossy())
}

/// Returns a project name derived from a directory's name.
fn safe_project_name(directory: &str) -> String {
    let replaced: String = directory
        .chars()
        .map(|character| if is_project_name_character(character) { character } else { '-' })
        .collect();
    let trimmed = replaced.trim_start_matches(|first: char| !is_project_name_start(first));
    let end = boundary_before(trimmed, MAX_PROJECT_NAME_BYTES);
    match trimmed[..end].trim_end() {
        "" => "project".to_owned(),
        name => name.to_owned(),
    }
}

/// Returns the file name nearest to `name`; `None` if none of its characters can be used.
pub(in crate::config) fn safe_file_name(name: &str, max_bytes: usize) -> Option<String> {
    let words: Vec<&str> = name
        .split(|character| !is_file_name_character(character))
        .filter(|word| !word.is_empty())
        .collect();
    let joined = words.join("-");
    let trimmed = joined.trim_start_matches(|first: char| !first.is_ascii_alphanumeric());
    let end = boundary_before(trimmed, max_bytes);
    (!trimmed.is_empty()).then(|| trimmed[..end].to_owned())
}

fn check_length(what: &'static str, name: &str, max_bytes: usize) -> Result<char, NameProblem> {
    let first = name.chars().next().ok_or(NameProblem::Empty { what })?;
    if name.len() > max_bytes {
        return Err(NameProblem::TooLong { what, name: name.to_owned(), max_bytes });
    }
    Ok(first)
}

fn is_file_name_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.')
}

fn is_project_name_character(character: char) -> bool {
    !character.is_control() && !matches!(character, '/' | '\\')
}

fn is_project_name_start(first: char) -> bool {
    is_project_name_character(first) && !first.is_whitespace() && !matches!(first, '.' | '-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_could_leave_the_state_root_are_refused() {
        for name in [
            "", ".", "..", "../x", "a/b", "/etc", ".hidden", "-rf", "a\nb", "a\0b", "a b", "é",
            "a\\b",
        ] {
            assert!(check_vm_name(name).is_err(), "{name:?}");
        }
        assert!(check_vm_name(&"v".repeat(MAX_VM_NAME_BYTES + 1)).is_err());
    }

    #[test]
    fn ordinary_names_are_taken() {
        for name in ["dev", "web-1", "a.b_c", "0", "Alpine"] {
            assert_eq!(check_vm_name(name), Ok(()), "{name:?}");
        }
        assert_eq!(check_vm_name(&"v".repeat(MAX_VM_NAME_BYTES)), Ok(()));

        assert_eq!(check_project_name("Ada's Größe (2)"), Ok(()));
    }

    #[test]
    fn a_bad_name_is_answered_with_a_good_one() {
        let problem = check_vm_name("my web/app").expect_err("a space and a slash");
        assert!(problem.help().contains("for instance `my-web-app`"), "{}", problem.help());
    }

    proptest! {
        #[test]
        fn every_directory_gives_a_project_name(directory in any::<String>()) {
            prop_assert_eq!(check_project_name(&safe_project_name(&directory)), Ok(()));
        }

        #[test]
        fn a_proposed_name_is_a_good_one(name in any::<String>()) {
            if let Some(proposed) = safe_file_name(&name, MAX_VM_NAME_BYTES) {
                prop_assert_eq!(check_vm_name(&proposed), Ok(()));
            }
        }

        #[test]
        fn an_accepted_name_is_one_plain_component(name in any::<String>()) {
            if check_vm_name(&name).is_ok() {
                let path = std::path::Path::new(&name);
                prop_assert_eq!(path.components().count(), 1);
                let file = path.file_name().and_then(|file| file.to_str());
                prop_assert_eq!(file, Some(name.as_str()));
            }
        }
    }
}
