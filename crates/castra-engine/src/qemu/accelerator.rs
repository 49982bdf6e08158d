//! Accelerators with which QEMU can run a guest's CPU.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::options::CpuModel;

/// Accelerator that runs the guest's CPU.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualization on Linux.
    Kvm,
    /// Hardware virtualization on macOS. Never run by the authors so far.
    Hvf,
    /// QEMU's own translation, which runs everywhere.
    Tcg,
}

impl Accelerator {
    /// Returns QEMU's name for the accelerator.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Hvf => "hvf",
            Self::Tcg => "tcg",
        }
    }

    /// Returns the accelerator with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Kvm, Self::Hvf, Self::Tcg].into_iter().find(|accelerator| accelerator.name() == name)
    }

    /// Returns the CPU model to use with it: the host's own, or under TCG the one that the image
    /// asks for.
    pub fn cpu(self, tcg_cpu: &CpuModel) -> CpuModel {
        match self {
            Self::Kvm | Self::Hvf => CpuModel::host(),
            Self::Tcg => tcg_cpu.clone(),
        }
    }
}

/// An accelerator and the reason for choosing it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AcceleratorChoice {
    /// The accelerator.
    pub accelerator: Accelerator,
    /// Reason, as part of a sentence.
    pub reason: String,
}
