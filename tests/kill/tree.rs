//! What lies below a directory, to be compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use castra::managed::Digest;

use crate::fixture::sha256;

/// Each file by its path below `root`: its digest, or nothing for those that tell of times (manifests, logs). Directories
/// are there with a slash at their end.
pub(crate) fn tree(root: &Path) -> BTreeMap<String, Option<Digest>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("reads").flatten() {
            let path = entry.path();
            let name = path.strip_prefix(root).expect("is below").to_string_lossy().into_owned();
            if path.is_dir() {
                found.insert(format!("{name}/"), None);
                open.push(path);
            } else {
                let tells_time = name.ends_with("manifest.json") || name.ends_with(".log");
                let digest = (!tells_time).then(|| sha256(&fs::read(&path).expect("reads")));
                found.insert(name, digest);
            }
        }
    }
    found
}
