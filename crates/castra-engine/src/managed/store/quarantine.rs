//! Quarantine: damaged files are moved there, never trusted again and never silently lost. `castra
//! image prune` removes them.

use crate::files::{self, At, FileError};
use std::fs;
use std::path::{Path, PathBuf};

/// Moves a damaged file (or whatever is in its place) into a quarantine on the same filesystem, and
/// returns its new path. `name` says what it was.
pub(crate) fn keep(quarantine: &Path, file: &Path, name: &str) -> Result<PathBuf, FileError> {
    files::create_directory(quarantine)?;
    let free = |target: &PathBuf| fs::symlink_metadata(target).is_err();
    let numbered = (1..).map(|number| quarantine.join(format!("{name}.{number}")));
    let target = std::iter::once(quarantine.join(name)).chain(numbered).find(free);
    // The numbers do not run out.
    let target = target.unwrap_or_else(|| quarantine.join(name));
    fs::rename(file, &target).at("quarantine", file)?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_replaces_another() {
        let directory = tempfile::tempdir().expect("a directory");
        let (file, quarantine) =
            (directory.path().join("file"), directory.path().join("quarantine"));
        for (content, name) in [("one", "disk"), ("two", "disk.1"), ("three", "disk.2")] {
            fs::write(&file, content).expect("written");
            let moved = keep(&quarantine, &file, "disk").expect("moved");
            assert_eq!(moved, quarantine.join(name));
            assert_eq!(fs::read_to_string(moved).expect("read"), content);
        }
        assert!(!file.exists());
    }

    #[test]
    fn a_link_is_moved_and_not_what_it_leads_to() {
        let directory = tempfile::tempdir().expect("a directory");
        let (victim, link) = (directory.path().join("victim"), directory.path().join("link"));
        fs::write(&victim, "precious").expect("written");
        std::os::unix::fs::symlink(&victim, &link).expect("linked");
        let moved = keep(&directory.path().join("quarantine"), &link, "disk").expect("moved");
        assert!(victim.is_file() && fs::symlink_metadata(moved).expect("there").is_symlink());
    }
}
