//! Loads the modules that the host has added to the initramfs: those of the devices through which
//! it reaches the agent, and of the disk.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::kernel_fs::KernelFs;
use crate::log::record;

/// Directory of the modules, which are loaded in the order of their names.
const DIRECTORY: &str = "/castra/modules";

/// Loads all modules, before the image's init looks for devices. A module that does not load costs
/// a record in the kernel's log, and the image's init may load its own.
pub(crate) fn load_modules() {
    let modules = modules_in(Path::new(DIRECTORY));
    let failures: Vec<_> = modules
        .iter()
        .filter_map(|path| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            load(path).err().map(|error| format!("{name}: {error}"))
        })
        .collect();
    if failures.is_empty() {
        return;
    }
    let message = record(&format!("cannot load all modules: {}", failures.join("; ")));
    // stderr is the console still.
    let log = KernelFs::open().and_then(|kernel_fs| kernel_fs.dev.open("kmsg", OFlags::WRONLY));
    let _ = log.and_then(|log| File::from(log).write_all(message.as_bytes()));
}

/// Returns the paths of the modules in a directory, in order; none if it does not exist.
fn modules_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Loads a module, unless the kernel has it.
fn load(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    match rustix::system::finit_module(&file, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_in_the_order_of_their_names() {
        let directory = std::env::temp_dir().join(format!("castra-early-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        for name in ["10-c.ko", "02-b.ko", "00-a.ko"] {
            fs::write(directory.join(name), "no module").expect("writes");
        }
        let names = ["00-a.ko", "02-b.ko", "10-c.ko"].map(|name| directory.join(name));
        assert_eq!(modules_in(&directory), names);
        assert!(load(&names[0]).is_err());
        fs::remove_dir_all(&directory).expect("tidies up");
        assert!(modules_in(&directory).is_empty());
    }
}
