//! Serial console of a running VM, for one client at a time: QEMU serves no more, and would let a
//! second one wait silently.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

use crate::layout::ProjectLayout;
use crate::qemu::lock_holder;
use crate::trusted;
use crate::vm::error::VmError;
use crate::vm::record::{Record, observe};
use crate::wait::check_listener;

/// A connection to a console. There is no other while this one exists.
#[derive(Debug)]
pub struct Console {
    /// Stream to and from the guest.
    pub stream: UnixStream,
    _lock: File,
}

/// Connects to the console of a running VM.
///
/// # Errors
/// Returns [`VmError::NotRunning`], [`VmError::ConsoleTaken`] with the connected process,
/// [`VmError::NoConsole`] or [`VmError::Disk`].
pub fn open_console(record: &Record, layout: &ProjectLayout) -> Result<Console, VmError> {
    let (vm, files) = (record.name.clone(), layout.vm(&record.name));
    let (state, _) = observe(record, &files);
    let boot = record.boot.as_ref().filter(|_| state.is_alive());
    let boot = boot.ok_or_else(|| VmError::NotRunning { vm: vm.clone(), state })?;
    let path = files.console_lock();
    let failed = |source| VmError::Disk { action: "lock", path: path.clone(), source };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let lock = trusted::open_with(&mut options, &path).map_err(failed)?;
    // A kind of lock whose holder the kernel reports.
    match fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::AGAIN | Errno::ACCESS) => {
            return Err(VmError::ConsoleTaken { vm, pid: lock_holder(&path) });
        }
        Err(errno) => return Err(failed(errno.into())),
    }
    let socket = boot.socket_paths().console();
    match UnixStream::connect(&socket).and_then(|stream| check_listener(&stream).map(|()| stream)) {
        Ok(stream) => Ok(Console { stream, _lock: lock }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(VmError::NoConsole { vm, socket })
        }
        Err(source) => Err(VmError::Disk { action: "connect to", path: socket, source }),
    }
}
