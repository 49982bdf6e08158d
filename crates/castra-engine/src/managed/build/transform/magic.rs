//! Formats of disks, recognised by their first bytes.

use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::files::{self, At, FileError};
use crate::qemu::{DiskFormat, QCOW2_MAGIC};

/// Bytes that are read.
const HEAD_BYTES: usize = 512;

/// Formats with offset and bytes of their magic. A VMDK that is a text with the names of other
/// files has none on purpose, nor has a fixed VHD, which is a raw disk with a footer.
const MAGICS: [(DiskFormat, usize, &[u8]); 5] = [
    (DiskFormat::Qcow2, 0, &QCOW2_MAGIC),
    (DiskFormat::Vdi, 0x40, b"\x7f\x10\xda\xbe"),
    (DiskFormat::Vhdx, 0, b"vhdxfile"),
    (DiskFormat::Vmdk, 0, b"KDMV"),
    (DiskFormat::Vpc, 0, b"conectix"),
];

/// Finds the format of a regular file; one without a magic is raw.
pub(super) fn recognise(disk: &Path) -> Result<DiskFormat, FileError> {
    let file = files::open(disk)?;
    let mut head = Vec::new();
    let length = file.metadata().at("look at", disk)?.len();
    head.resize(HEAD_BYTES.min(usize::try_from(length).unwrap_or(HEAD_BYTES)), 0);
    file.read_exact_at(&mut head, 0).at("read", disk)?;
    Ok(of(&head))
}

fn of(head: &[u8]) -> DiskFormat {
    let found = MAGICS
        .iter()
        .find(|(_, at, magic)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    found.map_or(DiskFormat::Raw, |(format, ..)| *format)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_qemu_img_makes_is_recognised() {
        let directory = tempfile::tempdir().expect("a directory");
        for format in DiskFormat::ALL {
            let disk = directory.path().join(format.name());
            let mut made = Command::new("qemu-img");
            made.args(["create", "-q", "-f", format.name()]).arg(&disk).arg("1M");
            assert!(made.status().expect("qemu-img runs").success(), "{format}");
            assert_eq!(recognise(&disk).expect("recognised"), format);
        }
    }

    #[test]
    fn a_text_is_no_vmdk() {
        assert_eq!(of(b"# Disk DescriptorFile\nRW 1 FLAT \"/etc/shadow\" 0\n"), DiskFormat::Raw);
        assert_eq!(of(b""), DiskFormat::Raw);
    }
}
