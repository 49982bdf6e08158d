//! UEFI firmware, which only VMs need that boot natively by it.

use std::path::Path;

use crate::context::RuntimeContext;
use crate::error::Explain as _;
use crate::qemu::firmware::{CODE, VARIABLES};
use crate::qemu::options::MachineType;
use crate::qemu::{QemuBinary, QemuError, UefiFirmware};
use crate::vm;

use super::{Area, Finding, Subject};

/// Name of the check.
const CHECK: &str = "uefi-firmware";

/// Looks for the firmware if a VM of the project boots by it, or if the environment names it.
pub(super) fn check(subject: &Subject<'_>, qemu: Option<&QemuBinary>) -> Option<Finding> {
    let (context, environment) = (subject.context, &subject.context.environment);
    let vms = vms(subject, context);
    let is_named = [CODE, VARIABLES].iter().any(|name| environment.get(name).is_some());
    if vms.is_empty() && !is_named {
        return None;
    }
    let qemu = qemu.map_or(Path::new(""), |binary| &binary.path);
    let found = UefiFirmware::find(environment, qemu, &MachineType::default(), None);
    Some(finding(&vms, found))
}

/// Returns the VMs of the project that boot by UEFI.
fn vms(subject: &Subject<'_>, context: &RuntimeContext) -> Vec<String> {
    let vms = subject.project.map(|project| project.vms.as_slice()).unwrap_or_default();
    let by_uefi = vms.iter().filter(|definition| vm::boots_by_uefi(definition, context));
    by_uefi.map(|definition| format!("`{}`", definition.name)).collect()
}

fn finding(vms: &[String], found: Result<UefiFirmware, QemuError>) -> Finding {
    let need = match vms {
        [] => String::new(),
        [one] => format!("VM {one} boots by UEFI: "),
        [others @ .., last] => format!("VMs {} and {last} boot by UEFI: ", others.join(", ")),
    };
    match found {
        Ok(UefiFirmware { code, variables }) => {
            let (code, variables) = (code.path.display(), variables.path.display());
            let message = format!("{need}firmware {code}, variables {variables}");
            Finding::good(Area::Qemu, CHECK, message)
        }
        Err(error) => {
            let severity = if vms.is_empty() { Finding::warning } else { Finding::problem };
            severity(Area::Qemu, CHECK, format!("{need}{error}")).with_hint(error.hint())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    #[test]
    fn firmware_is_a_problem_only_for_vms_that_need_it() {
        let missing = |vms: &[&str]| {
            let vms: Vec<String> = vms.iter().map(|vm| format!("`{vm}`")).collect();
            finding(&vms, Err(QemuError::NoUefi))
        };
        let none = missing(&["web", "db", "dev"]);
        let expected = "VMs `web`, `db` and `dev` boot by UEFI: no UEFI firmware for QEMU (OVMF) \
            is installed";
        assert_eq!((none.severity, none.message.as_str()), (Severity::Problem, expected));
        assert!(none.fix.is_some_and(|fix| fix.contains("apt install ovmf")));
        assert!(missing(&["web"]).message.starts_with("VM `web` boots by UEFI: no UEFI"));
        assert_eq!(missing(&[]).severity, Severity::Warning, "only named by the environment");
    }
}
