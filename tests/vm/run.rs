//! `castra run`: one command in a real VM that is thrown away.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use castra_test_support::{Project, eventually, linked_cache, noise};

/// Returns the remains of throwaway VMs, by name.
fn left(cache: &Path) -> Vec<String> {
    let runs = cache.join("castra/runs");
    let directories = [runs.join("vms"), runs.clone(), runs.join("logs")];
    let entries =
        directories.iter().flat_map(|directory| fs::read_dir(directory).into_iter().flatten());
    let names =
        entries.map(|entry| entry.expect("reads").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains("run-")).collect()
}

/// Returns `true` if a process has this in its command line.
fn runs_with(needle: &str) -> bool {
    fs::read_dir("/proc").expect("proc").flatten().any(|entry| {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(needle)
    })
}

#[test]
fn everything_passes_through_and_nothing_is_left() {
    let cache = linked_cache();
    let project = Project::with_cache(cache.path().to_owned());
    let ended = project.run(&["run", "--", "sh", "-c", "echo out; echo err >&2; exit 42"]).code(42);
    assert_eq!((ended.text().as_str(), ended.stderr.as_str()), ("out\n", "err\n"));
    project.run(&["run", "--", "sh", "-c", "kill -9 $$"]).code(137);

    let input = noise(1 << 20);
    let echoed = project.run_with_input(&["run", "--", "cat"], &input).ok();
    assert!(echoed.stdout == input, "{} bytes came back", echoed.stdout.len());

    fs::create_dir(project.path().join("task")).expect("a directory");
    project.write("task/run.sh", "echo $WHO $(hostname | cut -c1-4)");
    let arguments = ["run", "--cp", "task:/task", "--env", "WHO=me", "--", "sh", "/task/run.sh"];
    assert_eq!(project.run(&arguments).ok().text(), "me run-\n");

    let started = Instant::now();
    project
        .run(&["run", "--timeout", "1", "--", "sleep", "60"])
        .code(124)
        .says("timed out after 1 s");
    assert!(started.elapsed() < Duration::from_secs(40), "the command was waited for");

    assert_eq!(left(cache.path()), Vec::<String>::new());
    assert!(!project.path().join(".castra").exists(), "the directory is no project of it");
    assert!(!runs_with(&cache.path().to_string_lossy()));
}

#[test]
fn an_isolated_vm_reaches_nothing() {
    let project = Project::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("an address").port();
    listener.set_nonblocking(true).expect("set");
    let connect = format!("nc -w 3 10.0.2.2 {port} < /dev/null && echo reached");
    let reach = |network: &str| {
        let ended = project.run(&["run", "--network", network, "--", "sh", "-c", &connect]);
        (ended.text(), listener.accept().is_ok())
    };
    assert_eq!(reach("isolated"), (String::new(), false));
    assert!(reach("full").1, "a full network reaches the host");
}

#[test]
fn eight_at_once_are_eight_vms() {
    let project = Project::new();
    let script = "cat /etc/machine-id /proc/sys/kernel/random/uuid";
    let outputs: Vec<String> = thread::scope(|scope| {
        let one =
            || project.run(&["run", "--memory", "256MiB", "--", "sh", "-c", script]).ok().text();
        let workers: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
        workers.into_iter().map(|worker| worker.join().expect("runs")).collect()
    });
    let lines: std::collections::BTreeSet<&str> =
        outputs.iter().flat_map(|text| text.lines()).collect();
    assert_eq!(lines.len(), 16, "{outputs:?}");
}

#[test]
fn a_vm_ends_with_the_castra_that_was_killed() {
    let cache = linked_cache();
    let project = Project::with_cache(cache.path().to_owned());
    let mut command = project.castra(&["run", "--", "sh", "-c", "echo here; sleep 600"]);
    let mut castra = command.stdout(Stdio::piped()).spawn().expect("castra runs");
    let mut line = String::new();
    BufReader::new(castra.stdout.take().expect("a pipe")).read_line(&mut line).expect("reads");
    assert_eq!(line, "here\n");
    let needle = cache.path().to_string_lossy().into_owned();
    assert!(runs_with(&needle), "the VM runs");
    castra.kill().expect("killed");
    castra.wait().expect("ends");
    eventually("the VM is gone", Duration::from_secs(60), || !runs_with(&needle));
    assert_eq!(left(cache.path()), Vec::<String>::new());
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_starts() {
    let project = Project::isolated();
    project.run(&["run", "--cp", "task", "--", "true"]).code(64).says("has no destination");
    project.run(&["run", "--memory", "5", "--", "true"]).code(64).says("has no unit");
    project.run(&["run", "--image", "alpin-pypi", "--", "true"]).code(255).says("alpine-pypi");
    project.run(&["--offline", "run", "--", "true"]).code(255).says("offline");
    project.run(&["run"]).code(64).says("<CMD>");
}
