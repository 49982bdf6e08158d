//! State of the host that may keep a guest from booting, gathered only after a boot has failed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::layout::VmLayout;

/// State of the host. Facts that cannot be determined are `None`.
#[derive(Debug, Clone, PartialEq, Default)]
pub(in crate::vm) struct HostFacts {
    /// Processes that run or wait to, averaged over the last minute.
    pub(in crate::vm) load: Option<f64>,
    /// CPUs that this process may use.
    pub(in crate::vm) cpus: Option<usize>,
    /// Memory in MiB that is available without swapping.
    pub(in crate::vm) available_mib: Option<u64>,
    /// Free space in MiB on the filesystem of the VM's disk.
    pub(in crate::vm) free_disk_mib: Option<u64>,
    /// Number of processes that the kernel has killed for lack of memory since the host booted.
    pub(in crate::vm) oom_kills: Option<u64>,
    /// Name and pid of the process that has a file open which QEMU could not lock.
    pub(in crate::vm) disk_holder: Option<String>,
}

impl HostFacts {
    /// Gathers the facts. `qemu` is QEMU's output: a file that it could not lock is looked for in
    /// other processes.
    pub(in crate::vm) fn gather(files: &VmLayout, qemu: &str) -> Self {
        let mut facts = Self::load();
        facts.available_mib = field("/proc/meminfo", "MemAvailable:").map(|kib| kib >> 10);
        facts.oom_kills = field("/proc/vmstat", "oom_kill");
        facts.free_disk_mib = rustix::fs::statvfs(files.directory())
            .ok()
            .map(|status| status.f_bavail.saturating_mul(status.f_frsize) >> 20);
        facts.disk_holder = locked_file(qemu).and_then(|file| holder(&file));
        facts
    }

    /// Gathers only the load and the number of CPUs.
    pub(in crate::vm) fn load() -> Self {
        let load = fs::read_to_string("/proc/loadavg").ok();
        Self {
            load: load.and_then(|text| text.split(' ').next()?.parse().ok()),
            cpus: std::thread::available_parallelism().ok().map(usize::from),
            ..Self::default()
        }
    }

    /// Returns the number of processes per CPU.
    pub(in crate::vm) fn load_per_cpu(&self) -> Option<f64> {
        Some(self.load? / self.cpus? as f64)
    }
}

/// Returns the number after a name, in a kernel file with one such pair per line.
fn field(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Returns the file that QEMU could not lock, from its message `Is another process using the image
/// [PATH]?`
pub(super) fn locked_file(qemu: &str) -> Option<PathBuf> {
    let (_, rest) = qemu.split_once("Is another process using the image [")?;
    Some(PathBuf::from(rest.lines().next()?.strip_suffix("]?")?))
}

/// Finds the process that has a file open. `/proc/locks` names no process for QEMU's kind of locks,
/// which belong to an open file.
fn holder(file: &Path) -> Option<String> {
    let file = file.canonicalize().ok()?;
    let has_it_open = |process: &Path| {
        let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|open| open == file)
    };
    fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path()).find_map(|process| {
        let pid: i32 = process.file_name()?.to_str()?.parse().ok()?;
        let name = has_it_open(&process)
            .then(|| fs::read_to_string(process.join("comm")).unwrap_or_default());
        name.map(|name| format!("{} (process {pid})", name.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_can_be_looked_at() {
        let facts =
            HostFacts::gather(&crate::layout::ProjectLayout::unchecked("/".into()).vm(".."), "");
        assert!(facts.load_per_cpu().is_some_and(|load| load >= 0.0), "{facts:?}");
        assert!(facts.available_mib.is_some_and(|mib| mib > 0), "{facts:?}");
        assert!(facts.oom_kills.is_some(), "{facts:?}");
    }

    #[test]
    fn the_vm_that_has_the_disk_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let said = format!(
            "qemu-system-x86_64: -blockdev driver=qcow2,node-name=disk: Failed to get \"write\" \
            lock\n\
            Is another process using the image [{}]?\n",
            file.path().display()
        );
        assert_eq!(locked_file(&said).as_deref(), Some(file.path()));
        let found = holder(file.path()).expect("this process");
        assert!(found.ends_with(&format!("(process {})", std::process::id())), "{found}");
        drop(file);
        assert_eq!(locked_file("qemu: something else"), None);
    }
}
