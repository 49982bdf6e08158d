//! Finds the files that git tracks by reading its index. Running git is no option, because it runs
//! programs that a repository's configuration names (`core.fsmonitor`).
//!
//! Format: `gitformat-index(5)`. Versions 2 to 4 are read as a stream, so that an index of any size
//! takes no memory.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::files::open_regular;

/// Longest path that is read, in bytes; git's own limit is the system's.
const MAX_PATH_BYTES: usize = 1 << 16;
/// Longest `.git` file that is read, in bytes.
const MAX_LINK_BYTES: u64 = 8192;
/// Number of bytes before the flags of an entry, not counting the object's name: ten 32-bit
/// numbers.
const STAT_BYTES: usize = 40;
/// Flag of an entry with two more bytes of flags.
const EXTENDED: u16 = 0x4000;
/// Lengths of an object's name, in bytes: SHA-1, SHA-256.
const OBJECT_BYTES: [usize; 2] = [20, 32];

/// A file that git tracks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tracked {
    /// Root of the working tree.
    pub(super) tree: PathBuf,
    /// Path of the file, relative to the working tree.
    pub(super) file: PathBuf,
}

/// Returns a file in or at `directory` (absolute, without links) that a repository above it tracks.
/// An index that cannot be read counts as empty: it was made by this user's git, and the state
/// root's mark is required in any case.
pub(super) fn tracked_below(directory: &Path) -> Option<Tracked> {
    directory.parent()?.ancestors().find_map(|tree| {
        let git = git_directory(tree)?;
        let inside = directory.strip_prefix(tree).ok()?.as_os_str().as_encoded_bytes();
        let file =
            OBJECT_BYTES.iter().find_map(|length| first_below(&git, inside, *length).ok())??;
        Some(Tracked { tree: tree.to_owned(), file })
    })
}

/// Returns the repository's directory of this working tree: `.git`, or the directory that a file
/// with this name refers to.
fn git_directory(tree: &Path) -> Option<PathBuf> {
    let git = tree.join(".git");
    if fs::symlink_metadata(&git).ok()?.is_file() {
        let mut text = String::new();
        open_regular(&git).ok()?.take(MAX_LINK_BYTES).read_to_string(&mut text).ok()?;
        return Some(tree.join(text.strip_prefix("gitdir: ")?.trim_end_matches(['\n', '\r'])));
    }
    Some(git)
}

fn first_below(git: &Path, inside: &[u8], object_bytes: usize) -> io::Result<Option<PathBuf>> {
    let index = git.join("index");
    // A repository without an index tracks nothing.
    let Ok(file) = open_regular(&index) else { return Ok(None) };
    let (found, shared) = Index::new(BufReader::new(file), object_bytes).search(inside)?;
    if found.is_some() {
        return Ok(found);
    }
    // A split index: most entries are in another file.
    let Some(shared) = shared else { return Ok(None) };
    let path = git.join(format!("sharedindex.{shared}"));
    Ok(Index::new(BufReader::new(open_regular(&path)?), object_bytes).search(inside)?.0)
}

struct Index<R> {
    reader: R,
    object_bytes: usize,
    /// Current path. Compressed paths share a prefix with the previous one.
    path: Vec<u8>,
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "unsupported index format")
}

impl<R: BufRead> Index<R> {
    fn new(reader: R, object_bytes: usize) -> Self {
        Self { reader, object_bytes, path: Vec::new() }
    }

    /// Returns the first entry at or below `inside`, and the name of the shared index if there is
    /// one.
    fn search(mut self, inside: &[u8]) -> io::Result<(Option<PathBuf>, Option<String>)> {
        use std::os::unix::ffi::OsStrExt as _;
        let header: [u8; 12] = self.array()?;
        let number = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (version, entries) = (number(4), number(8));
        if &header[..4] != b"DIRC" || !(2..=4).contains(&version) {
            return Err(damaged());
        }
        for _ in 0..entries {
            self.entry(version)?;
            if is_at_or_below(&self.path, inside) {
                return Ok((Some(PathBuf::from(std::ffi::OsStr::from_bytes(&self.path))), None));
            }
        }
        Ok((None, self.shared()?))
    }

    /// Reads the next entry's path.
    fn entry(&mut self, version: u32) -> io::Result<()> {
        self.skip(STAT_BYTES + self.object_bytes)?;
        let flags = u16::from_be_bytes(self.array()?);
        let mut read = STAT_BYTES + self.object_bytes + 2;
        if flags & EXTENDED != 0 {
            self.skip(2)?;
            read += 2;
        }
        if version == 4 {
            // This many bytes at the end of the previous path are replaced.
            let drop = self.varint()?;
            let keep = self.path.len().checked_sub(drop).ok_or_else(damaged)?;
            self.path.truncate(keep);
            self.path_rest()?;
            return Ok(());
        }
        self.path.clear();
        self.path_rest()?;
        // One to eight NULs pad an entry to a multiple of eight bytes; the first has been read.
        read += self.path.len();
        let length = (read + 8) & !7;
        let padding: Vec<u8> =
            (0..length - read - 1).map(|_| self.byte()).collect::<io::Result<_>>()?;
        if padding.iter().any(|byte| *byte != 0) { Err(damaged()) } else { Ok(()) }
    }

    /// Reads up to a NUL.
    fn path_rest(&mut self) -> io::Result<()> {
        let room = (MAX_PATH_BYTES - self.path.len().min(MAX_PATH_BYTES)) as u64;
        self.reader.by_ref().take(room).read_until(0, &mut self.path)?;
        if self.path.pop() == Some(0) && !self.path.is_empty() { Ok(()) } else { Err(damaged()) }
    }

    /// Reads a number as in git's `varint.c`: seven bits per byte, and one more for each further
    /// byte.
    fn varint(&mut self) -> io::Result<usize> {
        let mut byte = self.byte()?;
        let mut value = usize::from(byte & 0x7f);
        while byte & 0x80 != 0 {
            byte = self.byte()?;
            let more =
                value.checked_add(1).filter(|value| *value < MAX_PATH_BYTES).ok_or_else(damaged)?;
            value = (more << 7) | usize::from(byte & 0x7f);
        }
        Ok(value)
    }

    /// Returns the object name in the extension `link`, if there is one before the checksum.
    fn shared(&mut self) -> io::Result<Option<String>> {
        loop {
            let rest = self.reader.fill_buf()?;
            if rest.len() <= self.object_bytes || !rest[..4].iter().all(u8::is_ascii_alphanumeric) {
                return Ok(None);
            }
            let name: [u8; 4] = self.array()?;
            let length = u32::from_be_bytes(self.array()?) as usize;
            if name == *b"link" && length >= self.object_bytes {
                let object: Vec<u8> =
                    (0..self.object_bytes).map(|_| self.byte()).collect::<io::Result<_>>()?;
                let is_none = object.iter().all(|byte| *byte == 0);
                return Ok((!is_none).then(|| crate::hex::hex(&object)));
            }
            self.skip(length)?;
        }
    }

    fn byte(&mut self) -> io::Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self, mut bytes: usize) -> io::Result<()> {
        while bytes > 0 {
            let there = self.reader.fill_buf()?.len().min(bytes);
            if there == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.reader.consume(there);
            bytes -= there;
        }
        Ok(())
    }
}

/// Compares without regard to case: on a filesystem that does not distinguish `.CASTRA` from
/// `.castra`, a checkout writes to the latter.
fn is_at_or_below(path: &[u8], directory: &[u8]) -> bool {
    let Some((begin, rest)) = path.split_at_checked(directory.len()) else { return false };
    begin.eq_ignore_ascii_case(directory) && (rest.is_empty() || rest[0] == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &[u8], object_bytes: usize, version: u32, rest: (u8, &[u8])) -> Vec<u8> {
        let mut bytes = vec![7; STAT_BYTES + object_bytes];
        bytes.extend((path.len() as u16).to_be_bytes());
        if version == 4 {
            bytes.push(rest.0);
            bytes.extend(rest.1);
            bytes.push(0);
        } else {
            bytes.extend(path);
            let length = (bytes.len() + 8) & !7;
            bytes.resize(length, 0);
        }
        bytes
    }

    fn index(version: u32, entries: &[Vec<u8>], object_bytes: usize) -> Vec<u8> {
        let mut bytes = b"DIRC".to_vec();
        bytes.extend(version.to_be_bytes());
        bytes.extend((entries.len() as u32).to_be_bytes());
        bytes.extend(entries.concat());
        bytes.extend(vec![0xee; object_bytes]);
        bytes
    }

    fn tree(index: &[u8]) -> tempfile::TempDir {
        let tree = tempfile::tempdir().expect("a directory");
        fs::create_dir(tree.path().join(".git")).expect("made");
        fs::write(tree.path().join(".git/index"), index).expect("written");
        tree
    }

    fn found(tree: &tempfile::TempDir) -> Option<PathBuf> {
        tracked_below(&tree.path().join(".castra")).map(|tracked| tracked.file)
    }

    #[test]
    fn every_version_and_both_hashes_are_read() {
        for object_bytes in OBJECT_BYTES {
            for version in [2, 3, 4] {
                let entries = |second: &str| {
                    vec![
                        entry(b".castle", object_bytes, version, (0, b".castle")),
                        // `.cast` is kept, `le` is dropped.
                        entry(
                            second.as_bytes(),
                            object_bytes,
                            version,
                            (2, &second.as_bytes()[5..]),
                        ),
                    ]
                };
                let one = tree(&index(version, &entries(".castra/vms/web/vm.json"), object_bytes));
                assert_eq!(
                    found(&one),
                    Some(".castra/vms/web/vm.json".into()),
                    "{version} {object_bytes}"
                );
                let other = tree(&index(version, &entries(".castra.toml"), object_bytes));
                assert_eq!(found(&other), None, "{version} {object_bytes}");
            }
        }
    }

    #[test]
    fn entries_with_further_flags_are_read() {
        for version in [3, 4] {
            // As `git add --intent-to-add` and `git update-index --skip-worktree` write them.
            let mut first = vec![7; STAT_BYTES + 20];
            first.extend((EXTENDED | 8).to_be_bytes());
            first.extend([0x20, 0]);
            if version == 4 {
                first.push(0);
            }
            first.extend(b"src/x.rs");
            first.resize(if version == 4 { first.len() + 1 } else { (first.len() + 8) & !7 }, 0);
            let second = entry(b".castra/lock", 20, version, (8, b".castra/lock"));
            let one = tree(&index(version, &[first, second], 20));
            assert_eq!(found(&one), Some(".castra/lock".into()), "{version}");
        }
    }

    #[test]
    fn a_fifo_in_the_place_of_the_index_holds_nothing_up() {
        let one = tree(b"");
        let index = one.path().join(".git/index");
        fs::remove_file(&index).expect("removed");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &index, rustix::fs::FileType::Fifo, mode, 0)
            .expect("made");
        assert_eq!(found(&one), None);
    }

    #[test]
    fn a_link_in_its_place_and_another_case_count_and_damage_proves_nothing() {
        let one = |path: &[u8]| index(2, &[entry(path, 20, 2, (0, path))], 20);
        assert_eq!(found(&tree(&one(b".castra"))), Some(".castra".into()));
        assert_eq!(found(&tree(&one(b".CASTRA/key"))), Some(".CASTRA/key".into()));
        let whole = one(b".castra/lock");
        for length in 0..whole.len() - 20 {
            // Only expected to return.
            let _ = found(&tree(&whole[..length]));
        }
        assert_eq!(found(&tree(b"")), None);
        let endless = [b"DIRC".as_slice(), &2u32.to_be_bytes(), &u32::MAX.to_be_bytes()].concat();
        assert_eq!(found(&tree(&endless)), None);
    }

    #[test]
    fn a_shared_index_is_read_and_a_fifo_in_its_place_holds_nothing_up() {
        let link = [b"link".as_slice(), &20u32.to_be_bytes(), &[0xab; 20]].concat();
        let mut split = index(2, &[], 0);
        split.extend([link, vec![0xee; 20]].concat());
        let one = tree(&split);
        let shared = one.path().join(format!(".git/sharedindex.{}", "ab".repeat(20)));
        fs::write(&shared, index(2, &[entry(b".castra/lock", 20, 2, (0, b""))], 20))
            .expect("written");
        assert_eq!(found(&one), Some(".castra/lock".into()));
        fs::remove_file(&shared).expect("removed");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &shared, rustix::fs::FileType::Fifo, mode, 0)
            .expect("made");
        assert_eq!(found(&one), None);
    }

    #[test]
    fn repositories_further_up_and_working_trees_count() {
        let entries = [entry(b"deep/.castra/lock", 20, 2, (0, b""))];
        let outer = tree(&index(2, &entries, 20));
        let state = outer.path().join("deep/.castra");
        assert_eq!(tracked_below(&state).expect("found").tree, outer.path());
        let linked = tempfile::tempdir().expect("a directory");
        let git = outer.path().join(".git");
        fs::write(linked.path().join(".git"), format!("gitdir: {}\n", git.display()))
            .expect("written");
        assert!(tracked_below(&linked.path().join("deep/.castra")).is_some());
    }
}
