//! A stand-in for QEMU that boots in milliseconds and misbehaves on demand.
//!
//! Castra's tests name it by `CASTRA_QEMU`. It accepts QEMU's real arguments, serves real QMP and
//! the agent's side of the control port on the sockets it inherits, writes and locks its pid file
//! and locks its disk as QEMU does, takes its ports, and saves and loads states. What it leaves out
//! is the computer: there is no guest, and nothing runs.
//!
//! Faults are read from a file, again whenever it matters ([`behaviour`]). Its actions go
//! to a journal beside it, which shows tests what no surviving process could: that a disk was
//! opened twice, or that saved memory met a disk of another moment.

mod agent;
mod arguments;
mod behaviour;
mod machine;
mod ports;
mod qmp;

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use rustix::fs::{FlockOperation, fcntl_lock};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use arguments::Arguments;
use behaviour::Behaviour;
use machine::Machine;

fn main() -> ExitCode {
    let arguments = Arguments::of_process();
    let behaviour = Behaviour::of(&arguments);
    match run(arguments, &behaviour) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // There may be no reader: then the exit code has to suffice.
            let _ = writeln!(io::stderr(), "qemu-system-x86_64: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Starts in QEMU's order: pid file, disk, network, then the machine protocol answers.
fn run(arguments: Arguments, behaviour: &Behaviour) -> Result<(), String> {
    let start = behaviour.note_start();
    behaviour.note(&format!("cpu {}", arguments.cpu));
    if let Some((kernel, line)) = &arguments.kernel {
        behaviour.note(&format!("kernel {} {line}", kernel.display()));
    }
    let _pidfile = lock_pidfile(&arguments.pidfile, behaviour)?;
    let guard = PidfileGuard(arguments.pidfile.clone());
    if behaviour.has("dies") {
        return Err("cannot set up guest memory 'ram': Cannot allocate memory".to_owned());
    }
    if behaviour.has("no-slirp") {
        // The message of QEMU 7.2 for a backend that it was built without.
        return Err("-netdev user,id=net: network backend 'user' is not compiled into this binary"
            .to_owned());
    }
    let disk = open_disk(&arguments.disk, behaviour)?;
    let mut data_disks = Vec::new();
    for (serial, path) in &arguments.data_disks {
        behaviour.note(&format!("data disk {serial}"));
        data_disks.push(open_disk(path, behaviour)?);
    }
    ports::take(&arguments.forwards, start, behaviour)?;
    for (file, bytes) in &arguments.memory {
        let memory = OpenOptions::new().write(true).create(true).truncate(false).open(file);
        memory.and_then(|memory| memory.set_len(*bytes)).map_err(|error| error.to_string())?;
    }
    // Output that a guest would write to its console.
    let console = OpenOptions::new().append(true).open(&arguments.console);
    let output: &[u8] = if behaviour.panics(&arguments) {
        b"[    0.1] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n"
    } else {
        b"Linux version 0 (no computer)\r\n"
    };
    let _ = console.and_then(|mut console| console.write_all(output));
    let machine = Arc::new(Machine::new(arguments, behaviour.clone(), disk));
    serve(&machine);
    let how = machine.until_end();
    behaviour.note(&format!("ended {how}"));
    // As in QEMU, the disk first: without a pid file it is free.
    machine.close_disk();
    drop(guard);
    Ok(())
}

fn serve(machine: &Arc<Machine>) {
    let (of_qmp, of_agent, of_signals) = (machine.clone(), machine.clone(), machine.clone());
    thread::spawn(move || qmp::serve(&of_qmp));
    thread::spawn(move || agent::serve(&of_agent));
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).expect("signals that can be caught");
    thread::spawn(move || signals.forever().for_each(|signal| heed(signal, &of_signals)));
}

fn heed(signal: i32, machine: &Machine) {
    if machine.behaviour.has("ignores-term") {
        return;
    }
    let _ = writeln!(
        io::stderr(),
        "qemu-system-x86_64: terminating on signal {signal} from pid 1 (castra)"
    );
    machine.end("by a signal");
}

/// Locks the pid file as `qemu_write_pidfile` does: a POSIX lock on the file, whose name must still
/// lead to it, then the pid.
fn lock_pidfile(path: &Path, behaviour: &Behaviour) -> Result<File, String> {
    let failed = |error: io::Error| format!("cannot create PID file: {error}");
    loop {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        // A lock of the process, not of an open file: the kernel reports its holder.
        fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            behaviour.note("refused");
            "cannot create PID file: Cannot lock pid file".to_owned()
        })?;
        let held = file.metadata().map_err(failed)?;
        if !path.symlink_metadata().is_ok_and(|named| named.ino() == held.ino()) {
            continue;
        }
        file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
        file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        return Ok(file);
    }
}

/// Guard that removes the pid file at an orderly end, as QEMU's exit notifier does.
struct PidfileGuard(PathBuf);

impl Drop for PidfileGuard {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Opens the disk, which no other QEMU may have open: castra must never start a second one.
fn open_disk(path: &Path, behaviour: &Behaviour) -> Result<File, String> {
    let disk = OpenOptions::new().read(true).write(true).open(path);
    let disk = disk.map_err(|error| format!("Could not open '{}': {error}", path.display()))?;
    fcntl_lock(&disk, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        behaviour.note("doubled");
        "Failed to get \"write\" lock\nIs another process using the image?".to_owned()
    })?;
    Ok(disk)
}
