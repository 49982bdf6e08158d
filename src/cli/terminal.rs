//! Events on a terminal: bars for downloads, spinners for other long operations, lines for the
//! rest.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::sync::Mutex;
use std::time::Duration;

use castra_engine::report::{Event, Reporter};
use castra_engine::sanitize::{sanitize_lines, sanitize_text};
use castra_engine::size::ByteSize;
use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use super::output::{Verbosity, write_styled};
use super::plain;

/// Interval at which a spinner turns.
const TICK: Duration = Duration::from_millis(100);

/// Reporter that draws on stderr.
pub(super) struct TerminalReporter {
    verbosity: Verbosity,
    progress: MultiProgress,
    bars: Mutex<HashMap<String, ProgressBar>>,
    /// Images that were reported as present, each once.
    cached: Mutex<HashSet<String>>,
}

impl TerminalReporter {
    pub(super) fn new(verbosity: Verbosity) -> Self {
        Self {
            verbosity,
            progress: MultiProgress::new(),
            bars: Mutex::default(),
            cached: Mutex::default(),
        }
    }

    /// Prints a line above all bars, with its styles.
    pub(super) fn line(&self, text: &str) {
        self.progress.suspend(|| write_styled(text));
    }

    fn with_bar(
        &self,
        key: &str,
        make: impl FnOnce() -> ProgressBar,
        change: impl FnOnce(&ProgressBar),
    ) {
        let Ok(mut bars) = self.bars.lock() else { return };
        change(bars.entry(key.to_owned()).or_insert_with(|| self.progress.add(make())));
    }

    fn end(&self, key: &str) {
        let Ok(mut bars) = self.bars.lock() else { return };
        if let Some(bar) = bars.remove(key) {
            bar.finish_and_clear();
        }
    }

    fn spin(&self, key: &str, message: String) {
        self.with_bar(key, spinner, |bar| bar.set_message(sanitize_text(&message)));
    }

    /// Shows how much of something is done.
    fn measure(&self, key: &str, label: &str, done_bytes: u64, total_bytes: u64) {
        self.with_bar(
            key,
            || download(total_bytes),
            |bar| {
                bar.set_message(sanitize_text(label));
                bar.set_position(done_bytes);
            },
        );
    }

    /// Updates the bars. Returns `true` if they show the event, which then needs no line.
    fn draw(&self, event: &Event) -> bool {
        if let Some((vm, doing, is_all)) = doing(event) {
            self.spin(vm, format!("→ {vm}: {doing}"));
            return is_all;
        }
        match event {
            Event::DownloadStarted { image, artifact, from, resumed_bytes, total_bytes } => {
                let label = format!("→ {image}: {} {artifact}", plain::doing(from));
                let key = format!("{image} {artifact}");
                self.measure(&key, &label, *resumed_bytes, total_bytes.unwrap_or(0));
                self.with_bar(&key, || download(0), ProgressBar::reset_eta);
                self.verbosity < Verbosity::Verbose
            }
            Event::Download { image, artifact, done_bytes, .. } => {
                let key = format!("{image} {artifact}");
                self.with_bar(&key, || download(0), |bar| bar.set_position(*done_bytes));
                true
            }
            Event::DownloadFinished { image, artifact, .. } => {
                self.end(&format!("{image} {artifact}"));
                false
            }
            Event::Hashing { vm, path, done_bytes, total_bytes } => {
                let key = format!("{vm} {}", path.display());
                let label = format!("→ {vm}: hashing {}", path.display());
                if done_bytes == total_bytes {
                    self.end(&key);
                } else {
                    self.measure(&key, &label, *done_bytes, *total_bytes);
                }
                true
            }
            Event::ArtifactStep { image, artifact, step } => {
                self.spin(&image.to_string(), format!("→ {image}: {artifact}: {step}"));
                false
            }
            Event::ImageReady { image } => {
                self.end(&image.to_string());
                false
            }
            Event::Copy { path, done_bytes } => {
                self.spin(path, format!("→ {path}: {}", ByteSize(*done_bytes)));
                true
            }
            Event::CopyFinished { path, .. } => {
                self.end(path);
                false
            }
            Event::ProvisionStepDone { vm, .. }
            | Event::TemplateBaked { vm, .. }
            | Event::VmRunning { vm, .. }
            | Event::VmStopped { vm, .. }
            | Event::VmSuspended { vm, .. } => {
                self.end(vm);
                false
            }
            Event::ImageCacheHit { image } => !plain::is_first(&self.cached, image),
            Event::ImageChosen { .. }
            | Event::DownloadRetry { .. }
            | Event::Waiting { .. }
            | Event::Warning { .. }
            | Event::ProjectFound { .. }
            | Event::ReadsOutside { .. }
            | Event::OverlayCreated { .. }
            | Event::AcceleratorChosen { .. }
            | Event::ProvisionStep { .. }
            | Event::ProvisionOutput { .. }
            | Event::VmStarting { .. }
            | Event::VmSuspending { .. }
            | Event::VmResuming { .. }
            | Event::VmStopping { .. }
            | Event::TemplateVerifying { .. }
            | Event::TemplateBaking { .. }
            | Event::TemplateRefused { .. }
            | Event::VmPhase { .. }
            | Event::VmSlow { .. }
            | Event::VmDiscarded { .. }
            | Event::VmCloned { .. }
            | Event::PortForwarded { .. }
            | Event::VmRetriesUnderTcg { .. } => false,
        }
    }

    /// Removes every bar, before an error or a result is shown.
    fn clear(&self) {
        let Ok(mut bars) = self.bars.lock() else { return };
        bars.drain().for_each(|(_, bar)| bar.finish_and_clear());
    }
}

impl Reporter for TerminalReporter {
    fn report(&self, event: &Event) {
        if self.draw(event) {
            return;
        }
        if let Some((line, least)) = plain::line(event)
            && self.verbosity >= least
        {
            self.line(&sanitize_lines(&line));
        }
    }
}

impl Drop for TerminalReporter {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Returns the VM of an event that begins something, the text of its spinner, and `true` if that
/// is all that is shown of the event.
fn doing(event: &Event) -> Option<(&String, String, bool)> {
    Some(match event {
        Event::VmStarting { vm, warm: true } => {
            (vm, "restoring from its warm template…".to_owned(), true)
        }
        Event::VmStarting { vm, warm: false } => (vm, "booting…".to_owned(), true),
        Event::VmSuspending { vm } => (vm, "saving its memory…".to_owned(), true),
        Event::VmResuming { vm } => (vm, "resuming…".to_owned(), true),
        Event::ProvisionStep { vm, step, of, text, cached: false } => {
            (vm, format!("step {step} of {of}: {text}"), false)
        }
        Event::TemplateVerifying { vm } => {
            (vm, "verifying the warm template, whose files are copies…".to_owned(), false)
        }
        Event::TemplateBaking { vm } => (vm, "preparing a warm template…".to_owned(), false),
        Event::VmPhase { vm, next: Some(phase), .. } => (vm, format!("starting ({phase})…"), false),
        Event::VmStopping { vm, method } => (vm, format!("stopping ({method})…"), true),
        _ => return None,
    })
}

fn download(total: u64) -> ProgressBar {
    let template = "{msg} {wide_bar:.cyan/dim} {done} / {total}, {rate}/s, {eta} left";
    let style = style(ProgressStyle::default_bar(), template)
        .with_key("done", |state: &ProgressState, to: &mut dyn Write| size(state.pos(), to))
        .with_key("total", |state: &ProgressState, to: &mut dyn Write| {
            size(state.len().unwrap_or(0), to)
        })
        .with_key("rate", |state: &ProgressState, to: &mut dyn Write| {
            size(state.per_sec() as u64, to)
        });
    ProgressBar::new(total).with_style(style)
}

fn size(bytes: u64, to: &mut dyn Write) {
    // The string it writes to takes everything.
    let _ = write!(to, "{}", ByteSize(bytes));
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner()
        .with_style(style(ProgressStyle::default_spinner(), "{msg} {elapsed}"));
    bar.enable_steady_tick(TICK);
    bar
}

fn style(default: ProgressStyle, template: &str) -> ProgressStyle {
    // The templates are constants of this file; a wrong one would only lose its style.
    default.clone().template(template).unwrap_or(default)
}
