//! Accelerators: each is tested with a real program and timed.

use crate::cancel::Interrupted;
use crate::context::RuntimeContext;
use crate::qemu::{self, Accelerator, QemuBinary, QemuError, Trial};

use super::{Area, Finding, Repair};

pub(super) fn check(
    binary: Option<&QemuBinary>,
    context: &RuntimeContext,
) -> Result<Vec<Finding>, Interrupted> {
    let Some(binary) = binary else { return Ok(Vec::new()) };
    let trials = match qemu::try_accelerators(binary, &context.cancel) {
        Ok(trials) => trials,
        Err(QemuError::Interrupted(interrupted)) => return Err(interrupted),
        Err(error) => {
            let message = crate::error::one_line(&error);
            return Ok(vec![Finding::warning(Area::Accelerators, "accelerators", message)]);
        }
    };
    let mut findings: Vec<Finding> = trials.iter().map(finding).collect();
    findings.extend(remembered(&trials, context));
    Ok(findings)
}

fn finding(trial: &Trial) -> Finding {
    let (check, name) = (trial.accelerator.name(), trial.accelerator.name());
    let is_hardware = trial.accelerator != Accelerator::Tcg;
    match (&trial.outcome, trial.is_chosen) {
        (Ok(time), true) => Finding::good(
            Area::Accelerators,
            check,
            format!("{name} works ({} ms) and is used", time.as_millis()),
        ),
        (Ok(time), false) if is_hardware => Finding::warning(
            Area::Accelerators,
            check,
            format!(
                "{name} works, but is slower here than emulation ({} ms), so it is not used",
                time.as_millis()
            ),
        )
        .with_fix(
            "That is common in nested guests. On real hardware, check the virtualization \
            settings of the BIOS.",
        ),
        (Ok(time), false) => Finding::good(
            Area::Accelerators,
            check,
            format!("{name} works ({} ms)", time.as_millis()),
        ),
        (Err(reason), _) if is_hardware => {
            let finding = Finding::warning(
                Area::Accelerators,
                check,
                format!("{name} is not used: {reason}"),
            );
            finding.with_fix(way_out(reason))
        }
        (Err(reason), _) => {
            Finding::problem(Area::Accelerators, check, format!("{name} does not work: {reason}"))
                .with_fix("Reinstall your distribution's QEMU.")
        }
    }
}

fn way_out(reason: &str) -> &'static str {
    if reason.starts_with("no permission") {
        "sudo usermod -aG kvm $USER, then log in again. VMs work without it, only slower."
    } else if reason.starts_with("there is no") {
        "Enable virtualization in the BIOS, or for this machine if it is a guest itself, and load \
         the kernel module (sudo modprobe kvm_intel, or kvm_amd). VMs work without it, only slower."
    } else {
        "VMs work without it, only slower."
    }
}

/// Returns a finding if an earlier race chose another accelerator than one would now.
fn remembered(trials: &[Trial], context: &RuntimeContext) -> Option<Finding> {
    let path = context.cache.accelerators();
    let (now, known) =
        (trials.iter().find(|trial| trial.is_chosen)?, qemu::remembered_accelerators(&path));
    let other = known.iter().find(|choice| choice.accelerator != now.accelerator)?;
    let message = format!(
        "{} was chosen when accelerators were first tested, but {} would be chosen now",
        other.accelerator.name(),
        now.accelerator.name()
    );
    let fix = format!("To test them again at the next start, remove {}", path.display());
    let finding = Finding::warning(Area::Accelerators, "remembered-choice", message);
    Some(finding.with_fix(fix).with_repair(Repair::RemoveFile(path)))
}
