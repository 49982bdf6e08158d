//! What has to pass before a change is good.

use std::process::Command;

use crate::run::{cargo, root, run, run_command};
use crate::tools;

/// What tests need compiled in and users do not.
const FOR_TESTS: &str = "castra/fail-points";

/// All checks, quickest first; the tests last, so that the runner's summary ends the output.
pub(crate) fn run_checks() -> Result<(), String> {
    let cargo = cargo();
    run(&cargo, &["fmt", "--all", "--check"])?;
    let lint = ["clippy", "--workspace", "--all-targets", "--features", FOR_TESTS, "--locked"];
    run(&cargo, &[lint.as_slice(), &["--", "-D", "warnings"]].concat())?;
    tools::ensure_deny()?;
    run(&cargo, &["deny", "check", "bans", "licenses", "sources"])?;
    let mut doc = Command::new(&cargo);
    doc.args(["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings");
    run_command(doc.current_dir(root()))?;
    test(&[])
}

/// All tests, documentation's first. `arguments` go to the runner.
pub(crate) fn test(arguments: &[String]) -> Result<(), String> {
    tools::ensure_for_tests()?;
    let cargo = cargo();
    if arguments.is_empty() {
        run(&cargo, &["test", "--workspace", "--doc", "--locked"])?;
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let nextest = ["nextest", "run", "--workspace", "--features", FOR_TESTS, "--locked", "--no-fail-fast"];
    run(&cargo, &[&nextest, arguments.as_slice()].concat())
}
