//! When the guest's own services are up.
//!
//! There is no common signal for it, so the first of these counts: OpenRC has finished its default runlevel, PID 1 has
//! started a `getty`, or systemd says that the system runs.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::process::image_program;
use crate::trees::Trees;

/// How often the signs are looked for: some ten system calls each time.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What PID 1 starts last.
const GETTYS: [&str; 5] = ["getty", "agetty", "mingetty", "fgetty", "login"];

/// Returns when the services are up. It never does in an image that shows none of the signs.
pub(crate) async fn wait_until_up(trees: &Trees) {
    let mut openrc_had_finished = false;
    loop {
        if init_has_started_a_getty(trees) || (is_systemd() && systemd_says_so().await) {
            return;
        }
        // OpenRC names the runlevel an instant before it makes `rc.starting`, so one look is not enough.
        let openrc_has_finished = openrc_has_finished();
        if openrc_has_finished && openrc_had_finished {
            return;
        }
        openrc_had_finished = openrc_has_finished;
        sleep(LOOK_EVERY).await;
    }
}

/// Waits for systemd to finish its boot, well or not. A systemd that is not ready to answer says so at once.
async fn systemd_says_so() -> bool {
    let mut systemctl = image_program("systemctl", &["is-system-running", "--wait"]);
    systemctl.stdout(Stdio::piped());
    let Ok(Ok(output)) = spawn_blocking(move || systemctl.output()).await else { return false };
    matches!(output.stdout.trim_ascii(), b"running" | b"degraded")
}

/// The test of `sd_booted(3)`.
pub(crate) fn is_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Whether OpenRC looks after this system's services.
pub(crate) fn is_openrc() -> bool {
    Path::new("/run/openrc/softlevel").exists()
}

/// OpenRC names the runlevel when it begins with it, and `rc.starting` is there until all of it is started.
fn openrc_has_finished() -> bool {
    let level = fs::read_to_string("/run/openrc/softlevel").unwrap_or_default();
    level.trim() == "default" && !Path::new("/run/openrc/rc.starting").exists()
}

fn init_has_started_a_getty(trees: &Trees) -> bool {
    let children = trees.proc.read("1/task/1/children").unwrap_or_default();
    children.split_whitespace().any(|pid| {
        let name = trees.proc.read(&format!("{pid}/comm"));
        name.is_ok_and(|name| GETTYS.contains(&name.as_str()))
    })
}
