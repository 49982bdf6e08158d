//! Companions that have outlived their QEMU.
//!
//! A companion ends once QEMU's end closes its port. One that is stopped (SIGSTOP) does not notice
//! that.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::context::RuntimeContext;
use crate::guest::Companion;
use crate::layout::SocketsLayout;
use crate::vm::monitor::is_in_use;

/// Time that a companion has to notice the end of its QEMU.
const NOTICE: Duration = Duration::from_millis(200);

/// A companion whose QEMU has ended.
#[derive(Debug)]
pub struct OutlivedCompanion {
    /// Name of the VM.
    pub vm: String,
    /// Pid of the process.
    pub pid: i32,
    /// Directory of the VM's sockets.
    pub sockets: PathBuf,
}

/// Returns the companions of this user's that have outlived their QEMUs.
pub fn outlived_companions(context: &RuntimeContext) -> Vec<OutlivedCompanion> {
    let found = || {
        let entries = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten();
        let projects = entries(context.runtime_root.clone());
        let vms = projects.flat_map(|project| entries(project.path()));
        vms.filter_map(|vm| outlived(&vm.path())).collect::<Vec<_>>()
    };
    if found().is_empty() {
        return Vec::new();
    }
    thread::sleep(NOTICE);
    found()
}

/// Ends a companion that has outlived its QEMU, and removes its socket.
pub fn end_companion(companion: &OutlivedCompanion) {
    if outlived(&companion.sockets).is_some_and(|found| found.pid == companion.pid) {
        let sockets = SocketsLayout::new(companion.sockets.clone());
        end_leftover(&sockets);
        crate::qemu::remove_sockets(&sockets);
    }
}

/// Ends the companion of a QEMU that has ended, if it does not end by itself.
pub(in crate::vm) fn end_leftover(sockets: &SocketsLayout) {
    if let Ok(companion) = Companion::connect(sockets)
        && !companion.ends_within(NOTICE)
    {
        companion.kill();
    }
}

fn outlived(directory: &std::path::Path) -> Option<OutlivedCompanion> {
    let sockets = SocketsLayout::new(directory.to_owned());
    let companion = Companion::connect(&sockets).ok()?;
    if is_in_use(&sockets) {
        return None;
    }
    let pid = companion.pid()?.as_raw_nonzero().get();
    let vm = directory.file_name()?.to_string_lossy().into_owned();
    Some(OutlivedCompanion { vm, pid, sockets: directory.to_owned() })
}
