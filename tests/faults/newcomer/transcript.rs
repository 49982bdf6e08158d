//! Output of a command without anything that differs from run to run.

use std::path::Path;

use castra_test_support::{Ended, Project};

/// Patterns of varying text, and their replacements. Directories of a test are replaced before.
const FILTERS: [(&str, &str); 11] = [
    (r"process \d+", "process [PID]"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:[PORT]"),
    (r"port \d+", "port [PORT]"),
    (r"`faults-[0-9a-f]+`", "`[TEST]`"),
    (r"\d+ MiB( are)? available", "[N] MiB available"),
    (r"retrying in [\d.]+ s", "retrying in [N] s"),
    (r"sport = :\d+", "sport = :[PORT]"),
    (r"\b[0-9a-f]{64}\b", "[SHA256]"),
    (r"/[0-9a-f]{12}/", "/[PROJECT]/"),
    (r"\(\d+ bytes;", "([N] bytes;"),
    (r"\d+(\.\d+)? KiB are", "[SIZE] are"),
];

/// Returns a command, its exit code and its output, as a newcomer sees them.
pub(crate) fn transcript(project: &Project, words: &[&str]) -> String {
    transcript_of(project, words, &project.run(words))
}

pub(crate) fn transcript_of(project: &Project, words: &[&str], ended: &Ended) -> String {
    let root = project.path().parent().expect("a parent").to_string_lossy().into_owned();
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).to_string_lossy().into_owned();
    let said = ended.stderr.replace(&root, "[ROOT]").replace(&home, "[CASTRA]");
    let code = ended.code.map_or("none".to_owned(), |code| code.to_string());
    format!("$ castra {}\n{said}[exit code {code}]\n", words.join(" "))
}

/// Compares with the recorded output, and insists on a next step.
#[track_caller]
pub(crate) fn holds(name: &str, transcript: &str) {
    let has_next_step = ["hint:", "help:", "tip:", "For more information, try"]
        .iter()
        .any(|sign| transcript.contains(sign));
    assert!(has_next_step, "there is no way out of\n{transcript}");
    let settings = {
        let mut settings = insta::Settings::clone_current();
        FILTERS.iter().for_each(|(what, name)| settings.add_filter(what, *name));
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings
    };
    settings.bind(|| insta::assert_snapshot!(name, transcript));
}
