//! The file `os-release`. Source: os-release(5).

use crate::filesystem::Fault;
use crate::tree::FileTree;

/// Places of the file.
const PATHS: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];
/// Largest file that is read.
const MAX_BYTES: u64 = 64 << 10;

/// A distribution, as it names itself. The text is the disk's: it may contain anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsRelease {
    /// `ID`, such as `debian`.
    pub id: String,
    /// `VERSION_ID`, such as `12`; rolling distributions have none.
    pub version_id: Option<String>,
    /// `PRETTY_NAME`, such as `Debian GNU/Linux 12 (bookworm)`.
    pub pretty_name: Option<String>,
}

impl OsRelease {
    /// Reads the file of a system; `None` if there is none.
    pub(super) fn read(files: &mut FileTree) -> Result<Option<Self>, Fault> {
        for path in PATHS {
            match files.read_counted(path.as_bytes(), MAX_BYTES) {
                Ok(bytes) => return Ok(Some(Self::parse(&String::from_utf8_lossy(&bytes)))),
                Err(Fault::NotFound | Fault::IsNot(_)) => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(None)
    }

    fn parse(text: &str) -> Self {
        let value = |name: &str| {
            let mut values = text.lines().filter_map(|line| {
                let value = line.trim().strip_prefix(name)?.strip_prefix('=')?;
                Some(unquote(value))
            });
            values.next_back().filter(|value| !value.is_empty())
        };
        Self {
            // The specification's default.
            id: value("ID").unwrap_or_else(|| "linux".to_owned()),
            version_id: value("VERSION_ID"),
            pretty_name: value("PRETTY_NAME"),
        }
    }
}

/// Removes the quotes of a shell's assignment, and its backslashes.
fn unquote(value: &str) -> String {
    let inner = ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote).and_then(|value| value.strip_suffix(quote)));
    let mut text = String::new();
    let mut chars = inner.unwrap_or(value).chars();
    while let Some(char) = chars.next() {
        text.extend(if char == '\\' { chars.next() } else { Some(char) });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_removed() {
        let text = "# a comment\nID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME='Debian \\$5'\nX=1\n";
        let expected = OsRelease {
            id: "debian".to_owned(),
            version_id: Some("12".to_owned()),
            pretty_name: Some("Debian $5".to_owned()),
        };
        assert_eq!(OsRelease::parse(text), expected);
        let empty = OsRelease { id: "linux".to_owned(), version_id: None, pretty_name: None };
        assert_eq!(OsRelease::parse("NAME=x\nVERSION_ID=\n"), empty);
    }
}
