//! Numbers formatted for people.

use std::time::Duration;

/// Formats a time span with at most two units: `3 d 4 h`, `5 min 10 s`, `6.4 s`.
pub(super) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// Formats a time span for comparison with others: `0.04 s`, `5.7 s`, `40 s`, `5 min 10 s`.
pub(super) fn brief(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{:.2} s", ms as f64 / 1e3),
        1_000..10_000 => format!("{:.1} s", ms as f64 / 1e3),
        10_000..60_000 => format!("{} s", ms / 1_000),
        _ => span(Duration::from_millis(ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brief_spans_keep_what_matters() {
        assert_eq!(
            [4, 420, 5_720, 40_900, 310_000].map(brief),
            ["0.00 s", "0.42 s", "5.7 s", "40 s", "5 min 10 s"]
        );
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(span(Duration::from_millis(6_420)), "6.4 s");
        assert_eq!(span(Duration::from_secs(3 * 86_400 + 4 * 3_600 + 59)), "3 d 4 h");
    }
}
