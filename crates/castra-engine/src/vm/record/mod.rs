//! Record of a VM, `vms/<vm>/vm.json`, which status, exec and down rely on, so that they never need
//! the configuration.
//!
//! This folder is the floor of [`vm`](super): it imports no other part of it. Operations write the
//! record, with the progress of the last one; [`VmState`] is derived from that and from QEMU's lock
//! on its pid file.

mod base;
mod boot;
mod check;
mod clone;
mod error;
mod home;
mod kernel;
mod modules;
mod native;
pub(super) mod place;
mod state;
mod suspended;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::DataDisk;
use crate::context::RuntimeContext;
use crate::files;
use crate::guest::AgentSocket;
use crate::layout::ProjectLayout;
use crate::qemu::running_qemu;
use crate::report::Event;
use crate::trusted;

pub use base::{BaseKind, BaseRecord, LayerRecord, ProvisionRecord};
pub use boot::{AutoForwards, BootRecord, MachineRecord, RecordedMachine, StartKind};
pub use clone::{CloneRecord, FrozenLayer};
pub use error::RecordError;
pub(super) use error::hint_of_io;
pub use home::{Home, sentence_of_copy};
pub use kernel::KernelRecord;
pub use modules::MissingModules;
pub use native::{NativeRecord, SshServer};
pub use state::{Crash, VmState};
pub(super) use state::{copy_of, crash, observe};
pub use suspended::{DiskStamp, SavedDisk, SuspendRecord};

/// Version of the format, which changes when an older castra would misread a newer record.
const FORMAT: u32 = 1;
/// Most bytes of a record, far more than any has.
const MAX_BYTES: u64 = 1 << 20;

/// Record of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    /// Name of the VM.
    pub name: String,
    /// Path of its disk, relative to the state root if it is in the project, so that the project
    /// can be moved and copied.
    pub overlay: PathBuf,
    /// Base image of the disk.
    pub base: BaseRecord,
    /// The warm template's disk in between, if there is one.
    #[serde(default)]
    pub layer: Option<LayerRecord>,
    /// The layers of its steps, if its disk was provisioned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provisioned: Option<ProvisionRecord>,
    /// Data disks that it was last started with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data_disks: Vec<DataDisk>,
    /// Progress of the last operation.
    pub progress: Progress,
    /// The last boot.
    pub boot: Option<BootRecord>,
    /// Saved state of a suspended VM, as long as it fits its disk.
    #[serde(default)]
    pub suspended: Option<SuspendRecord>,
    /// Properties of the VM, if it is a clone.
    #[serde(default)]
    pub cloned: Option<CloneRecord>,
    /// Layers that its disk is based on since it was cloned, the lowest first.
    #[serde(default)]
    pub frozen: Vec<FrozenLayer>,
    /// Port on 127.0.0.1 that last led to its SSH server, which it gets again while that is free. A
    /// clone does not inherit its original's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_port: Option<u16>,
    /// Kernel of its disk with which commands could last run, and which it can boot again if the
    /// disk's next one fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_kernel: Option<KernelRecord>,
}

/// Recorded progress of the last operation. Not the state, which is [`super::VmState`].
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
    /// Memory and devices are being loaded, and the machine is paused.
    Resuming,
    /// The clone is not complete yet.
    Cloning,
    /// No operation is in progress.
    Stopped,
}

impl Record {
    /// Returns the record of a VM that has a disk and was never started. `overlay` is absolute.
    pub(super) fn new(
        layout: &ProjectLayout,
        name: &str,
        overlay: &Path,
        base: BaseRecord,
    ) -> Self {
        Self {
            format: FORMAT,
            name: name.to_owned(),
            overlay: place::stored(overlay, layout),
            base,
            layer: None,
            provisioned: None,
            data_disks: Vec::new(),
            progress: Progress::Stopped,
            boot: None,
            suspended: None,
            cloned: None,
            frozen: Vec::new(),
            ssh_port: None,
            kept_kernel: None,
        }
    }

    /// Notes that commands can run or, without an agent, that QEMU runs. The kernel has come up.
    pub(super) fn set_running(&mut self) {
        self.progress = Progress::Running;
        if let Some(kernel) = self.boot.as_ref().and_then(|boot| boot.kernel.as_ref()) {
            self.kept_kernel = Some(kernel.clone());
        }
    }

    /// Returns `true` for a clone that was begun and never finished, as far as its record says.
    pub fn is_unfinished_clone(&self) -> bool {
        self.progress == Progress::Cloning
    }

    /// Returns `true` for a VM that was booted with Castra's agent in its guest.
    pub fn has_agent(&self) -> bool {
        self.boot.as_ref().is_some_and(BootRecord::has_agent)
    }

    /// Returns `true` for a VM in which commands can run once it is ready: by Castra's agent, or
    /// over an SSH server of the system's own that has let castra in.
    pub fn runs_commands(&self) -> bool {
        let is_let_in = |boot: &BootRecord| boot.native.is_some() && boot.ready_ms.is_some();
        self.has_agent() || self.boot.as_ref().is_some_and(is_let_in)
    }

    /// Returns the socket of the agent, for a running VM that has one.
    pub(super) fn agent_socket(&self) -> Option<AgentSocket> {
        let boot = self.boot.as_ref().filter(|boot| boot.has_agent())?;
        Some(AgentSocket { vm: self.name.clone(), path: boot.socket_paths().control() })
    }

    /// Returns the disk's absolute path.
    pub fn overlay_path(&self, layout: &ProjectLayout) -> PathBuf {
        place::found(&self.overlay, layout)
    }

    /// Sets the disk's path to the declared one: in a copy of a project, the record of an earlier
    /// castra names the original's disk.
    pub(super) fn place_disk(&mut self, overlay: &Path, layout: &ProjectLayout) {
        self.overlay = place::stored(overlay, layout);
    }

    /// Reads the record of this VM, if there is one; for a clone without one, the record that it
    /// was made with. Paths apply to the project's current location: in a copy, a boot's sockets
    /// are not those of the original, whatever was copied.
    ///
    /// # Errors
    /// Returns [`RecordError::Io`] if it cannot be read, [`RecordError::Damaged`],
    /// [`RecordError::TooNew`] or [`RecordError::Refused`].
    pub fn load(layout: &ProjectLayout, vm: &str) -> Result<Option<Self>, RecordError> {
        match Self::read(layout, vm, layout.vm(vm).record())? {
            None => Self::of_new_clone(layout, vm),
            record => Ok(record),
        }
    }

    /// Reads the record that a clone was made with, if the VM is one.
    ///
    /// # Errors
    /// Returns errors as [`Self::load`] does.
    pub fn of_new_clone(layout: &ProjectLayout, vm: &str) -> Result<Option<Self>, RecordError> {
        Self::read(layout, vm, layout.vm(vm).clone_record())
    }

    fn read(layout: &ProjectLayout, vm: &str, path: PathBuf) -> Result<Option<Self>, RecordError> {
        let read = trusted::directory(layout.vm(vm).directory())
            .and_then(|_| trusted::read(&path, MAX_BYTES));
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) if trusted::is_absence(&error) => return Ok(None),
            Err(source) => return Err(RecordError::Io { action: "read", path, source }),
        };
        let is_running = || running_qemu(&layout.vm(vm).pidfile()).is_some();
        let mut record = Self::parse(&bytes, vm, path.clone(), is_running)?;
        check::check(&mut record, vm, layout).map_err(|problem| RecordError::Refused {
            vm: vm.to_owned(),
            path,
            is_running: is_running(),
            problem,
        })?;
        if let BaseKind::Path(base) = &mut record.base.kind {
            *base = place::found(base, layout);
        }
        if let Some(boot) = &mut record.boot {
            boot.settle(vm, layout);
        }
        Ok(Some(record))
    }

    fn parse(
        bytes: &[u8],
        vm: &str,
        path: PathBuf,
        is_running: impl Fn() -> bool,
    ) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Envelope {
            format: u32,
        }
        // The number first: a newer record may have any shape after it.
        if let Ok(Envelope { format }) = serde_json::from_slice(bytes)
            && format > FORMAT
        {
            let (vm, is_running) = (vm.to_owned(), is_running());
            return Err(RecordError::TooNew { vm, path, is_running, format, known: FORMAT });
        }
        serde_json::from_slice(bytes).map_err(|source| RecordError::Damaged {
            vm: vm.to_owned(),
            path,
            is_running: is_running(),
            source,
        })
    }

    /// Stores the guest's report on its kernel's modules, and warns if they are missing.
    pub(super) fn set_missing_modules(
        &mut self,
        missing: Option<MissingModules>,
        context: &RuntimeContext,
    ) {
        if let Some(missing) = &missing {
            let has_own = self.boot.as_ref().is_some_and(|boot| boot.kernel.is_some());
            let way_out = missing.way_out(&self.name, &self.base.kind, has_own);
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
    /// Returns [`RecordError::Io`].
    pub(super) fn save(&self, layout: &ProjectLayout) -> Result<(), RecordError> {
        self.write(layout, layout.vm(&self.name).record())
    }

    /// Writes the lasting part of the record of a new clone.
    ///
    /// # Errors
    /// Returns [`RecordError::Io`].
    pub(super) fn save_as_new_clone(&self, layout: &ProjectLayout) -> Result<(), RecordError> {
        let lasting =
            Self { progress: Progress::Stopped, suspended: None, boot: None, ..self.clone() };
        lasting.write(layout, layout.vm(&self.name).clone_record())
    }

    fn write(&self, layout: &ProjectLayout, path: PathBuf) -> Result<(), RecordError> {
        let mut written = self.clone();
        if let BaseKind::Path(base) = &mut written.base.kind {
            *base = place::stored(base, layout);
        }
        let bytes = serde_json::to_vec_pretty(&written).unwrap_or_default();
        let failed = |source| RecordError::Io { action: "write", path: path.clone(), source };
        files::create_private_directory(layout.vm(&self.name).directory()).map_err(failed)?;
        files::write_atomically(&path, &bytes, 0o600).map_err(failed)
    }

    /// Returns `true` if there is a record of this VM, readable or not.
    pub fn is_there(layout: &ProjectLayout, vm: &str) -> bool {
        let files = layout.vm(vm);
        [files.record(), files.clone_record()].iter().any(|path| fs::symlink_metadata(path).is_ok())
    }

    /// Reads all readable records; for a clone without a readable record, the one that it was made
    /// with. Operations that need an unreadable record report it.
    pub fn all(layout: &ProjectLayout) -> BTreeMap<String, Self> {
        let load = |name: String| {
            let record = Self::load(layout, &name).or_else(|_| Self::of_new_clone(layout, &name));
            Some((name, record.ok()??))
        };
        Self::names(layout).into_iter().filter_map(load).collect()
    }

    /// Returns the names of all VMs that have a record, sorted.
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

/// Loads the record of the VM of this name, or of the only VM there is.
///
/// # Errors
/// Returns [`RecordError::Unknown`], [`RecordError::NoneYet`], [`RecordError::Ambiguous`], and
/// errors of reading the record.
pub fn recorded_vm(name: Option<&str>, layout: &ProjectLayout) -> Result<Record, RecordError> {
    let mut names = Record::names(layout);
    let vm = match name {
        Some(name) if names.iter().any(|known| known == name) => name.to_owned(),
        Some(name) => return Err(RecordError::unknown(name, &names)),
        None if names.is_empty() => return Err(RecordError::NoneYet),
        None if names.len() == 1 => names.remove(0),
        None => return Err(RecordError::Ambiguous { names }),
    };
    // If it is gone between listing and reading, another process has just removed it.
    Record::load(layout, &vm)?.ok_or(RecordError::Unknown { vm, similar: None })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::qemu::StreamPortCount;
    use crate::report::ImageLabel;

    fn record(layout: &ProjectLayout) -> Record {
        let base = BaseRecord {
            kind: BaseKind::Managed(ImageLabel {
                id: "alpine-minimal".into(),
                version: "v1".into(),
            }),
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
        assert!(matches!(Record::load(&layout, "web"), Err(RecordError::Damaged { .. })));
        fs::write(&path, r#"{"format": 99, "shape": "unknown"}"#).expect("written");
        assert!(matches!(
            Record::load(&layout, "web"),
            Err(RecordError::TooNew { format: 99, .. })
        ));
    }

    #[test]
    fn a_cpu_is_compared_where_the_definition_names_one_and_it_is_emulated() {
        let emulated = r#"{"started_unix_ms":1,"accelerator":{"accelerator":"tcg","reason":""},"qemu_version":"7.2","cpus":1,"memory_mib":1024,"ssh_port":null,"port_forwards":[],"sockets":"/s","ready_ms":null,"machine":{"qemu":"q","host":null,"machine":"q35","cpu":"qemu64,+rdrand","devices":[]}}"#;
        let read = |text: &str| serde_json::from_str::<BootRecord>(text).expect("is read");
        let boot = read(emulated);
        let native =
            read(&emulated.replace("\"tcg\"", "\"kvm\"").replace("qemu64,+rdrand", "host"));
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
    fn only_a_machine_with_stream_ports_has_them() {
        let boot = |machine: Value| {
            let boot = json!({
                "started_unix_ms": 1, "accelerator": {"accelerator": "tcg", "reason": ""},
                "qemu_version": "7.2", "cpus": 1, "memory_mib": 1024, "ssh_port": 40022,
                "port_forwards": [], "sockets": "/run/castra/0123456789ab/vm", "ready_ms": null,
                "machine": machine,
            });
            serde_json::from_value::<BootRecord>(boot).expect("is read").stream_ports()
        };
        let mut machine = json!({
            "qemu": "q", "host": null, "machine": "q35", "cpu": "qemu64", "devices": []
        });
        assert_eq!(boot(Value::Null), None, "of the first castra");
        assert_eq!(boot(machine.clone()), None, "of an earlier castra");
        machine["stream_ports"] = json!(12);
        let ports = boot(machine).expect("has them");
        assert_eq!(ports.count, 12);
        let first = Path::new("/run/castra/0123456789ab/vm/stream-0.sock");
        assert_eq!(ports.sockets.stream(0), first);
    }

    #[test]
    fn a_machine_of_an_earlier_castra_is_read_and_a_strangers_is_not() {
        const WRITTEN: &str = r#"{"qemu":"/usr/bin/qemu size=1 mtime=2","host":null,"machine":"q35,sata=off,smbus=off,vmport=off","cpu":"qemu64,+rdrand","devices":["virtio-rng-pci","vmgenid,guid=auto"]}"#;
        let read: RecordedMachine = serde_json::from_str(WRITTEN).expect("is read");
        assert!(read.known().is_ok());
        assert_eq!(serde_json::to_string(&read).expect("written"), WRITTEN);
        assert_eq!(read.known().expect("is known").stream_ports, StreamPortCount::NONE);
        assert!(read.known().expect("is known").announcement.is_made());
        for (honest, evil) in [
            ("virtio-rng-pci", "loader,file=/etc/passwd"),
            ("q35,", "q35,firmware=/x,"),
            ("+rdrand", "rdrand=on"),
            (r#""devices""#, r#""stream_ports":15,"devices""#),
            (r#""devices""#, r#""stream_ports":4294967296,"devices""#),
        ] {
            let planted = WRITTEN.replacen(honest, evil, 1);
            let read: RecordedMachine = serde_json::from_str(&planted).expect("is JSON");
            assert!(read.known().is_err(), "{evil}");
            // The value is not lost when the record is written again.
            let again: serde_json::Value = serde_json::to_value(&read).expect("written");
            assert_eq!(
                again,
                serde_json::from_str::<serde_json::Value>(&planted).expect("is JSON")
            );
        }
    }
}
