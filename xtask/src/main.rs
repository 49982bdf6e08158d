//! `cargo xtask demo | test | ci | bench | disks | docs | fuzz | package | picture | prose`: the
//! project's own commands, which install the programs they need.

mod bench;
mod ci;
mod demo;
mod disks;
mod docs;
mod fuzz;
mod newer_qemu;
mod package;
mod picture;
mod prose;
mod run;
mod tools;

use std::process::ExitCode;

use bench::Part;

const USAGE: &str =
    "cargo xtask demo          install QEMU if it is missing, build, start a VM in an empty \
    directory, run a command in it
cargo xtask test [ARGS]   install what tests need, run all of them; ARGS go to the test runner
cargo xtask ci [--full]   formatting, lints, licences, documentation, all tests; --full: those of \
    all disks, too, and those of VMs
                          also under the QEMU of Debian's backports
cargo xtask bench [--newer-qemu] [images|boots|mounts|disks|quicksand]
                          how fast Castra is, as ratios against baselines measured in the same \
    run; --newer-qemu:
                          with the QEMU of Debian's backports
cargo xtask disks [NAME…] build real disks from a distribution's packages, as root, and check what \
    is read from them
cargo xtask fuzz [SECS]   look for input that breaks a parser, so many seconds for each (60)
cargo xtask docs          check the links of all pages and build the book into target/book
cargo xtask package       make the packages, install castra from them outside the repository, run \
    a command in a VM
cargo xtask picture       record the README's picture from a real session
cargo xtask prose [PATH]  check how docs and messages are written; PATH: list what is found in \
    files that begin with it";

#[expect(clippy::print_stderr, reason = "a command line tool talks to its user")]
fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    let outcome = match (command.as_str(), rest.as_slice()) {
        ("demo", []) => demo::run_demo(),
        ("test", rest) => ci::test(rest),
        ("ci", []) => ci::run_checks(),
        ("ci", [full]) if full == "--full" => ci::run_all_checks(),
        ("bench", [newer, rest @ ..]) if newer == "--newer-qemu" => {
            bench::rerun_with_newer_qemu(rest)
        }
        ("bench", []) => bench::run_bench(&Part::ALL),
        ("bench", [part]) if Part::named(part).is_some() => {
            bench::run_bench(Part::named(part).as_slice())
        }
        ("disks", names) => disks::build_disks(names),
        ("fuzz", []) => fuzz::run_fuzz("60"),
        ("fuzz", [seconds]) if seconds.parse::<u32>().is_ok() => fuzz::run_fuzz(seconds),
        ("docs", []) => docs::build_book(),
        ("package", []) => package::check_packages(),
        ("picture", []) => picture::draw_picture(),
        ("prose", []) => prose::check(),
        ("prose", [place]) => prose::list(place),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
