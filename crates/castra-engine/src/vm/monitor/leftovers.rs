//! Removal of the files of a QEMU that has exited.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::layout::{SocketsLayout, VmLayout};
use crate::qemu::{is_listened_at, remove_sockets};
use crate::vm::companion::end_leftover;

/// Checks of a socket whose QEMU has just ended: the kernel frees its locks before it closes its
/// sockets, a moment that takes as long as other processes have the CPUs.
const LOOKS: u32 = 300;
/// Time between the checks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Removes what a QEMU that has exited leaves behind, and saved memory that no longer counts.
/// Nothing here is data.
pub(in crate::vm) fn clean_up(files: &VmLayout, sockets: &SocketsLayout) {
    for leftover in [files.machine_state(), files.unfinished_machine_state()] {
        // The next suspend overwrites what remains.
        let _ = fs::remove_file(leftover);
    }
    clean_up_run(files, sockets);
}

/// Removes what a QEMU that has exited leaves behind, for a VM whose saved memory still counts.
pub(in crate::vm) fn clean_up_run(files: &VmLayout, sockets: &SocketsLayout) {
    // Files may be missing already, and what cannot be removed is replaced on the next start.
    for leftover in [files.pidfile(), files.initramfs()] {
        let _ = fs::remove_file(leftover);
    }
    // Sockets at which a QEMU listens belong to another VM, whatever a record says.
    if sockets.of_every_vm().iter().all(|socket| is_abandoned(socket)) {
        end_leftover(sockets);
        remove_sockets(sockets);
    }
}

/// Returns `true` if a QEMU listens at one of these sockets.
pub(in crate::vm) fn is_in_use(sockets: &SocketsLayout) -> bool {
    sockets.of_every_vm().iter().any(|socket| is_listened_at(socket))
}

fn is_abandoned(socket: &Path) -> bool {
    (0..LOOKS).any(|look| {
        if look > 0 {
            thread::sleep(LOOK_EVERY);
        }
        !is_listened_at(socket)
    })
}
