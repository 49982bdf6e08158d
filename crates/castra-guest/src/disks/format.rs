//! Formatting of blank disks.
//!
//! A guest may be killed while it formats a disk, which then is neither blank nor mountable. So the
//! last block of the disk says that castra formats it, until that is done, and the warning about
//! such a disk can name the cause. It proves no more: the user may have used the disk since.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::process::Stdio;

use rustix::fs::OFlags;

use super::device::Device;
use crate::kernel_fs::KernelFs;
use crate::process::{has_image_program, image_program};

/// Program that makes the filesystem.
const PROGRAM: &str = "mkfs.ext4";

/// Block at the end of a disk that the filesystem leaves out, in bytes.
pub(super) const MARK_BYTES: u64 = 4096;

/// Contents of the block while the disk is formatted.
const MARK: &[u8] = b"castra formats this disk\n";

/// Most of what the program says that is shown, in bytes.
const MOST_WORDS_BYTES: u64 = 500;

/// Returns `true` if the end of a disk says that its formatting was begun.
pub(super) fn is_marked(tail: &[u8]) -> bool {
    let at = tail.len().saturating_sub(MARK_BYTES as usize);
    tail[at..].starts_with(MARK)
}

/// Makes an ext4 on a disk. The error completes "disk `data` …".
pub(super) fn make_ext4(device: &Device, kernel_fs: &KernelFs) -> Result<(), String> {
    // Before anything is written: a disk that has been written to is not formatted later.
    if !has_image_program(PROGRAM) {
        return Err(format!(
            "is blank, and the VM has no {PROGRAM} to format it. Install the package e2fsprogs in \
             the VM and restart it, or remove `guest` and format the disk by your own means"
        ));
    }
    let unwritable = |error: io::Error| format!("cannot be written to: {error}");
    let at = device.bytes(kernel_fs).map_err(unwritable)?.saturating_sub(MARK_BYTES);
    let disk = device.open(kernel_fs, OFlags::RDWR).map_err(unwritable)?;
    let mut mark = [0; MARK_BYTES as usize];
    mark[..MARK.len()].copy_from_slice(MARK);
    write(&disk, &mark, at).map_err(unwritable)?;
    let made = run(device, at / 1024);
    disk.sync_all()
        .and_then(|()| write(&disk, &[0; MARK_BYTES as usize], at))
        .map_err(unwritable)?;
    made
}

fn write(disk: &File, block: &[u8], at: u64) -> io::Result<()> {
    disk.write_all_at(block, at)?;
    disk.sync_all()
}

fn run(device: &Device, kibibytes: u64) -> Result<(), String> {
    // Nothing needs to be discarded on a disk that has never been written to.
    let options = ["-q", "-F", "-E", "nodiscard"];
    let mut program = image_program(PROGRAM, &options);
    program.arg(device.path()).arg(format!("{kibibytes}k")).stderr(Stdio::piped());
    let failed = |error: io::Error| format!("cannot be formatted: {PROGRAM}: {error}");
    let mut child = program.spawn().map_err(failed)?;
    let mut words = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(MOST_WORDS_BYTES).read_to_string(&mut words);
    }
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            let words = words.trim().replace('\n', "; ");
            Err(format!("cannot be formatted: {PROGRAM} ends with {status}: {words}"))
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_in_the_last_block() {
        let mut tail = vec![0; 1 << 20];
        assert!(!is_marked(&tail));
        let at = tail.len() - MARK_BYTES as usize;
        tail[at..at + MARK.len()].copy_from_slice(MARK);
        assert!(is_marked(&tail));
        tail.rotate_left(1);
        assert!(!is_marked(&tail));
        assert!(!is_marked(&[]));
    }
}
