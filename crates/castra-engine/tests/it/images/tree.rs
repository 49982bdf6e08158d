//! Contents of a directory, for comparison.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use castra_engine::files::Digest;

use crate::images::fixture::sha256;

/// Digits of the names that stand for a project's location.
const PROJECT_DIGITS: usize = 32;

/// Returns each file by its path below `root`: its digest, or `None` for files that depend on times
/// or locations (manifests, logs, references). Directories have a slash at their end.
pub(crate) fn tree(root: &Path) -> BTreeMap<String, Option<Digest>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("reads").flatten() {
            let path = entry.path();
            let name = without_place(&path.strip_prefix(root).expect("is below").to_string_lossy());
            if path.is_dir() {
                found.insert(format!("{name}/"), None);
                open.push(path);
            } else {
                let differs = ["manifest.json", "PROJECT.json", ".log", "/mark", "castra/key"]
                    .iter()
                    .any(|end| name.ends_with(end));
                let digest = (!differs).then(|| sha256(&fs::read(&path).expect("reads")));
                found.insert(name, digest);
            }
        }
    }
    found
}

/// Removes the digits that stand for the project's location from a name.
fn without_place(name: &str) -> String {
    let is_place = |part: &&str| {
        part.len() == PROJECT_DIGITS && part.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let place = name.split(|letter: char| !letter.is_ascii_alphanumeric()).find(is_place);
    place.map_or(name.to_owned(), |place| name.replace(place, "PROJECT"))
}
