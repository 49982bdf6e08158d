//! Stream ports: virtio-serial ports over which commands reach the guest's agent without the
//! guest's network.
//!
//! QEMU serves one client per port and lets others wait without a word. So each port has a lock
//! file, which is held by the process that uses the port; the kernel frees it whenever that ends.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::files::Lock;
use crate::layout::SocketsLayout;
use crate::trusted;
use crate::wait::connect_at_once;

/// Stream ports of a running VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamPorts {
    /// Sockets of the VM.
    pub sockets: SocketsLayout,
    /// Number of its stream ports.
    pub count: u32,
}

/// Stream ports from which a connection to the guest takes one.
#[derive(Debug, Clone)]
pub enum Streams {
    /// Ports of a VM that other processes use as well.
    Shared(StreamPorts),
    /// Ports that this process has taken for as long as the VM runs, since their sockets are gone.
    Held(HeldPorts),
}

/// Stream ports that this process keeps. Each serves one session after another.
#[derive(Debug, Clone)]
pub struct HeldPorts(Arc<Mutex<Vec<StreamPort>>>);

/// A stream port in use. Dropping it returns a held port to the others, and frees a shared one.
#[derive(Debug)]
pub struct TakenPort {
    /// `None` once it is returned.
    port: Option<StreamPort>,
    home: Option<HeldPorts>,
}

impl Streams {
    /// Takes a port. Returns `None` if all are in use.
    ///
    /// # Errors
    /// As [`StreamPort::acquire`].
    pub fn take(&self) -> io::Result<Option<TakenPort>> {
        Ok(match self {
            Self::Shared(ports) => {
                StreamPort::acquire(ports)?.map(|port| TakenPort { port: Some(port), home: None })
            }
            Self::Held(held) => held
                .ports()
                .pop()
                .map(|port| TakenPort { port: Some(port), home: Some(held.clone()) }),
        })
    }
}

impl HeldPorts {
    /// Takes at most `count` ports of a VM, for as long as this lives.
    ///
    /// # Errors
    /// As [`StreamPort::acquire`].
    pub fn hold(ports: &StreamPorts, count: usize) -> io::Result<Self> {
        let taken = std::iter::from_fn(|| StreamPort::acquire(ports).transpose()).take(count);
        Ok(Self(Arc::new(Mutex::new(taken.collect::<io::Result<_>>()?))))
    }

    fn ports(&self) -> MutexGuard<'_, Vec<StreamPort>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TakenPort {
    /// Returns another descriptor of the connection.
    ///
    /// # Errors
    /// The process has too many descriptors.
    pub fn connection(&self) -> io::Result<UnixStream> {
        let port = self.port.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        port.stream.try_clone()
    }
}

impl Drop for TakenPort {
    fn drop(&mut self) {
        if let (Some(home), Some(port)) = (&self.home, self.port.take()) {
            home.ports().push(port);
        }
    }
}

/// A stream port that this process alone uses, until this is dropped.
#[derive(Debug)]
pub struct StreamPort {
    index: u32,
    // Closed before the lock is freed, so that QEMU is about to serve the next client.
    stream: UnixStream,
    _lock: Lock,
}

impl StreamPort {
    /// Takes the first port that no other process uses, and connects to it. Returns `None` if all
    /// are in use.
    ///
    /// # Errors
    /// Returns an error that names the file if a lock cannot be opened or is not trusted, or if the
    /// socket of the free port is gone, refuses or belongs to another user's process.
    pub fn acquire(ports: &StreamPorts) -> io::Result<Option<Self>> {
        let StreamPorts { sockets, count } = ports;
        if !sockets.is_own() {
            let directory = sockets.directory().display();
            let message = format!("{directory} is gone, or does not belong to this user");
            return Err(io::Error::new(io::ErrorKind::NotFound, message));
        }
        for index in 0..*count {
            if let Some(lock) = try_lock(&sockets.stream_lock(index))? {
                let socket = sockets.stream(index);
                let stream =
                    connect_at_once(&socket).map_err(|error| at(&socket, "connect to", &error))?;
                return Ok(Some(Self { index, stream, _lock: lock }));
            }
        }
        Ok(None)
    }

    /// Returns another descriptor of the connection.
    ///
    /// # Errors
    /// The process has too many descriptors.
    pub fn connection(&self) -> io::Result<UnixStream> {
        self.stream.try_clone()
    }

    /// Returns the index of the port, from 0.
    pub fn index(&self) -> u32 {
        self.index
    }
}

/// Takes a lock if it is free. Its file is removed with the VM's sockets, and then created again.
pub(super) fn try_lock(path: &Path) -> io::Result<Option<Lock>> {
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file =
            trusted::open_with(&mut options, path).map_err(|error| at(path, "lock", &error))?;
        match Lock::try_hold(file, path).map_err(io::Error::other)? {
            Some(lock) if !lock.is_on(path) => {}
            taken => return Ok(taken),
        }
    }
}

fn at(path: &Path, action: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {action} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::os::unix::net::UnixListener;

    use castra_wire::STREAM_PORTS;

    use super::*;

    /// A directory of sockets in which all stream ports are served.
    struct Vm {
        directory: tempfile::TempDir,
        ports: StreamPorts,
        _listeners: Vec<UnixListener>,
    }

    fn vm() -> Vm {
        let directory = tempfile::tempdir().expect("a directory");
        let sockets = SocketsLayout::new(directory.path().join("castra/project/vm"));
        fs::create_dir_all(sockets.directory()).expect("made");
        let listen = |index| UnixListener::bind(sockets.stream(index)).expect("listens");
        let listeners = (0..STREAM_PORTS).map(listen).collect();
        let ports = StreamPorts { sockets, count: STREAM_PORTS };
        Vm { directory, ports, _listeners: listeners }
    }

    fn acquire(vm: &Vm) -> Option<u32> {
        StreamPort::acquire(&vm.ports).expect("no trouble").map(|port| port.index())
    }

    fn refused(vm: &Vm) -> String {
        StreamPort::acquire(&vm.ports).expect_err("refused").to_string()
    }

    #[test]
    fn each_port_has_one_user_at_a_time() {
        let vm = vm();
        let take = || StreamPort::acquire(&vm.ports).expect("no trouble");
        let mut taken: Vec<_> = (0..STREAM_PORTS).map(|_| take().expect("a free port")).collect();
        let indices: Vec<u32> = taken.iter().map(StreamPort::index).collect();
        assert_eq!(indices, (0..STREAM_PORTS).collect::<Vec<_>>());
        assert!(take().is_none());
        drop(taken.remove(5));
        let again = take().expect("free again");
        assert_eq!(again.index(), 5);
        let lock = fs::metadata(vm.ports.sockets.stream_lock(5)).expect("is there");
        assert_eq!(lock.permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn only_own_files_are_locked() {
        let vm = vm();
        let lock = vm.ports.sockets.stream_lock(0);
        let elsewhere = vm.directory.path().join("elsewhere");
        symlink(&elsewhere, &lock).expect("linked");
        assert_eq!(
            refused(&vm),
            format!("cannot lock {}: it is a symbolic link, not a regular file", lock.display())
        );
        assert!(!elsewhere.exists());
        fs::remove_file(&lock).expect("removed");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &lock, rustix::fs::FileType::Fifo, mode, 0)
            .expect("made");
        assert!(refused(&vm).ends_with("it is a FIFO, not a regular file"), "{}", refused(&vm));
        fs::remove_file(&lock).expect("removed");
        assert_eq!(acquire(&vm), Some(0));
    }

    #[test]
    fn a_port_without_a_listener_is_an_error_that_names_it() {
        let vm = vm();
        let socket = vm.ports.sockets.stream(0);
        fs::remove_file(&socket).expect("removed");
        let missing = StreamPort::acquire(&vm.ports).expect_err("no socket");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(missing.to_string().contains(&format!("connect to {}", socket.display())));
        drop(UnixListener::bind(&socket).expect("listens"));
        let refusal = StreamPort::acquire(&vm.ports).expect_err("no listener");
        assert_eq!(refusal.kind(), io::ErrorKind::ConnectionRefused);
        fs::remove_dir_all(vm.ports.sockets.directory()).expect("removed");
        assert!(refused(&vm).contains("is gone"), "{}", refused(&vm));
    }

    #[test]
    fn a_lock_that_was_removed_with_its_sockets_excludes_no_other_process() {
        let vm = vm();
        let first = StreamPort::acquire(&vm.ports).expect("no trouble").expect("free");
        fs::remove_file(vm.ports.sockets.stream_lock(0)).expect("removed");
        assert_eq!(acquire(&vm), Some(0));
        drop(first);
    }
}
