//! Saving the state of a machine that stands still, in QEMU's migration format.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::Duration;

use serde_json::json;

use crate::wait::{WaitEnd, WaitLimit};

use super::error::QemuError;
use super::qmp::{Qmp, QmpError};

/// How often QEMU is asked whether it is done. The state of the devices alone takes some milliseconds.
const POLL: Duration = Duration::from_millis(2);

/// How often QEMU is asked whether it has loaded a state, which a VM's start waits for.
const LOAD_POLL: Duration = Duration::from_micros(500);

/// The name under which QEMU knows the file.
const FILE: &str = "castra-state";

/// From now on memory that is shared with a file is left out of what is saved: it is in that file.
///
/// # Errors
/// [`QmpError::Refused`] by a QEMU that cannot do this.
pub fn ignore_shared_memory(qmp: &mut Qmp) -> Result<(), QmpError> {
    set_ignore_shared(qmp, true)
}

/// From now on all memory is part of what is saved. A QEMU refuses this that cannot leave it out either.
pub fn save_all_memory(qmp: &mut Qmp) {
    // Loading insists on the same setting as saving, so one that a template's start made is taken back.
    let _ = set_ignore_shared(qmp, false);
}

fn set_ignore_shared(qmp: &mut Qmp, state: bool) -> Result<(), QmpError> {
    let capability = json!([{ "capability": "x-ignore-shared", "state": state }]);
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": capability })).map(drop)
}

/// Loads a saved state into a machine that waits for it, which then stands still. A QEMU that cannot load it ends.
///
/// # Errors
/// Any [`QmpError`].
pub(super) fn load_state(qmp: &mut Qmp, file: &File, limit: &WaitLimit) -> Result<(), QmpError> {
    qmp.send_file(FILE, file.as_fd())?;
    qmp.execute("migrate-incoming", json!({ "uri": format!("fd:{FILE}") }))?;
    let wait = limit.begin();
    while qmp.execute("query-status", json!({}))?["status"] == "inmigrate" {
        wait.sleep(LOAD_POLL)?;
    }
    Ok(())
}

/// Saves the state of a machine that has been stopped into a file, within a limit. QEMU is good for nothing but `quit`,
/// or `cont`, afterwards.
///
/// # Errors
/// [`QemuError::NotSaved`] with QEMU's words, [`QemuError::Interrupted`].
pub fn save_state(vm: &str, qmp: &mut Qmp, file: &File, limit: &WaitLimit) -> Result<(), QemuError> {
    let failed = |reason: String| QemuError::NotSaved { vm: vm.to_owned(), reason };
    let refused = |error: QmpError| match error {
        QmpError::Interrupted(interrupted) => interrupted.into(),
        error => failed(error.to_string()),
    };
    // A file instead of a path: QEMU opens nothing by itself then, and 7.2 knows no other way under its sandbox.
    qmp.send_file(FILE, file.as_fd()).map_err(refused)?;
    // Everything at once: the machine stands still and nobody waits for the bandwidth.
    qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": i64::MAX })).map_err(refused)?;
    qmp.execute("migrate", json!({ "uri": format!("fd:{FILE}") })).map_err(refused)?;
    let wait = limit.begin();
    loop {
        let state = qmp.execute("query-migrate", json!({})).map_err(refused)?;
        match state["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => {
                let reason = state["error-desc"].as_str().unwrap_or("QEMU does not say why");
                return Err(failed(reason.to_owned()));
            }
            _ => {}
        }
        wait.sleep(POLL).map_err(|end| match end {
            WaitEnd::Over(limit) => failed(format!("not within {} s", limit.as_secs())),
            WaitEnd::Interrupted(interrupted) => interrupted.into(),
        })?;
    }
}
