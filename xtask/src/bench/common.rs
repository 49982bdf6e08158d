//! Environment of the benchmarks of boots: a directory with a VM, and ways to reset it.

use std::fs;
use std::path::{Path, PathBuf};

use super::castra::Castra;
use super::table::Row;
use crate::run::root;

pub(super) struct Bench {
    pub(super) castra: Castra,
    pub(super) directory: PathBuf,
}

impl Bench {
    /// Measures in a directory of its own below `target/`, which is removed afterwards.
    pub(super) fn within(
        name: &str,
        measure: impl FnOnce(&Self) -> Result<Vec<Row>, String>,
    ) -> Result<Vec<Row>, String> {
        let directory = root().join("target").join(name);
        let bench = Self { castra: Castra::in_directory(&directory), directory };
        if bench.directory.exists() {
            bench.clean_up()?;
        }
        fs::create_dir_all(&bench.directory).map_err(|error| error.to_string())?;
        let rows = measure(&bench);
        bench.clean_up()?;
        rows
    }

    /// Stops the VM and removes its disk, so that the next boot is a first one.
    pub(super) fn forget_vm(&self) -> Result<(), String> {
        self.castra.run(&["down", "--force"])?;
        let state = self.directory.join(".castra");
        let entries = fs::read_dir(&state).map_err(|error| error.to_string())?.flatten();
        for path in entries.map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "qcow2") {
                fs::remove_file(path).map_err(|error| error.to_string())?;
            }
        }
        fs::remove_dir_all(state.join("vms")).map_err(|error| error.to_string())
    }

    /// Returns the cached image, as `castra.toml` names it.
    pub(super) fn image_key(&self) -> String {
        let image = only_entry(&self.directory.join(".castra/images")).unwrap_or_default();
        let name = image.file_name().unwrap_or_default().to_string_lossy().into_owned();
        format!("managed_image = \"{name}\"")
    }

    /// Stops the VM and removes the directory.
    fn clean_up(&self) -> Result<(), String> {
        self.castra.run(&["down", "--force"])?;
        fs::remove_dir_all(&self.directory).map_err(|error| error.to_string())
    }
}

/// Returns the only directory of this shape: `images/<id>/<version>`.
pub(super) fn only_entry(directory: &Path) -> Result<PathBuf, String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut directories = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
    let is_hidden = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
    };
    directories
        .find(|path| !is_hidden(path))
        .ok_or_else(|| format!("there is nothing in {}", directory.display()))
}
