//! cloud-init of the guest's system: brings it the user's data, and reads what it says of them.
//!
//! The host adds the data to the initramfs. They must be in `/run` before systemd looks for units,
//! and the root's is a mount that the initramfs has made: so they are copied there as soon as it is
//! mounted, and no disk has them.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use castra_wire::CloudInitState;
use serde_json::Value;

use crate::log::log;

/// Directory of the data in the initramfs.
const SEED: &str = "/castra/seed";
/// Directory below `/run` where the kernel's command line has cloud-init look for them.
const PLACE: &str = "castra/seed";
const RUN: &str = "/run";

/// Program without which nothing reads the data.
const PROGRAM: &str = "/usr/bin/cloud-init";
/// Files of cloud-init's in the root: its result, and a mark that it does not run in this boot.
const RESULT: &str = "/run/cloud-init/result.json";
const DISABLED: &str = "/run/cloud-init/disabled";

/// Bounds of what is reported to the host.
const MAX_RESULT_BYTES: u64 = 64 * 1024;
const MAX_ERRORS: usize = 8;
const MAX_ERROR_CHARS: usize = 500;

/// Data of the user's, until they are where cloud-init looks for them.
pub(crate) struct Seed(Vec<(OsString, Vec<u8>)>);

impl Seed {
    /// Reads the data from the initramfs. There are none without the user's.
    pub(crate) fn read() -> Self {
        Self::read_from(Path::new(SEED))
    }

    fn read_from(directory: &Path) -> Self {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let read = |entry: fs::DirEntry| Some((entry.file_name(), fs::read(entry.path()).ok()?));
        Self(entries.filter_map(read).collect())
    }

    /// Copies the data into the initramfs's `/run`, once that is mounted.
    pub(crate) fn place_early(&mut self) {
        if is_mounted(Path::new(RUN)) {
            self.place(Path::new(RUN));
        }
    }

    /// Copies the data below this directory, for root alone, unless that is done.
    pub(crate) fn place(&mut self, run: &Path) {
        if self.0.is_empty() {
            return;
        }
        if let Err(error) = write_below(&run.join(PLACE), &self.0) {
            log(format!("cannot bring cloud-init its data: {error}"));
        }
        self.0.clear();
    }
}

fn is_mounted(directory: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    matches!((device(directory), device(Path::new("/"))), (Ok(own), Ok(root)) if own != root)
}

fn write_below(directory: &Path, files: &[(OsString, Vec<u8>)]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    for (name, content) in files {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(directory.join(name))?.write_all(content)?;
    }
    Ok(())
}

/// Returns a sentence for the user if the system has no cloud-init to read the data.
fn missing() -> Option<String> {
    let is_missing = !Path::new(PROGRAM).exists();
    is_missing.then(|| "cloud-init is not installed, so `cloud_init` has no effect".to_owned())
}

/// Returns `true` if the VM has data for cloud-init.
fn has_data() -> bool {
    Path::new(RUN).join(PLACE).is_dir()
}

/// Returns `true` until cloud-init has applied its data.
pub(crate) fn is_awaited() -> bool {
    has_data() && !has_finished()
}

/// Returns `true` once cloud-init has done all that it does in a boot, or if it does nothing.
fn has_finished() -> bool {
    [RESULT, DISABLED].iter().any(|path| Path::new(path).exists()) || missing().is_some()
}

/// Returns what cloud-init says of its work; `None` if the VM has no data for it.
pub(crate) fn state() -> Option<CloudInitState> {
    if !has_data() {
        return None;
    }
    let result =
        File::open(RESULT).and_then(|file| io::read_to_string(file.take(MAX_RESULT_BYTES)));
    let errors = result.ok().map(|text| errors_in(&text)).or_else(|| missing().map(|it| vec![it]));
    Some(CloudInitState { is_done: has_finished(), errors: errors.unwrap_or_default() })
}

/// Returns the errors in a `result.json`: `{"v1": {"datasource": "…", "errors": ["…"]}}`.
fn errors_in(result: &str) -> Vec<String> {
    let result: Value = match serde_json::from_str(result) {
        Ok(result) => result,
        Err(error) => return vec![format!("{RESULT} is unreadable: {error}")],
    };
    let errors = result["v1"]["errors"].as_array().into_iter().flatten();
    let text = |error: &Value| error.as_str().map_or_else(|| error.to_string(), str::to_owned);
    let short = |error| text(error).chars().take(MAX_ERROR_CHARS).collect();
    errors.take(MAX_ERRORS).map(short).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_data_are_for_root_alone() {
        let directory = std::env::temp_dir().join(format!("castra-seed-{}", std::process::id()));
        let (from, run) = (directory.join("from"), directory.join("run"));
        fs::create_dir_all(&from).expect("a directory");
        fs::write(from.join("user-data"), "#cloud-config\n").expect("writes");
        fs::write(from.join("meta-data"), "instance-id: a\n").expect("writes");
        let mut seed = Seed::read_from(&from);
        assert_eq!(seed.0.len(), 2);
        seed.place(&run);
        assert!(seed.0.is_empty());
        let mode = |path: &Path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
        let placed = run.join(PLACE);
        assert_eq!((mode(&placed), mode(&placed.join("user-data"))), (0o700, 0o600));
        assert_eq!(fs::read(placed.join("user-data")).expect("reads"), b"#cloud-config\n");
        assert!(Seed::read_from(&directory.join("none")).0.is_empty());
        fs::remove_dir_all(&directory).expect("tidies up");
    }

    #[test]
    fn errors_are_those_of_the_result() {
        let result = r#"{"v1": {"datasource": "DataSourceNoCloud", "errors": []}}"#;
        assert!(errors_in(result).is_empty());
        let result = r#"{"v1": {"datasource": null, "errors": ["('runcmd', ProcessError())"]}}"#;
        assert_eq!(errors_in(result), ["('runcmd', ProcessError())"]);
        assert_eq!(errors_in("{").len(), 1);
        let many = vec!["e".repeat(9000); 99];
        let many = serde_json::json!({ "v1": { "errors": many } }).to_string();
        let errors = errors_in(&many);
        assert_eq!((errors.len(), errors[0].len()), (MAX_ERRORS, MAX_ERROR_CHARS));
    }
}
