//! A mount under a file system's own tests, which a guest runs in it: what POSIX and Linux promise,
//! many programs at once, and a random exerciser that compares each byte with a copy in memory.
//!
//! The guest runs this test binary itself, with this machine's loader and libraries, so that one
//! program judges the mount, the guest's own disk, and a directory of this machine.
//!
//! Left out is what a mount does not promise, as docs/guides/mounts.md says: owners and permissions
//! of other users, since all files belong to the guest's root and all users may do the same;
//! set-user-ID bits and device nodes; extended attributes.

#![cfg(target_os = "linux")]

mod checks;
mod exerciser;
mod races;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use castra_test_support::Project;

/// Variable with the directory in which the guest's part runs.
const DIRECTORY: &str = "CASTRA_TEST_DIRECTORY";

/// Variable with the number of operations of the exerciser.
const OPERATIONS: &str = "CASTRA_TEST_OPERATIONS";

/// Variable with the seed of the exerciser.
const SEED: &str = "CASTRA_TEST_SEED";

/// Line with the digest of the exerciser's file.
const DIGEST: &str = "the file has the digest ";

/// Name of the exerciser's file.
const EXERCISED: &str = "exercised";

/// Operations of the exerciser, unless the variable says another number.
const DEFAULT_OPERATIONS: u64 = 2000;

#[test]
fn a_mount_behaves_as_a_file_system() {
    let project = Project::new();
    let [shared, tests] = ["shared", "tests"].map(|name| project.path().join(name));
    fs::create_dir(&shared).expect("a directory");
    fs::create_dir(&tests).expect("a directory");
    let loader = copy_this_program(&tests);
    project.write(
        "castra.toml",
        "[[vms]]\nname = \"one\"\n\
        managed_image = { name = \"alpine-pypi\", version = \"v1\" }\n\
        mounts = [\n  { host = \"shared\", guest = \"/src\" },\n  \
        { host = \"tests\", guest = \"/tests\", read_only = true },\n]\n",
    );
    let (seed, operations) = (seed(), operations());
    project.run(&["up", "--allow-mounts"]).ok();
    // The disk of the VM is the control: what fails there is no fault of the mount.
    for directory in ["/root/own", "/src/work"] {
        let settings = [
            format!("{DIRECTORY}={directory}"),
            format!("{SEED}={seed}"),
            format!("{OPERATIONS}={operations}"),
        ];
        let command = format!(
            "mkdir {directory} && exec env {} /tests/{loader} --library-path /tests /tests/program \
            --exact filesystem::inside_a_guest --ignored --nocapture",
            settings.join(" ")
        );
        let text = project.run(&["exec", "-n", "one", "--", "sh", "-c", &command]).ok().text();
        if directory == "/src/work" {
            let on_host = digest(&fs::read(shared.join("work").join(EXERCISED)).expect("read"));
            assert!(text.contains(&format!("{DIGEST}{on_host:016x}\n")), "{on_host:016x}: {text}");
        }
    }
    project.run(&["down", "--force"]).ok();
}

#[test]
fn the_tests_hold_on_this_machine() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    run_all(directory.path(), seed());
}

/// Runs all tests in a directory of a guest.
#[test]
#[ignore = "runs in a guest"]
fn inside_a_guest() {
    let Some(directory) = env::var_os(DIRECTORY) else { return };
    run_all(Path::new(&directory), seed());
}

#[expect(clippy::print_stdout, reason = "the other side reads it")]
fn run_all(directory: &Path, seed: u64) {
    checks::run(directory);
    races::run(directory);
    println!("the exerciser, seed {seed}");
    let contents = exerciser::run(&directory.join(EXERCISED), seed, operations());
    println!("\n{DIGEST}{:016x}", digest(&contents));
}

fn seed() -> u64 {
    let given = env::var(SEED).ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| u64::from(std::process::id()) << 20)
}

fn operations() -> u64 {
    let given = env::var(OPERATIONS).ok().and_then(|number| number.parse().ok());
    given.unwrap_or(DEFAULT_OPERATIONS)
}

fn digest(contents: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    contents.hash(&mut hasher);
    hasher.finish()
}

/// Copies this program and the libraries that it has loaded. Returns the loader's name.
fn copy_this_program(to: &Path) -> String {
    fs::copy(env::current_exe().expect("this program"), to.join("program")).expect("copied");
    let maps = fs::read_to_string("/proc/self/maps").expect("read");
    let libraries: BTreeSet<PathBuf> = maps
        .lines()
        .filter_map(|line| line.find('/').map(|start| PathBuf::from(&line[start..])))
        .filter(|path| path.to_string_lossy().contains(".so"))
        .collect();
    let mut loader = None;
    for library in libraries {
        let name = library.file_name().expect("a name").to_string_lossy().into_owned();
        fs::copy(&library, to.join(&name)).expect("copied");
        loader = loader.or_else(|| name.starts_with("ld-").then_some(name));
    }
    loader.expect("a program with a loader")
}
