//! Facts about this machine's QEMU that were found out once and are kept in the cache.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files;
use crate::trusted;

/// Largest file that is read, in bytes; it is never nearly as long.
const MAX_BYTES: u64 = 1 << 20;

/// Reads the facts. A missing or damaged file has none: they are found out again.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> BTreeMap<String, T> {
    trusted::read(path, MAX_BYTES)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

/// Writes the facts. A failure is ignored: without them each start finds them out again.
pub(super) fn write<T: Serialize>(path: &Path, facts: &BTreeMap<String, T>) {
    let text = serde_json::to_vec_pretty(facts).unwrap_or_default();
    let _ = files::write_atomically(path, &text, 0o600);
}
