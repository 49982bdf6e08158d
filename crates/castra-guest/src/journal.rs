//! systemd's journal of a VM that has just been given its machine ID.
//!
//! The journal's directory has the machine ID as its name, and `journalctl` looks into that of the
//! current one only. A restored guest has a journal already, of the template's machine ID.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Directories of journals, in memory and on the disk (`systemd-journald.service(8)`).
const DIRECTORIES: [&str; 2] = ["/run/log/journal", "/var/log/journal"];

/// Moves the journal of a machine ID to another one. The old name leads to the new one, because
/// journald keeps using it.
pub(crate) fn move_to(old: &str, new: &str) {
    for directory in DIRECTORIES {
        move_in(Path::new(directory), old, new);
    }
}

fn move_in(directory: &Path, old: &str, new: &str) {
    let (from, to) = (directory.join(old), directory.join(new));
    let is_directory = fs::symlink_metadata(&from).is_ok_and(|metadata| metadata.is_dir());
    if is_directory && !to.exists() && fs::rename(&from, &to).is_ok() {
        // Without it, journald creates the directory again when it starts the next file.
        let _ = symlink(new, &from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_found_under_both_names() {
        let directory = std::env::temp_dir().join(format!("castra-journal-{}", std::process::id()));
        fs::create_dir_all(directory.join("old")).expect("a directory");
        fs::write(directory.join("old/system.journal"), "records").expect("writes");
        move_in(&directory, "old", "new");
        // Once is enough.
        move_in(&directory, "old", "newer");
        for name in ["old", "new"] {
            assert!(directory.join(name).join("system.journal").exists(), "{name}");
        }
        assert!(fs::symlink_metadata(directory.join("new")).expect("is there").is_dir());
        assert!(!directory.join("newer").exists());
        move_in(&directory.join("nowhere"), "old", "new");
        fs::remove_dir_all(&directory).expect("tidies up");
    }
}
