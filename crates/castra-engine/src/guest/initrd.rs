//! Adds the agent to the image's own initramfs.
//!
//! The kernel unpacks one archive after another into the same root, each with its own compression
//! or none, with zeroes between them. So the image's archives stay unchanged, and a small one with
//! the agent follows them. Only the first compressed one is inflated, if it is gzip or zstd:
//! inflating Alpine's is a third of everything that an emulated CPU executes until the kernel
//! starts its first process, and a matter of milliseconds here.

use std::fs;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;

use crate::error::{Explain, Kind, kind_of_io};
use crate::files::TEMPORARY;
use crate::files::open_regular;

use super::cpio::{ALIGNMENT, Archive, entry_bytes};
use super::modules::EarlyModule;

/// Path of the agent in the initramfs, for the kernel's `rdinit=`.
pub const AGENT_PATH: &str = "/castra/agent";

/// Directory in which the agent makes the image's scripts look for programs first.
const TOOLS: &str = "castra/bin";

/// Directory of the modules that the agent loads, in the order of their names.
const MODULES: &str = "castra/modules";

/// A short cut for Alpine's initramfs; see the script itself.
const DEVICE_SEARCH: &str = include_str!("nlplug-findfs.sh");

/// The guest agent, a static program for x86_64 Linux.
pub const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/castra-guest"));

/// Magic bytes by which the kernel recognises gzip and zstd (`lib/decompress.c`).
const GZIP_MAGIC: &[u8] = &[0x1F, 0x8B];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xB5, 0x2F, 0xFD];

/// Largest archive that is inflated. A larger one would not fit into a VM's memory anyway; it is
/// left compressed.
const MAX_INFLATED_BYTES: u64 = 256 * 1024 * 1024;

/// Part of a VM's memory that an inflated archive may take. The kernel holds it beside the files
/// that it unpacks.
const MEMORY_SHARE: u64 = 4;

/// Reason why an initramfs with the agent could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// The image's initramfs cannot be read.
    #[error("cannot read the image's initramfs {}", path.display())]
    Read {
        /// The image's initramfs.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The image's initramfs is empty.
    #[error("the image's initramfs {} is empty", .0.display())]
    Empty(PathBuf),
    /// The new initramfs cannot be written.
    #[error("cannot write the initramfs {}", path.display())]
    Write {
        /// The new initramfs.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl Explain for InitrdError {
    fn kind(&self) -> Kind {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Kind::NotFound,
            Self::Read { source, .. } => kind_of_io(source),
            Self::Empty(_) => Kind::Data,
            Self::Write { source, .. } if kind_of_io(source) == Kind::Permission => {
                Kind::Permission
            }
            Self::Write { .. } => Kind::CannotCreate,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } | Self::Empty(_) => Some(
                "Remove the image's directory; `castra up` fetches the image again.".to_owned(),
            ),
            Self::Write { .. } => None,
        }
    }
}

/// Writes the image's initramfs, followed by the agent, to `target`, which appears complete or not
/// at all.
///
/// # Errors
/// Every variant of [`InitrdError`]; then `target` is unchanged.
pub fn append_agent(image_initramfs: &Path, target: &Path) -> Result<(), InitrdError> {
    let reading = |source| InitrdError::Read { path: image_initramfs.to_owned(), source };
    let mut image = Vec::new();
    open_regular(image_initramfs)
        .and_then(|mut file| file.read_to_end(&mut image))
        .map_err(reading)?;
    if image.is_empty() {
        return Err(InitrdError::Empty(image_initramfs.to_owned()));
    }
    write(&image, &[], MAX_INFLATED_BYTES, target)
}

/// Writes an initramfs, followed by archives for the agent and by the agent, to `target`, which
/// appears complete or not at all. It is for a VM with this much memory.
///
/// # Errors
/// [`InitrdError::Write`]; then `target` is unchanged.
pub fn write_with_agent(
    initramfs: &[u8],
    archives: &[&[u8]],
    memory_bytes: u64,
    target: &Path,
) -> Result<(), InitrdError> {
    write(initramfs, archives, MAX_INFLATED_BYTES.min(memory_bytes / MEMORY_SHARE), target)
}

fn write(
    initramfs: &[u8],
    archives: &[&[u8]],
    inflated_limit: u64,
    target: &Path,
) -> Result<(), InitrdError> {
    let writing = |source| InitrdError::Write { path: target.to_owned(), source };
    let inflated = inflate_first(initramfs, inflated_limit);
    let own = inflated.as_deref().unwrap_or(initramfs);
    let directory =
        target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary =
        tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(directory).map_err(writing)?;
    let (padding, agent) = (vec![0; padding(own.len(), 0)], agent_archive(AGENT));
    for part in [own, &padding].into_iter().chain(archives.iter().copied()).chain([&agent[..]]) {
        temporary.write_all(part).map_err(writing)?;
    }
    temporary.as_file().set_permissions(fs::Permissions::from_mode(0o600)).map_err(writing)?;
    temporary.as_file().sync_all().map_err(writing)?;
    temporary.persist(target).map_err(|error| writing(error.error))?;
    Ok(())
}

/// Returns the initramfs with its first compressed archive inflated, if that takes no more than
/// `limit` bytes. An archive that cannot be inflated is left for the kernel to judge.
fn inflate_first(image: &[u8], limit: u64) -> Option<Vec<u8>> {
    let (before, packed) = image.split_at(uncompressed_bytes(image));
    let mut inflated = before.to_vec();
    let mut rest = packed;
    let read_at_most = |stream: &mut dyn Read, inflated: &mut Vec<u8>| {
        stream.take(limit + 1).read_to_end(inflated).ok().filter(|read| *read as u64 <= limit)
    };
    if packed.starts_with(GZIP_MAGIC) {
        read_at_most(&mut GzDecoder::new(&mut rest), &mut inflated)?;
    } else if packed.starts_with(ZSTD_MAGIC) {
        let mut decoder = zstd::Decoder::with_buffer(&mut rest).ok()?.single_frame();
        read_at_most(&mut decoder, &mut inflated)?;
    } else {
        return None;
    }
    let zeroes = rest.iter().take_while(|byte| **byte == 0).count();
    let rest = &rest[zeroes..];
    // The kernel finds the archives that follow as long as they are moved by a multiple of the
    // alignment.
    inflated.resize(inflated.len() + padding(inflated.len(), image.len() - rest.len()), 0);
    inflated.extend(rest);
    Some(inflated)
}

/// Returns the length of the uncompressed archives at the beginning, such as those of microcode,
/// with the zeroes behind them.
fn uncompressed_bytes(image: &[u8]) -> usize {
    let mut at = 0;
    while let Some(length) = entry_bytes(&image[at..]) {
        at = (at + length).min(image.len());
        at += image[at..].iter().take_while(|byte| **byte == 0).count();
    }
    at
}

/// Returns the distance to the next offset that has the same remainder, modulo the alignment, as
/// `like`.
fn padding(offset: usize, like: usize) -> usize {
    (like % ALIGNMENT + ALIGNMENT - offset % ALIGNMENT) % ALIGNMENT
}

/// Returns the archive of the modules that the agent loads; nothing if there are none.
pub fn modules_archive(modules: &[EarlyModule]) -> Vec<u8> {
    if modules.is_empty() {
        return Vec::new();
    }
    let mut archive = Archive::default();
    archive.directory("castra", 0o755);
    archive.directory(MODULES, 0o755);
    for (number, module) in modules.iter().enumerate() {
        let name = format!("{MODULES}/{number:02}-{}.ko", module.name);
        archive.file(&name, 0o644, &module.content);
    }
    archive.finish()
}

/// Returns the agent's own archive. It also contains the two devices that a Rust program needs for
/// its standard streams before any filesystem is mounted: an initramfs need not have them.
fn agent_archive(agent: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.directory("dev", 0o755);
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.character_device("dev/null", 0o666, 1, 3);
    archive.directory("castra", 0o755);
    archive.file(AGENT_PATH.trim_start_matches('/'), 0o755, agent);
    archive.directory(TOOLS, 0o755);
    archive.file(&format!("{TOOLS}/nlplug-findfs"), 0o755, DEVICE_SEARCH.as_bytes());
    archive.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::cpio::tests::read;
    use super::*;

    #[test]
    fn the_agent_is_a_static_program() {
        assert!(AGENT.starts_with(b"\x7fELF"));
        // An ELF file names its dynamic linker in an interpreter segment (type 3).
        let number = |at: usize, bytes: usize| {
            AGENT[at..at + bytes]
                .iter()
                .rev()
                .fold(0, |number, byte| number << 8 | usize::from(*byte))
        };
        let (headers, size, count) = (number(32, 8), number(54, 2), number(56, 2));
        assert!(count > 0);
        assert!(
            (0..count).all(|index| number(headers + index * size, 4) != 3),
            "it needs a dynamic linker"
        );
    }

    #[test]
    fn the_archive_holds_the_agent_and_its_directory() {
        let bytes = agent_archive(b"agent");
        let (entries, rest) = read(&bytes);
        assert!(rest.is_empty());
        let found: Vec<_> = entries.iter().map(|entry| (entry.name.as_str(), entry.mode)).collect();
        assert_eq!(
            found,
            [
                ("dev", 0o040_755),
                ("dev/console", 0o020_600),
                ("dev/null", 0o020_666),
                ("castra", 0o040_755),
                ("castra/agent", 0o100_755),
                ("castra/bin", 0o040_755),
                ("castra/bin/nlplug-findfs", 0o100_755),
            ]
        );
        assert_eq!(entries[4].contents, b"agent");
    }

    #[test]
    fn modules_are_numbered_in_their_order() {
        let module = |name: &str| EarlyModule { name: name.to_owned(), content: b"elf".to_vec() };
        let bytes = modules_archive(&[module("virtio"), module("failover")]);
        assert_eq!(bytes.len() % ALIGNMENT, 0, "the agent's archive follows");
        let (entries, _) = read(&bytes);
        let names: Vec<_> = entries.iter().skip(1).map(|entry| entry.name.as_str()).collect();
        assert_eq!(
            names,
            ["castra/modules", "castra/modules/00-virtio.ko", "castra/modules/01-failover.ko"]
        );
        assert!(modules_archive(&[]).is_empty());
    }

    #[test]
    fn a_failure_leaves_the_target_as_it_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let (image, target) = (directory.path().join("image"), directory.path().join("target"));
        fs::write(&target, "old").expect("writes");
        assert!(matches!(append_agent(&image, &target), Err(InitrdError::Read { .. })));
        fs::write(&image, "").expect("writes");
        assert!(matches!(append_agent(&image, &target), Err(InitrdError::Empty(_))));
        assert_eq!(fs::read(&target).expect("reads"), b"old");
        let nowhere = directory.path().join("none/target");
        fs::write(&image, "image").expect("writes");
        assert!(matches!(append_agent(&image, &nowhere), Err(InitrdError::Write { .. })));
        assert_eq!(
            fs::read_dir(directory.path()).expect("lists").count(),
            2,
            "no temporary file stays"
        );
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("compresses")
    }

    fn archive_of(name: &str) -> Vec<u8> {
        let mut archive = Archive::default();
        archive.file(name, 0o644, name.as_bytes());
        archive.finish()
    }

    /// Returns the names in an initramfs of uncompressed archives with zeroes between them, in
    /// order.
    fn names(mut initramfs: &[u8]) -> Vec<String> {
        let mut names = Vec::new();
        while !initramfs.is_empty() {
            let (entries, rest) = read(initramfs);
            names.extend(entries.into_iter().map(|entry| entry.name));
            let zeroes = rest.iter().take_while(|byte| **byte == 0).count();
            assert_eq!(zeroes % ALIGNMENT, 0, "the next archive is aligned");
            initramfs = &rest[zeroes..];
        }
        names
    }

    #[test]
    fn the_first_archive_is_inflated_and_those_after_it_are_found() {
        let directory = tempfile::tempdir().expect("a directory");
        let source = directory.path().join("image");
        let target = directory.path().join("target");
        let mut image = gzip(&archive_of("first"));
        let odd = image.len() % ALIGNMENT;
        image.extend(vec![0; 512 - odd]);
        image.resize(image.len().next_multiple_of(ALIGNMENT), 0);
        image.extend(archive_of("second"));
        fs::write(&source, &image).expect("writes");
        append_agent(&source, &target).expect("appends");
        let names = names(&fs::read(&target).expect("reads"));
        assert_eq!(names[..2], ["first", "second"]);
        assert!(names.iter().any(|name| name == "castra/agent"));
    }

    #[test]
    fn a_compressed_archive_behind_one_of_microcode_is_inflated_if_memory_is_left() {
        let directory = tempfile::tempdir().expect("a directory");
        let target = directory.path().join("target");
        let mut image = archive_of("microcode");
        image.resize(image.len() + 512, 0);
        let before = image.len();
        image.extend(zstd::encode_all(&archive_of("root")[..], 3).expect("compresses"));
        image.resize(image.len().next_multiple_of(ALIGNMENT), 0);
        image.extend(archive_of("last"));
        write_with_agent(&image, &[], 1 << 20, &target).expect("writes");
        let names = names(&fs::read(&target).expect("reads"));
        assert_eq!(names[..3], ["microcode", "root", "last"]);
        // A quarter of this memory is less than the archive.
        write_with_agent(&image, &[], 512, &target).expect("writes");
        let packed = fs::read(&target).expect("reads");
        assert!(packed[before..].starts_with(ZSTD_MAGIC));
        assert!(packed.starts_with(&image));
    }

    #[test]
    fn what_only_looks_like_gzip_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let source = directory.path().join("image");
        let target = directory.path().join("target");
        let whole = gzip(&archive_of("first"));
        for image in [&whole[..whole.len() - 3], b"\x1f\x8bno gzip at all".as_slice()] {
            fs::write(&source, image).expect("writes");
            append_agent(&source, &target).expect("appends");
            assert!(fs::read(&target).expect("reads").starts_with(image));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn the_image_comes_first_and_the_agent_where_the_kernel_looks(
            image in proptest::collection::vec(any::<u8>(), 1..64),
        ) {
            let directory = tempfile::tempdir().expect("a directory");
            let source = directory.path().join("image");
            let target = directory.path().join("target");
            fs::write(&source, &image).expect("writes");
            append_agent(&source, &target).expect("appends");
            let whole = fs::read(&target).expect("reads");
            prop_assert!(whole.starts_with(&image));
            let second = image.len().next_multiple_of(ALIGNMENT);
            prop_assert!(whole[image.len()..second].iter().all(|byte| *byte == 0));
            let (entries, rest) = read(&whole[second..]);
            prop_assert!(rest.is_empty());
            prop_assert!(
                entries
                    .iter()
                    .any(|entry| entry.name == "castra/agent" && entry.contents == AGENT)
            );
        }
    }
}
