//! State of a machine as its QEMU reports it: running, or the reason why it is paused; and its
//! guest's hold of the control port.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cancel::Cancel;
use crate::layout::SocketsLayout;
use crate::wait::WaitLimit;

use super::argv::CONTROL;
use super::qmp::Qmp;

/// Time for QEMU to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Limit for callers that never wait. An idle QEMU answers within a millisecond; one that serves
/// another client takes longer.
const GLANCE_LIMIT: Duration = Duration::from_millis(100);

/// State of a machine, as its QEMU reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineStatus {
    /// The machine runs.
    Runs,
    /// QEMU itself has paused the machine: the disk of this host is full, and a write of the guest
    /// waits for space.
    DiskFull,
    /// Paused for another reason: it never ran, or another client has paused it.
    Paused,
}

impl MachineStatus {
    /// Asks QEMU. Returns `None` if it does not answer, or serves another client.
    pub fn ask(sockets: &SocketsLayout, cancel: &Cancel) -> Option<Self> {
        Self::within(sockets, ANSWER_LIMIT, cancel)
    }

    /// Asks QEMU, and waits no longer than a moment.
    pub fn glance(sockets: &SocketsLayout) -> Option<Self> {
        Self::within(sockets, GLANCE_LIMIT, &Cancel::new())
    }

    fn within(sockets: &SocketsLayout, limit: Duration, cancel: &Cancel) -> Option<Self> {
        let mut qmp = Qmp::connect(&sockets.qmp(), WaitLimit::new(limit, cancel)).ok()?;
        Self::of(&mut qmp)
    }

    /// Asks QEMU on an existing connection.
    pub fn of(qmp: &mut Qmp) -> Option<Self> {
        let status = qmp.execute("query-status", json!({})).ok()?;
        Some(match (status["running"].as_bool(), status["status"].as_str()) {
            (Some(true), _) => Self::Runs,
            // QEMU's default policy `werror=enospc`: any other error is passed to the guest.
            (_, Some("io-error")) => Self::DiskFull,
            _ => Self::Paused,
        })
    }
}

/// Asks QEMU whether a process in the guest has opened the control port, as the agent does for as
/// long as it lives. Returns `None` if QEMU does not answer within a moment.
pub fn is_agent_there(sockets: &SocketsLayout) -> Option<bool> {
    let limit = WaitLimit::new(GLANCE_LIMIT, &Cancel::new());
    has_agent(&mut Qmp::connect(&sockets.qmp(), limit).ok()?)
}

fn has_agent(qmp: &mut Qmp) -> Option<bool> {
    let backends = qmp.execute("query-chardev", json!({})).ok()?;
    let is_control = |backend: &&Value| backend["label"] == CONTROL;
    backends.as_array()?.iter().find(is_control)?["frontend-open"].as_bool()
}

/// A count of how often the agent was missing in a row. One that has died is started again within
/// seconds.
#[derive(Debug, Default)]
pub struct AgentAbsence(u32);

impl AgentAbsence {
    /// Number of looks, one a second, after which the agent will not come back.
    const MOST: u32 = 10;

    /// Looks once more. Returns `true` once the agent has been missing all the time.
    pub fn is_lasting(&mut self, qmp: &mut Qmp) -> bool {
        self.0 = if has_agent(qmp) == Some(false) { self.0 + 1 } else { 0 };
        self.0 >= Self::MOST
    }
}
