//! Results of the measurements, as a table.

use std::time::Duration;

/// A line of the table.
pub(super) struct Row {
    what: String,
    measured: String,
    baseline: String,
    ratio: String,
    goal: String,
}

impl Row {
    /// Returns the row of a time without a baseline.
    pub(super) fn alone(what: &str, measured: Duration, goal: &str) -> Self {
        Self::of(what, show(measured), goal)
    }

    /// Returns the row of a value other than a time.
    pub(super) fn of(what: &str, measured: String, goal: &str) -> Self {
        let (what, goal) = (what.to_owned(), goal.to_owned());
        Self { what, measured, baseline: "-".into(), ratio: "-".into(), goal }
    }

    /// Returns the row of a time and its baseline.
    pub(super) fn against(
        what: &str,
        measured: Duration,
        baseline: (&str, Duration),
        goal: &str,
    ) -> Self {
        let (name, time) = baseline;
        let ratio = measured.as_secs_f64() / time.as_secs_f64();
        let (baseline, ratio) = (
            format!("{name}: {}", show(time)),
            if ratio < 0.1 { format!("{ratio:.3}") } else { format!("{ratio:.2}") },
        );
        Self { baseline, ratio, ..Self::alone(what, measured, goal) }
    }
}

#[expect(clippy::print_stdout, reason = "the table is the result")]
pub(super) fn print(rows: &[Row]) {
    println!("| What | Measured | Baseline | Ratio | Goal |\n| --- | --- | --- | --- | --- |");
    for Row { what, measured, baseline, ratio, goal } in rows {
        println!("| {what} | {measured} | {baseline} | {ratio} | {goal} |");
    }
}

pub(super) fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort();
    durations[durations.len() / 2]
}

fn show(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        _ => format!("{:.2} s", duration.as_secs_f64()),
    }
}
