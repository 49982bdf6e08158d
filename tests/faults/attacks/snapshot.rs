//! Snapshot of a directory tree, to compare after an attack.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// One entry of a tree: kind, mode, owner, and content or target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    kind: &'static str,
    mode: u32,
    owner: u32,
    content: Vec<u8>,
}

/// Returns every entry below `root` by its path; follows no link, and opens nothing but regular
/// files.
#[track_caller]
pub(crate) fn snapshot(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("a directory").flatten() {
            let path = entry.path();
            let metadata = fs::symlink_metadata(&path).expect("metadata");
            let file_type = metadata.file_type();
            let (kind, content) = if file_type.is_dir() {
                open.push(path.clone());
                ("directory", Vec::new())
            } else if file_type.is_symlink() {
                let target = fs::read_link(&path).expect("a link");
                ("link", target.into_os_string().into_encoded_bytes())
            } else if file_type.is_file() {
                ("file", fs::read(&path).expect("a file"))
            } else if file_type.is_fifo() {
                ("FIFO", Vec::new())
            } else {
                ("special", Vec::new())
            };
            found.insert(
                path,
                Entry { kind, mode: metadata.mode(), owner: metadata.uid(), content },
            );
        }
    }
    found
}

/// Insists that nothing below `root` was created, changed or removed since `before`.
#[track_caller]
pub(crate) fn assert_untouched(root: &Path, before: &BTreeMap<PathBuf, Entry>) {
    let after = snapshot(root);
    let changed: Vec<&PathBuf> = before
        .iter()
        .filter(|(path, entry)| after.get(*path) != Some(entry))
        .map(|(path, _)| path)
        .chain(after.keys().filter(|path| !before.contains_key(*path)))
        .collect();
    assert!(changed.is_empty(), "touched: {changed:?}");
}

#[test]
fn a_change_of_any_kind_is_seen() {
    let root = tempfile::tempdir().expect("a directory");
    let file = root.path().join("file");
    fs::write(&file, "as it was").expect("written");
    let before = snapshot(root.path());
    assert_untouched(root.path(), &before);
    for change in [
        (|file: &Path| fs::write(file, "changed").expect("written")) as fn(&Path),
        |file| fs::remove_file(file).expect("removed"),
        |file| fs::write(file.with_extension("new"), "").expect("written"),
    ] {
        fs::write(&file, "as it was").expect("written");
        change(&file);
        assert_ne!(snapshot(root.path()), before);
    }
}
