//! Wait for a natively booted system, until its own SSH server accepts castra's key.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::guest::VmKeys;
use crate::guest::ssh::{self, Probe, SshError, Target, probe};
use crate::host::{millis, since_unix_ms};
use crate::layout::SocketsLayout;
use crate::qemu::running_qemu;
use crate::report::Event;
use crate::vm::access::ssh_target;
use crate::vm::error::{NoLogin, StartError, VmError};
use crate::vm::project::ProjectRef;
use crate::vm::record::{BootRecord, Record, SshServer, StartKind};
use crate::vm::timeline::Stopwatch;

use super::limits::Limits;
use super::watch::{BootEnd, BootWatch, Looks};

/// Time for the server of a system that has had the time to boot.
const LEAST_LIMIT: Duration = Duration::from_secs(20);
/// Time for a server of which the disk showed nothing.
const DOUBTFUL_LIMIT: Duration = Duration::from_secs(10);
/// Interval between attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// Interval between attempts after the key was refused: servers punish many of them.
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_secs(5);
/// Refusals after which the key stays refused. A server may start before it has the key.
const MOST_REFUSALS: u32 = 4;

/// Returns `true` for a boot of a disk that has an SSH server.
pub(super) fn is_expected(boot: &BootRecord) -> bool {
    let server = boot.native.as_ref().and_then(|native| native.ssh_server);
    boot.awaits_login() && server == Some(SshServer::Found)
}

/// Waits until the server accepts the key.
pub(super) fn await_login(
    watch: &BootWatch<'_>,
    boot: &BootRecord,
    limit: Duration,
    mut is_alive: impl FnMut() -> bool,
) -> Result<(), BootEnd> {
    let keys = VmKeys::load_or_create(watch.files).map_err(BootEnd::other)?;
    let target = target(watch, boot, &keys).map_err(BootEnd::other)?;
    let (sockets, looks): (SocketsLayout, _) = (boot.socket_paths(), Looks::default());
    let cancel = &watch.context.cancel;
    let mut refusals = 0;
    loop {
        if !is_alive() {
            return Err(BootEnd::Died);
        }
        let why = match probe(cancel, &target) {
            Ok(Probe::Accepted) => return Ok(()),
            Ok(Probe::Silent) => NoLogin::Silent,
            Ok(Probe::Closed) => NoLogin::Closed,
            Ok(Probe::Refused) => NoLogin::Refused,
            Err(SshError::Interrupted) => {
                return Err(cancel.check().err().map_or(BootEnd::Died, BootEnd::other));
            }
            Err(error) => {
                let (vm, error) = (watch.vm.to_owned(), Box::new(error));
                return Err(BootEnd::other(StartError::LoginFailed { vm, error }));
            }
        };
        watch.look(&sockets, &looks, None)?;
        refusals += u32::from(why == NoLogin::Refused);
        if watch.started.elapsed() >= limit || refusals >= MOST_REFUSALS {
            return Err(BootEnd::other(StartError::NoLogin {
                vm: watch.vm.to_owned(),
                limit_secs: limit.as_secs(),
                why,
                key: keys.client_public_line(),
            }));
        }
        let pause = if why == NoLogin::Refused { PAUSE_AFTER_REFUSAL } else { PAUSE };
        let until = Instant::now() + pause;
        while Instant::now() < until {
            cancel.check().map_err(BootEnd::other)?;
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn target(watch: &BootWatch<'_>, boot: &BootRecord, keys: &VmKeys) -> Result<Target, VmError> {
    let address = (Ipv4Addr::LOCALHOST, boot.ssh_port.unwrap_or_default()).into();
    Ok(keys.target_of_own_server(watch.files, address, "root")?)
}

/// Waits until commands can run in a natively booted VM whose QEMU runs, and notes that they can.
/// The caller holds the VM's lock.
///
/// # Errors
/// [`StartError::NoLogin`], [`StartError::LoginFailed`], and errors of a guest that ended or is
/// paused. QEMU is left running.
pub(in crate::vm) fn finish_login(
    mut record: Record,
    project: ProjectRef<'_>,
    limit: Option<Duration>,
) -> Result<Record, VmError> {
    let (vm, files) = (record.name.clone(), project.files(&record.name));
    let Some(boot) = record.boot.clone().filter(BootRecord::awaits_login) else {
        return Ok(record);
    };
    let disk = record.overlay_path(project.layout);
    let stopwatch = &Stopwatch::continuing(&vm, None, &project.context.reporter);
    let watch = BootWatch {
        was_ready: false,
        ..BootWatch::of_running(&vm, &files, &disk, &boot, project.context, stopwatch)
    };
    let age = since_unix_ms(boot.started_unix_ms);
    let usual = Limits::new(watch.accelerator, watch.cpus, None).ready;
    let limit = limit.unwrap_or(match is_expected(&boot) {
        true => usual.saturating_sub(age).max(LEAST_LIMIT),
        false => DOUBTFUL_LIMIT,
    });
    let what = format!("the SSH server of VM `{vm}`, which boots natively");
    project.report(&Event::Waiting { what });
    let is_alive = || running_qemu(&files.pidfile()).is_some();
    let awaited = await_login(&watch, &boot, limit, is_alive);
    record.set_running();
    if let Some(boot) = record.boot.as_mut().filter(|_| awaited.is_ok()) {
        boot.ready_ms = Some(millis(since_unix_ms(boot.started_unix_ms)));
    }
    record.save(project.layout)?;
    awaited.map_err(|end| watch.explain(end, None))?;
    if boot.start == StartKind::Suspended {
        set_clock(&record, project);
    }
    Ok(record)
}

/// Sets the clock of a natively booted guest that was resumed and accepts castra's key: it still
/// shows the time of the suspend, and no agent corrects it. A clock that cannot be set is reported,
/// and is no error.
pub(in crate::vm) fn set_clock(record: &Record, project: ProjectRef<'_>) {
    let target = ssh_target(record, "root", project.layout);
    let set = target.map(|target| ssh::set_clock(project.cancel(), &target));
    let reason = match set {
        Ok(Ok(exit)) if exit.is_success() => return,
        Ok(Ok(_)) => "`date` failed in it".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    let message = format!(
        "VM `{}` could not be given the time ({reason}); its clock is behind by the time for \
        which it was suspended, unless a time service corrects it",
        record.name
    );
    project.report(&Event::Warning { message });
}
