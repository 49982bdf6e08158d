//! Starts side by side, the oldest first, with the difference between the last two.

use anstyle::{AnsiColor, Style};
use castra_engine::vm::{Phase, Timeline};

use super::{Look, kind, moment};
use crate::cli::units::brief;

const NAME_COLUMNS: usize = 13;
const START_COLUMNS: usize = 21;
const DIFFERENCE_COLUMNS: usize = 14;

const BOLD: Style = Style::new().bold();
const SLOWER: Style = AnsiColor::Red.on_default();
const FASTER: Style = AnsiColor::Green.on_default();

/// Smallest difference that gets a colour.
const NOTHING_MS: u64 = 50;

/// Shows as many starts as fit, and returns their number. `starts` has the newest first; two always
/// fit.
pub(super) fn side_by_side(vm: &str, starts: &[Timeline], look: Look) -> (String, usize) {
    let room = look.columns.saturating_sub(NAME_COLUMNS + DIFFERENCE_COLUMNS) / START_COLUMNS;
    let fit = room.max(2).min(starts.len());
    let mut shown: Vec<&Timeline> = starts[..fit].iter().collect();
    shown.reverse();
    let mut text = format!("{BOLD}{vm}{BOLD:#}: {fit} starts side by side\n\n");
    let mut row = |name: &str, cells: Vec<String>, difference: String| {
        let cells: String = cells.iter().map(|cell| format!("{cell:>START_COLUMNS$}")).collect();
        let line = format!("  {name:<11}{cells}{difference}");
        text.push_str(line.trim_end());
        text.push('\n');
    };
    let cells =
        |of: &dyn Fn(&Timeline) -> String| shown.iter().map(|start| of(start)).collect::<Vec<_>>();
    row("", cells(&|start| moment(start.started_unix_ms)), String::new());
    let sort = |start: &Timeline| format!("{}, {}", kind(start.kind), start.accelerator.name());
    row("", cells(&sort), format!("{:>DIFFERENCE_COLUMNS$}", "difference"));
    let time = |of: &dyn Fn(&Timeline) -> Option<u64>| {
        (
            cells(&|start| of(start).map_or("-".into(), brief)),
            difference(of(shown[fit - 2]), of(shown[fit - 1])),
        )
    };
    for phase in Phase::ALL
        .into_iter()
        .filter(|phase| shown.iter().any(|start| start.phase(*phase).is_some()))
    {
        let (cells, difference) = time(&|start| start.phase(phase)?.took_ms());
        row(phase.name(), cells, difference);
    }
    let (cells, difference) = time(&Timeline::ready_ms);
    row("ready", cells, difference);
    (text, fit)
}

/// Formats a difference like `+0.50 s`, padded to its column; empty if one of the times is unknown.
fn difference(before: Option<u64>, after: Option<u64>) -> String {
    let (Some(before), Some(after)) = (before, after) else { return String::new() };
    let ms = before.abs_diff(after);
    let sign = if after >= before { '+' } else { '-' };
    let style = match (ms < NOTHING_MS, after > before) {
        (true, _) => Style::new(),
        (false, true) => SLOWER,
        (false, false) => FASTER,
    };
    let text = format!("{sign}{}", brief(ms));
    format!("{style}{text:>DIFFERENCE_COLUMNS$}{style:#}")
}

#[cfg(test)]
mod tests {
    use super::super::tests::boot;
    use super::*;

    #[test]
    fn two_starts_stand_side_by_side() {
        let before = boot([100, 300, 2_300, 3_100, 3_200, 4_000], Some(8_000));
        let after = boot([100, 300, 3_300, 3_500, 3_600, 4_400], None);
        let look = Look { columns: 80, unicode: true };
        let (text, fit) = side_by_side("web", &[after.clone(), before.clone()], look);
        assert_eq!(fit, 2);
        let text = anstream::adapter::strip_str(&text).to_string();
        // The times are in this machine's zone.
        let text: Vec<&str> = text.lines().filter(|line| !line.contains("2023-")).collect();
        insta::assert_snapshot!(text.join("\n"));
        let three = [after.clone(), before.clone(), after];
        assert_eq!(side_by_side("web", &three, look).1, 2);
        assert_eq!(side_by_side("web", &three, Look { columns: 100, ..look }).1, 3);
        assert!(text.iter().all(|line| line.chars().count() <= 80), "{text:#?}");
    }
}
