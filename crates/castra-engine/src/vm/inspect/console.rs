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
use crate::vm::error::{AccessError, FileAction, StateError, VmError, VmIoError};
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
/// Returns [`StateError::NotRunning`], [`AccessError::ConsoleTaken`] with the connected process,
/// [`AccessError::NoConsole`] or [`VmIoError::File`].
pub fn open_console(record: &Record, layout: &ProjectLayout) -> Result<Console, VmError> {
    let (vm, files) = (record.name.clone(), layout.vm(&record.name));
    let (state, _) = observe(record, &files);
    let boot = record.boot.as_ref().filter(|_| state.is_alive());
    let boot = boot.ok_or_else(|| StateError::NotRunning { vm: vm.clone(), state })?;
    let path = files.console_lock();
    let failed = |source| VmIoError::File { action: FileAction::Lock, path: path.clone(), source };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let lock = trusted::open_with(&mut options, &path).map_err(failed)?;
    // A kind of lock whose holder the kernel reports.
    match fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::AGAIN | Errno::ACCESS) => {
            return Err(AccessError::ConsoleTaken { vm, pid: lock_holder(&path) }.into());
        }
        Err(errno) => return Err(failed(errno.into()).into()),
    }
    let socket = boot.socket_paths().console();
    match UnixStream::connect(&socket).and_then(|stream| check_listener(&stream).map(|()| stream)) {
        Ok(stream) => Ok(Console { stream, _lock: lock }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(AccessError::NoConsole { vm, socket }.into())
        }
        Err(source) => {
            Err(VmIoError::File { action: FileAction::ConnectTo, path: socket, source }.into())
        }
    }
}
