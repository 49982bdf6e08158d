//! Parsing of an answer's headers.

use std::time::Duration;

use ureq::http::HeaderMap;

/// The headers that matter to a download.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) content_length: Option<u64>,
    pub(super) content_range: Option<String>,
    pub(super) content_type: Option<String>,
    pub(super) content_encoding: Option<String>,
    pub(super) etag: Option<String>,
    pub(super) retry_after: Option<Duration>,
}

impl Head {
    pub(super) fn new(status: u16, headers: &HeaderMap) -> Self {
        let text =
            |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Self {
            status,
            content_length: text("content-length").and_then(|text| text.trim().parse().ok()),
            content_range: text("content-range"),
            content_type: text("content-type"),
            content_encoding: text("content-encoding").filter(|encoding| encoding != "identity"),
            etag: text("etag"),
            retry_after: text("retry-after").and_then(|text| retry_after(&text)),
        }
    }

    pub(super) fn is_html(&self) -> bool {
        self.content_type.as_ref().is_some_and(|kind| kind.trim_start().starts_with("text/html"))
    }
}

/// Parses `Retry-After`: seconds, or an HTTP date (RFC 9110, section 10.2.3).
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
    let seconds = date.as_second() - jiff::Timestamp::now().as_second();
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// Returns `true` for an ETag that identifies exactly these bytes (RFC 9110, section 8.8.3), which
/// does not start with `W/`.
pub(super) fn is_strong(etag: &str) -> bool {
    etag.len() >= 2 && etag.starts_with('"') && etag.ends_with('"')
}

/// Checks a 206 against the requested range, and returns the total it names.
///
/// # Errors
/// Returns the mismatch.
pub(super) fn check_range(
    head: &Head,
    start: u64,
    total: Option<u64>,
) -> Result<Option<u64>, String> {
    if head.content_type.as_ref().is_some_and(|kind| kind.trim_start().starts_with("multipart/")) {
        return Err("the response has several parts".to_owned());
    }
    let range =
        head.content_range.as_deref().ok_or("the response does not state its byte range")?;
    let (first, last, found_total) =
        parse_range(range).ok_or_else(|| format!("`{range}` is not a valid range"))?;
    if first != start {
        return Err(format!("the response starts at byte {first}, not at {start}"));
    }
    if let (Some(total), Some(found)) = (total, found_total)
        && total != found
    {
        return Err(format!("the file has {found} bytes, not {total}"));
    }
    if last < first || found_total.is_some_and(|found| last >= found) {
        return Err(format!("`{range}` contradicts itself"));
    }
    Ok(found_total)
}

/// Parses `bytes 5-9/10` or `bytes 5-9/*`.
fn parse_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.trim().split_once('-')?;
    let total = match total.trim() {
        "*" => None,
        number => Some(number.parse().ok()?),
    };
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?, total))
}

/// Returns `true` if bytes start like a web page.
pub(crate) fn looks_like_html(bytes: &[u8]) -> bool {
    let start: Vec<u8> =
        bytes.trim_ascii_start().iter().take(14).map(u8::to_ascii_lowercase).collect();
    start.starts_with(b"<!doctype html") || start.starts_with(b"<html")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partial_content(range: &str) -> Head {
        Head { status: 206, content_range: Some(range.to_owned()), ..Head::default() }
    }

    #[test]
    fn only_what_was_asked_for_fits() {
        assert_eq!(check_range(&partial_content("bytes 5-9/10"), 5, Some(10)), Ok(Some(10)));
        assert_eq!(check_range(&partial_content("bytes 5-9/*"), 5, Some(10)), Ok(None));
        for (range, total) in [
            ("bytes 4-9/10", 10),
            ("bytes 5-9/11", 10),
            ("bytes 5-4/10", 10),
            ("bytes 5-10/10", 10),
            ("5-9", 10),
        ] {
            assert!(check_range(&partial_content(range), 5, Some(total)).is_err(), "{range}");
        }
        assert!(check_range(&Head::default(), 5, None).is_err());
    }

    #[test]
    fn retry_after_comes_in_two_forms() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(retry_after("soon"), None);
    }

    #[test]
    fn weak_and_malformed_etags_are_not_strong() {
        assert!(is_strong("\"abc\""));
        for etag in ["W/\"abc\"", "abc", "\"", ""] {
            assert!(!is_strong(etag), "{etag}");
        }
    }
}
