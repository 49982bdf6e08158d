//! `step.json`: the description of a layer, and the ingredients that its key is derived from.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::hex::hex;
use crate::qemu::{Accelerator, CpuModel, MachineType};
use crate::report::ImageLabel;
use crate::trusted;

use super::super::manifest::TemplateFile;

/// Version of the way layers are made and stored. Incremented whenever older ones become unusable.
const FORMAT: u32 = 1;

/// Largest manifest that is read, in bytes: it holds a command of at most 32 KiB.
const MAX_BYTES: u64 = 256 * 1024;

/// Disk on which a layer is based.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Foundation {
    /// The base image.
    Base {
        /// Identity of its content.
        content: String,
        /// Path of the file as seen from the layer's directory in a project: the layer names it.
        backing_file: String,
        /// Digests of what was read from the disk to boot it.
        kernel: Vec<String>,
    },
    /// The layer of the step before.
    Layer {
        /// SHA-256 of that layer.
        sha256: String,
    },
}

/// Everything a layer depends on. Any difference leads to a layer of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepIngredients {
    format: u32,
    /// Image of the disk, as for a template.
    pub image: ImageLabel,
    pub(super) foundation: Foundation,
    machine: MachineType,
    /// Accelerator and CPU: programs that were built for one may not run on another.
    pub accelerator: Accelerator,
    cpu: CpuModel,
    /// Virtual size of the disk, in bytes.
    pub disk_bytes: u64,
    is_isolated: bool,
    /// The step, as the configuration has it.
    step: String,
    /// Digest of the files that it reads.
    inputs: Option<String>,
    /// Names of its secrets. Their values make no difference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<String>,
}

impl StepIngredients {
    /// Returns the ingredients of a step's layer on this disk, made by this machine.
    pub fn new(
        image: ImageLabel,
        foundation: Foundation,
        spec: &crate::qemu::MachineSpec,
        disk_bytes: u64,
        step: String,
        inputs: Option<String>,
    ) -> Self {
        Self {
            format: FORMAT,
            image,
            foundation,
            machine: spec.machine.clone(),
            accelerator: spec.accelerator,
            cpu: spec.cpu.clone(),
            disk_bytes,
            is_isolated: spec.network == crate::qemu::Network::Isolated,
            step,
            inputs,
            secrets: Vec::new(),
        }
    }

    /// Returns the ingredients of a step that sees secrets of these names.
    #[must_use]
    pub fn with_secrets(self, secrets: Vec<String>) -> Self {
        Self { secrets, ..self }
    }

    pub(super) fn is_of_this_format(&self) -> bool {
        self.format == FORMAT
    }

    /// Returns the key: 32 hexadecimal digits.
    pub fn key(&self) -> String {
        // Our own type, made of strings and numbers: serialising it cannot fail.
        let text = serde_json::to_vec(self).unwrap_or_default();
        hex(&Sha256::digest(text)[..16])
    }
}

/// Description of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepManifest {
    /// Key, which is also the name of its directory.
    pub key: String,
    /// Ingredients from which it was made.
    pub ingredients: StepIngredients,
    /// Number of the step, from 1.
    pub number: u64,
    /// The step as one short line.
    pub text: String,
    /// Version of the Castra that made it.
    pub castra_version: String,
    /// Time at which it was made, in milliseconds since the Unix epoch.
    pub made_unix_ms: u64,
    /// Duration from the start of its machine to the end, in milliseconds.
    pub took_ms: u64,
    /// The layer itself.
    pub disk: TemplateFile,
}

impl StepManifest {
    /// Reads a manifest; returns `None` if there is none.
    ///
    /// # Errors
    /// The file cannot be read, or is malformed.
    pub(super) fn load(path: &Path) -> io::Result<Option<Self>> {
        match trusted::read(path, MAX_BYTES) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns `true` if the step was made on this layer.
    pub(super) fn is_based_on(&self, layer: &Self) -> bool {
        matches!(&self.ingredients.foundation,
            Foundation::Layer { sha256 } if *sha256 == layer.disk.sha256)
    }

    /// Returns `true` for the first step of a disk.
    pub(super) fn is_first(&self) -> bool {
        matches!(self.ingredients.foundation, Foundation::Base { .. })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn sample() -> StepIngredients {
        let foundation = Foundation::Base {
            content: "c0ffee".into(),
            backing_file: "../../images/a/v1/rootfs.qcow2".into(),
            kernel: Vec::new(),
        };
        StepIngredients {
            format: FORMAT,
            image: ImageLabel { id: "alpine-minimal".into(), version: "v1".into() },
            foundation,
            machine: "q35".parse().expect("a machine"),
            accelerator: Accelerator::Tcg,
            cpu: "qemu64".parse().expect("a CPU"),
            disk_bytes: 10 << 30,
            is_isolated: false,
            step: "apk add nginx".into(),
            inputs: None,
            secrets: Vec::new(),
        }
    }

    pub(in super::super) fn sample_on(foundation: Foundation) -> StepIngredients {
        StepIngredients { foundation, ..sample() }
    }

    #[test]
    fn whatever_differs_has_a_key_of_its_own() {
        let base = |content: &str, backing_file: &str, kernel: &[&str]| Foundation::Base {
            content: content.into(),
            backing_file: backing_file.into(),
            kernel: kernel.iter().map(|digest| (*digest).to_owned()).collect(),
        };
        let on = sample_on;
        let others = [
            StepIngredients { format: FORMAT + 1, ..sample() },
            StepIngredients { step: "apk add vim".into(), ..sample() },
            StepIngredients { inputs: Some("decaf".into()), ..sample() },
            StepIngredients { is_isolated: true, ..sample() },
            sample().with_secrets(vec!["A".into()]),
            sample().with_secrets(vec!["A".into(), "B".into()]),
            sample().with_secrets(vec!["AB".into()]),
            StepIngredients { disk_bytes: 20 << 30, ..sample() },
            StepIngredients { accelerator: Accelerator::Kvm, ..sample() },
            StepIngredients { cpu: "max".parse().expect("a CPU"), ..sample() },
            on(base("decaf", "../../images/a/v1/rootfs.qcow2", &[])),
            on(base("c0ffee", "../../../a.qcow2", &[])),
            on(base("c0ffee", "../../images/a/v1/rootfs.qcow2", &["1"])),
            on(Foundation::Layer { sha256: "c0ffee".into() }),
            on(Foundation::Layer { sha256: "decaf".into() }),
        ];
        let keys: std::collections::BTreeSet<String> =
            others.iter().chain([&sample()]).map(StepIngredients::key).collect();
        assert_eq!(keys.len(), others.len() + 1);
        assert_eq!(sample().key(), sample().key());
        assert_eq!(sample().key().len(), 32);
    }
}
