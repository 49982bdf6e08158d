//! Self-tests for `castra doctor`: each accelerator, and one machine with every device that a VM
//! uses.

use std::path::Path;
use std::time::Duration;

use crate::cancel::Cancel;
use crate::context::Environment;

use super::accelerator::{Accelerator, AcceleratorChoice};
use super::argv::SANDBOX;
use super::binary::QemuBinary;
use super::error::QemuError;
use super::options::{CpuModel, Device, DeviceModel};
use super::probe::{self, Outcome};
use super::race::{PROBE_LIMIT, candidate, judge, why_closed};
use super::remembered;

/// Time limit for the machine with every device. Generous, since no VM waits for it on a busy
/// machine.
const EVERYTHING_LIMIT: Duration = Duration::from_secs(20);

/// An accelerator that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// The accelerator.
    pub accelerator: Accelerator,
    /// Duration of the probe, or the reason why it failed.
    pub outcome: Result<Duration, String>,
    /// Set if VMs run with it.
    pub is_chosen: bool,
}

/// Tests every accelerator of this platform, one after another, whatever earlier races found.
///
/// # Errors
/// [`QemuError::Interrupted`], or [`QemuError::File`] if the probe cannot be written.
pub fn try_accelerators(qemu: &QemuBinary, cancel: &Cancel) -> Result<Vec<Trial>, QemuError> {
    let scratch = scratch(&qemu.environment)?;
    let run = |accelerator: Accelerator| {
        let cpu = accelerator.cpu(&CpuModel::default());
        probe::probe(qemu, accelerator, &cpu, scratch.path(), PROBE_LIMIT, &[], cancel)
    };
    let under_tcg = run(Accelerator::Tcg)?;
    let mut trials = Vec::new();
    let mut chosen = Accelerator::Tcg;
    if let Some(candidate) = candidate() {
        let under_hardware = match probe::opens(Path::new(candidate.device)) {
            Err(errno) => Outcome::Fails(why_closed(candidate.device, errno)),
            Ok(()) => run(candidate.accelerator)?,
        };
        chosen =
            judge(candidate.accelerator, under_hardware.clone(), under_tcg.clone()).accelerator;
        trials.push((candidate.accelerator, under_hardware));
    }
    trials.push((Accelerator::Tcg, under_tcg));
    let trial = |(accelerator, outcome)| Trial {
        accelerator,
        outcome: match outcome {
            Outcome::Works(time) => Ok(time),
            Outcome::Fails(reason) | Outcome::TooSlow(reason) => Err(reason),
        },
        is_chosen: accelerator == chosen,
    };
    Ok(trials.into_iter().map(trial).collect())
}

/// Advice for a QEMU that lacks something.
pub const INSTALL_FULL_QEMU: &str = "Install your distribution's full QEMU (it needs seccomp and \
    slirp), or name another one in CASTRA_QEMU.";

/// Runs the probe in a machine with the sandbox, the network and the devices of a VM. The inner
/// result is the duration, or QEMU's own message.
///
/// # Errors
/// As for [`try_accelerators`].
pub fn try_everything(
    qemu: &QemuBinary,
    cancel: &Cancel,
) -> Result<Result<Duration, String>, QemuError> {
    Ok(match run_everything(qemu, cancel)? {
        Outcome::Works(time) => Ok(time),
        Outcome::Fails(reason) | Outcome::TooSlow(reason) => Err(reason),
    })
}

/// Returns QEMU's own message if [`try_everything`] fails because something is missing; `None` if
/// it works or is slow.
///
/// # Errors
/// As for [`try_accelerators`].
pub fn find_missing(qemu: &QemuBinary, cancel: &Cancel) -> Result<Option<String>, QemuError> {
    Ok(match run_everything(qemu, cancel)? {
        Outcome::Fails(reason) => Some(reason),
        Outcome::Works(_) | Outcome::TooSlow(_) => None,
    })
}

fn run_everything(qemu: &QemuBinary, cancel: &Cancel) -> Result<Outcome, QemuError> {
    let scratch = scratch(&qemu.environment)?;
    let entropy = Device::new(DeviceModel::VirtioRng).to_string();
    let generation = Device::new_generation_id().to_string();
    let further = [
        ["-sandbox", SANDBOX],
        ["-netdev", "user,id=net,restrict=on"],
        ["-device", "virtio-net-pci,netdev=net,romfile="],
        ["-device", "virtio-serial-pci"],
        ["-device", &entropy],
        ["-device", &generation],
    ]
    .concat();
    probe::probe(
        qemu,
        Accelerator::Tcg,
        &CpuModel::default(),
        scratch.path(),
        EVERYTHING_LIMIT,
        &further,
        cancel,
    )
}

/// Returns the results of earlier races that this file holds.
pub fn remembered_accelerators(path: &Path) -> Vec<AcceleratorChoice> {
    remembered::read::<AcceleratorChoice>(path).into_values().collect()
}

fn scratch(environment: &Environment) -> Result<tempfile::TempDir, QemuError> {
    let directory = environment.temp_dir();
    tempfile::Builder::new().prefix("castra-probe-").tempdir_in(&directory).map_err(|source| {
        QemuError::File { action: "write the accelerator probe into", path: directory, source }
    })
}
