//! Events as plain lines, for pipes, logs and CI.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::Duration;

use castra_engine::report::{Event, ImageLabel, Reporter};
use castra_engine::size::ByteSize;

use super::output::{Verbosity, write_line};
use super::units::{brief, span};

/// Percentage of a download between two progress lines.
const DOWNLOAD_STEP_PERCENT: u64 = 20;

/// Reporter that prints one line per event, depending on the verbosity.
pub(super) struct PlainReporter {
    verbosity: Verbosity,
    downloads: Mutex<HashMap<String, u64>>,
    /// Images that were reported as present: each is once, however many VMs are based on it.
    cached: Mutex<HashSet<String>>,
}

impl PlainReporter {
    pub(super) fn new(verbosity: Verbosity) -> Self {
        Self { verbosity, downloads: Mutex::default(), cached: Mutex::default() }
    }

    /// Returns `true` if the download has reached another step since its last line.
    fn is_news(&self, artifact: String, done_bytes: u64, total_bytes: u64) -> bool {
        let step = done_bytes * 100 / total_bytes.max(1) / DOWNLOAD_STEP_PERCENT;
        let Ok(mut downloads) = self.downloads.lock() else { return false };
        let last = downloads.entry(artifact).or_insert(0);
        let news = step > *last;
        *last = step;
        news
    }
}

impl Reporter for PlainReporter {
    fn report(&self, event: &Event) {
        let is_news = match event {
            Event::Download { image, artifact, done_bytes, total_bytes } => {
                self.is_news(format!("{image} {artifact}"), *done_bytes, total_bytes.unwrap_or(0))
            }
            Event::Hashing { vm, path, done_bytes, total_bytes } => {
                self.is_news(format!("{vm} {}", path.display()), *done_bytes, *total_bytes)
            }
            Event::ImageCacheHit { image } => is_first(&self.cached, image),
            _ => true,
        };
        if !is_news {
            return;
        }
        if let Some((line, least)) = line(event)
            && self.verbosity >= least
        {
            write_line(&line);
        }
    }
}

/// Returns `true` for the first report on an image.
pub(super) fn is_first(cached: &Mutex<HashSet<String>>, image: &ImageLabel) -> bool {
    cached.lock().is_ok_and(|mut cached| cached.insert(image.to_string()))
}

/// Returns the line for an event, and the least verbosity at which it is shown.
#[expect(clippy::too_many_lines, reason = "a table, one arm for each event")]
pub(super) fn line(event: &Event) -> Option<(String, Verbosity)> {
    use Verbosity::{Normal, Verbose};
    Some(match event {
        Event::ImageChosen { image, reason } => (format!("→ using {image}: {reason}"), Normal),
        Event::ImageCacheHit { image } => {
            (format!("→ {image}: in the cache, nothing to download"), Normal)
        }
        Event::DownloadStarted { image, artifact, from, resumed_bytes, total_bytes } => {
            let size = total_bytes.map_or(String::new(), |total| format!(" ({})", ByteSize(total)));
            let resumed = match resumed_bytes {
                0 => String::new(),
                bytes => format!(", resuming at {}", ByteSize(*bytes)),
            };
            (format!("→ {image}: {} {artifact}{size} from {from}{resumed}…", doing(from)), Normal)
        }
        Event::Download { image, artifact, done_bytes, total_bytes } => {
            let (done, total) = (
                ByteSize(*done_bytes),
                total_bytes.map_or("?".into(), |total| ByteSize(total).to_string()),
            );
            (format!("→ {image}: {artifact}: {done} of {total}…"), Normal)
        }
        Event::DownloadRetry { image, artifact, reason, wait_ms } => (
            format!("warning: {image}: {artifact}: {reason}; retrying in {}", long(*wait_ms)),
            Normal,
        ),
        Event::DownloadFinished { image, artifact, total_bytes } => {
            (format!("→ {image}: {artifact} verified ({})", ByteSize(*total_bytes)), Normal)
        }
        Event::ArtifactStep { image, artifact, step } => {
            (format!("→ {image}: {artifact}: {step}"), Verbose)
        }
        Event::ImageReady { image } => (format!("→ {image}: ready"), Verbose),
        Event::Waiting { what } => (format!("→ waiting for {what}…"), Normal),
        Event::Warning { message } => (format!("warning: {message}"), Normal),
        Event::ProjectFound { root } => (format!("→ project {}", root.display()), Normal),
        Event::Hashing { vm, path, done_bytes, total_bytes } => {
            let (done, total) = (ByteSize(*done_bytes), ByteSize(*total_bytes));
            (format!("→ {vm}: hashing {}: {done} of {total}…", path.display()), Normal)
        }
        Event::ReadsOutside { vm, paths } => {
            let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            (
                format!("→ {vm}: its disk is based on {}, outside the project", paths.join(", ")),
                Normal,
            )
        }
        Event::OverlayCreated { vm, path, size_bytes } => (
            format!("→ {vm}: new disk {} ({}, sparse)", path.display(), ByteSize(*size_bytes)),
            Normal,
        ),
        Event::AcceleratorChosen { vm, accelerator, reason } => {
            (format!("→ {vm}: accelerator {accelerator} ({reason})"), Normal)
        }
        Event::ProvisionStep { vm, step, of, text, cached } => {
            // A shortened step ends in the same sign.
            let going = if text.ends_with('…') { "" } else { "…" };
            let known = if *cached { ": already done" } else { going };
            (format!("→ {vm}: step {step} of {of}: {text}{known}"), Normal)
        }
        Event::ProvisionOutput { vm, step, line } => (format!("→ {vm}: {step} | {line}"), Normal),
        Event::ProvisionStepDone { vm, step, of, took_ms, bytes } => {
            let (took, size) = (long(*took_ms), ByteSize(*bytes));
            (format!("→ {vm}: step {step} of {of} done in {took} ({size})"), Normal)
        }
        Event::TemplateBaking { vm } => (
            format!("→ {vm}: first boot of this configuration: preparing a warm template…"),
            Normal,
        ),
        Event::TemplateVerifying { vm } => {
            (format!("→ {vm}: verifying the warm template, whose files are copies…"), Normal)
        }
        Event::TemplateBaked { vm, boot_ms, bytes } => {
            let (boot, size) = (long(*boot_ms), ByteSize(*bytes));
            (format!("→ {vm}: saved a warm template after booting for {boot} ({size})"), Normal)
        }
        Event::TemplateRefused { vm, reason } => (
            format!(
                "→ {vm}: booting without a warm template, since making one failed earlier: \
                {reason}"
            ),
            Normal,
        ),
        Event::VmStarting { vm, warm: false } => (format!("→ {vm}: booting…"), Normal),
        Event::VmStarting { vm, warm: true } => {
            (format!("→ {vm}: restoring from its warm template…"), Normal)
        }
        Event::VmPhase { vm, phase, took_ms, .. } => {
            (format!("→ {vm}: {phase:<11} {:>8}", brief(*took_ms)), Verbose)
        }
        Event::VmSlow { vm, phase, in_phase_ms, usual_ms, console, cause } => {
            let mut line =
                format!("warning: {vm}: still in phase {phase} after {}", brief(*in_phase_ms));
            line.extend(usual_ms.map(|usual| format!(" (usually {})", brief(usual))));
            line.extend(console.iter().map(|said| format!("; last console line: {said}")));
            line.extend(cause.iter().map(|cause| format!("\n  probable cause: {cause}")));
            (line, Normal)
        }
        Event::VmRunning { vm, reachable: false, .. } => (without_agent(vm), Normal),
        Event::VmRunning { vm, agent: false, boot_ms, .. } => {
            let time = boot_ms.map_or("running".to_owned(), |ms| format!("ready in {}", long(ms)));
            (format!("→ {vm}: {time}; commands run over its own SSH server"), Normal)
        }
        Event::VmRunning { vm, boot_ms: Some(ms), .. } => {
            (format!("→ {vm}: ready in {}", long(*ms)), Normal)
        }
        Event::VmRunning { vm, boot_ms: None, .. } => (format!("→ {vm}: running"), Normal),
        Event::VmSuspending { vm } => (format!("→ {vm}: saving its memory…"), Normal),
        Event::VmSuspended { vm, bytes: Some(bytes) } => {
            (format!("→ {vm}: suspended ({})", ByteSize(*bytes)), Normal)
        }
        Event::VmSuspended { vm, bytes: None } => (format!("→ {vm}: already suspended"), Normal),
        Event::VmDiscarded { vm } => {
            (format!("→ {vm}: dropped its saved memory; its disk is kept"), Normal)
        }
        Event::VmCloned { vm, of } => (format!("→ {vm}: cloned from {of}"), Normal),
        Event::PortForwarded { vm, host, guest } => {
            (format!("→ {vm}: 127.0.0.1:{host} leads to its port {guest}"), Normal)
        }
        Event::VmResuming { vm } => (format!("→ {vm}: resuming…"), Normal),
        Event::VmRetriesUnderTcg { vm, reason } => {
            (format!("warning: {vm}: {reason}; retrying under tcg"), Normal)
        }
        Event::VmStopping { vm, method } => (format!("→ {vm}: stopping ({method})…"), Normal),
        Event::VmStopped { vm, was_running: true } => (format!("→ {vm}: stopped"), Normal),
        Event::VmStopped { vm, was_running: false } => (format!("→ {vm}: was not running"), Normal),
        Event::CopyFinished { path, total_bytes: Some(total_bytes) } => {
            (format!("→ {path}: {} copied", ByteSize(*total_bytes)), Normal)
        }
        Event::Copy { .. } | Event::CopyFinished { total_bytes: None, .. } => return None,
    })
}

/// Returns the line for a VM that runs without castra's agent.
fn without_agent(vm: &str) -> String {
    format!(
        "→ {vm}: running; castra cannot see inside, because it boots natively, without \
        castra's agent. `castra console {vm}` shows its serial console, if its system uses one"
    )
}

/// Returns a duration as text with its unit, for what takes seconds or minutes.
fn long(ms: u64) -> String {
    span(Duration::from_millis(ms))
}

/// Returns the verb for a transfer: a source on this machine is named by its path.
pub(super) fn doing(from: &str) -> &'static str {
    if from.starts_with('/') { "copying" } else { "downloading" }
}
