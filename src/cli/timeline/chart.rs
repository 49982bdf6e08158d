//! A start as a bar chart on a terminal.

use anstyle::{AnsiColor, Style};
use castra_engine::sanitize::sanitize_text;
use castra_engine::vm::{Phase, PhaseSpan, StartResult, Timeline};

use super::{Look, age, cpus, moment, outcome};
use crate::cli::units::brief;

/// Columns of the phase's name and time before the bar.
const LABEL_COLUMNS: usize = 27;
/// Narrowest bar that is still readable.
const LEAST_BAR_COLUMNS: usize = 13;

const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();
const RED: Style = AnsiColor::Red.on_default();
const HOST: Style = AnsiColor::Blue.on_default();
const GUEST: Style = AnsiColor::Green.on_default();

/// Draws the chart, with a heading.
pub(super) fn chart(vm: &str, start: &Timeline, look: Look) -> String {
    let columns = look.columns.saturating_sub(LABEL_COLUMNS).max(LEAST_BAR_COLUMNS);
    let mut text = heading(vm, start);
    let total_ms = start.length_ms().max(1);
    for span in &start.phases {
        let style = style(start, span);
        let took = span.took_ms().map_or("?".into(), brief);
        let bar = bar(span, total_ms, columns, look.unicode);
        text.push_str(&format!("  {:<11} {took:>11}  {style}{bar}{style:#}\n", span.phase.name()));
    }
    let (end, zero) = (brief(total_ms), "0");
    let pad = columns.saturating_sub(zero.len() + 1);
    text.push_str(&format!("{DIM}{:LABEL_COLUMNS$}{zero}{end:>pad$}{DIM:#}\n", ""));
    if let StartResult::Failed { reason } = &start.result {
        text.push_str(&format!("  {RED}failed{RED:#}: {}\n", sanitize_text(reason)));
    } else if start.phases.iter().any(|span| span.end_ms.is_none()) {
        text.push_str("  ?: not finished yet\n");
    }
    text
}

fn heading(vm: &str, start: &Timeline) -> String {
    format!(
        "{BOLD}{vm}{BOLD:#} {}\n{DIM}  {} ({} ago), {}, {} {}, {} MiB, {}{DIM:#}\n\n",
        outcome(start),
        moment(start.started_unix_ms),
        age(start.started_unix_ms),
        start.accelerator.name(),
        start.cpus,
        cpus(start),
        start.memory_mib,
        sanitize_text(&start.base.to_string()),
    )
}

fn style(start: &Timeline, span: &PhaseSpan) -> Style {
    let is_failed = matches!(start.result, StartResult::Failed { .. });
    match span.phase {
        Phase::Attempt => RED,
        _ if is_failed && start.phases.last() == Some(span) => RED,
        Phase::Services => DIM,
        Phase::Image | Phase::Accelerator | Phase::Template | Phase::Overlay | Phase::Qemu => HOST,
        _ => GUEST,
    }
}

/// Draws a bar from the phase's start to its end, in eighths of a column. A phase that took no time
/// has one eighth.
fn bar(span: &PhaseSpan, total_ms: u64, columns: usize, unicode: bool) -> String {
    let columns = columns as u64;
    let eighths = |ms: u64| ms.saturating_mul(columns * 8) / total_ms;
    let first = (eighths(span.start_ms) / 8).min(columns - 1);
    let Some(end_ms) = span.end_ms else {
        let dots = if unicode { "┄" } else { "." };
        return format!(
            "{}{}",
            " ".repeat(first as usize),
            dots.repeat((columns - first) as usize)
        );
    };
    let length = eighths(end_ms).saturating_sub(first * 8).clamp(1, (columns - first) * 8);
    let (whole, rest) = ((length / 8) as usize, (length % 8) as usize);
    let pad = " ".repeat(first as usize);
    if unicode {
        const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
        format!("{pad}{}{}", "█".repeat(whole), PARTS[rest])
    } else {
        format!("{pad}{}", "#".repeat(whole + usize::from(rest > 0)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::boot;
    use super::*;

    fn plain(start: &Timeline, columns: usize, unicode: bool) -> String {
        anstream::adapter::strip_str(&chart("web", start, Look { columns, unicode })).to_string()
    }

    /// Removes the heading line, which names the time of the start.
    fn bars(text: &str) -> String {
        text.lines().filter(|line| !line.contains(" ago)")).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn phases_stand_where_they_were() {
        let start = boot([100, 300, 2_300, 3_100, 3_200, 4_000], Some(8_000));
        insta::assert_snapshot!("unicode", bars(&plain(&start, 80, true)));
        insta::assert_snapshot!("ascii", bars(&plain(&start, 50, false)));
    }

    #[test]
    fn nothing_is_wider_than_the_terminal() {
        for columns in [40, 60, 80, 120] {
            for services in [None, Some(4_000), Some(900_000)] {
                let start = boot([0, 0, 1, 2_000, 3_999, 4_000], services);
                let text = bars(&plain(&start, columns, true));
                let widest = text.lines().map(|line| line.chars().count()).max();
                assert!(widest <= Some(columns), "{columns}:\n{text}");
            }
        }
    }

    #[test]
    fn a_failure_and_an_open_end_are_shown() {
        let mut start = boot([1, 2, 3, 4, 5, 4_000], None);
        assert!(plain(&start, 80, true).contains("not finished yet"));
        start.phases.truncate(3);
        start.phases[2].end_ms = None;
        start.result = StartResult::Failed { reason: "VM `web` ended".into() };
        assert!(plain(&start, 80, false).contains("failed: VM `web` ended"));
        start.result = StartResult::Failed { reason: "\u{1b}]0;hacked\u{7}".into() };
        assert!(!chart("web", &start, Look { columns: 80, unicode: true }).contains("\u{1b}]"));
    }
}
