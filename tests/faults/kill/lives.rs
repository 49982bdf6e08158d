//! VMs that come and go under the stand-in for QEMU: here it is castra that is killed.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use castra_engine::failpoint::Point;
use castra_test_support::Fake;
use castra_test_support::parked::is_killed;

fn start(fake: &Fake, words: &[&str]) -> Command {
    let mut command = fake.castra(words);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Returns a project with a VM whose castra was killed at this point.
fn killed_at(point: Point, words: &[&str], prepare: impl Fn(&Fake)) -> Fake {
    let fake = Fake::new(&["vm"]);
    prepare(&fake);
    assert!(is_killed(start(&fake, words), point.name()), "no process comes to {}", point.name());
    fake
}

/// Returns the state of a VM after a kill, and whether its QEMU runs.
fn state_after(point: Point) -> (&'static str, bool) {
    match point {
        Point::BootRecorded => ("stopped", false),
        Point::BootLaunched | Point::BootReady => ("starting", true),
        Point::DownRecorded => ("stopping", true),
        Point::DownEnded | Point::DownCleaned => ("stopped", false),
        other => panic!("{} belongs to others", other.name()),
    }
}

/// Insists that each way to continue from there succeeds.
fn completes_after_kill(point: Point, words: &[&str], prepare: impl Fn(&Fake)) {
    for next in [["up", "down"].as_slice(), &["down", "up", "down"], &["suspend", "up", "down"]] {
        let fake = killed_at(point, words, &prepare);
        let (state, lives) = state_after(point);
        assert_eq!(
            (fake.state("vm").as_str(), fake.lives("vm")),
            (state, lives),
            "at {}",
            point.name()
        );
        for command in next {
            let ended = fake.run(&[*command, "vm"]);
            // A VM that does not run cannot be suspended, and that is the only refusal.
            let is_refused = *command == "suspend" && state != "starting";
            let ended = ended.code(if is_refused { 69 } else { 0 });
            assert!(!is_refused || ended.stderr.contains("castra up vm"), "{}", ended.stderr);
        }
        assert_eq!(fake.state("vm"), "stopped", "at {}", point.name());
        assert_eq!(fake.leftovers(), Vec::<PathBuf>::new(), "at {}", point.name());
        let journal = fake.journal("vm");
        assert!(!journal.contains("doubled") && !journal.contains("mismatched"), "{journal}");
    }
}

#[test]
fn an_up_that_was_killed_is_completed_by_the_next() {
    for point in Point::BOOT {
        completes_after_kill(*point, &["up", "--cold"], |_| ());
    }
}

#[test]
fn a_down_that_was_killed_is_brought_to_its_end() {
    for point in Point::DOWN {
        completes_after_kill(*point, &["down"], |fake| drop(fake.run(&["up", "--cold"]).ok()));
    }
    // With `--force`, QEMU has ended before the other points are passed.
    completes_after_kill(Point::DownCleaned, &["down", "--force"], |fake| {
        drop(fake.run(&["up", "--cold"]).ok())
    });
}
