//! Descriptors of firmware, as `docs/interop/firmware.json` in QEMU's sources defines them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::UefiFirmware;
use crate::files::read_regular;
use crate::qemu::chain::{Layer, LayerFormat};
use crate::qemu::options::MachineType;

/// Largest descriptor that is read; usual ones have less than a KiB.
const MAX_BYTES: u64 = 64 << 10;
const ARCHITECTURE: &str = "x86_64";
/// Features with which a machine of Castra's does not start, or not any system.
const UNWANTED: [&str; 2] = ["requires-smm", "enrolled-keys"];

/// Description of firmware; whatever is not asked for is left out.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Descriptor {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
    #[serde(default)]
    features: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mapping {
    device: String,
    executable: Option<Flash>,
    nvram_template: Option<Flash>,
}

#[derive(Deserialize)]
struct Flash {
    filename: PathBuf,
    format: String,
}

#[derive(Deserialize)]
struct Target {
    architecture: String,
    #[serde(default)]
    machines: Vec<String>,
}

/// Reads the descriptors of these directories, of which earlier ones replace files of the same name
/// in later ones, in the order of their names. Returns firmware that can run this machine.
pub(super) fn read_all(directories: &[PathBuf], machine: &MachineType) -> Vec<UefiFirmware> {
    let mut files: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for directory in directories {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                files.entry(entry.file_name()).or_insert(path);
            }
        }
    }
    files.values().filter_map(|path| read(path, machine)).collect()
}

fn read(path: &Path, machine: &MachineType) -> Option<UefiFirmware> {
    let bytes = read_regular(path, MAX_BYTES).ok()??;
    let descriptor: Descriptor = serde_json::from_slice(&bytes).ok()?;
    descriptor.firmware(machine)
}

impl Descriptor {
    fn firmware(self, machine: &MachineType) -> Option<UefiFirmware> {
        let is_uefi = self.interface_types.iter().any(|kind| kind == "uefi");
        let is_wanted = !self.features.iter().any(|feature| UNWANTED.contains(&feature.as_str()));
        let runs = self.targets.iter().any(|target| target.runs(machine));
        if !is_uefi || !is_wanted || !runs || self.mapping.device != "flash" {
            return None;
        }
        let code = self.mapping.executable?.layer()?;
        Some(UefiFirmware { code, variables: self.mapping.nvram_template?.layer()? })
    }
}

impl Flash {
    fn layer(self) -> Option<Layer> {
        let format = match self.format.as_str() {
            "raw" => LayerFormat::Raw,
            "qcow2" => LayerFormat::Qcow2,
            _ => return None,
        };
        Some(Layer { path: self.filename, format }).filter(|file| file.path.is_absolute())
    }
}

impl Target {
    fn runs(&self, machine: &MachineType) -> bool {
        let board = if machine.is_q35() { "pc-q35-" } else { "pc-i440fx-" };
        let is_board = |pattern: &String| pattern.starts_with(board);
        self.architecture == ARCHITECTURE && self.machines.iter().any(is_board)
    }
}
