//! Agents that no longer answer, although their VM runs.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::cancel::Cancel;
use crate::files::Lock;
use crate::guest::{Inspection, NoInspection, inspect};
use crate::layout::VmLayout;
use crate::qemu::is_agent_there;
use crate::trusted;
use crate::vm::record::Record;

/// Time for the agent to answer; everything else is known without it.
const LIMIT: Duration = Duration::from_secs(1);
/// Time for an agent that has not answered within that. An emulated guest on a busy machine is
/// late, but not as late as this.
const LONG_LIMIT: Duration = Duration::from_secs(4);

/// Fault of the agent of a VM that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AgentFault {
    /// No agent runs in the guest.
    Gone,
    /// An agent runs, and does not answer.
    Silent,
}

impl AgentFault {
    /// Describes the fault of the VM of this name.
    pub fn in_words(self, vm: &str) -> String {
        match self {
            Self::Gone => format!(
                "VM `{vm}` is running, but castra's agent in it is not: it was killed, or the \
                guest is rebooting or has crashed"
            ),
            Self::Silent => format!(
                "VM `{vm}` is running, but castra's agent in it does not answer: it hangs, or the \
                guest is too busy"
            ),
        }
    }

    /// Returns the remedy for the VM of this name.
    pub fn way_out(self, vm: &str) -> String {
        format!(
            "No command can run in it. `castra console {vm}` shows what its guest does, and \
            `castra restart {vm}` starts it again."
        )
    }
}

/// Asks the agent of a running VM for the guest's condition. Returns `None` if that is not known,
/// for instance while the guest boots or another castra works on the VM.
pub(super) fn ask(record: &Record, files: &VmLayout) -> Option<Result<Inspection, AgentFault>> {
    let control = record.agent_socket()?.path;
    let ask_within = |limit| match inspect(&control, limit, &Cancel::new()) {
        Ok(inspection) => Some(Ok(inspection)),
        // An operation that holds the VM's lock may have the port for itself.
        Err(NoInspection::Silent) if is_free(files) => Some(Err(())),
        Err(NoInspection::Silent | NoInspection::Unknown) => None,
    };
    if let Ok(inspection) = ask_within(LIMIT)? {
        return Some(Ok(inspection));
    }
    let sockets = record.boot.as_ref()?.socket_paths();
    if is_agent_there(&sockets) == Some(false) {
        return Some(Err(AgentFault::Gone));
    }
    Some(ask_within(LONG_LIMIT)?.map_err(|()| AgentFault::Silent))
}

/// Returns `true` if no castra holds the VM's lock.
fn is_free(files: &VmLayout) -> bool {
    let lock = files.lock();
    let held = trusted::open(&lock).ok().and_then(|file| Lock::try_hold(file, &lock).ok());
    held.flatten().is_some()
}
