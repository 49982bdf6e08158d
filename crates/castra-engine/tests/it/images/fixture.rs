//! Fixture that the tests of images share.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use castra_engine::Error;
use castra_engine::cancel::Cancel;
use castra_engine::context::Environment;
use castra_engine::context::RuntimeContext;
use castra_engine::files::Digest;
use castra_engine::layout::{CacheLayout, ProjectLayout};
use castra_engine::managed::{
    ArtifactRole, ArtifactSource, ImageError, ImageManager, ManagedArtifactSpec, ManagedImagePaths,
    ManagedImageSpec, QemuProfile, Timeouts, TransformStep,
};
use castra_engine::qemu::DiskFormat;
use castra_engine::report::{Event, Reporter};
use sha2::{Digest as _, Sha256};

/// A cache, a project and a reporter of one test's own.
pub(crate) struct Fixture {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) events: Arc<Events>,
    pub(crate) context: RuntimeContext,
    pub(crate) timeouts: Timeouts,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with([])
    }

    /// Creates a fixture with these environment variables in addition to those that the helpers
    /// need.
    pub(crate) fn with<const N: usize>(variables: [(&str, &str); N]) -> Self {
        // A comma is special to qemu-img, so that no path may be passed unquoted.
        let directory = tempfile::Builder::new().prefix("castra,").tempdir().expect("a directory");
        let events = Arc::new(Events::default());
        let mut environment = Environment::of([("HOME", directory.path())]);
        for name in ["PATH", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                environment = environment.with(name, value);
            }
        }
        // The tests' servers are on this machine.
        environment = environment.with("CASTRA_ALLOW_PRIVATE_SOURCES", "127.0.0.1");
        for (name, value) in variables {
            environment = environment.with(name, value);
        }
        let context =
            RuntimeContext::new(environment, events.clone(), Cancel::new()).expect("a home");
        Self { directory, events, context, timeouts: timeouts() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn cache(&self) -> &CacheLayout {
        &self.context.cache
    }

    pub(crate) fn project(&self, name: &str) -> ProjectLayout {
        ProjectLayout::unchecked(self.path(name).join(".castra"))
    }

    pub(crate) fn manager(&self) -> ImageManager {
        ImageManager::new(&self.project("project")).with_timeouts(self.timeouts)
    }

    pub(crate) fn ensure(&self, spec: &ManagedImageSpec) -> Result<ManagedImagePaths, ImageError> {
        self.manager().ensure_image(spec, &self.context)
    }

    /// Returns the partial of an image's first artifact.
    pub(crate) fn partial(&self, spec: &ManagedImageSpec) -> PathBuf {
        let digest = &spec.artifacts[0].digest;
        self.cache().partial(digest.algorithm(), digest.hex())
    }

    /// Returns the download of an image's first artifact.
    pub(crate) fn blob(&self, spec: &ManagedImageSpec) -> PathBuf {
        let digest = &spec.artifacts[0].digest;
        self.cache().blob(digest.algorithm(), digest.hex())
    }

    /// Writes bytes where an earlier attempt would have left them.
    pub(crate) fn leave_partial(&self, spec: &ManagedImageSpec, bytes: &[u8]) {
        let path = self.partial(spec);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, bytes).expect("writes");
    }
}

/// Returns timeouts without waits between attempts, and with limits that a busy machine does not
/// reach. Tests of a limit set a short one.
pub(crate) fn timeouts() -> Timeouts {
    Timeouts {
        connect: Duration::from_secs(30),
        stall: Duration::from_secs(30),
        slowest: 1024,
        pace: Duration::from_secs(30),
        attempts: 4,
        back_off: Duration::from_millis(1),
        longest_wait: Duration::from_secs(5),
        probe: Duration::from_secs(30),
        ask: Duration::from_secs(20),
        pip: Duration::from_secs(120),
    }
}

/// Reporter that remembers all events.
#[derive(Default)]
pub(crate) struct Events {
    seen: Mutex<Vec<Event>>,
    /// Number of bytes after which the operation is cancelled.
    pub(crate) cancel_at: Mutex<Option<(u64, Cancel)>>,
}

impl Reporter for Events {
    fn report(&self, event: &Event) {
        self.seen.lock().expect("not poisoned").push(event.clone());
        if let Event::Download { done_bytes, .. } = event
            && let Some((bytes, cancel)) = &*self.cancel_at.lock().expect("not poisoned")
            && done_bytes >= bytes
        {
            cancel.cancel();
        }
    }
}

impl Events {
    pub(crate) fn all(&self) -> Vec<Event> {
        self.seen.lock().expect("not poisoned").clone()
    }

    pub(crate) fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.all().iter().filter(|event| wanted(event)).count()
    }

    pub(crate) fn warnings(&self) -> String {
        let all = self.all().into_iter();
        let texts = all.filter_map(|event| match event {
            Event::Warning { message } => Some(message),
            _ => None,
        });
        texts.collect::<Vec<_>>().join("\n")
    }

    /// Waits until a matching event has been reported.
    pub(crate) fn wait_for(&self, wanted: impl Fn(&Event) -> bool) {
        wait_until(|| self.count(&wanted) > 0);
    }
}

/// Waits until a condition holds; panics after minutes.
pub(crate) fn wait_until(is_so: impl Fn() -> bool) {
    let started = std::time::Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(120), "waited in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns bytes without pattern or holes, a whole number of sectors.
pub(crate) fn payload(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes_out: Vec<u8> = (0..bytes / 8).flat_map(|_| next()).collect();
    bytes_out.truncate(bytes / 512 * 512);
    bytes_out
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest::Sha256(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Returns an image with only a disk, whose raw bytes these are, from these addresses.
pub(crate) fn disk_image(raw: &[u8], urls: &[String]) -> ManagedImageSpec {
    ManagedImageSpec {
        id: "disk".to_owned(),
        version: "v1".to_owned(),
        description: "a disk".to_owned(),
        artifacts: vec![ManagedArtifactSpec {
            role: ArtifactRole::Rootfs,
            source: ArtifactSource::Url(urls.to_vec()),
            digest: sha256(raw),
            size_bytes: Some(raw.len() as u64),
            pipeline: vec![convert("raw")],
            product_digest: None,
        }],
        profile: profile(None),
    }
}

/// Returns the image without a pinned size.
pub(crate) fn unpinned(mut spec: ManagedImageSpec) -> ManagedImageSpec {
    for artifact in &mut spec.artifacts {
        artifact.size_bytes = None;
    }
    spec
}

pub(crate) fn convert(input_format: &str) -> TransformStep {
    TransformStep::QemuImgConvert {
        input_format: input_format.parse().expect("a format"),
        output_format: DiskFormat::Qcow2,
    }
}

pub(crate) fn profile(command_line: Option<&str>) -> QemuProfile {
    QemuProfile {
        command_line: command_line.map(|line| line.parse().expect("a command line")),
        machine: "q35".parse().expect("a machine"),
        tcg_cpu: "qemu64".parse().expect("a CPU"),
        min_memory_mib: 128,
        devices: Vec::new(),
    }
}

/// Returns the raw bytes of a qcow2, read back by qemu-img.
pub(crate) fn raw_of(disk: &Path) -> Vec<u8> {
    let raw = tempfile::NamedTempFile::new().expect("a file");
    let status = std::process::Command::new("qemu-img")
        .args(["convert", "-O", "raw"])
        .arg(disk)
        .arg(raw.path())
        .status()
        .expect("qemu-img runs");
    assert!(status.success());
    std::fs::read(raw.path()).expect("reads")
}

/// Formats an error as the command line does: message, causes, hint.
pub(crate) fn shown(error: ImageError) -> String {
    let error = Error::from(error);
    let causes: Vec<String> = error.causes().map(ToString::to_string).collect();
    format!("{error} | {} | {}", causes.join(" | "), error.hint().unwrap_or_default())
}
