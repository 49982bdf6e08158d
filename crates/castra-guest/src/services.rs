//! Detects when the guest's own services are up.
//!
//! There is no common signal for this, so the first of these counts: OpenRC has finished its
//! default runlevel, PID 1 has started a `getty`, or systemd reports that the system is running.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::kernel_fs::KernelFs;
use crate::process::image_program;

/// Interval between checks: each takes some ten system calls.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Programs that PID 1 starts last.
const GETTYS: [&str; 5] = ["getty", "agetty", "mingetty", "fgetty", "login"];

/// Waits until the services are up. Never returns in an image that shows none of the signs.
pub(crate) async fn wait_until_up(kernel_fs: &KernelFs) {
    let mut openrc_had_finished = false;
    loop {
        if init_has_started_a_getty(kernel_fs) || (is_systemd() && systemd_says_so().await) {
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

/// Waits for systemd to finish its boot, successfully or not. A systemd that is not ready to answer
/// fails at once.
async fn systemd_says_so() -> bool {
    let mut systemctl = image_program("systemctl", &["is-system-running", "--wait"]);
    systemctl.stdout(Stdio::piped());
    let Ok(Ok(output)) = spawn_blocking(move || systemctl.output()).await else { return false };
    matches!(output.stdout.trim_ascii(), b"running" | b"degraded")
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
