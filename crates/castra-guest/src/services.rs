//! Detects when the guest's own services are up.
//!
//! There is no common signal for this, so the first of these counts: OpenRC has finished its
//! default runlevel, or PID 1 has started a `getty`. systemd can be asked ([`crate::systemd`]), and
//! starts its gettys long before other services.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;

use crate::kernel_fs::KernelFs;

/// Interval between checks: each takes some ten system calls.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Programs that PID 1 starts last.
const GETTYS: [&str; 5] = ["getty", "agetty", "mingetty", "fgetty", "login"];

/// Waits until the services are up. Never returns in an image that shows none of the signs.
pub(crate) async fn wait_until_up(kernel_fs: &KernelFs) {
    let mut openrc_had_finished = false;
    loop {
        if init_has_started_a_getty(kernel_fs) {
            return;
        }
        // OpenRC names the runlevel an instant before it creates `rc.starting`, so one look is
        // not enough.
        let openrc_has_finished = openrc_has_finished();
        if openrc_has_finished && openrc_had_finished {
            return;
        }
        openrc_had_finished = openrc_has_finished;
        sleep(LOOK_EVERY).await;
    }
}

/// Returns `true` under systemd; the test of `sd_booted(3)`.
pub(crate) fn is_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Returns `true` if OpenRC manages this system's services.
pub(crate) fn is_openrc() -> bool {
    Path::new("/run/openrc/softlevel").exists()
}

/// Returns `true` once OpenRC has started its runlevel: it names the runlevel when it begins, and
/// `rc.starting` exists until all of it is started.
fn openrc_has_finished() -> bool {
    let level = fs::read_to_string("/run/openrc/softlevel").unwrap_or_default();
    level.trim() == "default" && !Path::new("/run/openrc/rc.starting").exists()
}

fn init_has_started_a_getty(kernel_fs: &KernelFs) -> bool {
    let children = kernel_fs.proc.read("1/task/1/children").unwrap_or_default();
    children.split_whitespace().any(|pid| {
        let name = kernel_fs.proc.read(&format!("{pid}/comm"));
        name.is_ok_and(|name| GETTYS.contains(&name.as_str()))
    })
}
