//! One boot of a VM, and the machine that QEMU emulates in it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{PortForward, VmDefinition};
use crate::layout::SocketsLayout;
use crate::qemu::{Accelerator, AcceleratorChoice, CpuModel, Device, MachineType};

use super::home::Home;
use super::modules::MissingModules;

/// What a VM's run went on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartKind {
    /// Nothing: the guest booted.
    #[default]
    Boot,
    /// A warm template.
    Template,
    /// Its own memory, from when it was suspended.
    Suspended,
}

/// One boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecord {
    /// When QEMU was started, milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
    /// Which run of this machine it was started in; nothing where the machine cannot tell, or by an earlier castra.
    #[serde(default)]
    pub boot_id: Option<String>,
    /// The castra that started it.
    #[serde(default)]
    pub castra_version: String,
    /// How the CPU is run, and why.
    pub accelerator: AcceleratorChoice,
    /// QEMU's version.
    pub qemu_version: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Port of 127.0.0.1 that leads to the agent's SSH server; nothing for a native boot, which has no agent.
    pub ssh_port: Option<u16>,
    /// The declared forwards.
    pub port_forwards: Vec<PortForward>,
    /// Its agent relays TCP forwards; that of a machine which an earlier castra started does not.
    #[serde(default)]
    pub relayed: bool,
    /// Directory of the sockets. In a copy of the project this is the one that its own would have, see [`Record::load`].
    pub sockets: PathBuf,
    /// The state root that it was started in; nothing in a record of an earlier castra.
    #[serde(default)]
    pub home: Option<Home>,
    /// What it went on from.
    #[serde(default)]
    pub start: StartKind,
    /// Milliseconds from QEMU's start until commands could run.
    pub ready_ms: Option<u64>,
    /// Modules of other kernels than the one that runs, as far as the guest has said so.
    #[serde(default)]
    pub missing_modules: Option<MissingModules>,
    /// The rest of the machine; nothing in a record of an earlier castra.
    #[serde(default)]
    pub machine: Option<RecordedMachine>,
}

/// The machine of a record, which a stranger may have written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RecordedMachine {
    /// One that this castra runs.
    Known(MachineRecord),
    /// One that it does not run: with options that it does not give to QEMU, or of another shape. It is kept as it is.
    Unknown(serde_json::Value),
}

impl RecordedMachine {
    /// The machine.
    ///
    /// # Errors
    /// The reason why this castra does not run it.
    pub(in crate::vm) fn known(&self) -> Result<&MachineRecord, String> {
        match self {
            Self::Known(machine) => Ok(machine),
            Self::Unknown(value) => Err(match serde_json::from_value::<MachineRecord>(value.clone()) {
                Err(error) => error.to_string(),
                Ok(_) => "it is not written as castra writes it".to_owned(),
            }),
        }
    }
}

/// What a saved state must find again, beside CPUs, memory and accelerator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// QEMU's program: path, size and time of change.
    pub qemu: String,
    /// The host, where the guest's CPU is the host's own.
    pub host: Option<String>,
    /// The machine.
    pub machine: MachineType,
    /// CPU model.
    pub cpu: CpuModel,
    /// Further devices.
    pub devices: Vec<Device>,
}

impl BootRecord {
    /// Returns `true` if Castra's agent is in the guest: a native boot has none.
    pub fn has_agent(&self) -> bool {
        self.ssh_port.is_some()
    }

    /// Returns the paths of the sockets.
    pub(in crate::vm) fn socket_paths(&self) -> SocketsLayout {
        SocketsLayout::new(self.sockets.clone())
    }

    /// Whether this boot is what the definition asks for now.
    pub(in crate::vm) fn is_of(&self, definition: &VmDefinition) -> bool {
        self.cpus == definition.cpus
            && self.memory_mib == definition.memory_bytes >> 20
            && self.port_forwards == definition.port_forwards
            && self.has_cpu_of(definition)
    }

    /// Returns `true` if the CPU is the definition's, where that names one. The host's own fits all, and so does an image's or the default
    /// of another castra: no edit of the definition has changed those.
    fn has_cpu_of(&self, definition: &VmDefinition) -> bool {
        match (&definition.cpu, self.emulated_cpu()) {
            (Some(wanted), Some(has)) => has == wanted,
            _ => true,
        }
    }

    /// The CPU model, unless that is the host's own.
    pub(in crate::vm) fn emulated_cpu(&self) -> Option<&CpuModel> {
        let machine = self.machine.as_ref()?.known().ok()?;
        (self.accelerator.accelerator == Accelerator::Tcg).then_some(&machine.cpu)
    }
}
