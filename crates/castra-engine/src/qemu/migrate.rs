//! Saves and loads the state of a paused machine, in QEMU's migration format.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::Duration;

use serde_json::json;

use crate::wait::{WaitEnd, WaitLimit};

use super::error::QemuError;
use super::qmp::{Qmp, QmpError};

/// Interval at which QEMU is asked whether it is done. Saving only the devices takes some
/// milliseconds.
const POLL: Duration = Duration::from_millis(2);

/// Interval at which QEMU is asked whether it has loaded a state, which a VM's start waits for.
const LOAD_POLL: Duration = Duration::from_micros(500);

/// Name under which QEMU knows the file.
const FILE: &str = "castra-state";

/// Excludes memory that is shared with a file from saved states from now on: the file holds it.
///
/// # Errors
/// [`QmpError::Refused`] by a QEMU that cannot do this.
pub fn ignore_shared_memory(qmp: &mut Qmp) -> Result<(), QmpError> {
    set_ignore_shared(qmp, true)
}

/// Includes all memory in saved states from now on. Only a QEMU that cannot exclude it refuses
/// this.
pub fn save_all_memory(qmp: &mut Qmp) {
    // Loading requires the same setting as saving, so undo that of a template's start.
    let _ = set_ignore_shared(qmp, false);
}

fn set_ignore_shared(qmp: &mut Qmp, state: bool) -> Result<(), QmpError> {
    let capability = json!([{ "capability": "x-ignore-shared", "state": state }]);
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": capability })).map(drop)
}

/// Loads a saved state into a machine that waits for it and is paused afterwards. A QEMU that
/// cannot load it exits.
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

/// Saves the state of a paused machine into a file, within a time limit. Afterwards, only `quit` or
/// `cont` make sense.
///
/// # Errors
/// [`QemuError::NotSaved`] with QEMU's message, [`QemuError::Interrupted`].
pub fn save_state(
    vm: &str,
    qmp: &mut Qmp,
    file: &File,
    limit: &WaitLimit,
) -> Result<(), QemuError> {
    let failed = |reason: String| QemuError::NotSaved { vm: vm.to_owned(), reason };
    let refused = |error: QmpError| match error {
        QmpError::Interrupted(interrupted) => interrupted.into(),
        error => failed(error.to_string()),
    };
    // An open file instead of a path: then QEMU opens nothing by itself, and 7.2 permits no other
    // way under its sandbox.
    qmp.send_file(FILE, file.as_fd()).map_err(refused)?;
    // Without a bandwidth limit: the machine is paused, and nothing else needs the bandwidth.
    qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": i64::MAX })).map_err(refused)?;
    qmp.execute("migrate", json!({ "uri": format!("fd:{FILE}") })).map_err(refused)?;
    let wait = limit.begin();
    loop {
        let state = qmp.execute("query-migrate", json!({})).map_err(refused)?;
        match state["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => {
                let reason = state["error-desc"].as_str().unwrap_or("QEMU gave no reason");
                return Err(failed(reason.to_owned()));
            }
            _ => {}
        }
        wait.sleep(POLL).map_err(|end| match end {
            WaitEnd::Over(limit) => failed(format!("timed out after {} s", limit.as_secs())),
            WaitEnd::Interrupted(interrupted) => interrupted.into(),
        })?;
    }
}
