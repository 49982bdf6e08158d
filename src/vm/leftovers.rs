//! What a QEMU that is gone leaves behind.

use std::fs;

use crate::layout::{SocketsLayout, VmLayout};

/// Removes what a QEMU that is gone leaves behind. Nothing here is data.
pub(super) fn clean_up(files: &VmLayout, sockets: &SocketsLayout) {
    for leftover in [files.pidfile(), files.initramfs(), sockets.qmp(), sockets.control()] {
        // What is not there need not go, and what cannot go is replaced on the next start.
        let _ = fs::remove_file(leftover);
    }
    let _ = fs::remove_dir(sockets.directory());
    let _ = sockets.directory().parent().map(fs::remove_dir);
}
