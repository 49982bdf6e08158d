//! Guard of a directory on which a disk should be mounted.
//!
//! Programs that expect the disk there would write to the VM's own disk, where no user looks for
//! their data, and find none of the old. An empty filesystem that cannot be written to stops them.

use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount};

use crate::kernel_fs::KernelFs;

/// Source of the guard's filesystem, as `mount` and `df` show it.
const SOURCE: &str = "castra-disk-not-mounted";

/// Mounts the guard, unless it is there.
pub(super) fn hold(guest: &Path, kernel_fs: &KernelFs) -> io::Result<()> {
    // An agent that is started again carries out its orders again.
    if is_held(&kernel_fs.proc.read("self/mounts")?, guest) {
        return Ok(());
    }
    fs::create_dir_all(guest)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // A single inode: the directory itself.
    Ok(mount(SOURCE, guest, "tmpfs", flags, c"mode=0555,nr_inodes=1,size=4k")?)
}

/// Returns `true` if a guard is mounted on a directory, according to the kernel's list of mounts.
fn is_held(mounts: &str, guest: &Path) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ');
        fields.next() == Some(SOURCE)
            && fields.next().is_some_and(|place| Path::new(&unescaped(place)) == guest)
    })
}

/// Returns a path of the kernel's list of mounts, which has blanks and the like as `\\040`.
fn unescaped(field: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(field.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_is_known_by_its_source_and_place() {
        let mounts = "/dev/vda / ext4 rw 0 0\n\
            castra-disk-not-mounted /srv/a\\040b tmpfs ro 0 0\n\
            /dev/vdb /data ext4 rw 0 0\n";
        assert!(is_held(mounts, Path::new("/srv/a b")));
        assert!(!is_held(mounts, Path::new("/srv/a")));
        assert!(!is_held(mounts, Path::new("/data")));
    }
}
