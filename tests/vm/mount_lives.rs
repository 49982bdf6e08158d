//! Random lives of a VM with a mount: changes on both sides, suspends, clones, restarts, and the
//! end of the process that serves it. After each step both sides have the same files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use castra_test_support::{Project, eventually};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use rustix::process::{Signal, kill_process};

use crate::mounts::{VM, companion, project, sh};

/// Seconds after which no new life is begun. `CASTRA_LIVES_SECS` extends them.
const BUDGET_SECS: u64 = 30;

/// Most lives per second of the budget, more than there is time for.
const MOST_LIVES_PER_SEC: u32 = 2;

/// Time within which a change on one side is seen on the other, on a busy machine.
const SEEN_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
enum Step {
    OnHost(Change),
    InGuest(Change),
    /// A line for the file that a process of the guest has open all the time.
    Log,
    Suspend,
    Clone,
    Restart,
    KillCompanion,
    Remount,
}

#[derive(Debug, Clone)]
enum Change {
    Write(Place, u16),
    Append(Place),
    Remove(Place),
    Move(Place, Place),
}

/// A file: one of a few names in one of a few directories.
#[derive(Debug, Clone, Copy)]
struct Place(u8, u8);

impl Place {
    fn path(self) -> String {
        let Self(directory, name) = self;
        ["", "a/", "a/b/", "c/"][usize::from(directory)].to_owned() + &format!("file-{name}")
    }
}

fn place() -> impl Strategy<Value = Place> {
    (0..4u8, 0..3u8).prop_map(|(directory, name)| Place(directory, name))
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        // Empty, small, and more than comes with the answer to OPEN.
        (place(), prop_oneof![Just(0), 1..200u16, Just(20_000)])
            .prop_map(|(place, lines)| Change::Write(place, lines)),
        place().prop_map(Change::Append),
        place().prop_map(Change::Remove),
        (place(), place()).prop_map(|(from, to)| Change::Move(from, to)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => change().prop_map(Step::OnHost),
        5 => change().prop_map(Step::InGuest),
        3 => Just(Step::Log),
        3 => Just(Step::Suspend),
        1 => Just(Step::Clone),
        1 => Just(Step::Restart),
        1 => Just(Step::KillCompanion),
        1 => Just(Step::Remount),
    ]
}

impl Change {
    /// Returns the change as a script for a shell that is in the directory. Where there is nothing
    /// to remove or to move, it changes nothing.
    fn script(&self) -> String {
        match self {
            Self::Write(place, lines) => {
                let path = place.path();
                format!("mkdir -p $(dirname {path}) && seq {lines} > {path}")
            }
            Self::Append(place) => {
                let path = place.path();
                format!("mkdir -p $(dirname {path}) && echo more >> {path}")
            }
            Self::Remove(place) => format!("rm -f {}", place.path()),
            Self::Move(from, to) => {
                let (from, to) = (from.path(), to.path());
                format!(
                    "[ ! -e {from} ] || [ {from} = {to} ] || \
                    {{ mkdir -p $(dirname {to}) && mv {from} {to}; }}"
                )
            }
        }
    }
}

struct Life {
    project: Project,
    /// Lines that the process of the guest has written since it opened its file.
    logged: usize,
    clones: usize,
}

impl Life {
    fn new() -> Self {
        let project = project();
        project.run(&["up", "--allow-mounts"]).ok();
        let mut life = Self { project, logged: 0, clones: 0 };
        life.open_log();
        life
    }

    fn shared(&self) -> std::path::PathBuf {
        self.project.path().join("shared")
    }

    /// Starts a process of the guest that has a file and its working directory in the mount.
    fn open_log(&mut self) {
        let keeper = "rm -rf /tmp/order /tmp/done && mkfifo /tmp/order && (mkdir -p /src/c && \
            cd /src/c && exec 3>../log && echo done > /tmp/done && \
            while read line < /tmp/order; do echo $line >&3 && ls >/dev/null && \
            echo done > /tmp/done || echo failed > /tmp/done; done) </dev/null >/dev/null 2>&1 &";
        sh(&self.project, keeper).ok();
        eventually("the open file", SEEN_WITHIN, || {
            sh(&self.project, "cat /tmp/done").text() == "done\n"
        });
        self.logged = 0;
    }

    fn go_through(&mut self, step: &Step) {
        match step {
            Step::OnHost(change) => {
                let script = format!("cd {} && {}", self.shared().display(), change.script());
                let ended = std::process::Command::new("sh").args(["-c", &script]).output();
                let ended = ended.expect("a shell");
                assert!(ended.status.success(), "{script}: {ended:?}");
            }
            Step::InGuest(change) => {
                drop(sh(&self.project, &format!("cd /src && {}", change.script())).ok());
            }
            Step::Log => self.log(),
            Step::Suspend => {
                self.project.run(&["suspend"]).ok();
                self.project.run(&["up"]).ok();
            }
            Step::Clone => {
                self.clones += 1;
                let twin = format!("twin-{}", self.clones);
                self.project.run(&["clone", VM, &twin]).ok();
                self.project.run(&["up", VM, &twin]).ok();
                let listed = ["exec", "-n", &twin, "--", "sh", "-c", LISTING];
                eventually("the clone's files", SEEN_WITHIN, || {
                    parse(&self.project.run(&listed).ok().text()) == files(&self.shared())
                });
                self.project.run(&["down", "--force", &twin]).ok();
            }
            Step::Restart => {
                self.project.run(&["restart", "--force"]).ok();
                self.open_log();
            }
            Step::KillCompanion => {
                let pid = companion(&self.project).expect("a process");
                kill_process(pid, Signal::KILL).expect("killed");
                // What is open is stale: the process that had it is left to itself.
                self.open_log();
            }
            Step::Remount => {
                // A program of this step may still end.
                let busy = self.project.run(&["umount", VM, "/src"]);
                assert!([Some(0), Some(69)].contains(&busy.code), "{}", busy.stderr);
                let source = format!("{}:/src", self.shared().display());
                self.project.run(&["mount", VM, &source]).ok();
                if busy.code == Some(0) {
                    self.open_log();
                }
            }
        }
        self.compare(step);
    }

    fn log(&mut self) {
        self.logged += 1;
        let order = format!("rm -f /tmp/done; echo {} > /tmp/order", self.logged);
        let wait =
            "for i in $(seq 100); do [ -e /tmp/done ] && break; sleep 0.1; done; cat /tmp/done";
        let done = sh(&self.project, &format!("{order}; {wait}")).ok().text();
        assert_eq!(done.trim(), "done", "a file that was open");
        let written = fs::read_to_string(self.shared().join("log")).expect("read");
        assert_eq!(written.lines().count(), self.logged, "{written}");
    }

    /// Compares both sides.
    fn compare(&self, step: &Step) {
        let end = Instant::now() + SEEN_WITHIN;
        loop {
            let there = parse(&sh(&self.project, LISTING).ok().text());
            let here = files(&self.shared());
            if there == here {
                return;
            }
            assert!(Instant::now() < end, "after {step:?}: {there:?} in the guest, {here:?} here");
        }
    }
}

/// Lists the files in the guest with their lengths and checksums.
const LISTING: &str = "cd /src && find . -type f -exec cksum {} +";

fn parse(listing: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let (sum, name) = line.rsplit_once(' ').expect("a name");
        (name.trim_start_matches("./").to_owned(), sum.to_owned())
    };
    listing.lines().map(line).collect()
}

/// Returns the files below a directory of this machine, as the guest lists them.
fn files(directory: &Path) -> BTreeMap<String, String> {
    let listing = std::process::Command::new("sh")
        .args(["-c", "find . -type f -exec cksum {} +"])
        .current_dir(directory)
        .output()
        .expect("a shell");
    parse(&String::from_utf8(listing.stdout).expect("text"))
}

#[test]
fn whatever_happens_both_sides_have_the_same_files() {
    let asked = std::env::var("CASTRA_LIVES_SECS").ok().and_then(|secs| secs.parse().ok());
    let budget = Duration::from_secs(asked.unwrap_or(BUDGET_SECS));
    let end = Instant::now() + budget;
    let lives = std::cell::Cell::new(0);
    let config = ProptestConfig {
        cases: budget.as_secs() as u32 * MOST_LIVES_PER_SEC,
        max_shrink_iters: 20,
        max_shrink_time: 90_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    };
    let steps = prop::collection::vec(step(), 1..10);
    proptest!(config, |(steps in steps)| {
        if Instant::now() < end {
            lives.set(lives.get() + 1);
            let mut life = Life::new();
            steps.iter().for_each(|step| life.go_through(step));
            life.project.run(&["down", "--force"]).ok();
        }
    });
    println!("{} lives", lives.get());
    assert!(lives.get() > 0, "no life in the time");
}
