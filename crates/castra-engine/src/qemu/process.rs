//! Starts QEMU, detached, on sockets that Castra has bound; if it dies, that is the first
//! diagnosis.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, waitpid};
use serde_json::json;

use crate::cancel::Cancel;
use crate::command::{self, CommandError, Lifetime};
use crate::failpoint::{self, Point};
use crate::files::{self, create_private_directory};
use crate::layout::{CacheLayout, MAX_SOCKET_PATH_BYTES, SocketsLayout};
use crate::logs;
use crate::trusted;
use crate::wait::WaitLimit;

use super::argv::{Channels, MachineSpec, arguments};
use super::binary::QemuBinary;
use super::cpu_threads::CpuThreads;
use super::error::QemuError;
use super::kernel;
use super::migrate::{ignore_shared_memory, load_state};
use super::qmp::{Qmp, QmpError};

/// Time limit for QEMU's greeting. 0.1 s is usual; on a machine that swaps it takes longer.
const GREETING_LIMIT: Duration = Duration::from_secs(30);

/// Interval at which the wait for the greeting checks the child and Ctrl-C.
const POLL: Duration = Duration::from_millis(100);

/// Time limit for loading a saved state.
const LOAD_LIMIT: Duration = Duration::from_secs(30);

/// Time for a QEMU that has closed its connections to exit by itself.
const DYING_LIMIT: Duration = Duration::from_millis(500);

/// Interval of checks while waiting for QEMU's end.
const END_POLL: Duration = Duration::from_millis(2);

/// A QEMU that this process has started and that has sent its greeting.
#[derive(Debug)]
pub struct QemuProcess {
    child: Started,
    /// Version, as reported by QEMU.
    pub version: String,
    /// Time of the greeting.
    pub greeted: Instant,
    /// Connection to the control port of a guest that was restored from a template. It was made
    /// before the guest runs, which was saved with a host connected and would notice another's
    /// coming.
    pub control: Option<UnixStream>,
}

impl QemuProcess {
    /// Returns `true` while the process lives.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for the process to end. Returns its exit status, or `None` once `limit` has passed.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < deadline => thread::sleep(END_POLL),
                ended => return ended.ok().flatten(),
            }
        }
    }

    /// Returns the signal that has ended QEMU, or is about to.
    pub fn signal(&mut self) -> Option<i32> {
        signal_of(&mut self.child)
    }

    /// Waits for the process to end, as requested before, and kills it after `limit`.
    pub fn end(mut self, limit: Duration) {
        self.wait(limit);
        kill(&mut self.child);
    }

    /// Kills the process, for a start that is given up.
    pub fn kill(mut self) {
        kill(&mut self.child);
    }
}

/// A child that may outlive what has started it. Dropped while it runs, it is left running, and
/// reaped when it ends: a program that serves others starts many.
#[derive(Debug)]
struct Started {
    child: Child,
    lifetime: Lifetime,
}

impl Deref for Started {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.child
    }
}

impl DerefMut for Started {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // One with another lifetime is waited for by those who have started it.
        if self.lifetime == Lifetime::Own && matches!(self.child.try_wait(), Ok(None)) {
            let pid = Pid::from_child(&self.child);
            thread::spawn(move || {
                let _ = waitpid(Some(pid), WaitOptions::empty());
            });
        }
    }
}

/// A saved state to load.
#[derive(Debug)]
pub enum Incoming {
    /// State of the devices: memory is in a file. The machine runs once it is loaded.
    Devices(File),
    /// State of a whole machine, which stays paused once it is loaded, until it is resumed.
    Machine(File),
}

/// Parameters of a start.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The machine.
    pub spec: &'a MachineSpec,
    /// Paths of its sockets.
    pub sockets: &'a SocketsLayout,
    /// File for QEMU's stderr.
    pub log: &'a Path,
    /// A saved state to load, instead of a boot.
    pub incoming: Option<Incoming>,
    /// Lifetime of QEMU.
    pub lifetime: Lifetime,
    /// Cache with what is known about this QEMU.
    pub cache: &'a CacheLayout,
}

/// Starts QEMU and waits until it has sent its greeting on the machine protocol and loaded its
/// saved state. The machine then runs, except after [`Incoming::Machine`].
///
/// # Errors
/// [`QemuError::Died`] with QEMU's own message, [`QemuError::NotResponding`], or the reason why the
/// sockets and logs could not be made. In every case no process is left behind.
pub fn launch(
    binary: &QemuBinary,
    launch: Launch<'_>,
    cancel: &Cancel,
) -> Result<QemuProcess, QemuError> {
    let Launch { spec, sockets, log, incoming, lifetime, cache } = launch;
    kernel::check(&spec.boot)?;
    prepare_socket_directory(sockets)?;
    let qmp_listener = listen(&sockets.qmp())?;
    let control_listener = listen(&sockets.control())?;
    let console_listener = listen(&sockets.console())?;
    let stream_listeners = (0..spec.stream_ports.get())
        .map(|index| listen(&sockets.stream(index)))
        .collect::<Result<Vec<_>, _>>()?;
    // Connected before QEMU exists: the greeting arrives the moment QEMU serves, without polling.
    let connect = |path| UnixStream::connect(path).map_err(|source| socket_error(sockets, source));
    let qmp = connect(sockets.qmp())?;
    let is_restore = matches!(incoming, Some(Incoming::Devices(_)));
    let control = is_restore.then(|| connect(sockets.control())).transpose()?;
    // QEMU would write to an existing file with this name.
    files::part_from_other_names(&spec.pidfile).map_err(|source| QemuError::File {
        action: "write",
        path: spec.pidfile.clone(),
        source,
    })?;
    begin_log(&spec.console_log)?;
    let log_file = begin_log(log)?;
    let channels = Channels {
        qmp: qmp_listener.as_raw_fd(),
        control: control_listener.as_raw_fd(),
        console: console_listener.as_raw_fd(),
        streams: stream_listeners.iter().map(AsRawFd::as_raw_fd).collect(),
        incoming: incoming.is_some(),
        threads: CpuThreads::of(spec, binary, cache, cancel),
    };
    let invocation =
        binary.invocation().args(arguments(spec, &channels)).args(binary.user_arguments.words());
    let passed: Vec<OwnedFd> = [qmp_listener, control_listener, console_listener]
        .into_iter()
        .chain(stream_listeners)
        .map(OwnedFd::from)
        .collect();
    let mut child = command::spawn_detached(&invocation, log_file, &passed, lifetime)
        .map_err(|source| not_started(binary, source))?;
    // From here on only QEMU listens, so that its death closes the connection.
    drop(passed);
    let greeted = await_greeting(&mut child, qmp, cancel).and_then(|mut qmp| {
        let greeted = Instant::now();
        incoming.map_or(Ok(()), |state| load(&mut qmp, &state, cancel))?;
        Ok((qmp.version().to_owned(), greeted))
    });
    match greeted {
        Ok((version, greeted)) => {
            let child = Started { child, lifetime };
            Ok(QemuProcess { child, version, greeted, control })
        }
        Err(failure) => {
            // QEMU's connection closes a moment before the process ends.
            let signal =
                if matches!(failure, Failure::Died) { signal_of(&mut child) } else { None };
            kill(&mut child);
            Err(match failure {
                Failure::Interrupted(interrupted) => interrupted.into(),
                Failure::Died => died(&spec.name, log, signal),
                Failure::Qmp(source) => QemuError::NotResponding { vm: spec.name.clone(), source },
            })
        }
    }
}

enum Failure {
    Died,
    Qmp(QmpError),
    Interrupted(crate::cancel::Interrupted),
}

fn await_greeting(child: &mut Child, qmp: UnixStream, cancel: &Cancel) -> Result<Qmp, Failure> {
    let deadline = Instant::now() + GREETING_LIMIT;
    let readable = |limit: Duration| {
        let limit = rustix::event::Timespec { tv_sec: 0, tv_nsec: limit.subsec_nanos().into() };
        let mut fds = [rustix::event::PollFd::new(&qmp, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&limit)).is_ok_and(|ready| ready > 0)
    };
    while !readable(POLL) {
        cancel.check().map_err(Failure::Interrupted)?;
        if !matches!(child.try_wait(), Ok(None)) {
            return Err(Failure::Died);
        }
        if Instant::now() >= deadline {
            return Err(Failure::Qmp(QmpError::Silent(GREETING_LIMIT)));
        }
    }
    Qmp::greet(qmp, WaitLimit::new(GREETING_LIMIT, cancel)).map_err(failure)
}

/// Loads a saved state into a machine that waits for it. A QEMU that cannot load it exits.
fn load(qmp: &mut Qmp, state: &Incoming, cancel: &Cancel) -> Result<(), Failure> {
    if let Incoming::Devices(_) = state {
        failpoint::reach(Point::RestoreGreeted);
    }
    cancel.check().map_err(Failure::Interrupted)?;
    let limit = &WaitLimit::new(LOAD_LIMIT, cancel);
    let loaded = match state {
        Incoming::Devices(file) => ignore_shared_memory(qmp)
            .and_then(|()| load_state(qmp, file, limit))
            .and_then(|()| qmp.execute("cont", json!({})).map(drop)),
        Incoming::Machine(file) => load_state(qmp, file, limit),
    };
    loaded.map_err(failure)
}

fn failure(error: QmpError) -> Failure {
    match error {
        QmpError::Closed => Failure::Died,
        QmpError::Interrupted(interrupted) => Failure::Interrupted(interrupted),
        error => Failure::Qmp(error),
    }
}

fn died(vm: &str, log: &Path, signal: Option<i32>) -> QemuError {
    QemuError::Died { vm: vm.to_owned(), stderr: end_of_log(log), signal }
}

/// Returns the end of a log that QEMU wrote, whatever its contents and length.
pub fn end_of_log(log: &Path) -> String {
    const MOST_BYTES: u64 = 64 * 1024;
    let read = || {
        let mut file = trusted::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MOST_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(MOST_BYTES).read_to_end(&mut bytes)?;
        io::Result::Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// Returns the signal that ends a process that is about to end.
fn signal_of(child: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + DYING_LIMIT;
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < deadline => std::thread::sleep(END_POLL),
            ended => return ended.ok().flatten()?.signal(),
        }
    }
}

fn kill(child: &mut Child) {
    // A process that has exited already is fine.
    let _ = child.kill();
    let _ = child.wait();
}

fn not_started(binary: &QemuBinary, source: CommandError) -> QemuError {
    QemuError::Broken { program: binary.path.clone(), source }
}

/// Creates the directory of the sockets: mode 0700, owned by this user, not a symbolic link.
///
/// # Errors
/// [`QemuError::SocketDirectory`], [`QemuError::ForeignDirectory`],
/// [`QemuError::SocketPathTooLong`].
pub fn prepare_socket_directory(sockets: &SocketsLayout) -> Result<(), QemuError> {
    let longest = sockets.longest();
    if longest.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
        let bytes = longest.as_os_str().len();
        return Err(QemuError::SocketPathTooLong {
            path: longest,
            bytes,
            limit: MAX_SOCKET_PATH_BYTES,
        });
    }
    // The parent is removed with the last VM in it, perhaps between the creation of both.
    prepare_directories(sockets).or_else(|error| match error {
        QemuError::SocketDirectory { .. } => prepare_directories(sockets),
        error => Err(error),
    })
}

/// Creates `castra/<project>/<vm>`, each of the three once the one above is known to belong to this
/// user: anyone can write to /tmp.
fn prepare_directories(sockets: &SocketsLayout) -> Result<(), QemuError> {
    let failed = |source| socket_error(sockets, source);
    let directories: Vec<&Path> = sockets.directory().ancestors().take(3).collect();
    for directory in directories.into_iter().rev() {
        create_private_directory(directory).map_err(failed)?;
        let metadata = fs::symlink_metadata(directory).map_err(failed)?;
        if !metadata.is_dir() || metadata.uid() != rustix::process::getuid().as_raw() {
            return Err(QemuError::ForeignDirectory {
                directory: directory.to_owned(),
                owner: metadata.uid(),
            });
        }
        if metadata.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        }
    }
    Ok(())
}

/// Removes sockets without a listener, the locks beside them, and their directories if those are
/// empty then.
pub fn remove_sockets(sockets: &SocketsLayout) {
    // Another user's directory, or a link of theirs, leads to files that are not castra's.
    if sockets.is_own() {
        for file in sockets.files() {
            let _ = fs::remove_file(file);
        }
        let _ = fs::remove_dir(sockets.directory());
    }
    let _ = sockets.own_project().map(fs::remove_dir);
}

fn listen(path: &Path) -> Result<UnixListener, QemuError> {
    let failed = |source| QemuError::File { action: "listen on", path: path.to_owned(), source };
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

fn begin_log(path: &Path) -> Result<File, QemuError> {
    logs::begin(path).map_err(|source| QemuError::File {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

fn socket_error(sockets: &SocketsLayout, source: io::Error) -> QemuError {
    QemuError::SocketDirectory { directory: sockets.directory().to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("is there").mode() & 0o7777
    }

    #[test]
    fn a_directory_of_sockets_is_this_users_alone() {
        let run = tempfile::tempdir().expect("a directory");
        let sockets = SocketsLayout::new(run.path().join("castra/project/vm"));
        prepare_socket_directory(&sockets).expect("made");
        let above =
            [sockets.directory(), &run.path().join("castra/project"), &run.path().join("castra")];
        for directory in above {
            assert_eq!(mode(directory), 0o700);
            fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).expect("changed");
        }
        prepare_socket_directory(&sockets).expect("closed again");
        assert!(above.iter().all(|directory| mode(directory) == 0o700));
        let listener = listen(&sockets.qmp()).expect("listens");
        assert_eq!(mode(&sockets.qmp()), 0o600);
        drop(listener);
        for directory in above {
            let elsewhere = run.path().join("elsewhere");
            fs::rename(directory, &elsewhere).expect("moved");
            symlink(&elsewhere, directory).expect("linked");
            let refused = prepare_socket_directory(&sockets);
            assert!(matches!(refused, Err(QemuError::ForeignDirectory { .. })), "{refused:?}");
            fs::remove_file(directory).expect("removed");
            fs::rename(&elsewhere, directory).expect("moved back");
        }
        if !rustix::process::geteuid().is_root() {
            return castra_test_support::skip("only root can give a directory away");
        }
        for directory in above {
            std::os::unix::fs::chown(directory, Some(12_345), None).expect("given away");
            let refused = prepare_socket_directory(&sockets);
            assert!(
                matches!(refused, Err(QemuError::ForeignDirectory { owner: 12_345, .. })),
                "{refused:?}"
            );
            std::os::unix::fs::chown(directory, Some(0), None).expect("taken back");
        }
    }

    #[test]
    fn logs_are_private_and_never_behind_links() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        fs::write(at("log"), "old").expect("written");
        fs::set_permissions(at("log"), fs::Permissions::from_mode(0o644)).expect("changed");
        begin_log(&at("log")).expect("emptied");
        assert_eq!((mode(&at("log")), fs::read(at("log")).expect("read")), (0o600, Vec::new()));
        fs::write(at("thesis"), "the only copy").expect("written");
        symlink(at("thesis"), at("link")).expect("linked");
        assert!(begin_log(&at("link")).is_err());
        assert_eq!(fs::read(at("thesis")).expect("read"), b"the only copy");
        assert_eq!(end_of_log(&at("link")), "");
        let long = fs::File::create(at("long")).expect("made");
        long.set_len(1 << 30).expect("sized");
        assert_eq!(end_of_log(&at("long")).len(), 64 * 1024);
    }
}
