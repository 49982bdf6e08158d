//! Events of Castra's work, and the reporters that receive them.
//!
//! The library never prints: it reports [`Event`]s, and a [`Reporter`] shows them (bars on a
//! terminal, plain lines or JSON lines elsewhere). The order is part of the contract:
//!
//! - per image: [`Event::ImageChosen`]? , then per artifact [`Event::ArtifactStep`] …, with any
//!   number of [`Event::Download`]s between [`Event::DownloadStarted`] and
//!   [`Event::DownloadFinished`]; last [`Event::ImageReady`];
//! - per VM, with a [`Event::VmPhase`] as each phase ends: image events,
//!   [`Event::AcceleratorChosen`], for each step of `provision` [`Event::ProvisionStep`] and,
//!   unless its layer exists, any number of [`Event::ProvisionOutput`] and
//!   [`Event::ProvisionStepDone`]; where a template is wanted [`Event::TemplateVerifying`]?,
//!   [`Event::TemplateBaking`] with [`Event::VmPhase`]s and [`Event::TemplateBaked`], or
//!   [`Event::TemplateRefused`]; [`Event::Hashing`] …, [`Event::ReadsOutside`]?,
//!   any number of [`Event::OverlayCreated`], [`Event::VmStarting`], [`Event::VmSlow`]?,
//!   [`Event::VmRunning`];
//!   for a suspended VM [`Event::VmResuming`], [`Event::VmRunning`], or [`Event::VmDiscarded`]
//!   before the events of a boot; on the way down
//!   [`Event::VmStopping`], [`Event::VmStopped`], or [`Event::VmSuspending`],
//!   [`Event::VmSuspended`].
//!
//! [`Event::ProjectFound`] comes first, once per command. [`Event::Waiting`], [`Event::Warning`]
//! and [`Event::PortForwarded`] may come at any time. Events of different VMs interleave.

use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Receiver of events. Called from several threads at once.
pub trait Reporter: Send + Sync {
    /// Reports an event. Must not block for long, since the work waits meanwhile.
    fn report(&self, event: &Event);
}

/// A reporter that ignores all events.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Reporter for Silent {
    fn report(&self, _event: &Event) {}
}

/// A reporter that writes a debug line for each event but those of progress, and passes it on.
pub(crate) struct Traced(pub(crate) Arc<dyn Reporter>);

impl Reporter for Traced {
    fn report(&self, event: &Event) {
        let is_progress =
            matches!(event, Event::Download { .. } | Event::Hashing { .. } | Event::Copy { .. });
        if !is_progress {
            tracing::debug!("{event:?}");
        }
        self.0.report(event);
    }
}

/// Image of an event; displays as `alpine-minimal v1`, or as the ID alone if there is no version.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct ImageLabel {
    /// ID of the image, which is serialised as `name`, as in castra.toml.
    #[serde(rename = "name", alias = "id")]
    pub id: String,
    /// Version of the image.
    pub version: String,
}

impl std::fmt::Display for ImageLabel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.version.as_str() {
            "" => f.write_str(&self.id),
            version => write!(f, "{} {version}", self.id),
        }
    }
}

/// An event of Castra's work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The default project has chosen this image.
    ImageChosen {
        /// The image.
        image: ImageLabel,
        /// Reason, as part of a sentence: `cached`, or why an earlier image was not chosen.
        reason: String,
    },
    /// All files of this image exist already, unchanged.
    ImageCacheHit {
        /// The image.
        image: ImageLabel,
    },
    /// A download starts.
    DownloadStarted {
        /// The image.
        image: ImageLabel,
        /// Artifact that is fetched, for instance `rootfs`.
        artifact: String,
        /// URL, Python requirement or path.
        from: String,
        /// Bytes of an earlier attempt that this one keeps.
        resumed_bytes: u64,
        /// Size of the artifact, in bytes, if known.
        total_bytes: Option<u64>,
    },
    /// Bytes have arrived. At most some ten events a second per artifact.
    Download {
        /// The image.
        image: ImageLabel,
        /// The artifact.
        artifact: String,
        /// Bytes received so far, resumed ones included.
        done_bytes: u64,
        /// Size of the artifact, in bytes, if known.
        total_bytes: Option<u64>,
    },
    /// An attempt failed and will be repeated.
    DownloadRetry {
        /// The image.
        image: ImageLabel,
        /// The artifact.
        artifact: String,
        /// Reason of the failure.
        reason: String,
        /// Milliseconds until the next attempt.
        wait_ms: u64,
    },
    /// The download is complete and its digest is right.
    DownloadFinished {
        /// The image.
        image: ImageLabel,
        /// The artifact.
        artifact: String,
        /// Size of the artifact, in bytes.
        total_bytes: u64,
    },
    /// A step in making a file from a download.
    ArtifactStep {
        /// The image.
        image: ImageLabel,
        /// The artifact.
        artifact: String,
        /// Description of the step: `verifying sha256`, `converting raw to qcow2`.
        step: String,
    },
    /// All files of the image are published and verified.
    ImageReady {
        /// The image.
        image: ImageLabel,
    },
    /// Another process holds a lock, and this one waits for it.
    Waiting {
        /// Object of the wait, as part of a sentence: `another castra preparing alpine-minimal
        /// v1`.
        what: String,
    },
    /// A problem that stops nothing.
    Warning {
        /// One or more lines.
        message: String,
    },
    /// The project in use is that of a directory above the working directory.
    ProjectFound {
        /// The project's directory.
        root: PathBuf,
    },
    /// The user's own disk on which a VM is based is being hashed, which identifies it. At most
    /// some ten events a second, and none if it takes no time; the last one reports all bytes.
    Hashing {
        /// The VM.
        vm: String,
        /// The file.
        path: PathBuf,
        /// Bytes read so far.
        done_bytes: u64,
        /// Size of the file, in bytes.
        total_bytes: u64,
    },
    /// The disk that is created for a VM is based on files outside the project.
    ReadsOutside {
        /// The VM.
        vm: String,
        /// The files.
        paths: Vec<PathBuf>,
    },
    /// A disk was created for a VM: its own, or a data disk.
    OverlayCreated {
        /// The VM.
        vm: String,
        /// The file.
        path: PathBuf,
        /// Virtual size of the disk, in bytes.
        size_bytes: u64,
    },
    /// An accelerator was chosen for the guest's CPU.
    AcceleratorChosen {
        /// The VM.
        vm: String,
        /// `kvm`, `hvf` or `tcg`.
        accelerator: String,
        /// Reason for the choice.
        reason: String,
    },
    /// A step that prepares a VM's disk begins, or its layer is there already.
    ProvisionStep {
        /// VM for which it is run.
        vm: String,
        /// Number of the step, from 1.
        step: usize,
        /// Number of steps.
        of: usize,
        /// The step as one short line.
        text: String,
        /// True if it was run before, so that it need not run.
        cached: bool,
    },
    /// A step has written a line. A long line comes in parts.
    ProvisionOutput {
        /// The VM.
        vm: String,
        /// Number of the step, from 1.
        step: usize,
        /// The line, as the guest has written it.
        line: String,
    },
    /// A step has succeeded, and its layer is kept.
    ProvisionStepDone {
        /// The VM.
        vm: String,
        /// Number of the step, from 1.
        step: usize,
        /// Number of steps.
        of: usize,
        /// Duration with boot and shutdown, in milliseconds.
        took_ms: u64,
        /// Space of its layer on disk, in bytes.
        bytes: u64,
    },
    /// A warm template is being made: no VM of this shape was started here before, so one boots
    /// now, as the template of all that follow.
    TemplateBaking {
        /// VM for which it is made.
        vm: String,
    },
    /// The files of the template are copies, as in a cache that was copied or restored: they are
    /// hashed once.
    TemplateVerifying {
        /// VM for which it is verified.
        vm: String,
    },
    /// The template is finished.
    TemplateBaked {
        /// VM for which it was made.
        vm: String,
        /// Duration of its boot, in milliseconds.
        boot_ms: u64,
        /// Space on disk, in bytes.
        bytes: u64,
    },
    /// Making a template failed some time ago, and is not retried yet.
    TemplateRefused {
        /// VM, which boots without a template.
        vm: String,
        /// Reason of the failure.
        reason: String,
    },
    /// QEMU is being started.
    VmStarting {
        /// The VM.
        vm: String,
        /// True if the VM is restored from a warm template, instead of booting.
        warm: bool,
    },
    /// A phase of a start, or of the boot of a template, has ended.
    VmPhase {
        /// The VM.
        vm: String,
        /// Name of the phase, see [`crate::vm::Phase`].
        phase: String,
        /// Duration of the phase, in milliseconds.
        took_ms: u64,
        /// Time of its end: milliseconds since the start began, or since the template's kernel
        /// started.
        at_ms: u64,
        /// Phase that has begun at that time, if any.
        next: Option<String>,
    },
    /// A boot takes much longer than usual. Reported once.
    VmSlow {
        /// The VM.
        vm: String,
        /// Current phase.
        phase: String,
        /// Time in this phase, in milliseconds.
        in_phase_ms: u64,
        /// Usual duration, from earlier boots; `None` if there were none.
        usual_ms: Option<u64>,
        /// Last line of the guest's console.
        console: Option<String>,
        /// Probable cause, as part of a sentence.
        cause: Option<String>,
    },
    /// The guest can run commands; or, if it has no agent, QEMU runs and nothing is known of the
    /// guest.
    VmRunning {
        /// The VM.
        vm: String,
        /// True if the guest runs Castra's agent.
        agent: bool,
        /// True if commands can run in it: by the agent, or over an SSH server of its own.
        reachable: bool,
        /// Milliseconds since QEMU's start; `None` if it was running already.
        boot_ms: Option<u64>,
    },
    /// The memory of a VM is being saved.
    VmSuspending {
        /// The VM.
        vm: String,
    },
    /// A VM is suspended: it does not run any more, and can be resumed.
    VmSuspended {
        /// The VM.
        vm: String,
        /// Space of its saved memory on disk, in bytes; `None` if it was suspended already.
        bytes: Option<u64>,
    },
    /// The saved memory of a suspended VM was dropped, on request. Its disk is kept.
    VmDiscarded {
        /// The VM.
        vm: String,
    },
    /// A VM was cloned.
    VmCloned {
        /// The new VM, which is suspended.
        vm: String,
        /// Name of the cloned VM.
        of: String,
    },
    /// A port of this machine leads to a running VM since something listens there.
    PortForwarded {
        /// The VM.
        vm: String,
        /// Port on 127.0.0.1.
        host: u16,
        /// TCP port in the VM.
        guest: u16,
    },
    /// A suspended VM resumes from its saved memory.
    VmResuming {
        /// The VM.
        vm: String,
    },
    /// An accelerated boot failed and is retried under TCG.
    VmRetriesUnderTcg {
        /// The VM.
        vm: String,
        /// Failure of the accelerated boot.
        reason: String,
    },
    /// A VM is being stopped.
    VmStopping {
        /// The VM.
        vm: String,
        /// Method: `guest shutdown`, `QMP quit`, `SIGTERM`, `SIGKILL`; `SIGCONT` before them for a
        /// QEMU whose process is stopped.
        method: String,
    },
    /// Bytes of a copy into or out of a VM have arrived.
    Copy {
        /// Source, as it was named.
        path: String,
        /// Bytes copied so far.
        done_bytes: u64,
    },
    /// A copy has finished.
    CopyFinished {
        /// Source, as it was named.
        path: String,
        /// Size of the copy, in bytes; `None` if it failed.
        total_bytes: Option<u64>,
    },
    /// A VM has stopped.
    VmStopped {
        /// The VM.
        vm: String,
        /// True if it was running before.
        was_running: bool,
    },
}

impl Event {
    /// Returns the name of the VM that the event is about, if it is about one.
    pub fn vm_mut(&mut self) -> Option<&mut String> {
        match self {
            Self::Hashing { vm, .. }
            | Self::ReadsOutside { vm, .. }
            | Self::OverlayCreated { vm, .. }
            | Self::AcceleratorChosen { vm, .. }
            | Self::ProvisionStep { vm, .. }
            | Self::ProvisionOutput { vm, .. }
            | Self::ProvisionStepDone { vm, .. }
            | Self::TemplateBaking { vm, .. }
            | Self::TemplateVerifying { vm, .. }
            | Self::TemplateBaked { vm, .. }
            | Self::TemplateRefused { vm, .. }
            | Self::VmStarting { vm, .. }
            | Self::VmPhase { vm, .. }
            | Self::VmSlow { vm, .. }
            | Self::VmRunning { vm, .. }
            | Self::VmSuspending { vm, .. }
            | Self::VmSuspended { vm, .. }
            | Self::VmDiscarded { vm, .. }
            | Self::VmCloned { vm, .. }
            | Self::PortForwarded { vm, .. }
            | Self::VmResuming { vm, .. }
            | Self::VmRetriesUnderTcg { vm, .. }
            | Self::VmStopping { vm, .. }
            | Self::VmStopped { vm, .. } => Some(vm),
            Self::ImageChosen { .. }
            | Self::ImageCacheHit { .. }
            | Self::DownloadStarted { .. }
            | Self::Download { .. }
            | Self::DownloadRetry { .. }
            | Self::DownloadFinished { .. }
            | Self::ArtifactStep { .. }
            | Self::ImageReady { .. }
            | Self::Waiting { .. }
            | Self::Warning { .. }
            | Self::ProjectFound { .. }
            | Self::Copy { .. }
            | Self::CopyFinished { .. } => None,
        }
    }
}
