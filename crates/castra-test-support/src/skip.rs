//! Skipped tests, made visible: a test that cannot run here reports that, and CI fails because of
//! it.

use std::io::Write as _;

/// Variable with the file in which `cargo xtask` collects the skipped tests of a run.
const SKIPPED_TESTS: &str = "CASTRA_SKIPPED_TESTS";

/// Reports that the running test is skipped because of `reason`; the test returns right after.
///
/// The test runner only knows tests that passed or failed, so a bare `return` would look like a
/// test that passed.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let line = format!("SKIPPED {}: {reason}\n", thread.name().unwrap_or("a test"));
    std::io::stderr().write_all(line.as_bytes()).expect("stderr takes a line");
    if let Some(path) = std::env::var_os(SKIPPED_TESTS) {
        let mut file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(path)
            .expect("the list of skipped tests");
        file.write_all(line.as_bytes()).expect("the list takes a line");
    }
}
