//! Consents of the user to what a `castra.toml` asks for, which may come from a stranger: files of
//! one line per consent, as JSON, outside of all projects, where no archive or repository puts
//! files.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files::create_private_directory;
use crate::trusted;

/// Longest file of consents, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// Returns the consents in a file; lines that cannot be read give none.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Vec<T> {
    let bytes = trusted::read(path, MAX_BYTES).unwrap_or_default();
    let lines = bytes.split(|byte| *byte == b'\n');
    lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// Adds a consent to a file.
///
/// # Errors
/// The file cannot be written.
pub(super) fn add(path: &Path, consent: &impl Serialize) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        create_private_directory(directory)?;
        trusted::directory(directory)?;
    }
    let mut line = serde_json::to_vec(consent).map_err(io::Error::other)?;
    line.push(b'\n');
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    trusted::open_with(&mut options, path)?.write_all(&line)
}
