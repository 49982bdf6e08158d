//! Patterns in guest paths, expanded without a shell: `*`, `?` and `[…]`, as in scp.

use bytes::Bytes;

use super::super::SshError;
use super::join;
use super::session::{Session, shown};
use super::tree::{MAX_ENTRIES, list};

/// Returns the paths that a pattern matches, in order; the path itself if it exists or has no
/// pattern.
pub(super) async fn expand(session: &Session, path: &[u8]) -> Result<Vec<Vec<u8>>, SshError> {
    if !is_pattern(path) || session.stat(path).await?.is_some() {
        return Ok(vec![path.to_vec()]);
    }
    let start: &[u8] = if path.starts_with(b"/") { b"/" } else { b"" };
    let mut found = vec![start.to_vec()];
    for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
        let mut next = Vec::new();
        for directory in found {
            if is_pattern(part) {
                next.append(&mut matching(session, &directory, part).await?);
            } else {
                next.push(if directory.is_empty() {
                    part.to_vec()
                } else {
                    join(&directory, part)
                });
            }
        }
        found = next;
    }
    let mut there = Vec::new();
    for found in found {
        // `lstat`, so that dangling links count. A component after the pattern may not exist.
        if session.sftp.attributes(lstat(&found)).await.is_ok() {
            there.push(found);
        }
    }
    there.sort();
    if there.is_empty() {
        let reason = "nothing matches this pattern".to_owned();
        return Err(SshError::GuestFile { what: "find", path: shown(path), reason, missing: true });
    }
    Ok(there)
}

fn lstat(path: &[u8]) -> castra_sftp::Request {
    castra_sftp::Request::Lstat { path: Bytes::copy_from_slice(path) }
}

async fn matching(
    session: &Session,
    directory: &[u8],
    pattern: &[u8],
) -> Result<Vec<Vec<u8>>, SshError> {
    let here: &[u8] = if directory.is_empty() { b"." } else { directory };
    let entries = match list(session, here, MAX_ENTRIES).await {
        Ok(entries) => entries,
        // Not a readable directory, so nothing in it matches.
        Err(SshError::GuestFile { what: "read the directory", .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let is_hidden_wanted = pattern.starts_with(b".");
    let names = entries.into_iter().map(|(name, _)| name);
    let names = names
        .filter(|name| (is_hidden_wanted || !name.starts_with(b".")) && is_match(pattern, name))
        .map(|name| if directory.is_empty() { name.to_vec() } else { join(directory, &name) });
    Ok(names.collect())
}

fn is_pattern(path: &[u8]) -> bool {
    path.iter().any(|byte| b"*?[".contains(byte))
}

/// Matches a name without recursion: only the last star is ever tried again, so the time is bounded
/// by the product of the lengths.
fn is_match(mut pattern: &[u8], mut name: &[u8]) -> bool {
    // The pattern after the last star, and the name from where it was tried last.
    let mut retry = None;
    loop {
        let step = match (pattern.split_first(), name.split_first()) {
            (Some((b'*', rest)), _) => {
                retry = Some((rest, name));
                Some((rest, name))
            }
            (None, None) => return true,
            (Some((b'?', rest)), Some((_, left))) => Some((rest, left)),
            (Some((b'[', rest)), Some((byte, left))) => match class(rest, *byte) {
                Some((true, rest)) => Some((rest, left)),
                Some((false, _)) => None,
                None => (*byte == b'[').then_some((rest, left)),
            },
            (Some((wanted, rest)), Some((byte, left))) => (wanted == byte).then_some((rest, left)),
            _ => None,
        };
        (pattern, name) = match (step, retry) {
            (Some(step), _) => step,
            (None, Some((rest, left))) => match left.split_first() {
                Some((_, left)) => {
                    retry = Some((rest, left));
                    (rest, left)
                }
                None => return false,
            },
            (None, None) => return false,
        };
    }
}

/// Matches a byte with `a-z]…` or `!a]…`, and returns the rest of the pattern; `None` if the
/// bracket is never closed.
fn class(pattern: &[u8], byte: u8) -> Option<(bool, &[u8])> {
    let (is_negated, set) = match pattern {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, pattern),
    };
    // A closing bracket that comes first is a member of the set.
    let end = 1 + set.iter().skip(1).position(|byte| *byte == b']')?;
    let (mut set, rest) = (&set[..end], &set[end + 1..]);
    let mut is_in = false;
    while let [first, others @ ..] = set {
        set = match others {
            [b'-', last, others @ ..] => {
                is_in |= (*first..=*last).contains(&byte);
                others
            }
            _ => {
                is_in |= *first == byte;
                others
            }
        };
    }
    Some((is_in != is_negated, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, name) in [
            ("*", "a"),
            ("*.conf", "a.conf"),
            ("a*b*c", "axxbyyc"),
            ("?b", "ab"),
            ("[a-c]x", "bx"),
            ("[!a]x", "bx"),
            ("[]]", "]"),
            ("[", "["),
            ("[a-]", "-"),
        ] {
            assert!(is_match(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("*.conf", "a.con"),
            ("?", ""),
            ("?", "ab"),
            ("[a-c]", "d"),
            ("[!a]", "a"),
            ("", "a"),
            ("a", ""),
        ] {
            assert!(!is_match(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        assert!(is_match(b"\xff*", b"\xff\xfe"));
        assert!(!is_match(&b"*a".repeat(100), &b"a".repeat(99)), "ends soon");
    }
}
