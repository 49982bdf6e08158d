//! Confines a child between fork and exec: it gets what it is given and nothing else.

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
    /// Process group or session.
    pub(super) place: Place,
    /// Lifetime of the command.
    pub(super) lifetime: Lifetime,
}

/// Process group or session of a command. No command shares castra's own process group, which a
/// terminal signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A process group of its own, so that the whole group can be killed.
    OwnGroup,
    /// A session of its own, which no terminal reaches.
    OwnSession,
}

/// Umask of the child: its files are this user's alone.
const UMASK: rustix::fs::Mode = rustix::fs::Mode::from_raw_mode(0o077);

/// Ensures that the child gets nothing but what it is given. The caller must keep the passed
/// descriptors open until the child has started.
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
        // Our own descriptors are closed by exec anyway; those that we inherited may not be.
        for number in &inherited {
            let _ = close_on_exec(*number, true);
        }
        confinement.passed.iter().try_for_each(|number| close_on_exec(*number, false))
    };
    // SAFETY: setsid, setpgid, prctl, capget, capset, getppid, umask and fcntl are
    // async-signal-safe, and the closure allocates nothing.
    unsafe { command.pre_exec(in_child) };
}

#[expect(unsafe_code, reason = "descriptors that other code opened have no owner here")]
pub(super) fn close_on_exec(number: RawFd, on: bool) -> io::Result<()> {
    let flags = if on { rustix::io::FdFlags::CLOEXEC } else { rustix::io::FdFlags::empty() };
    // SAFETY: borrowed for the duration of one fcntl, which fails with EBADF for a number that is
    // not open.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    Ok(rustix::io::fcntl_setfd(fd, flags)?)
}

/// Returns all descriptors of this process but stdin, stdout and stderr.
fn open_descriptors() -> Vec<RawFd> {
    let entries = std::fs::read_dir("/dev/fd").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|number| *number > 2).collect()
}

/// Disables set-user-id programs and file capabilities for this process and its children.
#[cfg(target_os = "linux")]
fn refuse_new_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// A stand-in: other systems have no such setting.
#[cfg(not(target_os = "linux"))]
fn refuse_new_privileges() -> io::Result<()> {
    Ok(())
}

/// Reduces the capabilities of root's QEMU and helpers to those that they may need: for reading
/// disks of the user behind `sudo`, and for forwarding ports below 1024. Other users' have none.
///
/// An exec by root adds the bounding and the inheritable set, and an exec by any user adds the
/// ambient set, so each of them is reduced. An old Docker, for one, starts its containers with a
/// full inheritable set.
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
    let sets =
        CapabilitySets { effective: permitted, permitted, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)?;
    // The kernel keeps the ambient set within the inheritable set; where there is none, there is
    // nothing to clear.
    let _ = rustix::thread::clear_ambient_capability_set();
    Ok(())
}

/// A stand-in: other systems have no capabilities.
#[cfg(not(target_os = "linux"))]
fn give_up_capabilities() -> io::Result<()> {
    Ok(())
}

/// Makes the kernel kill this process when its parent ends, in whatever way.
#[cfg(target_os = "linux")]
fn end_with_parent(parent: rustix::process::Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // The parent may have ended before the call.
    if rustix::process::getppid() == Some(parent) {
        Ok(())
    } else {
        Err(io::ErrorKind::Interrupted.into())
    }
}

/// A stand-in where the kernel cannot do that: whatever a killed castra leaves running is ended by
/// the next one that finds it.
#[cfg(not(target_os = "linux"))]
fn end_with_parent(_parent: rustix::process::Pid) -> io::Result<()> {
    Ok(())
}
