//! Checksum files of publishers: the lines of `sha256sum` and `sha512sum`, and those of BSD.
//!
//! ```text
//! <hex>  name.qcow2                  Debian, Ubuntu (with `*` before the name), AlmaLinux, Arch
//! SHA256 (name.qcow2) = <hex>        Fedora, Rocky Linux
//! # name.qcow2: 123456 bytes         before such a line
//! ```
//!
//! Other lines have no meaning here, for instance those around a signed text.

use std::collections::BTreeMap;

use crate::files::Digest;

/// Longest file in bytes: Debian's have 10 KiB.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// Most files that one file names.
const MAX_ENTRIES: usize = 10_000;
/// Longest name of a file.
const MAX_NAME_BYTES: usize = 255;

/// Checksums of files by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checksums {
    files: BTreeMap<String, Digest>,
    sizes: BTreeMap<String, u64>,
}

/// A file that is named twice, with different digests.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it names {0} twice, with different digests")]
pub struct Contradiction(pub String);

impl Checksums {
    /// Parses the text of a checksum file.
    ///
    /// # Errors
    /// [`Contradiction`].
    pub fn parse(text: &str) -> Result<Self, Contradiction> {
        let mut checksums = Self::default();
        for line in text.lines().map(str::trim_end) {
            if checksums.files.len() >= MAX_ENTRIES || checksums.sizes.len() >= MAX_ENTRIES {
                break;
            }
            if let Some((name, digest)) = bsd_line(line).or_else(|| gnu_line(line)) {
                checksums.add(name, digest)?;
            } else if let Some((name, bytes)) = size_line(line) {
                checksums.sizes.insert(name.to_owned(), bytes);
            }
        }
        Ok(checksums)
    }

    /// Returns the digest of the file of this name.
    pub fn digest_of(&self, name: &str) -> Option<&Digest> {
        self.files.get(name)
    }

    /// Returns the length of the file of this name, in bytes.
    pub fn size_of(&self, name: &str) -> Option<u64> {
        self.sizes.get(name).copied()
    }

    /// Returns all files, by name.
    pub fn files(&self) -> impl Iterator<Item = (&str, &Digest)> {
        self.files.iter().map(|(name, digest)| (name.as_str(), digest))
    }

    /// Adds a digest. Of two algorithms, the longer digest counts.
    fn add(&mut self, name: &str, digest: Digest) -> Result<(), Contradiction> {
        match self.files.get(name) {
            Some(known) if known.algorithm() == digest.algorithm() && *known != digest => {
                return Err(Contradiction(name.to_owned()));
            }
            Some(known) if known.hex().len() >= digest.hex().len() => {}
            _ => drop(self.files.insert(name.to_owned(), digest)),
        }
        Ok(())
    }
}

fn bsd_line(line: &str) -> Option<(&str, Digest)> {
    let (algorithm, rest) = line.split_once(" (")?;
    let (name, hex) = rest.rsplit_once(") = ")?;
    let digest = digest(hex)?;
    let is_meant = algorithm.eq_ignore_ascii_case(digest.algorithm());
    (is_meant && is_name(name)).then_some((name, digest))
}

fn gnu_line(line: &str) -> Option<(&str, Digest)> {
    let (hex, name) = line.split_once(' ')?;
    // The second character says if the file was read as text or as bytes, which is the same.
    let name = name.strip_prefix([' ', '*'])?;
    let name = name.strip_prefix("./").unwrap_or(name);
    Some((name, digest(hex)?)).filter(|(name, _)| is_name(name))
}

fn size_line(line: &str) -> Option<(&str, u64)> {
    let (name, bytes) = line.strip_prefix("# ")?.strip_suffix(" bytes")?.rsplit_once(": ")?;
    Some((name, bytes.parse().ok()?)).filter(|(name, _)| is_name(name))
}

/// Returns `true` for the name of a file in the same directory.
fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+~".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(is_plain)
}

fn digest(hex: &str) -> Option<Digest> {
    let hex = hex.to_ascii_lowercase();
    if !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    match hex.len() {
        64 => Some(Digest::Sha256(hex)),
        128 => Some(Digest::Sha512(hex)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_all_publishers_are_read() {
        let (a, b, long) = ("a".repeat(64), "B".repeat(64), "c".repeat(128));
        let text = format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n# f.qcow2: 42 bytes\n\
            SHA256 (f.qcow2) = {a}\nSHA1 (old.qcow2) = {a}\n{b} *ubuntu.img\r\n{a}  ./dot.qcow2\n\
            {long}  debian.qcow2\n{a} single-space.qcow2\n{a}  ../up.qcow2\n{a}\n\
            -----BEGIN PGP SIGNATURE-----\n"
        );
        let checksums = Checksums::parse(&text).expect("parsed");
        let names: Vec<&str> = checksums.files().map(|(name, _)| name).collect();
        assert_eq!(names, ["debian.qcow2", "dot.qcow2", "f.qcow2", "ubuntu.img"]);
        assert_eq!(checksums.digest_of("f.qcow2"), Some(&Digest::Sha256(a)));
        assert_eq!(checksums.digest_of("ubuntu.img"), Some(&Digest::Sha256("b".repeat(64))));
        assert_eq!(checksums.digest_of("debian.qcow2"), Some(&Digest::Sha512(long)));
        assert_eq!(checksums.size_of("f.qcow2"), Some(42));
    }

    #[test]
    fn a_file_has_one_digest() {
        let (a, b, long) = ("a".repeat(64), "b".repeat(64), "c".repeat(128));
        assert_eq!(
            Checksums::parse(&format!("{a}  x\n{a}  x\n{b}  x\n")),
            Err(Contradiction("x".to_owned()))
        );
        for text in [format!("{a}  x\n{long}  x\n"), format!("{long}  x\n{a}  x\n")] {
            let checksums = Checksums::parse(&text).expect("parsed");
            assert_eq!(checksums.digest_of("x"), Some(&Digest::Sha512(long.clone())));
        }
    }
}
