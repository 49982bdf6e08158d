//! QEMU and qemu-img: installed, recent enough, and with everything that a launch uses.

use std::path::Path;

use crate::cancel::Interrupted;
use crate::command::{self, CommandError};
use crate::context::RuntimeContext;
use crate::error::Explain as _;
use crate::qemu::{self, QemuBinary, QemuError, QemuVersion};

use super::{Area, Finding};

/// Oldest version that was tested. `x-ignore-shared` appeared in 4.0; everything else that is used
/// is older.
const TRIED: QemuVersion = QemuVersion { major: 7, minor: 2 };

/// Returns the findings, and QEMU if it is installed.
pub(super) fn check(
    context: &RuntimeContext,
) -> Result<(Vec<Finding>, Option<QemuBinary>), Interrupted> {
    let mut findings = Vec::new();
    let binary = match QemuBinary::find(&context.environment) {
        Ok(binary) => Some(binary),
        Err(error) => {
            findings.push(missing("qemu", &error));
            None
        }
    };
    if let Some(binary) = &binary {
        findings.push(version("qemu-version", &binary.path, context)?);
        findings.push(features(binary, context)?);
    }
    findings.push(match command::find_program(&context.environment, "qemu-img") {
        Some(program) => version("qemu-img-version", &program, context)?,
        None => missing("qemu-img", &QemuError::NotInstalled { program: "qemu-img".into() }),
    });
    Ok((findings, binary))
}

fn missing(check: &'static str, error: &QemuError) -> Finding {
    Finding::problem(Area::Qemu, check, error.to_string()).with_hint(error.hint())
}

fn version(
    check: &'static str,
    program: &Path,
    context: &RuntimeContext,
) -> Result<Finding, Interrupted> {
    let found = match QemuVersion::of_program(program, &context.cancel) {
        Err(CommandError::Interrupted(interrupted)) => return Err(interrupted),
        Err(error) => {
            return Ok(Finding::problem(Area::Qemu, check, error.to_string()).with_fix(
                "Reinstall it, or name another QEMU: CASTRA_QEMU=/path/to/qemu-system-x86_64",
            ));
        }
        Ok(found) => found,
    };
    let path = program.display();
    Ok(match found {
        Some(version) if version < TRIED => Finding::warning(
            Area::Qemu,
            check,
            format!("{path} is version {version}; Castra is tested with {TRIED} and newer"),
        )
        .with_fix("Update QEMU if something does not work."),
        Some(version) => Finding::good(Area::Qemu, check, format!("{path} is version {version}")),
        None => Finding::note(Area::Qemu, check, format!("{path} does not report its version")),
    })
}

/// Checks that a machine with every device of a VM starts and runs a program.
fn features(binary: &QemuBinary, context: &RuntimeContext) -> Result<Finding, Interrupted> {
    let check = "qemu-features";
    Ok(match qemu::try_everything(binary, &context.cancel) {
        Ok(Ok(time)) => Finding::good(
            Area::Qemu,
            check,
            format!(
                "sandbox, user networking and all devices work (tested in {} ms)",
                time.as_millis()
            ),
        ),
        Ok(Err(reason)) => Finding::problem(
            Area::Qemu,
            check,
            format!("QEMU lacks a feature that VMs need: {reason}"),
        )
        .with_fix(qemu::INSTALL_FULL_QEMU),
        Err(QemuError::Interrupted(interrupted)) => return Err(interrupted),
        Err(error) => Finding::problem(Area::Qemu, check, crate::error::one_line(&error)),
    })
}
