//! What a QEMU that is gone leaves behind.

use std::fs;

use crate::layout::{SocketsLayout, VmLayout};

/// Removes what a QEMU that is gone leaves behind, and saved memory that counts no more. Nothing here is data.
pub(super) fn clean_up(files: &VmLayout, sockets: &SocketsLayout) {
    for leftover in [files.machine_state(), files.unfinished_machine_state()] {
        // What stays is written over by the next suspend.
        let _ = fs::remove_file(leftover);
    }
    clean_up_run(files, sockets);
}

/// The same for a VM whose saved memory counts.
pub(super) fn clean_up_run(files: &VmLayout, sockets: &SocketsLayout) {
    for leftover in [files.pidfile(), files.initramfs()].into_iter().chain(sockets.all()) {
        // What is not there need not go, and what cannot go is replaced on the next start.
        let _ = fs::remove_file(leftover);
    }
    let _ = fs::remove_dir(sockets.directory());
    let _ = sockets.directory().parent().map(fs::remove_dir);
}
