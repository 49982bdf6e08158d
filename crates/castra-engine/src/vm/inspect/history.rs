//! Timelines of a VM's recent starts, completed with what its guest reported after `up` returned.

use std::time::{Duration, Instant};

use castra_wire::GuestMessage;

use crate::files::Lock;
use crate::guest::ControlPort;
use crate::trusted;
use crate::vm::project::ProjectRef;
use crate::vm::record::{BootRecord, Record, VmState, observe};
use crate::vm::start::record_times;
use crate::vm::timeline::{self, PhaseSpan, Stopwatch, Timeline, save_if_new, timelines};

/// Time to listen to the guest, which answers within milliseconds or is busy.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Returns the timelines of a VM's recent starts, the newest first. If the last one has a phase
/// whose end was not seen, such as that of the guest's services, and the VM runs, the guest is
/// asked.
pub fn last_starts(record: &Record, project: ProjectRef<'_>) -> Vec<Timeline> {
    let files = project.files(&record.name);
    if let (VmState::Running, Some(boot)) = (observe(record, &files).0, record.boot.as_ref()) {
        // The rest can be shown without it.
        let _ = learn(record, boot, project);
    }
    timelines(&files)
}

fn learn(record: &Record, boot: &BootRecord, project: ProjectRef<'_>) -> Option<()> {
    let files = project.files(&record.name);
    let is_open = |span: &PhaseSpan| span.end_ms.is_none();
    boot.has_agent().then_some(())?;
    timeline::find(&files, boot.started_unix_ms)?.phases.iter().any(is_open).then_some(())?;
    let _lock = Lock::try_hold(trusted::open(&files.lock()).ok()?, &files.lock()).ok()??;
    // The last holder of the lock may have completed it meanwhile.
    let kept = timeline::find(&files, boot.started_unix_ms)?;
    let stopwatch = Stopwatch::continuing(&record.name, Some(&kept), &project.context.reporter);
    let deadline = Instant::now() + ANSWER_LIMIT;
    let control = boot.socket_paths().control();
    let mut port = ControlPort::connect(&control, deadline, project.cancel()).ok()?;
    port.attach().ok()?;
    loop {
        let message = port.next(deadline).ok()?;
        record_times(&message, &stopwatch);
        if matches!(message, GuestMessage::Hello { .. }) {
            save_if_new(&stopwatch, kept, true, &files);
            return Some(());
        }
    }
}
