//! Paths inside a filesystem.

use std::fmt;

/// Longest path, in bytes, as in Linux (`PATH_MAX`).
const MAX_BYTES: usize = 4096;

/// Absolute path without links, `.` and `..`: it cannot leave the filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Inside {
    components: Vec<Vec<u8>>,
}

impl Inside {
    /// Returns the path of the root directory.
    pub(crate) fn root() -> Self {
        Self::default()
    }

    /// Returns the path of an entry of this directory; `None` if `name` is no name of an entry, or
    /// the path becomes too long.
    pub(crate) fn child(&self, name: &[u8]) -> Option<Self> {
        let is_name = !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/');
        let length: usize = self.components.iter().map(|name| name.len() + 1).sum();
        if !is_name || name.contains(&0) || length + name.len() >= MAX_BYTES {
            return None;
        }
        let mut components = self.components.clone();
        components.push(name.to_vec());
        Some(Self { components })
    }

    /// Returns the directory that contains this one. The root contains itself.
    pub(crate) fn parent(&self) -> Self {
        let count = self.components.len().saturating_sub(1);
        Self { components: self.components[..count].to_vec() }
    }

    /// Returns the last component; `None` for the root.
    pub(crate) fn name(&self) -> Option<&[u8]> {
        self.components.last().map(Vec::as_slice)
    }

    /// Returns the path as text with a leading slash.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        if self.components.is_empty() {
            return b"/".to_vec();
        }
        self.components.iter().flat_map(|name| [b"/", name.as_slice()].concat()).collect()
    }
}

impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_bytes().escape_ascii().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_are_appended() {
        let etc = Inside::root().child(b"etc").expect("a name");
        assert_eq!(etc.child(b"a b").expect("a name").to_string(), "/etc/a b");
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'a'; MAX_BYTES]] {
            assert_eq!(etc.child(name), None);
        }
        assert_eq!(etc.parent(), Inside::root());
        assert_eq!(etc.parent().parent().to_string(), "/");
    }
}
