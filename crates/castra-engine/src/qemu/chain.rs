//! The backing chain of a disk, found before QEMU looks for the files itself.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::disk_error::DiskError;
use super::error::QemuError;
use super::qcow2::Qcow2Header;
use crate::files::open_regular;

/// Maximum number of files below a disk. Each clone of a clone adds one.
const MAX_DEPTH: usize = 200;

/// A disk with its whole backing chain, so that QEMU is given every file and opens none because a
/// header names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The file itself, a qcow2.
    pub path: PathBuf,
    /// Backing files, from the top down.
    pub below: Vec<Layer>,
}

/// A backing file, which is only read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The file.
    pub path: PathBuf,
    /// Format of the file.
    pub format: LayerFormat,
}

/// Format of a backing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerFormat {
    /// QEMU's format, which may have a backing file in turn.
    Qcow2,
    /// Raw bytes of the disk.
    Raw,
}

impl LayerFormat {
    /// Returns QEMU's name for the format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

impl Disk {
    /// Opens the disk at this path and follows the headers down to the last backing file.
    ///
    /// # Errors
    /// Those of [`Qcow2Header::read`] for each file; [`DiskError::NotAPlainFile`],
    /// [`DiskError::BackingFormat`], [`DiskError::Loop`], [`DiskError::TooDeep`].
    pub fn open(path: &Path) -> Result<Self, QemuError> {
        let mut below: Vec<Layer> = Vec::new();
        let mut seen = vec![identity(path)?];
        let mut at = path.to_owned();
        loop {
            let header = Qcow2Header::read(&at)?;
            let Some(backing) = header.backing_path(&at)? else { break };
            let format = match header.backing_format.as_deref() {
                Some("qcow2") => LayerFormat::Qcow2,
                Some("raw") => LayerFormat::Raw,
                _ => {
                    let format = header.backing_format;
                    return Err(DiskError::BackingFormat { disk: at, backing, format }.into());
                }
            };
            let identity = identity(&backing)?;
            if seen.contains(&identity) {
                return Err(DiskError::Loop { disk: path.to_owned() }.into());
            }
            if below.len() == MAX_DEPTH {
                return Err(DiskError::TooDeep { disk: path.to_owned(), limit: MAX_DEPTH }.into());
            }
            seen.push(identity);
            below.push(Layer { path: backing.clone(), format });
            at = backing;
            if format == LayerFormat::Raw {
                break;
            }
        }
        Ok(Self { path: path.to_owned(), below })
    }

    /// Returns the chain of a disk at `path` that has this disk as its backing file.
    #[must_use]
    pub fn under(self, path: PathBuf) -> Self {
        let top = Layer { path: self.path, format: LayerFormat::Qcow2 };
        Self { path, below: std::iter::once(top).chain(self.below).collect() }
    }
}

pub(super) fn identity(path: &Path) -> Result<(u64, u64), QemuError> {
    // Only QEMU opens a raw file, and it would wait for a FIFO and use a device.
    let metadata = open_regular(path)
        .and_then(|file| file.metadata())
        .map_err(|source| QemuError::File { action: "read", path: path.to_owned(), source })?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::qemu::qcow2::BACKING_FORMAT;
    use std::process::Command;

    fn qemu_img(directory: &Path, arguments: &[&str]) {
        let output = Command::new("qemu-img").args(arguments).current_dir(directory).output();
        let output = output.expect("qemu-img runs");
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Opens `a.qcow2`, based on `b.qcow2`, after `spoil` has changed the bytes of a.qcow2.
    fn spoilt(spoil: impl FnOnce(&mut Vec<u8>)) -> Result<Disk, QemuError> {
        let directory = tempfile::tempdir().expect("a directory");
        qemu_img(directory.path(), &["create", "-q", "-f", "qcow2", "b.qcow2", "1M"]);
        qemu_img(
            directory.path(),
            &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "b.qcow2", "a.qcow2"],
        );
        let path = directory.path().join("a.qcow2");
        let mut bytes = fs::read(&path).expect("reads");
        spoil(&mut bytes);
        fs::write(&path, bytes).expect("writes");
        Disk::open(&path)
    }

    fn problem(opened: Result<Disk, QemuError>) -> DiskError {
        match opened {
            Err(QemuError::Disk(problem)) => problem,
            other => panic!("{other:?}"),
        }
    }

    fn at(offset: usize, value: &[u8]) -> impl FnOnce(&mut Vec<u8>) {
        let value = value.to_vec();
        move |bytes| bytes[offset..offset + value.len()].copy_from_slice(&value)
    }

    #[test]
    fn a_chain_is_followed_to_its_end() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("below")).expect("a directory");
        let disks = [
            ["create", "-q", "-f", "raw", "below/c.raw", "1M"].as_slice(),
            &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "c.raw", "below/b.qcow2"],
            &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "below/b.qcow2", "a.qcow2"],
        ];
        disks.iter().for_each(|arguments| qemu_img(directory.path(), arguments));
        let disk = Disk::open(&directory.path().join("a.qcow2")).expect("opens");
        let below = [("below/b.qcow2", LayerFormat::Qcow2), ("below/c.raw", LayerFormat::Raw)];
        let below = below.map(|(path, format)| Layer { path: directory.path().join(path), format });
        assert_eq!(disk.below, below);
    }

    #[test]
    fn a_disk_that_must_not_be_opened_is_refused_by_name() {
        // Offsets from docs/interop/qcow2.txt.
        assert!(spoilt(|_| ()).is_ok());
        assert!(matches!(problem(spoilt(at(32, &[0, 0, 0, 1]))), DiskError::Encrypted { .. }));
        assert!(matches!(problem(spoilt(at(79, &[0b10]))), DiskError::Corrupt { .. }));
        assert!(matches!(problem(spoilt(at(79, &[0b100]))), DiskError::DataElsewhere { .. }));
        let unknown = problem(spoilt(at(72, &[0x80])));
        assert!(matches!(
            unknown,
            DiskError::UnknownFeatures { features: 0x8000_0000_0000_0000, .. }
        ));
    }

    #[test]
    fn headers_that_make_no_sense_are_refused() {
        let cases: [(&str, usize, &[u8]); 8] = [
            ("version", 4, &[0, 0, 0, 4]),
            ("backing name far away", 8, &[0, 0, 0, 1, 0, 0, 0, 0]),
            ("long backing name", 16, &[0, 0, 4, 0]),
            ("cluster bits", 20, &[0, 0, 0, 63]),
            ("size beyond the tables", 24, &[0x7f, 0xff]),
            ("giant tables", 36, &[0x7f, 0xff, 0xff, 0xff]),
            ("reference counts", 96, &[0, 0, 0, 7]),
            ("header length", 100, &[0xff, 0xff, 0xff, 0xf8]),
        ];
        for (what, offset, value) in cases {
            let opened = spoilt(at(offset, value));
            assert!(matches!(opened, Err(QemuError::NotQcow2 { .. })), "{what}: {opened:?}");
        }
    }

    #[test]
    fn what_no_plain_file_is_called_is_refused() {
        for name in ["nbd://host/x", "json:{}", "http:x", "fat:rw:/", "a\0b"] {
            let rename = |bytes: &mut Vec<u8>| {
                let offset = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
                bytes[offset..offset + name.len()].copy_from_slice(name.as_bytes());
                bytes[19] = name.len() as u8;
            };
            assert!(matches!(problem(spoilt(rename)), DiskError::NotAPlainFile { .. }), "{name}");
        }
    }

    #[test]
    fn a_chain_has_an_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |number: usize| directory.path().join(number.to_string());
        for number in 1..=MAX_DEPTH + 2 {
            fs::File::create(at(number)).expect("made");
            let below = PathBuf::from((number - 1).to_string());
            crate::qemu::create_overlay(&at(number), &below, 1 << 20).expect("written");
        }
        // The lowest one is a qcow2, too, without the name of a backing file.
        let mut lowest = fs::read(at(1)).expect("read");
        lowest[8..20].fill(0);
        fs::write(at(0), lowest).expect("written");
        assert_eq!(Disk::open(&at(MAX_DEPTH)).expect("opened").below.len(), MAX_DEPTH);
        assert!(matches!(problem(Disk::open(&at(MAX_DEPTH + 1))), DiskError::TooDeep { .. }));
    }

    #[test]
    fn a_layer_that_is_no_regular_file_is_refused_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let fifo = directory.path().join("b.raw");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0)
            .expect("made");
        let create =
            ["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "b.raw", "a.qcow2", "1M"];
        qemu_img(directory.path(), &create);
        let opened = Disk::open(&directory.path().join("a.qcow2"));
        assert!(
            matches!(opened, Err(QemuError::File { ref path, .. }) if *path == fifo),
            "{opened:?}"
        );
    }

    #[test]
    fn nothing_is_guessed_and_nothing_goes_round() {
        let format = |name: &'static [u8; 5]| {
            move |bytes: &mut Vec<u8>| {
                let offset =
                    bytes.windows(5).position(|word| word == b"qcow2").expect("the extension");
                bytes[offset..offset + 5].copy_from_slice(name);
            }
        };
        assert!(matches!(
            problem(spoilt(format(b"vmdk1"))),
            DiskError::BackingFormat { format: Some(_), .. }
        ));
        let without = problem(spoilt(|bytes| {
            let kind = BACKING_FORMAT.to_be_bytes();
            let offset = bytes.windows(4).position(|word| word == kind).expect("the extension");
            bytes[offset] = 0xff;
        }));
        assert!(matches!(without, DiskError::BackingFormat { format: None, .. }), "{without:?}");
        let circle = spoilt(|bytes| {
            let offset = bytes.windows(7).position(|word| word == b"b.qcow2").expect("the name");
            bytes[offset] = b'a';
        });
        assert!(matches!(problem(circle), DiskError::Loop { .. }));
    }
}
