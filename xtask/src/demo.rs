//! A newcomer's first impression: a VM from an empty directory.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::run::{cargo, root, run, run_command};
use crate::tools;

/// Command that is run inside the VM.
const SHOWN: &str = "cat /etc/alpine-release; uname -r";

/// Builds, starts a VM, runs a command in it, stops it, and leaves nothing but the user's cache.
pub(crate) fn run_demo() -> Result<(), String> {
    tools::ensure_runtime()?;
    run(&cargo(), &["build", "--locked"])?;
    let castra = root().join("target/debug/castra");
    let directory = root().join("target/demo");
    // Left over from an interrupted demo: its VM is stopped before its disk is removed.
    if directory.exists() {
        clean_up(&castra, &directory)?;
    }
    fs::create_dir_all(&directory)
        .map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
    let shown = in_directory(&castra, &directory, &["up"])
        .and_then(|()| in_directory(&castra, &directory, &["exec", "--", "sh", "-c", SHOWN]));
    shown.and(clean_up(&castra, &directory))
}

fn clean_up(castra: &Path, directory: &Path) -> Result<(), String> {
    let down = Command::new(castra).args(["--quiet", "down"]).current_dir(directory).status();
    if !down.is_ok_and(|status| status.success()) {
        return Err(format!("the VM in {} could not be stopped", directory.display()));
    }
    fs::remove_dir_all(directory)
        .map_err(|error| format!("cannot remove {}: {error}", directory.display()))
}

fn in_directory(castra: &Path, directory: &Path, arguments: &[&str]) -> Result<(), String> {
    run_command(Command::new(castra).args(arguments).current_dir(directory))
}
