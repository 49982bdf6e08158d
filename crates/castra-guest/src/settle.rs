//! Brings the guest to rest for the moment whose memory becomes a template.
//!
//! The contents of the page cache can be read again from the disk, and would make every clone
//! larger. But what the first command of every clone needs is worth keeping: reading it from an
//! emulated disk costs more than everything else.

use std::io;

use crate::kernel_fs::KernelFs;
use crate::process::image_program;
use crate::secrets;

/// Frees the page cache, dentries and inodes (`Documentation/admin-guide/sysctl/vm.rst`).
const DROP_ALL: &str = "3";

/// Arguments of first commands: the shell by itself, and as a login shell with its profile.
const WARM: [&[&str]; 2] = [&["-c", "exec true"], &["-l", "-c", "exec true"]];

/// Removes secrets that no two VMs may share, writes everything out, drops the caches, and reads in
/// what the first command will need. Returns `true` if the image's sshd was stopped and is to be
/// started again in each VM.
pub(crate) fn come_to_rest(kernel_fs: &KernelFs) -> io::Result<bool> {
    let had_sshd = secrets::forget(kernel_fs);
    rustix::fs::sync();
    kernel_fs.proc.write("sys/vm/drop_caches", DROP_ALL)?;
    for arguments in WARM {
        // An image without a shell has nothing to warm up.
        let _ = image_program("/bin/sh", arguments).status();
    }
    rustix::fs::sync();
    Ok(had_sshd)
}
