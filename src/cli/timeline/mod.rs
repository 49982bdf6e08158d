//! `castra timeline`: the phases of a VM's starts, and how long each took.

mod chart;
mod compare;
mod json;
mod page;

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;

use castra_engine::context::Environment;
use castra_engine::error::Result;
use castra_engine::host::since_unix_ms;
use castra_engine::sanitize::sanitize_lines;
use castra_engine::vm::{self, Phase, PhaseSpan, StartKind, StartResult, Timeline};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::args::TimelineArgs;
use super::context::CommandContext;
use super::error::CliError;
use super::printer::Printer;
use super::table::table;
use super::units::{brief, span};

pub(super) use json::Starts;

/// Width of a chart if stdout is not a terminal.
const COLUMNS: usize = 80;
/// Width of a list without its last column.
const COLUMNS_BEFORE_RESULT: usize = 58;
/// Least width of a list's last column.
const LEAST_RESULT_COLUMNS: usize = 22;
/// Largest width of a chart; wider ones are no easier to read.
const MOST_COLUMNS: usize = 120;

/// Time from which the preparation of a template is shown beside the time of the start, in
/// milliseconds. Opening one takes far less.
const LONG_TEMPLATE_MS: u64 = 1_000;

/// Shows, lists, compares or writes the recorded starts of a VM.
pub(super) fn run(timeline: &TimelineArgs, context: &CommandContext) -> Result<ExitCode> {
    let project = context.project()?;
    let record = vm::recorded_vm(timeline.vm.as_deref(), project.layout)?;
    let vm = &record.name;
    let starts = vm::last_starts(&record, project);
    let count = timeline.boots.unwrap_or(2) as usize;
    let is_compared = timeline.compare || timeline.boots.is_some();
    if let Some(path) = &timeline.html {
        write_page(path, vm, &starts, context.printer)?;
    }
    if context.args.json {
        let shown = if is_compared { &starts[..count.min(starts.len())] } else { &starts[..] };
        context.printer.json(&json::output(vm, shown)).map_err(CliError::from)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(last) = starts.first() else {
        context.printer.tip(&format!(
            "No start of VM `{vm}` is recorded yet. `castra up {vm}` \
            records one."
        ));
        return Ok(ExitCode::SUCCESS);
    };
    let look = Look::of(&context.runtime.environment);
    let text = match () {
        () if timeline.html.is_some() => return Ok(ExitCode::SUCCESS),
        () if timeline.list => sanitize_lines(&list(&starts, look)).into_owned(),
        () if is_compared && starts.len() > 1 => {
            let shown = &starts[..count.min(starts.len())];
            let (text, fit) = compare::side_by_side(vm, shown, look);
            if fit < shown.len() {
                context
                    .printer
                    .tip(&format!("Only the last {fit} starts fit side by side; --json has all."));
            }
            text
        }
        () => {
            if is_compared {
                context.printer.tip("Only one start is recorded so far.");
            }
            chart::chart(vm, last, look)
        }
    };
    context.printer.styled_result(&text).map_err(CliError::from)?;
    Ok(ExitCode::SUCCESS)
}

fn write_page(
    path: &Path,
    vm: &str,
    starts: &[Timeline],
    printer: &Printer,
) -> Result<(), CliError> {
    let failed = |source| CliError::File { action: "write", path: path.to_owned(), source };
    std::fs::write(path, page::page(vm, starts)).map_err(failed)?;
    printer.success(&format!("{} shows {} starts of VM `{vm}`", path.display(), starts.len()));
    Ok(())
}

/// Properties of the output that a chart is drawn for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    columns: usize,
    /// True if the terminal shows more than ASCII, judged by the locale.
    unicode: bool,
}

impl Look {
    fn of(environment: &Environment) -> Self {
        let stdout = std::io::stdout();
        let size =
            if stdout.is_terminal() { rustix::termios::tcgetwinsize(&stdout).ok() } else { None };
        let columns = size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
        let locale =
            ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(|name| environment.text(name));
        let locale = locale.unwrap_or_default().to_ascii_lowercase();
        Self {
            columns: columns.unwrap_or(COLUMNS).min(MOST_COLUMNS),
            unicode: locale.contains("utf-8") || locale.contains("utf8"),
        }
    }
}

/// Formats one line per start. A reason that does not fit is cut off; the chart and the JSON have
/// all of it.
fn list(starts: &[Timeline], look: Look) -> String {
    let room = look.columns.saturating_sub(COLUMNS_BEFORE_RESULT).max(LEAST_RESULT_COLUMNS);
    let mut rows = vec![["STARTED", "AGE", "KIND", "ACCEL", "READY", "RESULT"].map(String::from)];
    rows.extend(starts.iter().map(|start| {
        [
            moment(start.started_unix_ms),
            age(start.started_unix_ms),
            kind(start.kind).to_owned(),
            start.accelerator.name().to_owned(),
            start.ready_ms().map_or("-".into(), brief),
            match &start.result {
                StartResult::Ready => "ready".into(),
                StartResult::Started => "started".into(),
                StartResult::Failed { reason } => {
                    cut(&format!("failed: {reason}"), room, look.unicode)
                }
            },
        ]
    }));
    table(&rows)
}

fn cut(text: &str, room: usize, unicode: bool) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let sign = if unicode { "…" } else { "..." };
    let kept: String = text.chars().take(room - sign.chars().count()).collect();
    format!("{kept}{sign}")
}

fn kind(kind: StartKind) -> &'static str {
    match kind {
        StartKind::Boot => "boot",
        StartKind::Template => "template",
        StartKind::Suspended => "suspended",
    }
}

fn cpus(start: &Timeline) -> &'static str {
    if start.cpus == 1 { "CPU" } else { "CPUs" }
}

/// Describes a start, as the rest of a sentence: `booted in 5.7 s`.
fn outcome(start: &Timeline) -> String {
    let did = match start.kind {
        StartKind::Boot => "booted",
        StartKind::Template => "restored from its warm template",
        StartKind::Suspended => "resumed",
    };
    match (&start.result, start.ready_ms()) {
        (StartResult::Failed { .. }, _) => {
            format!("did not start; gave up after {}", brief(start.length_ms()))
        }
        (StartResult::Started, _) => "started without waiting".into(),
        (StartResult::Ready, ready) => {
            let in_time = format!("{did} in {}", brief(ready.unwrap_or_default()));
            let of_template = start.phases.iter().filter(|span| span.phase == Phase::Template);
            match of_template.filter_map(PhaseSpan::took_ms).sum() {
                ..LONG_TEMPLATE_MS => in_time,
                ms => format!("{in_time} ({} of it to prepare the template)", brief(ms)),
            }
        }
    }
}

/// Formats a moment in this machine's time zone: `2026-11-24 11:20:05`.
fn moment(unix_ms: u64) -> String {
    let timestamp = i64::try_from(unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let zoned = timestamp.unwrap_or_default().to_zoned(TimeZone::system());
    zoned.strftime("%F %T").to_string()
}

fn age(unix_ms: u64) -> String {
    span(since_unix_ms(unix_ms))
}

/// Starts for the tests of lists, charts and pages.
#[cfg(test)]
mod tests {
    use castra_engine::qemu::Accelerator;
    use castra_engine::report::ImageLabel;
    use castra_engine::vm::BaseKind;

    use super::*;

    /// Returns a boot whose phases end at these times; the services may not have ended.
    pub(super) fn boot(ends: [u64; 6], services_ms: Option<u64>) -> Timeline {
        let phases =
            [Phase::Image, Phase::Qemu, Phase::Kernel, Phase::Initramfs, Phase::Root, Phase::Agent];
        let mut start_ms = 0;
        let mut spans: Vec<PhaseSpan> = phases
            .into_iter()
            .zip(ends)
            .map(|(phase, end)| PhaseSpan {
                phase,
                start_ms: std::mem::replace(&mut start_ms, end),
                end_ms: Some(end),
            })
            .collect();
        spans.push(PhaseSpan { phase: Phase::Services, start_ms, end_ms: services_ms });
        Timeline {
            started_unix_ms: 1_700_000_000_000,
            qemu_unix_ms: 1_700_000_000_020,
            kind: StartKind::Boot,
            accelerator: Accelerator::Tcg,
            cpus: 1,
            memory_mib: 1024,
            base: BaseKind::Managed(ImageLabel {
                id: "alpine-minimal".into(),
                version: "v1".into(),
            }),
            castra_version: "0.1.0".into(),
            result: StartResult::Ready,
            phases: spans,
        }
    }

    #[test]
    fn the_locale_decides_what_is_drawn_with() {
        let look = |variables: &[(&str, &str)]| {
            Look::of(&Environment::of(variables.iter().copied())).unicode
        };
        assert!(look(&[("LANG", "de_DE.UTF-8")]));
        assert!(look(&[("LC_ALL", "C.utf8"), ("LANG", "C")]));
        assert!(!look(&[("LC_ALL", "C"), ("LANG", "de_DE.UTF-8")]));
        assert!(!look(&[]));
    }

    #[test]
    fn every_outcome_is_shown() {
        let mut start = boot([1, 2, 3, 4, 5, 5_700], None);
        assert_eq!(outcome(&start), "booted in 5.7 s");
        start.kind = StartKind::Template;
        assert_eq!(outcome(&start), "restored from its warm template in 5.7 s");
        let (start_ms, end_ms) = (0, Some(5_000));
        start.phases.push(PhaseSpan { phase: Phase::Template, start_ms, end_ms });
        assert_eq!(
            outcome(&start),
            "restored from its warm template in 5.7 s (5.0 s of it to prepare the template)"
        );
        start.phases.pop();
        start.result = StartResult::Failed { reason: "QEMU ended".into() };
        assert_eq!(outcome(&start), "did not start; gave up after 5.7 s");
        assert!(
            list(&[start.clone()], Look { columns: 80, unicode: true })
                .contains("failed: QEMU ended")
        );
        start.result = StartResult::Failed { reason: "a long story".repeat(20) };
        let text = list(&[start], Look { columns: 80, unicode: false });
        assert!(
            text.lines().all(|line| line.chars().count() <= 80) && text.contains("..."),
            "{text}"
        );
    }
}
