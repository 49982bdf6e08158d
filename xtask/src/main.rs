//! `cargo xtask demo | test | ci | bench`: the project's own commands. They install what they need.

mod bench;
mod ci;
mod demo;
mod run;
mod tools;

use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask demo          install QEMU if it is missing, build, start a VM in an empty directory, run a command in it
cargo xtask test [ARGS]   install what tests need, run all of them; ARGS go to the test runner
cargo xtask ci            formatting, lints, licences, documentation, all tests
cargo xtask bench         how fast Castra is, as ratios against baselines measured in the same run";

#[expect(clippy::print_stderr, reason = "a command line tool talks to its user")]
fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    let outcome = match (command.as_str(), rest.as_slice()) {
        ("demo", []) => demo::run_demo(),
        ("test", rest) => ci::test(rest),
        ("ci", []) => ci::run_checks(),
        ("bench", []) => bench::run_bench(),
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
