//! Every exit code of the page on exit codes, by a command that ends with it.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use castra_test_support::Fake;
use castra_test_support::{Project, eventually};

const PAGE: &str = include_str!("../../../docs/exit-codes.md");

/// Codes that no command can be made to end with here, with the reason. Their meaning is tested
/// beside the code.
const NOT_PROVOKED: [(i32, &str); 4] = [
    (1, "keys that cannot be generated: the system would have to be out of random numbers"),
    (70, "a defect: if a command showed one, it would be mended"),
    (124, "a command that runs until its time is over, in a real VM: `tests/vm/run.rs`"),
    (78, "nothing needs more of a host than TCG, which is everywhere"),
];

fn of_command(words: &[&str]) -> Option<i32> {
    Project::isolated().run(words).code
}

fn of_configuration(text: &str, words: &[&str]) -> Option<i32> {
    let project = Project::isolated();
    project.write("castra.toml", text);
    project.run(words).code
}

fn without_qemu() -> Option<i32> {
    let mut fake = Fake::new(&["vm"]);
    fake.set("CASTRA_QEMU", "/nonexistent/qemu");
    fake.run(&["up", "--cold"]).code
}

fn to_a_full_device() -> Option<i32> {
    let full = File::options().write(true).open("/dev/full").expect("every Linux has it");
    let fake = Fake::new(&["vm"]);
    fake.castra(&["status"]).stdout(full).stderr(Stdio::null()).status().expect("runs").code()
}

fn with_a_taken_port() -> Option<i32> {
    let holder = TcpListener::bind("127.0.0.1:0").expect("bound");
    Fake::with_port("vm", holder.local_addr().expect("an address").port())
        .run(&["up", "--cold"])
        .code
}

fn in_a_read_only_directory() -> Option<i32> {
    let mut fake = Fake::new(&["vm"]);
    fake.set("XDG_RUNTIME_DIR", "/sys/kernel");
    fake.run(&["up", "--cold"]).code
}

fn interrupted() -> Option<i32> {
    let fake = Fake::new(&["vm"]);
    fake.behave("vm", "guest-silent");
    let mut up = fake.castra(&["up", "--cold"]).stderr(Stdio::null()).spawn().expect("runs");
    eventually("its QEMU runs", Duration::from_secs(60), || fake.lives("vm"));
    let pid = rustix::process::Pid::from_child(&up);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("is ours");
    up.wait().expect("ends").code()
}

fn provoked() -> Vec<(i32, Option<i32>)> {
    vec![
        (0, of_command(&["--version"])),
        (64, of_command(&["strat"])),
        (65, of_configuration("[[vms]", &["up"])),
        (66, of_command(&["down", "missing"])),
        (69, without_qemu()),
        (73, of_configuration("", &["init"])),
        (74, to_a_full_device()),
        (75, with_a_taken_port()),
        (77, in_a_read_only_directory()),
        (130, interrupted()),
        (255, of_command(&["exec", "--", "true"])),
    ]
}

/// Returns the numbers in the first columns of the page's tables.
fn documented() -> BTreeSet<i32> {
    let first_cell = |row: &str| row.strip_prefix("| ")?.split(' ').next()?.parse().ok();
    PAGE.lines().filter_map(first_cell).collect()
}

#[test]
fn each_is_what_its_page_says() {
    let provoked = provoked();
    for (expected, found) in &provoked {
        assert_eq!(*found, Some(*expected));
    }
    let tried = provoked.iter().map(|(code, _)| *code).chain(NOT_PROVOKED.map(|(code, _)| code));
    assert_eq!(documented(), tried.collect());
}

#[test]
fn every_command_names_the_vm_that_is_not_there() {
    for command in [
        "up",
        "status",
        "down",
        "restart",
        "suspend",
        "shell",
        "logs",
        "console",
        "ports",
        "timeline",
        "ssh-config",
    ] {
        Project::isolated().run(&[command, "nosuch"]).code(66).says("no VM `nosuch`");
    }
    Project::isolated().run(&["exec", "nosuch", "--", "true"]).code(255).says("no VM `nosuch`");
    Project::isolated().run(&["cp", "nosuch:/x", "."]).code(66).says("no VM `nosuch`");
    Project::isolated().run(&["clone", "nosuch", "other"]).code(66).says("no VM `nosuch`");
}
