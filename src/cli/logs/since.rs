//! `--since`: a span before now, or a point in time.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// Parses a moment: `10m`, `2h`, `2026-11-24T10:00` (this machine's time zone),
/// `2026-11-24T10:00Z`.
pub(in crate::cli) fn parse(text: &str) -> Result<Timestamp, String> {
    let unclear =
        || "write a span (90s, 10m, 2h, 3d) or a time (2026-11-24, 2026-11-24T10:00)".to_owned();
    if let Some(span) = span(text) {
        return Timestamp::now().checked_sub(span).map_err(|_| unclear());
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let local = text.parse::<DateTime>().or_else(|_| text.parse::<Date>().map(DateTime::from));
    let zoned = local.and_then(|time| time.to_zoned(TimeZone::system()));
    zoned.map(|zoned| zoned.timestamp()).map_err(|_| unclear())
}

fn span(text: &str) -> Option<SignedDuration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit_secs = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    let number: i64 = number.parse().ok().filter(|number| *number >= 0)?;
    Some(SignedDuration::from_secs(number.checked_mul(unit_secs)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_count_back_from_now_and_times_are_taken_as_they_are() {
        let ago = |text: &str| {
            let parsed = parse(text).expect(text);
            Timestamp::now().duration_since(parsed).as_secs()
        };
        for (text, secs) in [("0s", 0), ("10m", 600), ("2h", 7_200), ("3d", 259_200)] {
            assert!((secs..secs + 60).contains(&ago(text)), "{text}");
        }
        assert_eq!(parse("2026-11-24T10:00:00Z").expect("a time").as_second(), 1_795_514_400);
        assert!(parse("2026-11-24T10:00").is_ok() && parse("2026-11-24").is_ok());
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "m", "-5m", "ten", "5 m", "9223372036854775807d", "ä", "2026-13-01"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
