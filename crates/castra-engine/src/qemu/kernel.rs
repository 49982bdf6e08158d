//! Refuses kernels that QEMU would load in another way than Linux.

use std::os::unix::fs::FileExt as _;

use super::argv::Boot;
use super::error::QemuError;
use crate::files::open_regular;

/// Offset of the magic number of a Linux kernel on x86 (Documentation/arch/x86/boot.rst), by which
/// QEMU recognises one, too.
const MARK_OFFSET: u64 = 0x202;
const MARK: &[u8; 4] = b"HdrS";

/// Returns `true` if this is the content of a Linux kernel for x86.
pub fn is_linux(kernel: &[u8]) -> bool {
    kernel.get(MARK_OFFSET as usize..).is_some_and(|rest| rest.starts_with(MARK))
}

/// Refuses a kernel that is not a Linux kernel.
///
/// QEMU looks for a multiboot header in such a file, and if there is one splits the initramfs'
/// name: each comma begins another file, a space ends it, and all these files are put into the
/// guest's memory. A repository chooses a part of that name: a directory
/// `x,/home/ada/.ssh/id_ed25519 ,` makes QEMU read the key. For a Linux kernel, it is one name.
///
/// # Errors
/// [`QemuError::File`], [`QemuError::NotLinux`].
pub(super) fn check(boot: &Boot) -> Result<(), QemuError> {
    let Boot::Kernel { kernel, .. } = boot else { return Ok(()) };
    let failed = |source| QemuError::File { action: "read", path: kernel.clone(), source };
    let file = open_regular(kernel).map_err(failed)?;
    let mut found = [0; MARK.len()];
    match file.read_exact_at(&mut found, MARK_OFFSET) {
        Ok(()) if found == *MARK => Ok(()),
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => Err(failed(error)),
        _ => Err(QemuError::NotLinux { kernel: kernel.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_for_which_qemu_splits_names_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let checked = |content: &[u8]| {
            let kernel = directory.path().join("kernel");
            std::fs::write(&kernel, content).expect("written");
            let command_line = "quiet".parse().expect("a line");
            check(&Boot::Kernel { kernel, initramfs: "/initramfs".into(), command_line })
        };
        let with = |mark: &[u8]| checked(&[&[0; MARK_OFFSET as usize], mark, &[0; 100]].concat());
        assert!(check(&Boot::Native(Default::default())).is_ok());
        assert!(with(MARK).is_ok());
        for refused in [with(b"\x02\xb0\xad\x1b"), checked(b""), checked(b"\x7fELF")] {
            assert!(matches!(refused, Err(QemuError::NotLinux { .. })));
        }
    }
}
