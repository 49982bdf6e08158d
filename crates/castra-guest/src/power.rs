//! Shuts the guest down.
//!
//! systemd does all of it, and does it well. Elsewhere the image's own service manager stops its
//! services, and the agent does the rest of an init's work: end the remaining processes, write
//! everything out, mount the filesystems read-only, switch off. An image may omit the read-only
//! mount (Alpine's OpenRC does when it believes that it is in a container), and without it the next
//! boot has a journal to replay.

use std::io;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::system::{RebootCommand, reboot};

use crate::kernel_fs::KernelFs;
use crate::process::image_program;
use crate::secrets;
use crate::services::{is_openrc, is_systemd};

/// Time limit for the service manager to stop its services.
const SERVICES_LIMIT: Duration = Duration::from_secs(60);

/// Time limit for systemd to switch off. It kills a service that has not stopped after 90 s
/// (`DefaultTimeoutStopSec=` in `systemd-system.conf(5)`).
const SYSTEMD_LIMIT: Duration = Duration::from_secs(120);

/// Time between asking processes to end and killing them.
const GRACE: Duration = Duration::from_secs(2);

/// Time limit for the kernel to make busy filesystems read-only.
const READ_ONLY_LIMIT: Duration = Duration::from_secs(10);

/// Interval of checks whether other processes have ended. A check costs an emulated CPU some
/// milliseconds.
const POLL: Duration = Duration::from_millis(50);

/// Shuts down and powers off. Returns only if even that failed.
pub(crate) fn power_off(kernel_fs: &KernelFs) -> io::Result<()> {
    stop_services();
    end(kernel_fs)
}

/// Powers off a guest whose disk other VMs will be based on, without the secrets and identities
/// that its services have made or would leave behind when they stop.
pub(crate) fn power_off_without_secrets(kernel_fs: &KernelFs) -> io::Result<()> {
    secrets::forget(kernel_fs);
    if is_systemd() {
        // When it stops, it writes a seed for the next boot, and systemd's own shutdown leaves no
        // time after that.
        let _ = run(image_program("systemctl", &["stop", "systemd-random-seed.service"]));
        secrets::forget_files();
    }
    stop_services();
    secrets::forget_files();
    end(kernel_fs)
}

/// Has the image's service manager stop its services. systemd then ends the guest itself.
fn stop_services() {
    if is_systemd() {
        // systemd then ends every process but this one, and switches off.
        if run(image_program("systemctl", &["poweroff"])) {
            sleep(SYSTEMD_LIMIT);
        }
    } else if is_openrc() {
        // A child in the agent's own session: OpenRC's `killprocs` spares the session it runs in.
        let _ = run(image_program("openrc", &["shutdown"]));
    }
}

/// Does the rest of an init's work. Returns only if that failed.
fn end(kernel_fs: &KernelFs) -> io::Result<()> {
    end_all_processes(kernel_fs);
    rustix::fs::sync();
    mount_all_read_only(kernel_fs);
    Ok(reboot(RebootCommand::PowerOff)?)
}

/// Runs a program to its end, or until [`SERVICES_LIMIT`] has passed. Returns `true` if it
/// succeeded in time.
fn run(mut program: Command) -> bool {
    let Ok(mut child) = program.spawn() else { return false };
    let deadline = Instant::now() + SERVICES_LIMIT;
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < deadline => sleep(POLL),
            ended => return ended.is_ok_and(|status| status.is_some_and(|s| s.success())),
        }
    }
}

fn end_all_processes(kernel_fs: &KernelFs) {
    // busybox and sysvinit pause at this signal and start no more gettys; other inits ignore it.
    let _ = kill_process(Pid::INIT, Signal::TSTP);
    // `kill(-1)`: everything but PID 1 and the caller.
    let _ = kill_process_group(Pid::INIT, Signal::TERM);
    let deadline = Instant::now() + GRACE;
    while others_run(kernel_fs) && Instant::now() < deadline {
        sleep(POLL);
    }
    let _ = kill_process_group(Pid::INIT, Signal::KILL);
}

/// Returns `true` while there are processes besides PID 1, this one, its supervisor and the
/// kernel's threads (which, like zombies, have no command line).
fn others_run(kernel_fs: &KernelFs) -> bool {
    let us = [std::process::id(), std::os::unix::process::parent_id()];
    let pids = kernel_fs.proc.names(".").unwrap_or_default();
    pids.iter()
        .filter_map(|name| name.parse::<u32>().ok())
        .filter(|pid| *pid != 1 && !us.contains(pid))
        .any(|pid| {
            kernel_fs
                .proc
                .read(&format!("{pid}/cmdline"))
                .is_ok_and(|command_line| !command_line.is_empty())
        })
}

/// Mounts every filesystem on a block device read-only, the last mounted first.
fn mount_all_read_only(kernel_fs: &KernelFs) {
    for target in writable_mounts(kernel_fs) {
        let _ = mount_remount(target, MountFlags::RDONLY, "");
    }
    // A filesystem is busy while PID 1 runs a program that was replaced, as by an upgrade. The
    // kernel can do it all the same, in the background; all other processes have ended.
    if !writable_mounts(kernel_fs).is_empty() && kernel_fs.proc.write("sysrq-trigger", "u").is_ok()
    {
        let deadline = Instant::now() + READ_ONLY_LIMIT;
        while !writable_mounts(kernel_fs).is_empty() && Instant::now() < deadline {
            sleep(POLL);
        }
    }
    // One that stays as it is has its journal: everything is written out.
    rustix::fs::sync();
}

/// Returns where filesystems on block devices are mounted for writing, the last mounted first.
fn writable_mounts(kernel_fs: &KernelFs) -> Vec<String> {
    let mounts = kernel_fs.proc.read("self/mounts").unwrap_or_default();
    let writable = mounts.lines().rev().filter_map(|mount| {
        let mut fields = mount.split(' ');
        let (source, target) = (fields.next()?, fields.next()?);
        let is_writable = fields.nth(1)?.split(',').any(|option| option == "rw");
        (source.starts_with("/dev/") && is_writable).then(|| target.to_owned())
    });
    writable.collect()
}
