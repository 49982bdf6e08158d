//! Random lives: sequential and parallel commands, kills of QEMU and of castra at every named
//! point, damaged records, restarts of the machine. After each step `status` is right, and in the
//! end the VM comes up and goes down.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use castra_engine::failpoint::Point;
use castra_test_support::Fake;
use castra_test_support::{Ended, eventually, namespace};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use rustix::process::Signal;
use serde_json::json;

const VMS: [&str; 2] = ["one", "two"];
/// Name of a VM that is not declared, and exists once one of the others is cloned.
const CLONE: &str = "copy";
const ALL: [&str; 3] = [VMS[0], VMS[1], CLONE];
/// Seconds after which no new life is begun. `CASTRA_LIVES_SECS` extends them, to look for rare
/// failures.
const BUDGET_SECS: u64 = 40;
/// Most lives, more than there is time for. Those that are not lived are still generated, a
/// millisecond each.
const MOST_LIVES: u32 = 2_000;
/// Lives per second of a longer budget, again more than there is time for.
const MOST_LIVES_PER_SEC: u32 = 5;
/// Least lives for a meaningful test. An idle machine lives ten times as many within the budget.
const LEAST_LIVES: u32 = 8;
/// Time after which a command counts as hanging: nothing here ignores requests, so no command has
/// to wait for an answer in vain.
const LIMIT: Duration = Duration::from_secs(30);
/// Time after which a life begins no further step: one unlucky seed must not exceed the runner's
/// limit.
const LIFE_LIMIT: Duration = Duration::from_secs(60);
/// Exit codes that a command may end with, without that of a defect (70) or a panic.
const KNOWN_CODES: [i32; 8] = [0, 65, 66, 69, 73, 74, 75, 255];

#[derive(Debug, Clone)]
enum Step {
    Run(Order),
    /// Several commands in parallel.
    Together(Vec<Order>),
    /// A command in its own pid namespace, as in another container: it sees no QEMU of ours, and
    /// its own end with it.
    InNamespace(Order),
    /// A castra that is killed at a visit to a point, if it gets there.
    Killed(Order, &'static str),
    KillQemu(usize),
    /// Ends QEMU as a logout does, or systemd at the end of a session.
    TerminateQemu(usize),
    FillDisk(usize),
    FreeDisk(usize),
    TruncateRecord(usize, usize),
    RestartHost,
}

#[derive(Debug, Clone)]
struct Order {
    words: &'static [&'static str],
    vm: Option<usize>,
}

impl Step {
    /// Returns `true` for a step that may clone a VM.
    fn clones(&self) -> bool {
        match self {
            Self::Run(order) | Self::InNamespace(order) | Self::Killed(order, _) => {
                order.words == CLONING
            }
            Self::Together(orders) => orders.iter().any(|order| order.words == CLONING),
            _ => false,
        }
    }
}

impl Order {
    fn start(&self, fake: &Fake) -> Command {
        let vm = self.vm.map(|vm| ALL[vm]);
        let new = (self.words == CLONING).then_some(CLONE);
        let words: Vec<&str> = self.words.iter().copied().chain(vm).chain(new).collect();
        let mut command = fake.castra(&words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

const CLONING: &[&str] = &["clone"];

fn order() -> impl Strategy<Value = Order> {
    let words = prop_oneof![
        4 => Just(&["up"][..]),
        1 => Just(&["up", "--cold"][..]),
        1 => Just(&["up", "--no-wait", "--cold"][..]),
        1 => Just(&["up", "--discard-suspended"][..]),
        2 => Just(&["down"][..]),
        1 => Just(&["down", "--force"][..]),
        1 => Just(&["down", "--discard-suspended"][..]),
        3 => Just(&["suspend"][..]),
        1 => Just(&["restart"][..]),
        1 => Just(&["restart", "--force", "--cold"][..]),
        1 => Just(&["clean"][..]),
        1 => Just(&["clean", "--records"][..]),
    ];
    let order = (words, prop::option::weighted(0.7, 0..ALL.len()))
        .prop_map(|(words, vm)| Order { words, vm });
    let clone = (0..VMS.len()).prop_map(|vm| Order { words: CLONING, vm: Some(vm) });
    prop_oneof![16 => order, 4 => clone]
}

fn step() -> impl Strategy<Value = Step> {
    let points = [
        Point::OVERLAY,
        Point::BOOT,
        Point::DOWN,
        Point::RESTORE,
        Point::SUSPEND,
        Point::RESUME,
        Point::CLONE,
    ];
    let names: Vec<&'static str> = points.concat().into_iter().map(Point::name).collect();
    prop_oneof![
        4 => order().prop_map(Step::Run),
        3 => prop::collection::vec(order(), 2..4).prop_map(Step::Together),
        1 => order().prop_map(Step::InNamespace),
        4 => (order(), prop::sample::select(names))
            .prop_map(|(order, point)| Step::Killed(order, point)),
        2 => (0..ALL.len()).prop_map(Step::KillQemu),
        1 => (0..ALL.len()).prop_map(Step::TerminateQemu),
        2 => (0..ALL.len()).prop_map(Step::FillDisk),
        2 => (0..ALL.len()).prop_map(Step::FreeDisk),
        1 => (0..ALL.len(), 0..100_usize)
            .prop_map(|(vm, percent)| Step::TruncateRecord(vm, percent)),
        1 => Just(Step::RestartHost),
    ]
}

/// Creates the files that all lives share: the image, and the template of its VMs.
fn cache() -> tempfile::TempDir {
    let cache =
        tempfile::Builder::new().prefix("castra-cache-").tempdir_in("/tmp").expect("a directory");
    Fake::with_cache(cache.path().to_owned(), &VMS).run(&["up"]).ok();
    cache
}

struct Life {
    fake: Fake,
    disks: [Option<u64>; 3],
}

impl Life {
    fn new(cache: &Path) -> Self {
        Self { fake: Fake::with_cache(cache.to_owned(), &VMS), disks: [None; 3] }
    }

    fn go_through(&mut self, step: &Step) {
        let fake = &self.fake;
        match step {
            Step::Run(order) => until_end(order.start(fake).spawn().expect("castra runs"), order),
            Step::Together(orders) => thread::scope(|scope| {
                for order in orders {
                    scope.spawn(|| {
                        until_end(order.start(fake).spawn().expect("castra runs"), order)
                    });
                }
            }),
            Step::InNamespace(order) => {
                until_end(in_namespace(order.start(fake)).spawn().expect("castra runs"), order)
            }
            Step::Killed(order, point) => kill_at(fake, order, point),
            Step::KillQemu(vm) => self.end_qemu(ALL[*vm], Signal::KILL),
            Step::TerminateQemu(vm) => self.end_qemu(ALL[*vm], Signal::TERM),
            Step::FillDisk(vm) => fake.behave(ALL[*vm], "disk-full"),
            Step::FreeDisk(vm) => fake.behave(ALL[*vm], ""),
            Step::TruncateRecord(vm, percent) => {
                let path = fake.record(ALL[*vm]);
                if let Ok(whole) = fs::read(&path) {
                    fs::write(path, &whole[..whole.len() * percent / 100]).expect("writes");
                }
            }
            Step::RestartHost => self.restart_host(),
        }
        if step.clones() {
            // The disk of a cloned VM becomes a layer, and the VM gets another disk on top.
            self.disks = [None; 3];
        }
        self.check();
    }

    fn end_qemu(&self, vm: &str, signal: Signal) {
        if self.fake.lives(vm) {
            self.fake.signal(vm, signal);
            eventually("its end", LIMIT, || !self.fake.lives(vm));
        }
    }

    /// Ends all processes silently, so that the next step is in another run of the machine.
    fn restart_host(&self) {
        for vm in ALL {
            self.end_qemu(vm, Signal::KILL);
            let is_whole =
                |bytes: Vec<u8>| serde_json::from_slice::<serde_json::Value>(&bytes).is_ok();
            if fs::read(self.fake.record(vm)).is_ok_and(is_whole) {
                self.fake.edit_record(vm, |record| {
                    if !record["boot"].is_null() {
                        record["boot"]["boot_id"] = json!("00000000-0000-4000-8000-000000000000");
                    }
                });
            }
        }
    }

    /// Checks everything that holds while no operation is in progress.
    fn check(&mut self) {
        let has_clone = self.has_clone();
        for (vm, known) in ALL.iter().zip(&mut self.disks) {
            if *vm == CLONE && !has_clone {
                continue;
            }
            let (state, lives) = settled(&self.fake, vm);
            let alive = ["starting", "running", "disk-full", "stopping", "suspending", "resuming"]
                .contains(&&*state);
            assert!(
                state == "unknown" || alive == lives,
                "{vm} is {state}, and its QEMU lives: {lives}\npid file: {:?}\n{}\n{:#?}",
                fs::read_to_string(self.fake.pidfile(vm)),
                self.fake.journal(vm),
                self.fake.processes(),
            );
            let pidfile = self.fake.pidfile(vm).to_string_lossy().into_owned();
            let processes =
                self.fake.processes().into_iter().filter(|line| line.contains(&pidfile)).count();
            assert!(processes <= 1, "{vm} has {processes} QEMUs");
            assert!(lives || processes == 0, "{vm}: there is a QEMU that no command finds");
            let journal = self.fake.journal(vm);
            assert!(!journal.contains("doubled"), "{vm}: its disk was opened twice:\n{journal}");
            assert!(!journal.contains("mismatched"), "{vm}: memory met another disk:\n{journal}");
            let disk = self.fake.disk(vm);
            assert!(known.is_none() || *known == disk, "the disk of {vm} is another one, or gone");
            *known = disk;
        }
    }

    fn has_clone(&self) -> bool {
        self.fake.record(CLONE).exists() || self.is_clone_whole()
    }

    /// Returns `true` once the clone is complete.
    fn is_clone_whole(&self) -> bool {
        self.fake.record(CLONE).with_file_name("clone.json").exists()
    }

    /// Brings each VM up, by the hints if needed, and down again, whatever has happened to it.
    fn end(&mut self) {
        if self.has_clone() && !self.is_clone_whole() {
            if self.fake.state(CLONE) == "unknown" {
                self.run(&["up", CLONE]).says(&format!("castra clean --records {CLONE}"));
                self.run(&["clean", "--records", CLONE]).ok();
            } else {
                self.run(&["up", CLONE]).says(&format!("castra clean --disks {CLONE}"));
            }
            self.run(&["clean", "--disks", "--yes", CLONE]).ok();
        }
        if !self.has_clone() {
            // One that was killed before it had a record is nothing but a leftover.
            self.run(&["clean"]).ok();
        }
        let is_there = |vm: &&&str| **vm != CLONE || self.has_clone();
        let there: Vec<&str> = ALL.iter().filter(is_there).copied().collect();
        for vm in &there {
            self.fake.behave(vm, "");
            if self.fake.state(vm) == "unknown" {
                self.run(&["up", vm]).says(&format!("castra clean --records {vm}"));
                self.run(&["down", vm]);
                self.run(&["clean", "--records", vm]).ok();
            }
            let up = self.run(&["up", vm]);
            if up.code != Some(0) {
                let up = up.says("castra up --discard-suspended");
                self.run(&["up", "--discard-suspended", vm]).ok();
                drop(up);
            }
            assert_eq!(self.fake.state(vm), "running");
        }
        self.check();
        self.run(&["down"]).ok();
        self.check();
        for vm in there {
            assert_eq!(self.fake.state(vm), "stopped", "{vm}");
        }
        assert_eq!(self.fake.leftovers(), Vec::<PathBuf>::new());
        assert_eq!(self.fake.processes(), Vec::<String>::new());
    }

    fn run(&self, words: &[&str]) -> Ended {
        self.fake.run(words)
    }
}

/// Returns castra's answer, and `true` if QEMU runs. A QEMU whose castra was killed may be starting
/// or ending: the answer counts if it holds before and after.
fn settled(fake: &Fake, vm: &str) -> (String, bool) {
    let mut found = (String::new(), fake.lives(vm));
    eventually("a moment in which nothing changes", LIMIT, || {
        let state = fake.state(vm);
        let before = std::mem::replace(&mut found, (state, fake.lives(vm)));
        before.1 == found.1
    });
    found
}

/// Runs the command in its own pid namespace, if this user may have one.
pub(crate) fn in_namespace(command: Command) -> Command {
    static WAY: OnceLock<Option<&'static [&'static str]>> = OnceLock::new();
    let Some(way) = WAY.get_or_init(namespace::pid_way) else { return command };
    let mut inside = Command::new(way[0]);
    inside.args(&way[1..]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => inside.env(name, value),
            None => inside.env_remove(name),
        };
    }
    inside.current_dir(command.get_current_dir().expect("the project"));
    inside.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    inside
}

fn until_end(child: Child, order: &Order) {
    judge(&wait(child, order), order);
}

fn wait(mut child: Child, order: &Order) -> Output {
    let deadline = Instant::now() + LIMIT;
    while child.try_wait().expect("is ours").is_none() {
        if Instant::now() >= deadline {
            child.kill().expect("is ours");
            let output = child.wait_with_output().expect("ends");
            panic!("{order:?} hangs:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().expect("ends")
}

fn judge(output: &Output, order: &Order) {
    let said = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    assert!(
        code.is_some_and(|code| KNOWN_CODES.contains(&code)),
        "{order:?}: {}\n{said}",
        output.status
    );
    assert!(!said.contains("panicked"), "{order:?}: {said}");
}

fn kill_at(fake: &Fake, order: &Order, point: &str) {
    if let Some(ended) = park_and_kill(order.start(fake), point) {
        judge(&ended, order);
    }
}

/// Kills a castra once it has reached a point; returns the output of one that ends before.
pub(crate) fn park_and_kill(mut command: Command, point: &str) -> Option<Output> {
    let parked = tempfile::tempdir().expect("a directory");
    let file = parked.path().join("here");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.env("CASTRA_PARK_AT", point).env("CASTRA_PARK_FILE", &file).spawn().expect("runs");
    let mut has_ended = false;
    eventually(&format!("{command:?} at {point}"), LIMIT, || {
        has_ended = child.try_wait().expect("is ours").is_some();
        has_ended || fs::metadata(&file).is_ok_and(|file| file.len() > 0)
    });
    child.kill().expect("is ours");
    let output = child.wait_with_output().expect("ends");
    has_ended.then_some(output)
}

#[test]
fn whatever_happens_a_vm_comes_up_and_goes_down() {
    let asked = std::env::var("CASTRA_LIVES_SECS").ok().and_then(|secs| secs.parse().ok());
    let budget = Duration::from_secs(asked.unwrap_or(BUDGET_SECS));
    let end = Instant::now() + budget;
    let (cache, lives) = (cache(), std::cell::Cell::new(0));
    let config = ProptestConfig {
        cases: MOST_LIVES.max(budget.as_secs() as u32 * MOST_LIVES_PER_SEC),
        max_shrink_iters: 40,
        // A life that hangs takes its full limit each time: a failure still ends within the
        // runner's limit.
        max_shrink_time: 90_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    };
    let steps = prop::collection::vec(step(), 1..8);
    proptest!(config, |(steps in steps)| {
        // On a busy machine they take longer than that.
        if Instant::now() < end || lives.get() < LEAST_LIVES {
            lives.set(lives.get() + 1);
            let mut life = Life::new(cache.path());
            let begun = Instant::now();
            steps
                .iter()
                .take_while(|_| begun.elapsed() < LIFE_LIMIT)
                .for_each(|step| life.go_through(step));
            life.end();
        }
    });
    println!("{} lives", lives.get());
}

/// A castra that is killed after it has loaded a template's memory leaves a guest that answers
/// nothing: no command waits for it.
#[test]
fn a_machine_that_never_ran_is_not_waited_for() {
    let cache = cache();
    for words in [&["suspend"][..], &["exec", "one", "--", "true"], &["down"], &["up"]] {
        let life = Life::new(cache.path());
        let vm = (words[0] != "exec").then_some(0);
        kill_at(&life.fake, &Order { words: &["up"], vm: Some(0) }, "restore-greeted");
        let order = Order { words, vm };
        until_end(order.start(&life.fake).spawn().expect("castra runs"), &order);
        life.run(&["up", "one"]).ok();
    }
}
