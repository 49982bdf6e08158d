//! A process that is parked at a point and killed there.

use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::Duration;

use crate::eventually;

/// Most visits to a point; more are a loop.
const MAX_VISITS: usize = 40;
/// Time after which a run counts as hanging.
const LIMIT: Duration = Duration::from_secs(120);

/// Kills a run at each visit to a point. `start` creates the surroundings and the command; `after`
/// checks what a killed run left and runs once more. The last run, which has no such visit any
/// more, ends by itself.
#[expect(clippy::print_stdout, reason = "the runner shows it for a test that fails")]
pub fn kill_at_each_visit<T>(
    point: &str,
    start: impl Fn() -> (T, Command),
    after: impl Fn(&T, &str),
) {
    for visit in 1..=MAX_VISITS {
        let (surroundings, command) = start();
        let name = format!("{}:{visit}", point);
        if !is_killed(command, &name) {
            assert!(visit > 1, "no process comes to {}", point);
            return;
        }
        println!("killed at {name}");
        after(&surroundings, &name);
    }
    panic!("{} is visited again and again", point);
}

/// Returns `true` if the run reached that visit and was killed there; otherwise it must have
/// succeeded.
pub fn is_killed(mut command: Command, visit: &str) -> bool {
    let parked = tempfile::Builder::new().prefix("castra-parked-").tempdir().expect("a directory");
    let file = parked.path().join("here");
    command.env("CASTRA_PARK_AT", visit).env("CASTRA_PARK_FILE", &file);
    let mut child = Guard(command.spawn().expect("starts"));
    let mut ended = None;
    eventually(&format!("{visit} or the end"), LIMIT, || {
        ended = child.0.try_wait().expect("is ours");
        ended.is_some() || is_written(&file)
    });
    match ended {
        Some(status) => assert!(status.success(), "{visit}: {status}"),
        None => {
            child.0.kill().expect("is ours");
            child.0.wait().expect("ends");
        }
    }
    ended.is_none()
}

fn is_written(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|metadata| metadata.len() > 0)
}

/// Runs a command to its end, which must be a success.
pub fn succeeds(mut command: Command, visit: &str) {
    let Output { status, stderr, .. } = command.output().expect("runs");
    assert!(
        status.success(),
        "after a kill at {visit}: {status}\n{}",
        String::from_utf8_lossy(&stderr)
    );
}

/// Guard of a process, which ends with the test, even one that fails.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // A process that has ended already is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
