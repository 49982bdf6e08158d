//! Access to the guest of a VM: its SSH address and keys, and the wait until commands can run.

use std::net::{Ipv4Addr, SocketAddr};

use crate::cancel::Cancel;
use crate::guest::ssh::Target;
use crate::guest::{Streams, VmKeys, server_pin};
use crate::layout::ProjectLayout;
use crate::report::Event;

use super::accompany;
use super::error::{AccessError, StateError, VmError};
use super::full_disk::tightest;
use super::inspect::glance;
use super::lock::{await_clone, lock};
use super::monitor::{connect, continue_recorded, disk_full, ensure_not_stopped, is_paused};
use super::project::ProjectRef;
use super::record::{BootRecord, Record, VmState, observe, recorded_vm};
use super::start::{UpOptions, attach, cancel_suspend, check_network, finish_login};

/// Returns the address and keys to log in to a running VM.
///
/// # Errors
/// Returns [`AccessError::NoAgent`] or [`VmError::Key`].
pub fn ssh_target(record: &Record, user: &str, layout: &ProjectLayout) -> Result<Target, VmError> {
    let address = ssh_address(record)?;
    let keys = VmKeys::load_or_create(&layout.vm(&record.name))?;
    if is_own_server(record) {
        return Ok(keys.target_of_own_server(&layout.vm(&record.name), address, user)?);
    }
    let boot = record.boot.as_ref();
    Ok(Target {
        agent: record.agent_socket(),
        streams: boot.and_then(BootRecord::stream_ports).map(Streams::Shared),
        mounts: boot.map(|boot| boot.mounts.clone()).unwrap_or_default(),
        ..keys.target(address, user)
    })
}

/// Returns `true` if SSH leads to the server of the VM's own system.
fn is_own_server(record: &Record) -> bool {
    record.boot.as_ref().is_some_and(|boot| boot.native.is_some())
}

/// Returns the address of a VM's SSH server; for a stopped VM, the last one.
///
/// # Errors
/// Returns [`AccessError::NoAgent`].
pub fn ssh_address(record: &Record) -> Result<SocketAddr, VmError> {
    Ok((Ipv4Addr::LOCALHOST, ssh_port(record)?).into())
}

/// Ensures that commands can run in a running VM that does not answer, as after a reboot of the
/// guest.
///
/// # Errors
/// Returns errors as [`running_vm`] does, whose answer is not trusted here.
pub fn make_ready(name: Option<&str>, project: ProjectRef<'_>) -> Result<(), VmError> {
    let record = running_vm(name, project)?;
    let _lock = lock(&record.name, project)?;
    if let Some(boot) = &record.boot {
        // A guest may take minutes to come back; if QEMU does not answer either, it never will.
        drop(connect(&record.name, boot, project.cancel())?);
    }
    let what = format!("the guest of VM `{}`, which is not responding", record.name);
    project.report(&Event::Waiting { what });
    if is_own_server(&record) {
        let mut record = record;
        if let Some(boot) = &mut record.boot {
            boot.ready_ms = None;
        }
        return finish_login(record, project, None).map(drop);
    }
    attach(record, project, UpOptions::default()).map(drop)
}

/// Writes the VM's `known_hosts`, for other SSH clients.
///
/// # Errors
/// Returns [`AccessError::NoAgent`] or [`VmError::Key`].
pub fn write_known_hosts(record: &Record, layout: &ProjectLayout) -> Result<(), VmError> {
    let port = ssh_port(record)?;
    let files = layout.vm(&record.name);
    let keys = VmKeys::load_or_create(&files)?;
    let alias = host_key_alias(&record.name);
    // A VM that does not run may have either server, as the last time.
    let may_be_own = record.boot.as_ref().is_none_or(|boot| boot.native.is_some());
    let pin = server_pin(&files)?;
    let server = pin.key().filter(|_| may_be_own);
    Ok(keys.write_known_hosts(&files, &alias, port, server)?)
}

/// Returns the name of a VM in its `known_hosts`, at any port, for ssh's `HostKeyAlias`.
pub fn host_key_alias(vm: &str) -> String {
    format!("castra-{vm}")
}

fn ssh_port(record: &Record) -> Result<u16, AccessError> {
    let port = record.boot.as_ref().map_or(record.ssh_port, |boot| boot.ssh_port);
    port.ok_or_else(|| AccessError::NoAgent { vm: record.name.clone() })
}

/// Returns the record of a VM in which commands can run. An unfinished start (`up --no-wait`, or an
/// `up` that was killed) is finished first.
///
/// # Errors
/// Returns errors as [`recorded_vm`] does, [`StateError::NotRunning`], [`StateError::Frozen`],
/// [`AccessError::NoAgent`], and errors of waiting for the agent.
pub fn running_vm(name: Option<&str>, project: ProjectRef<'_>) -> Result<Record, VmError> {
    let mut record = recorded_vm(name, project.layout)?;
    let (mut state, qemu) = observe(&record, &project.files(&record.name));
    ensure_not_stopped(&record.name, qemu.as_ref())?;
    let is_away = matches!(state, VmState::Suspending | VmState::Suspended | VmState::Resuming);
    if is_away && await_clone(&record.name, project)? {
        record = recorded_vm(Some(&record.name), project.layout)?;
        state = observe(&record, &project.files(&record.name)).0;
    }
    if matches!(state, VmState::Starting | VmState::Suspending | VmState::Resuming) {
        let _lock = lock(&record.name, project)?;
        // The last holder of the lock may have finished, or given up.
        record = recorded_vm(Some(&record.name), project.layout)?;
        state = observe(&record, &project.files(&record.name)).0;
        if state == VmState::Suspending {
            record = cancel_suspend(record, project)?;
            state = VmState::Starting;
        }
        if state == VmState::Starting {
            record = attach(record, project, UpOptions::default())?.record;
            if record.boot.as_ref().is_some_and(BootRecord::awaits_login) {
                record = finish_login(record, project, None)?;
            }
            return Ok(record);
        }
    }
    if state == VmState::Elsewhere {
        return Err(StateError::Elsewhere { vm: record.name }.into());
    }
    if state != VmState::Running {
        return Err(StateError::NotRunning { vm: record.name, state }.into());
    }
    if is_paused(&record) {
        let _lock = lock(&record.name, project)?;
        // A suspend, which pauses the machine on purpose, has ended by now.
        record = recorded_vm(Some(&record.name), project.layout)?;
        state = observe(&record, &project.files(&record.name)).0;
        if state != VmState::Running {
            return Err(StateError::NotRunning { vm: record.name, state }.into());
        }
        continue_recorded(&record, project)?;
    }
    if record.boot.as_ref().is_none_or(|boot| boot.ssh_port.is_none()) {
        return Err(AccessError::NoAgent { vm: record.name }.into());
    }
    if record.boot.as_ref().is_some_and(BootRecord::awaits_login) {
        let _lock = lock(&record.name, project)?;
        // The last holder of the lock may have waited for it.
        record = recorded_vm(Some(&record.name), project.layout)?;
        record = finish_login(record, project, None)?;
    }
    accompany::ensure(&record, project);
    Ok(record)
}

/// Finds the reason why the guest of a VM no longer answers.
///
/// # Errors
/// Returns [`StateError::DiskFull`], [`StateError::NotRunning`] if its QEMU has ended, or
/// [`VmError::NetworkDown`] if the agent reports that.
pub fn explain_silence(name: Option<&str>, layout: &ProjectLayout) -> Result<(), VmError> {
    let record = recorded_vm(name, layout)?;
    match glance(&record, &layout.vm(&record.name)).0 {
        VmState::DiskFull => Err(disk_full(&record.name, &tightest(&record, layout))),
        state if !state.is_alive() => Err(StateError::NotRunning { vm: record.name, state }.into()),
        _ => check_network(&record, &Cancel::new()),
    }
}
