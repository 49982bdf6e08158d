//! Data disks: links by which programs find them, and the mounts that the host orders.
//!
//! A disk is recognised by its serial number, which is its name. One that is blank and to be
//! mounted is formatted by the guest's own `mkfs.ext4`; anything else is never written to. In a
//! guest that was restored from a template, the kernel knows blank disks in the place of the VM's
//! own, so it looks at each again before anything relies on it.

mod content;
mod device;
mod format;
mod guard;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use castra_wire::{AgentTask, DiskFault, DiskOrder, disks_on_command_line};
use rustix::mount::MountFlags;

use crate::events::{EventSender, Milestone};
use crate::grow;
use crate::kernel_fs::KernelFs;
use crate::log::log;

use content::Content;
use device::Device;

/// Directory of links to disks, below `/dev`, as udev makes them.
const LINKS: &str = "disk/by-id";

/// Growth that is not worth it, in bytes: a filesystem may end a little before its disk does.
const LEAST_GROWTH_BYTES: u64 = 1 << 20;

/// Data disks that the agent has had orders for in this boot.
#[derive(Default)]
pub(crate) struct Disks {
    known: HashSet<String>,
    /// Number of orders that are being carried out.
    pending: usize,
    /// Disks that could not be mounted.
    unmounted: Arc<Mutex<Vec<Unmounted>>>,
}

/// A disk that could not be mounted.
struct Unmounted {
    name: String,
    guest: String,
    /// The reason. Completes "disk `data` …".
    reason: String,
}

/// Origin of what the guest's kernel knows of its disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The kernel has found them when it booted.
    Boot,
    /// The kernel was restored from a template, in which there were others.
    Template,
}

impl Disks {
    /// Returns `true` if no order is being carried out.
    pub(crate) fn are_done(&self) -> bool {
        self.pending == 0
    }

    /// Notes that the orders that were begun first are carried out.
    pub(crate) fn end(&mut self) {
        self.pending = self.pending.saturating_sub(1);
    }

    /// Returns the disks that could not be mounted, and that were not mounted since.
    pub(crate) fn faults(&self, kernel_fs: &KernelFs) -> Vec<DiskFault> {
        let unmounted = self.unmounted.lock().unwrap_or_else(PoisonError::into_inner);
        if unmounted.is_empty() {
            return Vec::new();
        }
        let present = Device::all(kernel_fs);
        let is_mounted = |disk: &Unmounted| {
            let mut devices = present.iter().filter(|(_, serial)| *serial == disk.name);
            devices.any(|(device, _)| device.is_mounted_at(Path::new(&disk.guest)))
        };
        let fault =
            |disk: &Unmounted| DiskFault { name: disk.name.clone(), reason: disk.reason.clone() };
        unmounted.iter().filter(|disk| !is_mounted(disk)).map(fault).collect()
    }

    /// Begins to carry out the orders for disks that are not known yet, on a thread of its own. A
    /// milestone is its end.
    pub(crate) fn attend(
        &mut self,
        orders: Vec<DiskOrder>,
        origin: Origin,
        kernel_fs: &Arc<KernelFs>,
        events: &EventSender,
    ) {
        let new: Vec<DiskOrder> =
            orders.into_iter().filter(|order| self.known.insert(order.name.clone())).collect();
        if new.is_empty() {
            return;
        }
        self.pending += 1;
        let (kernel_fs, events) = (Arc::clone(kernel_fs), events.clone());
        let unmounted = Arc::clone(&self.unmounted);
        tokio::task::spawn_blocking(move || {
            let failed = |order: DiskOrder| {
                let failure = carry_out(&order, origin, &kernel_fs).err()?;
                let failure = failure.guarded(&order, &kernel_fs);
                Some((order, failure))
            };
            let failures: Vec<_> = new.into_iter().filter_map(failed).collect();
            let of_unmounted = failures.iter().filter_map(|(order, failure)| {
                let Failure { reason, is_mounted: false, .. } = failure else { return None };
                let (name, guest) = (order.name.clone(), order.guest.clone()?);
                Some(Unmounted { name, guest, reason: reason.clone() })
            });
            let mut noted = unmounted.lock().unwrap_or_else(PoisonError::into_inner);
            noted.extend(of_unmounted);
            drop(noted);
            if !failures.is_empty() {
                events.failed(AgentTask::Disks, in_words(&failures));
            }
            events.reached(Milestone::Disks);
        });
    }
}

/// Returns the orders on the kernel's command line.
pub(crate) fn ordered_by_kernel(kernel_fs: &KernelFs) -> Vec<DiskOrder> {
    disks_on_command_line(&kernel_fs.proc.read("cmdline").unwrap_or_default())
}

/// Links each data disk by its name, as udev would: an image may have none.
pub(crate) fn link_all(kernel_fs: &KernelFs) {
    for (device, serial) in Device::all(kernel_fs) {
        if let Err(error) = device.link(kernel_fs, LINKS, &serial) {
            log(format!("no link to the disk {serial}: {error}"));
        }
    }
}

/// Reason why a disk is not as it was ordered.
struct Failure {
    /// The reason. Completes "disk `data` …".
    reason: String,
    /// The disk has something that is not mounted, and is never overwritten.
    is_foreign: bool,
    /// The disk is mounted all the same.
    is_mounted: bool,
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self { reason, is_foreign: false, is_mounted: false }
    }
}

impl From<&str> for Failure {
    fn from(reason: &str) -> Self {
        reason.to_owned().into()
    }
}

impl Failure {
    /// Keeps programs from writing to the directory below an ordered mount, and says so.
    fn guarded(mut self, order: &DiskOrder, kernel_fs: &KernelFs) -> Self {
        let Some(guest) = order.guest.as_deref().filter(|_| !self.is_mounted) else { return self };
        match guard::hold(Path::new(guest), kernel_fs) {
            Ok(()) => self
                .reason
                .push_str(&format!(" (until it is mounted, {guest} is empty and read-only)")),
            Err(error) => self.reason.push_str(&format!(
                " (until it is mounted, programs write to {guest} on the VM's own disk, since that \
                cannot be prevented: {error})"
            )),
        }
        self
    }
}

/// Returns the failures of disks as one text, with what to do at its end.
fn in_words(failures: &[(DiskOrder, Failure)]) -> String {
    let text = |(order, failure): &(DiskOrder, Failure)| {
        format!("disk `{}` {}", order.name, failure.reason)
    };
    let mut text = failures.iter().map(text).collect::<Vec<_>>().join("; ");
    if failures.iter().any(|(_, failure)| failure.is_foreign) {
        text.push_str(
            ". Castra formats only disks that were never written to: mount what is there by your \
            own means, without `guest`, or remove the disk: castra clean --data-disk",
        );
    }
    text
}

/// Carries out one order.
fn carry_out(order: &DiskOrder, origin: Origin, kernel_fs: &KernelFs) -> Result<(), Failure> {
    let device = Device::named(&order.name, kernel_fs).ok_or("is not in the VM")?;
    if origin == Origin::Template {
        device.renew(kernel_fs).map_err(|error| format!("cannot be looked at: {error}"))?;
    }
    let Some(guest) = &order.guest else { return Ok(()) };
    mount(&device, Path::new(guest), order.is_unwritten, kernel_fs)
}

/// Mounts a disk, once a blank one is formatted, and lets its filesystem fill it. Both the disk's
/// ends and the host must say that it is blank.
fn mount(
    device: &Device,
    guest: &Path,
    is_unwritten: bool,
    kernel_fs: &KernelFs,
) -> Result<(), Failure> {
    if device.is_mounted_at(guest) {
        return Ok(());
    }
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let mut content = Content::of(device, kernel_fs).map_err(unreadable)?;
    if content == Content::Blank && is_unwritten {
        format::make_ext4(device, kernel_fs)?;
        content = Content::of(device, kernel_fs).map_err(unreadable)?;
    }
    let (kind, bytes) = match content {
        Content::Filesystem { kind, bytes } => (kind, bytes),
        Content::Blank if is_unwritten => {
            return Err("has no filesystem although `mkfs.ext4` has succeeded".into());
        }
        Content::Blank => return Err(foreign(guest, "no filesystem, and was written to")),
        Content::Other(what) => return Err(foreign(guest, what)),
    };
    let refused =
        |error: io::Error| format!("cannot be mounted on {} as {kind}: {error}", guest.display());
    fs::create_dir_all(guest).map_err(refused)?;
    rustix::mount::mount(device.path(), guest, kind, MountFlags::empty(), None)
        .map_err(|error| refused(error.into()))?;
    let size = device.bytes(kernel_fs).map_err(unreadable)?;
    if bytes.is_none_or(|bytes| bytes.saturating_add(LEAST_GROWTH_BYTES) <= size) {
        grow::fill(guest, size).map_err(|error| Failure {
            reason: format!("is mounted, and its filesystem has not grown: {error}"),
            is_foreign: false,
            is_mounted: true,
        })?;
    }
    Ok(())
}

/// Returns the reason why a disk is left alone.
fn foreign(guest: &Path, what: &str) -> Failure {
    let reason = format!("is not mounted on {}: it has {what}", guest.display());
    Failure { reason, is_foreign: true, is_mounted: false }
}
