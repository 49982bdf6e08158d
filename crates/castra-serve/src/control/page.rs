//! Pages of lists.

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;

use super::ApiError;

/// Header with the token of the next page.
const NEXT: HeaderName = HeaderName::from_static("x-next-token");

/// Longest page, and the length of one whose client names none.
const MAX_ITEMS: usize = 100;

/// Returns the page that begins after the item with this key, and the token of the next one: the
/// key of its last item. The items come in any order, and are listed in that of their keys, so that
/// a list keeps its order while items come and go.
///
/// # Errors
/// The length is none, or the token is not one of this list.
pub(super) fn page<T: Serialize>(
    items: impl Iterator<Item = (String, T)>,
    limit: Option<usize>,
    after: Option<&str>,
) -> Result<(HeaderMap, Json<Vec<T>>), ApiError> {
    let limit = match limit {
        None => MAX_ITEMS,
        Some(limit @ 1..=MAX_ITEMS) => limit,
        Some(_) => return Err(ApiError::bad(format!("limit must be 1 to {MAX_ITEMS}"))),
    };
    let is_after = |(key, _): &(String, T)| after.is_none_or(|after| key.as_str() > after);
    let mut items: Vec<_> = items.filter(is_after).collect();
    items.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut rest = items.into_iter().peekable();
    let (mut page, mut last) = (Vec::new(), None);
    while page.len() < limit
        && let Some((key, item)) = rest.next()
    {
        page.push(item);
        last = Some(key);
    }
    let mut headers = HeaderMap::new();
    if rest.peek().is_some()
        && let Some(token) = last.and_then(|key| HeaderValue::from_str(&key).ok())
    {
        headers.insert(NEXT, token);
    }
    Ok((headers, Json(page)))
}

/// Returns the key of an item in a list that has the newest first.
pub(super) fn newest_first(unix_ms: i64, id: &str) -> String {
    format!("{:016x}-{id}", i64::MAX - unix_ms)
}

/// Returns the key of an item in a list that has the oldest first.
pub(super) fn oldest_first(unix_ms: i64, id: &str) -> String {
    format!("{unix_ms:016x}-{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_each_item_once_while_others_come() {
        let items = |times: &[i64]| {
            let items: Vec<_> =
                times.iter().map(|time| (newest_first(*time, "x"), *time)).collect();
            items.into_iter()
        };
        let (headers, first) = page(items(&[3, 1, 4, 2]), Some(2), None).expect("a page");
        assert_eq!(first.0, [4, 3]);
        let token = headers[NEXT].to_str().expect("is text");
        // A newer one has come, and one of the first page is gone.
        let (headers, second) = page(items(&[1, 2, 4, 5]), Some(2), Some(token)).expect("a page");
        assert_eq!(second.0, [2, 1]);
        assert!(!headers.contains_key(NEXT));
        assert!(page(items(&[1]), Some(0), None).is_err());
    }
}
