//! Kernel modules without which a VM's devices do not work, read from its disk.
//!
//! A distribution's initramfs has the modules that its root filesystem needs, on the machine on
//! which it was made. It has none for the agent's ports, and perhaps none for QEMU's disk. So the
//! agent brings them along, and loads them before the system's own scripts run.

mod inflate;

use std::collections::{BTreeMap, BTreeSet};

use castra_disk::FileTree;

/// Modules of the devices of every VM. Those that a kernel has built in are in no list of modules.
const WANTED: [&str; 5] =
    ["virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng"];

/// Directories of modules, with a subdirectory for each kernel.
const DIRECTORIES: [&str; 2] = ["/lib/modules", "/usr/lib/modules"];

/// Largest `modules.dep`, in bytes; Debian's has 0.7 MB.
const MAX_LIST_BYTES: u64 = 16 << 20;
/// Largest file of a module, in bytes; those of virtio have up to 0.2 MB.
const MAX_MODULE_BYTES: u64 = 4 << 20;
/// Largest sum of all modules, in bytes.
const MAX_TOTAL_BYTES: usize = 16 << 20;
/// Maximum number of modules. The wanted ones need some ten others at most.
const MAX_MODULES: usize = 64;

/// Kernel module that the agent loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EarlyModule {
    /// Name, as the kernel has it: with underscores.
    pub name: String,
    /// Content of the module, uncompressed.
    pub content: Vec<u8>,
}

/// Returns the modules that a boot with this kernel needs, in the order in which they are loaded.
/// Leaves out what cannot be read, because most systems boot without.
pub fn early_modules(version: Option<&str>, files: &mut FileTree) -> Vec<EarlyModule> {
    let Some(version) = version.filter(|version| is_plain(version)) else {
        tracing::debug!(version, "no early modules: the kernel's version is not known");
        return Vec::new();
    };
    modules_of(version, &mut |path, limit| {
        files.read(path, limit).map_err(|fault| fault.to_string())
    })
}

/// Reader of a system's files: path and largest size to content.
type Read<'a> = dyn FnMut(&str, u64) -> Result<Vec<u8>, String> + 'a;

fn modules_of(version: &str, read: &mut Read<'_>) -> Vec<EarlyModule> {
    let found = DIRECTORIES.iter().find_map(|directory| {
        let directory = format!("{directory}/{version}");
        let list = read(&format!("{directory}/modules.dep"), MAX_LIST_BYTES).ok()?;
        Some((directory, list))
    });
    let Some((directory, list)) = found else {
        tracing::debug!(version, "no early modules: the disk has no list of modules");
        return Vec::new();
    };
    let list = String::from_utf8_lossy(&list);
    let mut loading = Loading {
        entries: entries(&list),
        directory,
        read,
        visited: BTreeSet::new(),
        bytes: 0,
        modules: Vec::new(),
        left_out: Vec::new(),
    };
    for name in WANTED {
        loading.add(name);
    }
    let Loading { modules, left_out, bytes, .. } = loading;
    tracing::debug!(count = modules.len(), bytes, left_out = left_out.join(", "), "early modules");
    modules
}

/// Line of `modules.dep`: the path of a module, and those of the modules that it needs, the one to
/// be loaded last first.
struct Entry<'a> {
    path: &'a str,
    needs: Vec<&'a str>,
}

/// Parses `modules.dep(5)`.
fn entries(list: &str) -> BTreeMap<String, Entry<'_>> {
    let entries = list.lines().filter_map(|line| {
        let (path, needs) = line.split_once(':')?;
        Some((name_of(path)?, Entry { path, needs: needs.split_whitespace().collect() }))
    });
    entries.collect()
}

/// Returns the name of a module by its file's: without suffixes, and with underscores.
fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, _) = file.split_once(".ko")?;
    is_plain(name).then(|| name.replace('-', "_"))
}

/// Returns `true` for a name that leads nowhere else.
fn is_plain(name: &str) -> bool {
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+~".contains(&byte);
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(is_safe)
}

/// Modules that are being collected.
struct Loading<'a, 'r> {
    entries: BTreeMap<String, Entry<'a>>,
    directory: String,
    read: &'a mut Read<'r>,
    visited: BTreeSet<String>,
    bytes: usize,
    modules: Vec<EarlyModule>,
    left_out: Vec<String>,
}

impl Loading<'_, '_> {
    /// Adds a module after those that it needs. Returns `false` if it or one of them is left out.
    fn add(&mut self, name: &str) -> bool {
        if !self.visited.insert(name.to_owned()) {
            // A module that needs itself is also found here, and left to the kernel.
            return self.modules.iter().any(|module| module.name == name);
        }
        // Built in, or not there at all.
        let Some(entry) = self.entries.get(name) else { return false };
        let path = match entry.path {
            absolute if absolute.starts_with('/') => absolute.to_owned(),
            relative => format!("{}/{relative}", self.directory),
        };
        let needs: Vec<_> = entry.needs.iter().rev().filter_map(|path| name_of(path)).collect();
        // Each call of this function adds a name to the bounded set.
        if self.visited.len() > MAX_MODULES || !needs.iter().all(|needed| self.add(needed)) {
            self.left_out.push(name.to_owned());
            return false;
        }
        let content = (self.read)(&path, MAX_MODULE_BYTES)
            .and_then(|file| inflate::inflate(file, MAX_MODULE_BYTES));
        match content {
            Ok(content) if self.bytes + content.len() <= MAX_TOTAL_BYTES => {
                self.bytes += content.len();
                self.modules.push(EarlyModule { name: name.to_owned(), content });
                true
            }
            Ok(_) => {
                self.left_out.push(format!("{name}: too many bytes"));
                false
            }
            Err(reason) => {
                self.left_out.push(format!("{name}: {reason}"));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
