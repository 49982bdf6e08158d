//! Writes the archives that an initramfs consists of, and measures the entries of others.
//!
//! The kernel reads the "newc" format of cpio
//! (`Documentation/driver-api/early-userspace/buffer-format.rst` in its sources): a header of 13
//! eight-digit hexadecimal numbers, the name and the contents, each padded to four bytes.

use std::ops::Range;

/// Alignment of entries and of their end mark, in bytes.
pub(super) const ALIGNMENT: usize = 4;

const MAGIC: &str = "070701";
/// Length of a header, and the places of the lengths of contents and name in it.
const HEADER_BYTES: usize = 110;
const CONTENTS_LENGTH: Range<usize> = 54..62;
const NAME_LENGTH: Range<usize> = 94..102;
const DIRECTORY: u32 = 0o040_000;
const REGULAR_FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive that is being written.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

struct Entry<'a> {
    name: &'a str,
    mode: u32,
    device: (u32, u32),
    contents: &'a [u8],
}

impl Archive {
    /// Adds a directory. If an earlier archive has one with this name, only its permissions change.
    pub(super) fn directory(&mut self, name: &str, permissions: u32) {
        self.entry(&Entry { name, mode: DIRECTORY | permissions, device: (0, 0), contents: &[] });
    }

    /// Adds a regular file. Its contents must be smaller than 4 GiB.
    pub(super) fn file(&mut self, name: &str, permissions: u32, contents: &[u8]) {
        self.entry(&Entry { name, mode: REGULAR_FILE | permissions, device: (0, 0), contents });
    }

    /// Adds a character device.
    pub(super) fn character_device(
        &mut self,
        name: &str,
        permissions: u32,
        major: u32,
        minor: u32,
    ) {
        let mode = CHARACTER_DEVICE | permissions;
        self.entry(&Entry { name, mode, device: (major, minor), contents: &[] });
    }

    /// Returns the complete archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(&Entry { name: "TRAILER!!!", mode: 0, device: (0, 0), contents: &[] });
        self.bytes
    }

    fn entry(&mut self, entry: &Entry<'_>) {
        self.entries += 1;
        let (major, minor) = entry.device;
        let links = if entry.mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let name_bytes = entry.name.len() + 1;
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), length of the
        // name, checksum.
        let numbers = [
            self.entries,
            entry.mode,
            0,
            0,
            links,
            0,
            narrow(entry.contents.len()),
            0,
            0,
            major,
            minor,
            narrow(name_bytes),
            0,
        ];
        self.bytes.extend(MAGIC.as_bytes());
        for number in numbers {
            self.bytes.extend(format!("{number:08X}").as_bytes());
        }
        self.bytes.extend(entry.name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(entry.contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

/// Returns the length of the entry at the beginning, with its padding; `None` if there is none.
pub(super) fn entry_bytes(archive: &[u8]) -> Option<usize> {
    let header = archive.get(..HEADER_BYTES).filter(|it| it.starts_with(MAGIC.as_bytes()))?;
    let number = |place: Range<usize>| {
        usize::from_str_radix(std::str::from_utf8(&header[place]).ok()?, 16).ok()
    };
    let name = (HEADER_BYTES + number(NAME_LENGTH)?).next_multiple_of(ALIGNMENT);
    Some((name + number(CONTENTS_LENGTH)?).next_multiple_of(ALIGNMENT))
}

/// Converts a number to the 32 bits of the format; everything written here is far smaller.
fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An entry as a reader of the format finds it.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(in crate::guest) struct Found {
        pub(in crate::guest) name: String,
        pub(in crate::guest) mode: u32,
        pub(in crate::guest) device: (u32, u32),
        pub(in crate::guest) contents: Vec<u8>,
    }

    /// Reads an archive as the kernel does: header by header, with every alignment checked. Returns
    /// the entries and the rest.
    pub(in crate::guest) fn read(archive: &[u8]) -> (Vec<Found>, &[u8]) {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&archive[at..at + 6], MAGIC.as_bytes(), "a header at {at}");
            let header = &archive[at..at + 110];
            let number = |index: usize| {
                let digits = &header[6 + 8 * index..14 + 8 * index];
                u32::from_str_radix(str::from_utf8(digits).expect("text"), 16).expect("hexadecimal")
            };
            let name_bytes = number(11) as usize;
            let name = &archive[at + 110..at + 110 + name_bytes];
            assert_eq!(name.last(), Some(&0), "the name's end");
            let name = String::from_utf8(name[..name_bytes - 1].to_vec()).expect("text");
            let contents_at = (at + 110 + name_bytes).next_multiple_of(4);
            let contents_end = contents_at + number(6) as usize;
            let contents = archive[contents_at..contents_end].to_vec();
            at = contents_end.next_multiple_of(4);
            if name == "TRAILER!!!" {
                return (entries, &archive[at..]);
            }
            entries.push(Found {
                name,
                mode: number(1),
                device: (number(9), number(10)),
                contents,
            });
        }
    }

    #[test]
    fn a_small_archive_is_what_the_format_says() {
        let mut archive = Archive::default();
        archive.file("a", 0o755, b"xyz");
        let expected = [
            "070701",
            "00000001",
            "000081ED",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000003",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000002",
            "00000000",
            "a\0",
            "xyz\0",
            "070701",
            "00000002",
            "00000000",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "0000000B",
            "00000000",
            "TRAILER!!!\0",
            "\0\0\0",
        ];
        assert_eq!(String::from_utf8(archive.finish()).expect("text"), expected.concat());
    }

    #[test]
    fn kinds_and_permissions() {
        let mut archive = Archive::default();
        archive.directory("dev", 0o755);
        archive.character_device("dev/null", 0o666, 1, 3);
        let bytes = archive.finish();
        let (entries, rest) = read(&bytes);
        assert!(rest.is_empty());
        assert_eq!(entries[0].mode, 0o040_755);
        assert_eq!((entries[1].mode, entries[1].device), (0o020_666, (1, 3)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            files in proptest::collection::vec(
                ("[a-z/.]{1,40}", proptest::collection::vec(any::<u8>(), 0..300)),
                0..8,
            ),
        ) {
            let mut archive = Archive::default();
            for (name, contents) in &files {
                archive.file(name, 0o644, contents);
            }
            let bytes = archive.finish();
            prop_assert_eq!(bytes.len() % ALIGNMENT, 0);
            let (entries, rest) = read(&bytes);
            prop_assert!(rest.is_empty());
            let found: Vec<_> =
                entries.into_iter().map(|entry| (entry.name, entry.contents)).collect();
            prop_assert_eq!(found, files);
        }
    }
}
