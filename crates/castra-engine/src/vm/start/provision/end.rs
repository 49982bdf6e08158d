//! Shuts down the guest of a step, and proves that all of it happened in order.
//!
//! New disks will be based on what is on this one for good. A QEMU that is killed, a step that
//! switches its VM off and a guest that reboots all end as well, and leave a disk that lacks what
//! was written last, or still has secrets.

use std::time::{Duration, Instant};

use castra_disk::{Image, Limits};
use castra_wire::{AgentTask, GuestMessage};

use crate::cancel::Cancel;
use crate::guest::{ControlError, ControlPort};
use crate::qemu::{AgentAbsence, Disk, Qmp, QmpError};
use crate::template::StepMachine;
use crate::wait::WaitLimit;

/// Time for a guest to shut down; its services may take their time.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(240);
/// Time for QEMU to exit once its guest has shut down.
const EXIT_LIMIT: Duration = Duration::from_secs(30);
/// Interval at which the wait for the agent checks that it is there.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Reason of QEMU's for a guest that has switched itself off.
const SWITCHED_OFF: &str = "guest-shutdown";

/// Shuts the guest down and waits for its end. The error is the reason why its disk cannot be
/// relied on.
pub(super) fn shut_down(
    port: &mut ControlPort,
    machine: StepMachine<'_>,
    cancel: &Cancel,
) -> Result<(), String> {
    let limit = WaitLimit::new(SHUTDOWN_LIMIT, cancel);
    // From now on, so that no event is missed.
    let mut qmp = Qmp::connect(&machine.sockets.qmp(), limit).map_err(ended_early)?;
    // Not every filesystem shows afterwards whether its data is complete.
    port.sync().map_err(unanswered)?;
    await_answer(port, &mut qmp, |message| matches!(message, GuestMessage::Synced))?;
    port.power_off().map_err(unanswered)?;
    await_answer(port, &mut qmp, |message| matches!(message, GuestMessage::PoweringOff))?;
    let reason = qmp.await_shutdown().map_err(ended_early)?;
    if reason != SWITCHED_OFF {
        return Err(format!("it ended otherwise ({reason})"));
    }
    drop(qmp);
    match machine.process.wait(EXIT_LIMIT) {
        Some(status) if status.success() => {}
        Some(status) => return Err(format!("QEMU failed ({status})")),
        None => return Err(format!("QEMU was still there after {} s", EXIT_LIMIT.as_secs())),
    }
    ensure_closed(machine.disk)
}

fn await_answer(
    port: &mut ControlPort,
    qmp: &mut Qmp,
    is_answer: impl Fn(&GuestMessage) -> bool,
) -> Result<(), String> {
    let deadline = Instant::now() + SHUTDOWN_LIMIT;
    let mut absence = AgentAbsence::default();
    loop {
        match port.next(deadline.min(Instant::now() + LOOK_EVERY)) {
            Ok(message) if is_answer(&message) => return Ok(()),
            Ok(GuestMessage::Failed {
                task: AgentTask::PowerOff | AgentTask::Protocol,
                reason,
            }) => {
                return Err(reason);
            }
            Ok(_) => {}
            Err(ControlError::ReadTimeout) if absence.is_lasting(qmp) => {
                return Err("its agent has ended".to_owned());
            }
            Err(ControlError::ReadTimeout) if Instant::now() < deadline => {}
            Err(error) => return Err(unanswered(error)),
        }
    }
}

fn unanswered(error: ControlError) -> String {
    match error {
        ControlError::Closed => ended_early(QmpError::Closed),
        error => error.to_string(),
    }
}

fn ended_early(error: QmpError) -> String {
    match error {
        QmpError::Silent(limit) => format!("it was still running after {} s", limit.as_secs()),
        QmpError::Closed | QmpError::Io(_) => "it ended before it had shut down".to_owned(),
        error => error.to_string(),
    }
}

/// Ensures that no filesystem of the disk was cut off.
fn ensure_closed(disk: &Disk) -> Result<(), String> {
    let unreadable = |error: &dyn std::fmt::Display| format!("its disk cannot be read: {error}");
    let files = disk.open_files().map_err(|error| unreadable(&error))?;
    let image = Image::open(files).map_err(|error| unreadable(&error))?;
    let disk = castra_disk::Disk::open(image, Limits::default());
    for volume in disk.map_err(|error| unreadable(&error))?.volumes() {
        if volume.needs_recovery().map_err(|error| unreadable(&error))? {
            return Err(format!("the filesystem on {} was not unmounted", volume.place));
        }
    }
    Ok(())
}
