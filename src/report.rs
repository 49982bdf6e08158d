//! The one vocabulary in which Castra tells what it does, and who listens to it.
//!
//! The library never prints: it reports [`Event`]s, and a [`Reporter`] shows them (bars on a terminal, plain lines or
//! JSON lines elsewhere). The order is part of the contract:
//!
//! - per image: [`Event::ImageChosen`]? , then per artifact [`Event::ArtifactStep`] …, with any number of
//!   [`Event::Download`]s between [`Event::DownloadStarted`] and [`Event::DownloadFinished`]; last
//!   [`Event::ImageReady`];
//! - per VM, with a [`Event::VmPhase`] as each phase ends: image events, [`Event::AcceleratorChosen`], where a template is wanted [`Event::TemplateVerifying`]?, [`Event::TemplateBaking`] with
//!   [`Event::VmPhase`]s and [`Event::TemplateBaked`], or [`Event::TemplateRefused`]; [`Event::Hashing`] …, [`Event::ReadsOutside`]?, [`Event::OverlayCreated`]?,
//!   [`Event::VmStarting`], [`Event::VmSlow`]?, [`Event::VmRunning`]; for a suspended VM [`Event::VmResuming`], [`Event::VmRunning`]; on the way
//!   down [`Event::VmStopping`], [`Event::VmStopped`], or [`Event::VmSuspending`], [`Event::VmSuspended`].
//!
//! [`Event::ProjectFound`] comes first, once a command. [`Event::Waiting`] and [`Event::Warning`] may come at any time. Events of different VMs interleave.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Hears events. Called from several threads at once.
pub trait Reporter: Send + Sync {
    /// Something happened. Must not block for long: the work waits meanwhile.
    fn report(&self, event: &Event);
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Reporter for Silent {
    fn report(&self, _event: &Event) {}
}

/// Which image an event is about; displays as `alpine-minimal v1`, or as the id alone where there is no version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct ImageLabel {
    /// The image's id; `name` wherever it is written down, as in castra.toml.
    #[serde(rename = "name", alias = "id")]
    pub id: String,
    /// Its version.
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

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The default project has taken this image.
    ImageChosen {
        /// The image.
        image: ImageLabel,
        /// Why it was taken, as half a sentence: `cached`, or what kept an earlier one from being taken.
        reason: String,
    },
    /// Everything of this image is there already, unchanged.
    ImageCacheHit {
        /// The image.
        image: ImageLabel,
    },
    /// Bytes will be fetched.
    DownloadStarted {
        /// The image.
        image: ImageLabel,
        /// The artifact they belong to, for instance `rootfs`.
        artifact: String,
        /// URL, Python requirement or path.
        from: String,
        /// Bytes that an earlier attempt left behind and this one keeps.
        resumed_bytes: u64,
        /// All bytes, if known.
        total_bytes: Option<u64>,
    },
    /// Bytes have arrived. At most some ten a second per artifact.
    Download {
        /// The image.
        image: ImageLabel,
        /// The artifact.
        artifact: String,
        /// Bytes there are now, resumed ones included.
        done_bytes: u64,
        /// All bytes, if known.
        total_bytes: Option<u64>,
    },
    /// An attempt failed and will be made again.
    DownloadRetry {
        /// The image.
        image: ImageLabel,
        /// The artifact.
        artifact: String,
        /// What went wrong.
        reason: String,
        /// Milliseconds until the next attempt.
        wait_ms: u64,
    },
    /// The bytes are there and their digest is right.
    DownloadFinished {
        /// The image.
        image: ImageLabel,
        /// The artifact.
        artifact: String,
        /// All bytes.
        total_bytes: u64,
    },
    /// A step of an artifact's way from download to file.
    ArtifactStep {
        /// The image.
        image: ImageLabel,
        /// The artifact.
        artifact: String,
        /// What is done, in words: `verifying sha256`, `converting raw to qcow2`.
        step: String,
    },
    /// All files of the image are published and verified.
    ImageReady {
        /// The image.
        image: ImageLabel,
    },
    /// Somebody else holds what is needed; this waits for them.
    Waiting {
        /// What is waited for, as half a sentence: `another castra that prepares alpine-minimal v1`.
        what: String,
    },
    /// Something to know that stops nothing.
    Warning {
        /// One or more lines.
        message: String,
    },
    /// The project in use is not that of the working directory, but of a directory above it.
    ProjectFound {
        /// The project's directory.
        root: PathBuf,
    },
    /// The disk of the user's own that a VM is based on is being hashed, which identifies it. At most some ten a second, and none
    /// where it takes no time; the last one has all bytes.
    Hashing {
        /// The VM.
        vm: String,
        /// The file.
        path: PathBuf,
        /// Bytes that have been read.
        done_bytes: u64,
        /// All bytes.
        total_bytes: u64,
    },
    /// The disk that is made for a VM is based on files outside the project.
    ReadsOutside {
        /// The VM.
        vm: String,
        /// The files.
        paths: Vec<PathBuf>,
    },
    /// A VM has got a disk of its own.
    OverlayCreated {
        /// The VM.
        vm: String,
        /// The overlay.
        path: PathBuf,
        /// Its virtual size.
        size_bytes: u64,
    },
    /// How the guest's CPU will be run.
    AcceleratorChosen {
        /// The VM.
        vm: String,
        /// `kvm`, `hvf` or `tcg`.
        accelerator: String,
        /// Why.
        reason: String,
    },
    /// No VM of this shape was started here before: one boots now, to be the template of all that follow.
    TemplateBaking {
        /// The VM it is made for.
        vm: String,
    },
    /// The files of the template are copies, as in a cache that was copied or restored: they are hashed, once.
    TemplateVerifying {
        /// The VM it is verified for.
        vm: String,
    },
    /// The template is there.
    TemplateBaked {
        /// The VM it was made for.
        vm: String,
        /// How long its boot took, in milliseconds.
        boot_ms: u64,
        /// What it takes on disk.
        bytes: u64,
    },
    /// Making a template failed some time ago, and is not tried again yet.
    TemplateRefused {
        /// The VM, which boots without.
        vm: String,
        /// What went wrong.
        reason: String,
    },
    /// QEMU is being started.
    VmStarting {
        /// The VM.
        vm: String,
        /// Whether it goes on from a warm template, instead of booting.
        warm: bool,
    },
    /// A phase of a start, or of the boot of a template, has ended.
    VmPhase {
        /// The VM.
        vm: String,
        /// One of [`crate::vm::Phase`]'s names.
        phase: String,
        /// How long it took, in milliseconds.
        took_ms: u64,
        /// When it ended: milliseconds since the start began, or since the template's kernel started.
        at_ms: u64,
        /// The phase that has begun by that; nothing where none has.
        next: Option<String>,
    },
    /// A boot takes much longer than usual. Told once.
    VmSlow {
        /// The VM.
        vm: String,
        /// The phase it is in.
        phase: String,
        /// For how long, in milliseconds.
        in_phase_ms: u64,
        /// What is usual, from earlier boots; nothing if there were none.
        usual_ms: Option<u64>,
        /// The last line of the guest's console.
        console: Option<String>,
        /// The probable cause, as half a sentence.
        cause: Option<String>,
    },
    /// Commands can run inside; or, where there is no agent in it, QEMU runs, and nothing is known of the guest.
    VmRunning {
        /// The VM.
        vm: String,
        /// `true` if Castra's agent is in it.
        agent: bool,
        /// Milliseconds since QEMU's start; nothing if it ran already.
        boot_ms: Option<u64>,
    },
    /// The memory of a VM is being saved.
    VmSuspending {
        /// The VM.
        vm: String,
    },
    /// A VM is suspended: it does not run any more, and goes on later from where it was.
    VmSuspended {
        /// The VM.
        vm: String,
        /// What its saved memory takes on disk; nothing if it was suspended already.
        bytes: Option<u64>,
    },
    /// A VM was cloned.
    VmCloned {
        /// The new VM, which is suspended.
        vm: String,
        /// What it is a clone of.
        of: String,
    },
    /// A suspended VM goes on from its saved memory.
    VmResuming {
        /// The VM.
        vm: String,
    },
    /// An accelerated boot failed and is made once more under TCG.
    VmRetriesUnderTcg {
        /// The VM.
        vm: String,
        /// What the accelerated boot did.
        reason: String,
    },
    /// A VM is being stopped, in this way.
    VmStopping {
        /// The VM.
        vm: String,
        /// `guest shutdown`, `quit`, `SIGTERM`, `SIGKILL`; `SIGCONT` before them for a QEMU that somebody has stopped.
        method: String,
    },
    /// Bytes of a copy into or out of a VM have arrived.
    Copy {
        /// The source, as it was named.
        path: String,
        /// Bytes there are now.
        done_bytes: u64,
    },
    /// A copy has ended.
    CopyFinished {
        /// The source, as it was named.
        path: String,
        /// All bytes; nothing if it failed.
        total_bytes: Option<u64>,
    },
    /// A VM does not run any more.
    VmStopped {
        /// The VM.
        vm: String,
        /// Whether it ran before.
        was_running: bool,
    },
}
