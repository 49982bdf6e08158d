//! Predecessor of a VM: another one that was started in the same place, and whose project was moved
//! away or removed while it ran. Its sockets are still here, and its QEMU removes the pid file of
//! this place when it ends, whichever VM that belongs to by then.

use std::thread;
use std::time::{Duration, Instant};

use crate::qemu::{FoundQemu, find_qemus};
use crate::vm::error::{Predecessor, StartError, VmError};
use crate::vm::monitor::is_in_use;
use crate::vm::project::ProjectRef;

/// Time for a QEMU that has just ended to close its sockets, on a busy machine.
const CLOSING_LIMIT: Duration = Duration::from_secs(5);
/// Interval between checks meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Checks that starting this VM here would neither hurt another one nor be hurt by it.
///
/// # Errors
/// Returns [`StartError::PlaceTaken`] or [`VmError::Interrupted`].
pub(in crate::vm) fn refuse(vm: &str, project: ProjectRef<'_>) -> Result<(), VmError> {
    let sockets = project.sockets(vm);
    let deadline = Instant::now() + CLOSING_LIMIT;
    while is_in_use(&sockets) {
        project.cancel().check()?;
        let is_other = |one: &FoundQemu| one.is_orphan || one.project != *project.layout;
        let found = find_qemus()
            .into_iter()
            .find(|one| one.vm == vm && one.started_in == *project.layout && is_other(one));
        if found.is_some() || Instant::now() > deadline {
            let predecessor = found.map(|found| Predecessor {
                pid: found.qemu.pid(),
                project: (!found.is_orphan).then(|| found.project.directory().to_owned()),
            });
            return Err(StartError::PlaceTaken { vm: vm.to_owned(), predecessor }.into());
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
