//! The root's `/run`, in which services of the system find settings that end with the boot.

use std::fs;
use std::io;
use std::path::Path;

/// `TMPFS_MAGIC` and `RAMFS_MAGIC` (`statfs(2)`).
const VOLATILE: [i64; 2] = [0x0102_1994, 0x8584_58F6];

/// NetworkManager's settings (`NetworkManager.conf(5)`). By default it takes an address that a
/// network card has when it starts for the work of others, and starts no connection of its own on
/// that card.
const NETWORK_MANAGER: (&str, &str) = (
    "NetworkManager/conf.d/castra.conf",
    "[device-castra]\nmatch-device=type:ethernet\nkeep-configuration=no\n",
);

/// Returns `/run` if it is mounted and nothing in it gets to the disk. An initramfs usually mounts
/// it, and its mount is moved into the root.
pub(crate) fn mounted() -> Option<&'static Path> {
    let run = Path::new("/run");
    let kind = rustix::fs::statfs(run).ok()?.f_type;
    VOLATILE.contains(&kind).then_some(run)
}

/// Makes NetworkManager manage the card that the agent has set up.
///
/// # Errors
/// Those of creating the file.
pub(crate) fn prepare_network_manager(run: &Path) -> io::Result<()> {
    if !Path::new("/usr/sbin/NetworkManager").exists() {
        return Ok(());
    }
    let (name, settings) = NETWORK_MANAGER;
    write(&run.join(name), settings)
}

/// Writes a file, and creates the directories above it that are missing.
///
/// # Errors
/// Those of creating directories and file.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(path, text)
}
