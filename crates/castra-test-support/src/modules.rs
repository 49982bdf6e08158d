//! The files of a test binary, all of which must be modules of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Insists that every source file below a binary's folder is a module: the tests of a forgotten one
/// would never run.
///
/// `folder` has the binary's `main.rs`.
#[track_caller]
pub fn assert_none_forgotten(folder: &Path) {
    let forgotten = forgotten(folder, &folder.join("main.rs"));
    assert!(forgotten.is_empty(), "no `mod` names {forgotten:?}");
}

/// Returns the source files of a folder that `root` declares no module for, and those of its
/// subfolders.
fn forgotten(folder: &Path, root: &Path) -> Vec<PathBuf> {
    let declared = declared(root);
    let mut forgotten = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of tests").flatten() {
        let path = entry.path();
        let own_root = if path.is_dir() { path.join("mod.rs") } else { path.clone() };
        let is_source =
            own_root.extension().is_some_and(|extension| extension == "rs") && own_root.is_file();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if !is_source || own_root == root {
            continue;
        }
        if !declared.contains(&name) {
            forgotten.push(own_root);
        } else if path.is_dir() {
            forgotten.extend(self::forgotten(&path, &own_root));
        }
    }
    forgotten
}

/// Returns the names of the modules that a source file declares.
fn declared(root: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(root).expect("a source file");
    let without_visibility = |line: &'_ str| match line.split_once(") ") {
        Some((visibility, rest)) if visibility.starts_with("pub(") => rest.to_owned(),
        _ => line.trim_start_matches("pub ").to_owned(),
    };
    let lines = text.lines().map(|line| without_visibility(line.trim()));
    lines
        .filter_map(|line| Some(line.strip_prefix("mod ")?.strip_suffix(';')?.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgotten_files_are_found_at_every_depth() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("deep/snapshots")).unwrap();
        fs::create_dir(path("deaf")).unwrap();
        for (name, text) in [
            ("main.rs", "mod one;\n#[cfg(unix)]\nmod deep;\n"),
            ("one.rs", ""),
            ("two.rs", ""),
            ("notes.txt", ""),
            ("deep/mod.rs", "mod three;\n"),
            ("deep/three.rs", ""),
            ("deep/four.rs", ""),
            ("deep/snapshots/a.snap", ""),
            ("deaf/mod.rs", ""),
        ] {
            fs::write(path(name), text).unwrap();
        }
        let mut found = forgotten(folder.path(), &path("main.rs"));
        found.sort();
        assert_eq!(found, [path("deaf/mod.rs"), path("deep/four.rs"), path("two.rs")]);
    }
}
