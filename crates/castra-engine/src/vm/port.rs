//! Changes of a VM's forwards while it runs, which last until it stops.
//!
//! The record of its boot has them, so that they are the same after a suspend, and once a companion
//! that was killed is started again.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::PortForward;
use crate::guest::{Companion, LiveForward, LiveState, MAX_ADDED_FORWARDS};
use crate::sockets::Protocol;

use super::access::running_vm;
use super::error::{PortError, VmError};
use super::live_ports::{announce, forward_all, found_forwards};
use super::lock::lock;
use super::ports;
use super::project::ProjectRef;
use super::record::{BootRecord, recorded_vm};

/// Time for a companion's answer.
const ACKNOWLEDGE_LIMIT: Duration = Duration::from_secs(1);

/// Adds forwards to a running VM, all or none. One that it has already is no error.
///
/// # Errors
/// Returns [`PortError`], [`super::CompanionError`], and errors as [`running_vm`] does.
pub fn add_forwards(
    name: &str,
    forwards: &[LiveForward],
    project: ProjectRef<'_>,
) -> Result<(), VmError> {
    check_together(name, forwards)?;
    let vm = running_vm(Some(name), project)?.name;
    let _lock = lock(&vm, project)?;
    let mut record = recorded_vm(Some(&vm), project.layout)?;
    let boot = record.boot.as_mut().filter(|boot| boot.has_agent());
    let boot = boot.ok_or_else(|| PortError::Native { vm: vm.clone() })?;
    let before = boot.added_forwards.clone();
    for forward in forwards {
        if !boot.added_forwards.contains(forward) && !is_declared(boot, forward) {
            check_new(&vm, forward, boot, project)?;
            boot.added_forwards.push(*forward);
        }
    }
    let known = forward_all(&vm, boot, project)?;
    let failure = known.ports.iter().find_map(|port| match &port.state {
        LiveState::Failed(reason) if forwards.contains(&port.forward) => {
            let (vm, forward, reason) = (vm.clone(), port.forward, reason.clone());
            Some(PortError::Refused { vm, forward, reason })
        }
        _ => None,
    });
    if let Some(failure) = failure {
        boot.added_forwards = before;
        forward_all(&vm, boot, project)?;
        return Err(failure.into());
    }
    record.save(project.layout)?;
    Ok(())
}

/// Forwards whatever listens in a running VM, until it stops.
///
/// # Errors
/// Returns [`PortError::Native`], [`super::CompanionError`], and errors as [`running_vm`] does.
pub fn forward_listeners(name: &str, project: ProjectRef<'_>) -> Result<(), VmError> {
    let vm = running_vm(Some(name), project)?.name;
    let _lock = lock(&vm, project)?;
    let mut record = recorded_vm(Some(&vm), project.layout)?;
    let boot = record.boot.as_mut().filter(|boot| boot.has_agent());
    let boot = boot.ok_or_else(|| PortError::Native { vm: vm.clone() })?;
    let auto = boot.auto_forwards.get_or_insert_default();
    auto.closed.clear();
    auto.requested = true;
    forward_all(&vm, boot, project)?;
    announce(&vm, boot, project.context);
    record.save(project.layout)?;
    Ok(())
}

/// Closes live forwards of a running VM, all or none, and returns them. Each is named by its port
/// of this machine, perhaps with the guest's. Connections that are open continue.
///
/// # Errors
/// Returns [`PortError::NotAdded`] or [`PortError::Declared`], and errors as [`running_vm`] does.
pub fn remove_forwards(
    name: &str,
    ports: &[(u16, Option<u16>)],
    project: ProjectRef<'_>,
) -> Result<Vec<LiveForward>, VmError> {
    let vm = running_vm(Some(name), project)?.name;
    let _lock = lock(&vm, project)?;
    let mut record = recorded_vm(Some(&vm), project.layout)?;
    let unknown = |host| PortError::NotAdded { vm: vm.clone(), host };
    let mut removed = Vec::new();
    let Some(boot) = record.boot.as_mut() else {
        return Err(unknown(ports.first().map_or(0, |port| port.0)).into());
    };
    let found = found_forwards(boot);
    for (host, guest) in ports {
        let is_it = |forward: &LiveForward| {
            forward.host == *host && guest.is_none_or(|guest| guest == forward.guest)
        };
        if let Some(place) = boot.added_forwards.iter().position(is_it) {
            removed.push(boot.added_forwards.remove(place));
        } else if let Some(forward) = found.iter().copied().find(is_it) {
            // Otherwise, it would find itself.
            if let Some(auto) = &mut boot.auto_forwards {
                auto.closed.insert(forward.guest);
            }
            removed.push(forward);
        } else if boot.port_forwards.iter().any(|declared| declared.host == *host) {
            return Err(PortError::Declared { vm, host: *host }.into());
        } else {
            return Err(unknown(*host).into());
        }
    }
    forward_all(&vm, boot, project)?;
    record.save(project.layout)?;
    Ok(removed)
}

/// Checks that each port of this machine leads to one port of the guest.
fn check_together(vm: &str, forwards: &[LiveForward]) -> Result<(), PortError> {
    let mut guests = BTreeMap::new();
    for LiveForward { host, guest } in forwards {
        let first = *guests.entry(*host).or_insert(*guest);
        if first != *guest {
            let (vm, guests) = (vm.to_owned(), (first, *guest));
            return Err(PortError::Contradictory { vm, host: *host, guests });
        }
    }
    Ok(())
}

/// Returns `true` if castra.toml has declared a forward when the VM was started.
fn is_declared(boot: &BootRecord, forward: &LiveForward) -> bool {
    let LiveForward { host, guest } = *forward;
    boot.port_forwards.contains(&PortForward { host, guest, protocol: Protocol::Tcp })
}

/// Checks that a VM can have another forward.
fn check_new(
    vm: &str,
    forward: &LiveForward,
    boot: &BootRecord,
    project: ProjectRef<'_>,
) -> Result<(), PortError> {
    if boot.added_forwards.len() >= MAX_ADDED_FORWARDS {
        return Err(PortError::TooMany { vm: vm.to_owned() });
    }
    let LiveForward { host, guest } = *forward;
    if let Some(added) = boot.added_forwards.iter().find(|added| added.host == host) {
        return Err(PortError::Added { vm: vm.to_owned(), forward: *added });
    }
    if let Some(found) = found_forwards(boot).into_iter().find(|found| found.host == host) {
        // That one closes before.
        return match found.guest == guest {
            true => Ok(()),
            false => Err(PortError::Added { vm: vm.to_owned(), forward: found }),
        };
    }
    let declared = PortForward { host, guest, protocol: Protocol::Tcp };
    ports::check(vm, &[declared], project.layout)
}

/// Counts the open forwards of a VM as announced, since the user sees them.
pub fn acknowledge_ports(name: &str, project: ProjectRef<'_>) {
    if let Ok(record) = recorded_vm(Some(name), project.layout)
        && let Some(boot) = record.boot.filter(|boot| boot.auto_forwards.is_some())
        && let Ok(mut companion) = Companion::connect(&boot.socket_paths())
    {
        // Otherwise, the next command announces them.
        let _ = companion.ports(true, ACKNOWLEDGE_LIMIT);
    }
}

/// Announces forwards of a VM that have opened by themselves, each once.
pub fn announce_ports(name: Option<&str>, project: ProjectRef<'_>) {
    // A VM that is gone has none.
    if let Ok(record) = recorded_vm(name, project.layout)
        && let Some(boot) = &record.boot
    {
        announce(&record.name, boot, project.context);
    }
}
