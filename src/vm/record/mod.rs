//! A VM's record, `vms/<vm>/vm.json`: what status, exec and down go by, so that they never ask the configuration.

mod check;
mod home;
mod modules;
pub(super) mod place;
mod state;
mod suspended;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{PortForward, VmDefinition};
use crate::context::RuntimeContext;
use crate::files;
use crate::layout::{ProjectLayout, SocketsLayout};
use crate::qemu::{Accelerator, AcceleratorChoice, CpuModel, Device, MachineType};
use crate::report::{Event, ImageLabel};
use crate::trusted;

use super::clone::{CloneRecord, FrozenLayer};
use super::error::VmError;
use super::layer::LayerRecord;

pub use home::{Home, sentence_of_copy};
pub use modules::MissingModules;
pub use state::{Crash, VmState};
pub(super) use state::{crash, observe, original_of};
pub(super) use suspended::host_of;
pub use suspended::{DiskStamp, SuspendRecord};

/// Number of this format. It changes when an older castra would misread a newer record.
const FORMAT: u32 = 1;
/// No record is nearly as long.
const MAX_BYTES: u64 = 1 << 20;

/// What is known of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    /// Its name.
    pub name: String,
    /// Its disk: relative to the state root where it lies in the project, so that the project can be moved and copied.
    pub overlay: PathBuf,
    /// What the disk stands on.
    pub base: BaseRecord,
    /// The warm template's disk in between, if there is one.
    #[serde(default)]
    pub layer: Option<LayerRecord>,
    /// How far the last operation has come.
    pub progress: Progress,
    /// The last boot.
    pub boot: Option<BootRecord>,
    /// What was saved when it was suspended, as long as that fits its disk.
    #[serde(default)]
    pub suspended: Option<SuspendRecord>,
    /// What it is, if it is a clone.
    #[serde(default)]
    pub cloned: Option<CloneRecord>,
    /// The layers its disk stands on since it was cloned, the lowest first.
    #[serde(default)]
    pub frozen: Vec<FrozenLayer>,
    /// Port of 127.0.0.1 that last led to its SSH server, which it gets again while that is free. A clone has none of its
    /// original's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_port: Option<u16>,
}

/// What a disk stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRecord {
    /// Whose image it is.
    pub kind: BaseKind,
    /// Identifies the content: an overlay on other content is a broken disk.
    pub content: String,
    /// Size and time of change of the user's own image when `content` was computed, so that it is not hashed each time.
    pub stamp: Option<String>,
    /// Whether the user's own image may stand on other files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_backing_file: bool,
}

/// Whose image a disk stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BaseKind {
    /// A managed image.
    Managed(ImageLabel),
    /// The user's own file.
    Path(PathBuf),
}

impl fmt::Display for BaseKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Managed(label) => label.fmt(f),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// How far the last operation has come, as it was written down. Not the state, which is [`super::VmState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Progress {
    /// A boot was begun.
    Starting,
    /// Commands can run, or (native boots) QEMU runs.
    Running,
    /// A stop was begun.
    Stopping,
    /// A suspend was begun.
    Suspending,
    /// Memory and devices are saved.
    Suspended,
    /// They are being loaded, and the machine stands still.
    Resuming,
    /// It is a clone in the making.
    Cloning,
    /// Nothing is under way.
    Stopped,
}

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
    pub(super) fn known(&self) -> Result<&MachineRecord, String> {
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
    pub(super) fn socket_paths(&self) -> SocketsLayout {
        SocketsLayout::new(self.sockets.clone())
    }

    /// Whether this boot is what the definition asks for now.
    pub(super) fn is_of(&self, definition: &VmDefinition) -> bool {
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
    pub(super) fn emulated_cpu(&self) -> Option<&CpuModel> {
        let machine = self.machine.as_ref()?.known().ok()?;
        (self.accelerator.accelerator == Accelerator::Tcg).then_some(&machine.cpu)
    }
}

impl Record {
    /// The record of a VM that has a disk and was never started. `overlay` is absolute.
    pub(super) fn new(layout: &ProjectLayout, name: &str, overlay: &Path, base: BaseRecord) -> Self {
        Self {
            format: FORMAT,
            name: name.to_owned(),
            overlay: place::stored(overlay, layout),
            base,
            layer: None,
            progress: Progress::Stopped,
            boot: None,
            suspended: None,
            cloned: None,
            frozen: Vec::new(),
            ssh_port: None,
        }
    }

    /// Whether it is a clone that was begun and never finished, as far as its record tells.
    pub fn is_unfinished_clone(&self) -> bool {
        self.progress == Progress::Cloning
    }

    /// Returns `true` for a VM that was booted with Castra's agent in its guest.
    pub fn has_agent(&self) -> bool {
        self.boot.as_ref().is_some_and(BootRecord::has_agent)
    }

    /// The disk's absolute path.
    pub fn overlay_path(&self, layout: &ProjectLayout) -> PathBuf {
        place::found(&self.overlay, layout)
    }

    /// Puts the disk where it is declared now: the record of an earlier castra names that of the original in a copy of a project.
    pub(super) fn place_disk(&mut self, overlay: &Path, layout: &ProjectLayout) {
        self.overlay = place::stored(overlay, layout);
    }

    /// Reads the record of this VM, if there is one; of a clone without one, that which it was made with. What it says of places
    /// holds for where the project is now: in a copy, a boot's sockets are not those of the original, whatever was copied.
    ///
    /// # Errors
    /// [`VmError::Record`] if it cannot be read, [`VmError::RecordDamaged`], [`VmError::RecordTooNew`],
    /// [`VmError::RecordRefused`].
    pub fn load(layout: &ProjectLayout, vm: &str) -> Result<Option<Self>, VmError> {
        match Self::read(layout, vm, layout.vm(vm).record())? {
            None => Self::of_new_clone(layout, vm),
            record => Ok(record),
        }
    }

    /// Reads the record that a clone was made with, if it is one.
    ///
    /// # Errors
    /// As for [`Self::load`].
    pub fn of_new_clone(layout: &ProjectLayout, vm: &str) -> Result<Option<Self>, VmError> {
        Self::read(layout, vm, layout.vm(vm).clone_record())
    }

    fn read(layout: &ProjectLayout, vm: &str, path: PathBuf) -> Result<Option<Self>, VmError> {
        let read =
            trusted::directory(layout.vm(vm).directory()).and_then(|_| trusted::read(&path, MAX_BYTES));
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) if trusted::is_absence(&error) => return Ok(None),
            Err(source) => return Err(VmError::Record { action: "read", path, source }),
        };
        let mut record = Self::parse(&bytes, vm, path.clone())?;
        check::check(&mut record, vm, layout).map_err(|problem| VmError::RecordRefused {
            vm: vm.to_owned(),
            path,
            problem,
        })?;
        if let BaseKind::Path(base) = &mut record.base.kind {
            *base = place::found(base, layout);
        }
        if let Some(boot) = &mut record.boot {
            home::settle(boot, vm, layout);
        }
        Ok(Some(record))
    }

    fn parse(bytes: &[u8], vm: &str, path: PathBuf) -> Result<Self, VmError> {
        #[derive(Deserialize)]
        struct Envelope {
            format: u32,
        }
        // The number first: a newer record may have any shape behind it.
        if let Ok(Envelope { format }) = serde_json::from_slice(bytes)
            && format > FORMAT
        {
            return Err(VmError::RecordTooNew { vm: vm.to_owned(), path, format, known: FORMAT });
        }
        serde_json::from_slice(bytes).map_err(|source| VmError::RecordDamaged {
            vm: vm.to_owned(),
            path,
            source,
        })
    }

    /// Keeps what the guest says of its kernel's modules, and reports where they are missing.
    pub(super) fn set_missing_modules(&mut self, missing: Option<MissingModules>, context: &RuntimeContext) {
        if let Some(missing) = &missing {
            let way_out = missing.way_out(&self.name, &self.base.kind);
            let message = format!("VM `{}` {missing}. {way_out}", self.name);
            context.reporter.report(&Event::Warning { message });
        }
        if let Some(boot) = &mut self.boot {
            boot.missing_modules = missing;
        }
    }

    /// Writes the record; a crash leaves the old or the new one.
    ///
    /// # Errors
    /// [`VmError::Record`].
    pub(super) fn save(&self, layout: &ProjectLayout) -> Result<(), VmError> {
        self.write(layout, layout.vm(&self.name).record())
    }

    /// Writes what of this record, of a clone that was just made, will always be so.
    ///
    /// # Errors
    /// [`VmError::Record`].
    pub(super) fn save_as_new_clone(&self, layout: &ProjectLayout) -> Result<(), VmError> {
        let lasting = Self { progress: Progress::Stopped, suspended: None, boot: None, ..self.clone() };
        lasting.write(layout, layout.vm(&self.name).clone_record())
    }

    fn write(&self, layout: &ProjectLayout, path: PathBuf) -> Result<(), VmError> {
        let mut written = self.clone();
        if let BaseKind::Path(base) = &mut written.base.kind {
            *base = place::stored(base, layout);
        }
        let bytes = serde_json::to_vec_pretty(&written).unwrap_or_default();
        let failed = |source| VmError::Record { action: "write", path: path.clone(), source };
        files::create_private_directory(layout.vm(&self.name).directory()).map_err(failed)?;
        files::write_atomically(&path, &bytes, 0o600).map_err(failed)
    }

    /// Returns `true` where there is a record of this VM, be it one that cannot be read.
    pub fn is_there(layout: &ProjectLayout, vm: &str) -> bool {
        let files = layout.vm(vm);
        [files.record(), files.clone_record()].iter().any(|path| fs::symlink_metadata(path).is_ok())
    }

    /// The names of all VMs that have a record, sorted.
    pub fn names(layout: &ProjectLayout) -> Vec<String> {
        let Ok(entries) = fs::read_dir(layout.vms()) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| Self::is_there(layout, name))
            .collect();
        names.sort();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(layout: &ProjectLayout) -> Record {
        let base = BaseRecord {
            kind: BaseKind::Managed(ImageLabel { id: "alpine-minimal".into(), version: "v1".into() }),
            content: "c0ffee".into(),
            stamp: None,
            allow_backing_file: false,
        };
        Record::new(layout, "web", &layout.overlay("web"), base)
    }

    #[test]
    fn a_record_comes_back_and_survives_a_move_of_the_project() {
        let directory = tempfile::tempdir().expect("a directory");
        let layout = ProjectLayout::unchecked(directory.path().join("old"));
        let written = record(&layout);
        written.save(&layout).expect("saved");
        let moved = ProjectLayout::unchecked(directory.path().join("new"));
        fs::rename(layout.state_root(), moved.state_root()).expect("moved");
        let read = Record::load(&moved, "web").expect("loads").expect("is there");
        assert_eq!(read, written);
        assert_eq!(read.overlay_path(&moved), moved.overlay("web"));
        assert_eq!(Record::names(&moved), ["web"]);
    }

    #[test]
    fn a_truncated_record_and_one_from_the_future_are_different_errors() {
        let directory = tempfile::tempdir().expect("a directory");
        let layout = ProjectLayout::unchecked(directory.path().to_owned());
        record(&layout).save(&layout).expect("saved");
        let path = layout.vm("web").record();
        let text = fs::read_to_string(&path).expect("read");
        fs::write(&path, &text[..text.len() / 2]).expect("truncated");
        assert!(matches!(Record::load(&layout, "web"), Err(VmError::RecordDamaged { .. })));
        fs::write(&path, r#"{"format": 99, "shape": "unknown"}"#).expect("written");
        assert!(matches!(Record::load(&layout, "web"), Err(VmError::RecordTooNew { format: 99, .. })));
    }

    #[test]
    fn a_cpu_is_compared_where_the_definition_names_one_and_it_is_emulated() {
        let emulated = r#"{"started_unix_ms":1,"accelerator":{"accelerator":"tcg","reason":""},"qemu_version":"7.2","cpus":1,"memory_mib":1024,"ssh_port":null,"port_forwards":[],"sockets":"/s","ready_ms":null,"machine":{"qemu":"q","host":null,"machine":"q35","cpu":"qemu64,+rdrand","devices":[]}}"#;
        let read = |text: &str| serde_json::from_str::<BootRecord>(text).expect("is read");
        let boot = read(emulated);
        let native = read(&emulated.replace("\"tcg\"", "\"kvm\"").replace("qemu64,+rdrand", "host"));
        let early = BootRecord { machine: None, ..boot.clone() };
        let vm = |cpu: &str| {
            let text = format!("[[vms]]\nname = \"a\"\nbase_image = \"b\"\n{cpu}");
            let surroundings = crate::config::Surroundings::default();
            let project = crate::config::parse(&text, Path::new("/p/castra.toml"), &surroundings);
            project.expect("a project").vms.remove(0)
        };
        let (unsaid, same, other) = (vm(""), vm("cpu = \"qemu64,+rdrand\""), vm("cpu = \"max\""));
        assert!([&unsaid, &same].iter().all(|definition| boot.is_of(definition)));
        assert!(!boot.is_of(&other));
        assert!([&unsaid, &same, &other].iter().all(|definition| native.is_of(definition)));
        assert!(early.is_of(&other));
    }

    #[test]
    fn a_machine_of_an_earlier_castra_is_read_and_a_strangers_is_not() {
        const WRITTEN: &str = r#"{"qemu":"/usr/bin/qemu size=1 mtime=2","host":null,"machine":"q35,sata=off,smbus=off,vmport=off","cpu":"qemu64,+rdrand","devices":["virtio-rng-pci","vmgenid,guid=auto"]}"#;
        let read: RecordedMachine = serde_json::from_str(WRITTEN).expect("is read");
        assert!(read.known().is_ok());
        assert_eq!(serde_json::to_string(&read).expect("written"), WRITTEN);
        for (honest, evil) in [
            ("virtio-rng-pci", "loader,file=/etc/passwd"),
            ("q35,", "q35,firmware=/x,"),
            ("+rdrand", "rdrand=on"),
        ] {
            let planted = WRITTEN.replacen(honest, evil, 1);
            let read: RecordedMachine = serde_json::from_str(&planted).expect("is JSON");
            assert!(read.known().is_err(), "{evil}");
            // Not lost when the record is written again.
            let again: serde_json::Value = serde_json::to_value(&read).expect("written");
            assert_eq!(again, serde_json::from_str::<serde_json::Value>(&planted).expect("is JSON"));
        }
    }
}
