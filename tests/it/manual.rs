//! `castra man`: pages that formatters accept, and that describe everything there is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use castra_test_support::Project;

/// Variables for scripts of ours and for tests, not for users.
const OURS: [&str; 3] = ["CASTRA_COMPLETE", "CASTRA_PARK_AT", "CASTRA_PARK_FILE"];

fn pages(project: &Project) -> Vec<PathBuf> {
    let written = project.run(&["man", "share/man/man1"]).ok().text();
    written.lines().map(PathBuf::from).collect()
}

#[test]
fn formatters_take_every_page_without_a_warning() {
    let project = Project::isolated();
    let pages = pages(&project);
    assert!(pages.len() > 20, "{pages:?}");
    // Warnings about the page's text, not about its date, which would make every build differ.
    let formatters: [(&str, &[&str]); 2] = [
        ("groff", &["-man", "-ww", "-Kutf8", "-Tutf8", "-z"]),
        ("mandoc", &["-T", "lint", "-W", "error"]),
    ];
    for (program, arguments) in formatters {
        for page in &pages {
            let output = Command::new(program).args(arguments).arg(page).output();
            let output = output.unwrap_or_else(|error| {
                panic!("{program}: {error}; `cargo xtask test` installs it")
            });
            let said = [output.stdout, output.stderr].concat();
            assert!(
                said.is_empty(),
                "{program} {}: {}",
                page.display(),
                String::from_utf8_lossy(&said)
            );
        }
    }
}

#[test]
fn one_page_is_printed_and_all_are_written() {
    let project = Project::isolated();
    let written = pages(&project);
    let main = &written[0];
    assert_eq!(main.file_name().and_then(|name| name.to_str()), Some("castra.1"));
    assert_eq!(project.run(&["man"]).ok().text(), fs::read_to_string(main).expect("a page"));
    let up = written.iter().find(|page| page.ends_with("castra-up.1")).expect("a page");
    let text = fs::read_to_string(up).expect("a page");
    assert!(text.contains("\\-\\-boot\\-timeout") && !text.contains("\\-\\-offline"), "{text}");
    let document: serde_json::Value =
        serde_json::from_slice(&project.run(&["man", "--json"]).ok().stdout).expect("JSON");
    assert_eq!(document["pages"][0]["name"], "castra.1");
    project.write("file", "");
    project.run(&["man", "file"]).code(73);
}

#[test]
fn every_variable_that_is_read_is_in_the_manual_and_the_reference() {
    let mut read = BTreeSet::new();
    for sources in ["src", "crates/castra-engine/src"] {
        variables(&Path::new(env!("CARGO_MANIFEST_DIR")).join(sources), &mut read);
    }
    assert!(read.len() > 3, "{read:?}");
    let manual = Project::isolated().run(&["man"]).ok().text();
    let reference = include_str!("../../docs/environment.md");
    for name in read.iter().filter(|name| !OURS.contains(&name.as_str())) {
        assert!(manual.contains(name.as_str()), "castra(1) does not name {name}");
        assert!(
            reference.contains(&format!("| `{name}` |")),
            "docs/environment.md does not have {name}"
        );
    }
}

#[test]
fn the_reference_and_the_manual_list_the_same_exit_codes() {
    let reference = include_str!("../../docs/exit-codes.md");
    let manual = Project::isolated().run(&["man"]).ok().text();
    let codes = manual.split(".SH \"EXIT STATUS\"").nth(1).expect("the section");
    let codes = codes
        .split(".SH")
        .next()
        .expect("its end")
        .lines()
        .filter_map(|line| line.strip_prefix("\\fB")?.strip_suffix("\\fR"));
    let mut count = 0;
    for code in codes.filter(|code| !["1", "128"].contains(code)) {
        let is_listed = reference.split(|c: char| !c.is_ascii_digit()).any(|number| number == code);
        assert!(is_listed, "docs/exit-codes.md does not have exit code {code}");
        count += 1;
    }
    assert!(count > 10, "{manual}");
}

/// Collects names of variables in the sources, as text in quotes.
fn variables(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            variables(&path, found);
        } else {
            let text = fs::read_to_string(&path).expect("a source");
            let quoted = text.split('"').filter(|word| word.starts_with("CASTRA_"));
            found.extend(
                quoted
                    .filter(|word| {
                        word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
                    })
                    .map(str::to_owned),
            );
        }
    }
}
