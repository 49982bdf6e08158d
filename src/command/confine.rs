//! Between fork and exec: a child gets what it is given and nothing else.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::Lifetime;

/// Steps between fork and exec that differ from command to command.
#[derive(Debug)]
pub(super) struct Confinement {
    /// Descriptors that are passed on.
    pub(super) passed: Vec<RawFd>,
    /// Place among the processes.
    pub(super) place: Place,
    /// Time that it may live.
    pub(super) lifetime: Lifetime,
}

/// Place of a command among the processes. No command shares castra's own process group, which a terminal signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A process group of its own, so that the whole of it can be killed.
    OwnGroup,
    /// A session of its own, which no terminal reaches.
    OwnSession,
}

/// Files that the child makes are this user's alone.
const UMASK: rustix::fs::Mode = rustix::fs::Mode::from_raw_mode(0o077);

/// Sees to it that the child gets nothing but what it is given. It is the caller who holds what is passed open until the
/// child is there.
#[expect(unsafe_code, reason = "pre_exec is the only way to do anything between fork and exec")]
pub(super) fn confine(command: &mut Command, confinement: Confinement) {
    let parent = rustix::process::getpid();
    let inherited = open_descriptors();
    let in_child = move || {
        match confinement.place {
            Place::OwnGroup => rustix::process::setpgid(None, None)?,
            Place::OwnSession => drop(rustix::process::setsid()?),
        }
        if confinement.lifetime == Lifetime::ThisThreads {
            end_with_parent(parent)?;
        }
        give_up_capabilities()?;
        rustix::process::umask(UMASK);
        refuse_new_privileges()?;
        // Our own descriptors are closed by exec anyway; those that we were started with may not be.
        for number in &inherited {
            let _ = close_on_exec(*number, true);
        }
        confinement.passed.iter().try_for_each(|number| close_on_exec(*number, false))
    };
    // SAFETY: setsid, setpgid, prctl, capget, capset, getppid, umask and fcntl are async-signal-safe, and the closure allocates nothing.
    unsafe { command.pre_exec(in_child) };
}

#[expect(unsafe_code, reason = "descriptors that somebody else opened have no owner here")]
pub(super) fn close_on_exec(number: RawFd, on: bool) -> io::Result<()> {
    let flags = if on { rustix::io::FdFlags::CLOEXEC } else { rustix::io::FdFlags::empty() };
    // SAFETY: it is borrowed for the length of one fcntl, which says EBADF of a number that is not open.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    Ok(rustix::io::fcntl_setfd(fd, flags)?)
}

/// All descriptors of this process but stdin, stdout and stderr.
fn open_descriptors() -> Vec<RawFd> {
    let entries = std::fs::read_dir("/dev/fd").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|number| *number > 2).collect()
}

/// No set-user-id program and no file capability means anything to this process and its children any more.
#[cfg(target_os = "linux")]
fn refuse_new_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// There is no such thing elsewhere.
#[cfg(not(target_os = "linux"))]
fn refuse_new_privileges() -> io::Result<()> {
    Ok(())
}

/// Root's QEMU and helpers keep of their powers what they may need: reading disks of this user's other self (`sudo`), and
/// forwarding ports below 1024. Anybody else's have none.
///
/// An exec by root adds the bounding and the inheritable set, and an exec by anybody adds the ambient set: each of them is
/// reduced, not one alone. An old Docker, for one, starts its containers with a full inheritable set.
#[cfg(target_os = "linux")]
fn give_up_capabilities() -> io::Result<()> {
    use rustix::thread::{CapabilitySet, CapabilitySets};
    let kept = CapabilitySet::DAC_OVERRIDE | CapabilitySet::NET_BIND_SERVICE;
    for capability in CapabilitySet::all().difference(kept).iter() {
        // Refused to all but root, whose exec is the only one that the bounding set adds to.
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    let had = rustix::thread::capabilities(None)?;
    let permitted = had.permitted & kept;
    let sets = CapabilitySets { effective: permitted, permitted, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)?;
    // The kernel keeps it within the inheritable set by itself; where it has none, there is nothing to clear.
    let _ = rustix::thread::clear_ambient_capability_set();
    Ok(())
}

/// There are none elsewhere.
#[cfg(not(target_os = "linux"))]
fn give_up_capabilities() -> io::Result<()> {
    Ok(())
}

/// The kernel kills this process when its parent ends, in whatever way.
#[cfg(target_os = "linux")]
fn end_with_parent(parent: rustix::process::Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // It may have ended before the kernel was told.
    if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
}

/// Elsewhere no kernel does that: what a killed castra leaves running is ended by the next one that comes across it.
#[cfg(not(target_os = "linux"))]
fn end_with_parent(_parent: rustix::process::Pid) -> io::Result<()> {
    Ok(())
}
