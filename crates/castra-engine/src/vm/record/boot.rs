//! One boot of a VM, and the machine that QEMU emulates in it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{PortForward, Proxy, VmDefinition};
use crate::guest::{LiveForward, Mount, StreamPorts};
use crate::host::boot_id;
use crate::layout::{ProjectLayout, SocketsLayout};
use crate::qemu::{
    Accelerator, AcceleratorChoice, Announcement, CpuModel, Device, MachineType, StreamPortCount,
    running_qemu, runs_elsewhere,
};

use super::home::Home;
use super::kernel::KernelRecord;
use super::modules::MissingModules;
use super::native::NativeRecord;

/// Kind of start of a VM's run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartKind {
    /// The guest booted.
    #[default]
    Boot,
    /// Restored from a warm template.
    Template,
    /// Resumed from its own saved memory.
    Suspended,
}

/// One boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecord {
    /// Time at which QEMU was started, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Boot id of the host at that time; `None` if the host has none, or in a record of an earlier
    /// castra.
    #[serde(default)]
    pub boot_id: Option<String>,
    /// Version of the castra that started it.
    #[serde(default)]
    pub castra_version: String,
    /// Accelerator that runs the CPU, with the reason.
    pub accelerator: AcceleratorChoice,
    /// Version of QEMU.
    pub qemu_version: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Port on 127.0.0.1 that leads to the agent's SSH server or, for a native boot, to the
    /// system's own; `None` for a native boot of an earlier castra.
    pub ssh_port: Option<u16>,
    /// Declared forwards.
    pub port_forwards: Vec<PortForward>,
    /// Directories of the host that the guest sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Proxies of its commands.
    #[serde(default)]
    pub proxy: Proxy,
    /// Forwards that were added while it ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added_forwards: Vec<LiveForward>,
    /// Set if whatever listens in the guest is forwarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_forwards: Option<AutoForwards>,
    /// Set if the agent relays TCP forwards; that of a machine which an earlier castra started does
    /// not.
    #[serde(default)]
    pub relayed: bool,
    /// Directory of the sockets. In a copy of the project this is the directory that the copy's own
    /// sockets would have, see [`Record::load`](super::Record::load).
    pub sockets: PathBuf,
    /// State root that it was started in; `None` in a record of an earlier castra.
    #[serde(default)]
    pub home: Option<Home>,
    /// Kind of start.
    #[serde(default)]
    pub start: StartKind,
    /// Milliseconds from QEMU's start until commands could run.
    pub ready_ms: Option<u64>,
    /// Modules of other kernels than the running one, if the guest has reported them.
    #[serde(default)]
    pub missing_modules: Option<MissingModules>,
    /// The rest of the machine; `None` in a record of an earlier castra.
    #[serde(default)]
    pub machine: Option<RecordedMachine>,
    /// Kernel that was read from the VM's disk; `None` if it is the image's, or for a native boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelRecord>,
    /// Firmware and login of a native boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native: Option<NativeRecord>,
}

/// Forwards of whatever listens in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AutoForwards {
    /// Ports of the guest that the user has closed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub closed: BTreeSet<u16>,
    /// Ports of this machine that other VMs of the project declare.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub avoid: Vec<u16>,
    /// Forwards that were open when the VM was suspended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last: Vec<LiveForward>,
    /// Set if a command has asked for them, whatever castra.toml declares.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub requested: bool,
}

impl AutoForwards {
    /// Returns forwards that leave these ports of this machine free.
    pub(in crate::vm) fn avoiding(hosts: &[u16]) -> Self {
        Self { avoid: hosts.to_vec(), ..Self::default() }
    }
}

/// The machine of a record, which may come from a stranger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RecordedMachine {
    /// A machine that this castra runs.
    Known(MachineRecord),
    /// A machine that this castra does not run: with options that it does not pass to QEMU, or of
    /// another shape. It is kept unchanged.
    Unknown(serde_json::Value),
}

impl RecordedMachine {
    /// Returns the machine.
    ///
    /// # Errors
    /// Returns the reason why this castra does not run it.
    pub(in crate::vm) fn known(&self) -> Result<&MachineRecord, String> {
        match self {
            Self::Known(machine) => Ok(machine),
            Self::Unknown(value) => {
                Err(match serde_json::from_value::<MachineRecord>(value.clone()) {
                    Err(error) => error.to_string(),
                    Ok(_) => "it was not written by castra".to_owned(),
                })
            }
        }
    }
}

/// Properties that a saved state requires, in addition to CPUs, memory and accelerator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// QEMU's program: path, size and time of change.
    pub qemu: String,
    /// Host name, if the guest's CPU is the host's own.
    pub host: Option<String>,
    /// The machine.
    pub machine: MachineType,
    /// CPU model.
    pub cpu: CpuModel,
    /// Further devices.
    pub devices: Vec<Device>,
    /// Number of the agent's stream ports; none in a record of an earlier castra.
    #[serde(default, skip_serializing_if = "StreamPortCount::is_none")]
    pub stream_ports: StreamPortCount,
    /// Announcement of the guest's address; made in a record of an earlier castra.
    #[serde(default, skip_serializing_if = "Announcement::is_made")]
    pub announcement: Announcement,
}

impl BootRecord {
    /// Returns `true` if Castra's agent is in the guest: a native boot has none.
    pub fn has_agent(&self) -> bool {
        self.ssh_port.is_some() && self.native.is_none()
    }

    /// Returns `true` if the VM needs a companion.
    pub(in crate::vm) fn needs_companion(&self) -> bool {
        self.has_agent() && (!self.mounts.is_empty() || self.has_live_ports())
    }

    /// Returns `true` if a companion forwards ports to it.
    pub(in crate::vm) fn has_live_ports(&self) -> bool {
        !self.added_forwards.is_empty() || self.auto_forwards.is_some()
    }

    /// Returns `true` for a native boot whose system's own SSH server may be reached and has not
    /// accepted a login yet.
    pub(in crate::vm) fn awaits_login(&self) -> bool {
        self.ssh_port.is_some() && self.native.is_some() && self.ready_ms.is_none()
    }

    /// Returns the paths of the sockets.
    pub(in crate::vm) fn socket_paths(&self) -> SocketsLayout {
        SocketsLayout::new(self.sockets.clone())
    }

    /// Returns the stream ports of the machine, if it has any.
    pub(in crate::vm) fn stream_ports(&self) -> Option<StreamPorts> {
        let machine = self.machine.as_ref()?.known().ok()?;
        let count = Some(machine.stream_ports).filter(|count| !count.is_none())?;
        Some(StreamPorts { sockets: self.socket_paths(), count: count.get() })
    }

    /// Returns `true` if this boot matches the definition.
    pub(in crate::vm) fn is_of(&self, definition: &VmDefinition) -> bool {
        self.cpus == definition.cpus
            && self.memory_mib == definition.memory_bytes >> 20
            && self.port_forwards == definition.port_forwards
            && self.forwards_listeners_of(definition)
            && self.has_cpu_of(definition)
            && self.has_firmware_of(definition)
    }

    /// Returns `true` if whatever listens is forwarded as the definition wants, or on the user's
    /// request. Without an agent, nothing is.
    fn forwards_listeners_of(&self, definition: &VmDefinition) -> bool {
        let is_requested = self.auto_forwards.as_ref().is_some_and(|auto| auto.requested);
        !self.has_agent()
            || is_requested
            || definition.auto_forwards == self.auto_forwards.is_some()
    }

    /// Returns `true` if the firmware matches the definition, as far as that names one.
    fn has_firmware_of(&self, definition: &VmDefinition) -> bool {
        match (definition.firmware, &self.native) {
            (Some(wanted), Some(native)) => native.firmware == wanted,
            _ => true,
        }
    }

    /// Returns `true` if the CPU matches the definition, as far as that names one. The host's own
    /// always matches, and so does an image's or another castra's default: no edit of the
    /// definition has changed those.
    fn has_cpu_of(&self, definition: &VmDefinition) -> bool {
        match (&definition.cpu, self.emulated_cpu()) {
            (Some(wanted), Some(has)) => has == wanted,
            _ => true,
        }
    }

    /// Returns the CPU model, unless it is the host's own.
    pub(in crate::vm) fn emulated_cpu(&self) -> Option<&CpuModel> {
        let machine = self.machine.as_ref()?.known().ok()?;
        (self.accelerator.accelerator == Accelerator::Tcg).then_some(&machine.cpu)
    }

    /// Returns the state root that the VM was started in, if that is not this one.
    pub(super) fn original(&self, state_root: &Path) -> Option<PathBuf> {
        let (started, here) = (self.home.as_ref()?, Home::of(state_root)?);
        // Filesystems may be numbered differently after a restart of the machine.
        let is_same_run = self.boot_id.is_some() && self.boot_id == boot_id();
        let is_here =
            started.inode == here.inode && (started.device == here.device || !is_same_run);
        (!is_here).then(|| started.path.clone())
    }

    /// Moves the sockets to where those of this project are, unless the VM was started here or its
    /// QEMU runs here: a copy must not touch the original's.
    pub(super) fn settle(&mut self, vm: &str, layout: &ProjectLayout) {
        let pidfile = layout.vm(vm).pidfile();
        let is_own = self.home.is_some() && self.original(layout.state_root()).is_none();
        if is_own || running_qemu(&pidfile).is_some() || runs_elsewhere(&pidfile) {
            return;
        }
        if let Some(runtime_root) = self.sockets.ancestors().nth(2) {
            self.sockets = layout.sockets(runtime_root, vm).directory().to_owned();
        }
    }
}
