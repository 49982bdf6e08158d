//! Finds running QEMUs of Castra's without knowing their projects, by the pid file that each has
//! open and locked.
//!
//! Names and command lines prove nothing, since any process may have them. Proof is QEMU's lock on
//! a file in a place where Castra puts it, and the kernel reports who holds that lock and the
//! file's current path, if it still has one.

use std::path::{Path, PathBuf};

use crate::layout::ProjectLayout;

use super::liveness::QemuPid;

/// A QEMU of this user's that runs a VM.
#[derive(Debug)]
pub struct FoundQemu {
    /// The process.
    pub qemu: QemuPid,
    /// Name of the VM.
    pub vm: String,
    /// Current directory of its project, or the last one if the project is gone.
    pub project: ProjectLayout,
    /// Set if its project is gone: this process is all that is left of the VM.
    pub is_orphan: bool,
    /// Directory of its project when it was started.
    pub started_in: ProjectLayout,
}

/// Returns all QEMUs of this user's VMs, by pid; none if the kernel does not report open files.
/// Leaves out throw-away VMs: they have no project, and end with their castra.
pub fn find_qemus() -> Vec<FoundQemu> {
    let mut found: Vec<FoundQemu> =
        platform::own_processes().into_iter().filter_map(qemu_of_process).collect();
    found.sort_by_key(|one| one.qemu.pid());
    found
}

/// Returns the VM that this process runs, if it is a QEMU of Castra's.
pub fn qemu_of_process(pid: i32) -> Option<FoundQemu> {
    let started = platform::argument_of(pid, "-pidfile")?;
    let (started_in, vm) = ProjectLayout::of_pidfile(&started)?;
    // The command line has the path of the start; the open file has the current one.
    let (link, qemu) = platform::locked_pidfile(pid, started.file_name()?)?;
    let (path, is_orphan) = without_mark(&link);
    let (project, _) = ProjectLayout::of_pidfile(&path)?;
    (!started_in.is_for_runs()).then_some(FoundQemu { qemu, vm, project, is_orphan, started_in })
}

/// Splits a path that the kernel reports for an open file into the path and a flag that is set if
/// the file has been deleted (`proc_pid_fd(5)`).
fn without_mark(link: &Path) -> (PathBuf, bool) {
    use std::os::unix::ffi::OsStrExt as _;
    let bytes = link.as_os_str().as_bytes();
    match bytes.strip_suffix(b" (deleted)") {
        Some(path) => (Path::new(std::ffi::OsStr::from_bytes(path)).to_owned(), true),
        None => (link.to_owned(), false),
    }
}

#[cfg(target_os = "linux")]
mod platform {
    use std::ffi::{OsStr, OsString};
    use std::fs;
    use std::os::unix::ffi::OsStringExt as _;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::{Path, PathBuf};

    use super::super::liveness::{QemuPid, qemu_of};

    pub(super) fn own_processes() -> Vec<i32> {
        let own = rustix::process::geteuid().as_raw();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let is_own =
            |entry: &fs::DirEntry| entry.metadata().is_ok_and(|metadata| metadata.uid() == own);
        let pid = |entry: fs::DirEntry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            is_own(&entry).then_some(pid)
        };
        entries.filter_map(pid).collect()
    }

    /// Returns the argument that follows `option` on a process's command line.
    pub(super) fn argument_of(pid: i32, option: &str) -> Option<PathBuf> {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let mut words = line.split(|byte| *byte == 0).skip_while(|word| *word != option.as_bytes());
        let value = words.nth(1)?;
        Some(OsString::from_vec(value.to_vec()).into())
    }

    /// Returns the path and the QEMU of the pid file with this name that the process has open and
    /// locked.
    pub(super) fn locked_pidfile(pid: i32, name: &OsStr) -> Option<(PathBuf, QemuPid)> {
        let directory = PathBuf::from(format!("/proc/{pid}/fd"));
        for entry in fs::read_dir(directory).ok()?.flatten() {
            let Ok(link) = fs::read_link(entry.path()) else { continue };
            let (path, _) = super::without_mark(&link);
            if path.file_name() != Some(name) {
                continue;
            }
            if let Some(qemu) =
                open_own(&entry.path()).and_then(qemu_of).filter(|qemu| qemu.pid() == pid)
            {
                return Some((link, qemu));
            }
        }
        None
    }

    fn open_own(path: &Path) -> Option<std::os::fd::OwnedFd> {
        fs::File::open(path).ok().map(Into::into)
    }
}

/// Fallback for systems whose kernel does not show a process's open files.
#[cfg(not(target_os = "linux"))]
mod platform {
    use std::ffi::OsStr;
    use std::path::PathBuf;

    use super::super::liveness::QemuPid;

    pub(super) fn own_processes() -> Vec<i32> {
        Vec::new()
    }

    pub(super) fn argument_of(_pid: i32, _option: &str) -> Option<PathBuf> {
        None
    }

    pub(super) fn locked_pidfile(_pid: i32, _name: &OsStr) -> Option<(PathBuf, QemuPid)> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_name_is_recognised() {
        let split = |text: &str| without_mark(Path::new(text));
        assert_eq!(
            split("/p/.castra/vms/web/qemu.pid"),
            ("/p/.castra/vms/web/qemu.pid".into(), false)
        );
        assert_eq!(split("/p/vms/web/qemu.pid (deleted)"), ("/p/vms/web/qemu.pid".into(), true));
    }

    #[test]
    fn a_process_that_only_looks_like_one_is_none() {
        // This test's own process has no `-pidfile`, and holds no lock on one.
        let pid = i32::try_from(std::process::id()).expect("a pid");
        assert!(qemu_of_process(pid).is_none());
    }
}
