//! Kernels that QEMU would load in another way than Linux.

use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

use super::argv::Boot;
use super::error::QemuError;

/// Where a Linux kernel of x86 has its mark (Documentation/arch/x86/boot.rst), by which QEMU knows one, too.
const MARK_OFFSET: u64 = 0x202;
const MARK: &[u8; 4] = b"HdrS";

/// Refuses a kernel that is not Linux's, where the name of its initramfs could be taken for several files.
///
/// QEMU asks such a kernel for a multiboot header, and if there is one splits the initramfs' name: each comma begins another
/// file, a space ends it, and all these files are put into the guest's memory. The name begins with the project's, which a
/// repository chooses in part. For a Linux kernel, it is one name.
///
/// # Errors
/// [`QemuError::File`], [`QemuError::KernelNeedsPlainPath`].
pub(super) fn check(boot: &Boot) -> Result<(), QemuError> {
    let Boot::Kernel { kernel, initramfs, .. } = boot else { return Ok(()) };
    if is_plain(initramfs) || is_linux(kernel)? {
        return Ok(());
    }
    Err(QemuError::KernelNeedsPlainPath { kernel: kernel.clone(), initramfs: initramfs.clone() })
}

fn is_plain(path: &Path) -> bool {
    !path.as_os_str().as_bytes().iter().any(|byte| *byte == b',' || *byte == b' ')
}

fn is_linux(kernel: &Path) -> Result<bool, QemuError> {
    let failed = |source| QemuError::File { action: "read", path: kernel.to_owned(), source };
    // A FIFO in its place holds nobody up; for files the flag means nothing.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(kernel).map_err(failed)?;
    let mut found = [0; MARK.len()];
    match file.read_exact_at(&mut found, MARK_OFFSET) {
        Ok(()) => Ok(found == *MARK),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_splits_names_gets_plain_ones_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let kernel = |name: &str, mark: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, [&[0; MARK_OFFSET as usize], mark, &[0; 100]].concat()).expect("written");
            path
        };
        let (linux, other) = (kernel("linux", MARK), kernel("other", b"\x02\xb0\xad\x1b"));
        let boot = |kernel: &Path, initramfs: &str| {
            let command_line = "quiet".parse().expect("a line");
            check(&Boot::Kernel { kernel: kernel.to_owned(), initramfs: initramfs.into(), command_line })
        };
        assert!(matches!(check(&Boot::Native), Ok(())));
        assert!(boot(&linux, "/p/x,/home/ada/.ssh/id_ed25519 ,/initramfs").is_ok());
        assert!(boot(&other, "/p/.castra/vms/dev/initramfs").is_ok());
        for initramfs in ["/p/x,/home/ada/.ssh/id_ed25519,/initramfs", "/home/ada/.ssh/id_ed25519 /initramfs"]
        {
            let refused = boot(&other, initramfs);
            assert!(matches!(refused, Err(QemuError::KernelNeedsPlainPath { .. })), "{initramfs}");
        }
        let empty = directory.path().join("empty");
        std::fs::write(&empty, "").expect("written");
        assert!(boot(&empty, "/p/a b/initramfs").is_err());
    }
}
