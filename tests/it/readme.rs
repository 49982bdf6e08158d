//! The README and the pages of `docs/` against the code: their configurations are valid, and their
//! commands exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use castra_engine::config::{Surroundings, parse};
use castra_engine::managed::Catalog;
use castra_test_support::castra_program;
use castra_test_support::help::subcommands;

/// Returns the README and every page of the book, by path.
fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = Vec::new();
    let mut unread = vec![root.join("README.md"), root.join("docs")];
    while let Some(path) = unread.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a directory");
            unread.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            let text = fs::read_to_string(&path).expect("a page");
            pages.push((path, text));
        }
    }
    assert!(pages.len() > 20, "the pages are gone: {}", pages.len());
    pages
}

/// Returns the blocks of a language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    page.split(fence.as_str()).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

/// Returns the calls of castra in a line of a shell, each as its words up to `--` or to the shell's
/// own words.
fn calls(line: &str) -> Vec<Vec<&str>> {
    let is_end = |word: &&str| {
        ["--", "|", ">", ">>", "<", "2>", "&&", "||", "\\"].contains(word) || word.starts_with('#')
    };
    line.match_indices("castra ")
        .filter(|(at, _)| *at == 0 || line[..*at].ends_with([' ', '(']))
        .map(|(at, name)| line[at + name.len()..].trim_start())
        .filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '-'))
        .map(|rest| rest.split(' ').take_while(|word| !is_end(word)).collect())
        .collect()
}

#[test]
fn every_image_of_the_catalog_is_described() {
    let page = include_str!("../../docs/images.md");
    for image in Catalog::builtin().images() {
        assert!(page.contains(&format!("`{}`", image.id)), "{} is not in docs/images.md", image.id);
    }
}

#[test]
fn every_configuration_is_valid() {
    let mut count = 0;
    for (path, page) in pages() {
        for block in blocks(&page, "toml") {
            let known_images =
                [("alpine-minimal", "v1"), ("alpine-pypi", "v1"), ("ubuntu-24.04", "1")];
            let surroundings =
                Surroundings { home: None, known_images: &known_images, allowed_outside: &[] };
            let project = parse(block, Path::new("/project/castra.toml"), &surroundings);
            let project = project.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(project.warnings.is_empty(), "{}: {}", path.display(), project.warnings);
            count += 1;
        }
    }
    assert!(count > 10, "the examples are gone: {count}");
}

#[test]
fn the_table_has_every_command_and_no_other() {
    let rows = include_str!("../../docs/commands.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `castra "));
    let listed: BTreeSet<String> =
        rows.filter_map(|row| row.split([' ', '`']).next().map(str::to_owned)).collect();
    assert_eq!(listed, subcommands(&[]).into_iter().collect());
}

#[test]
fn every_call_is_understood() {
    let mut count = 0;
    for (path, page) in pages() {
        let typed = blocks(&page, "console").into_iter().flat_map(str::lines);
        let typed = typed.filter_map(|line| line.strip_prefix("$ "));
        let scripts = blocks(&page, "sh").into_iter().flat_map(str::lines);
        for line in typed.chain(scripts.filter(|line| !line.starts_with('#'))) {
            for words in calls(line) {
                let output = Command::new(castra_program()).args(&words).arg("--help").output();
                let output = output.expect("castra runs");
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{}: {line}: {said}", path.display());
                count += 1;
            }
        }
    }
    assert!(count > 40, "the examples are gone: {count}");
}

#[test]
fn calls_are_found_wherever_a_shell_has_them() {
    let line =
        "port=$(castra up --json 2> events | jq) && CASTRA_OFFLINE=1 castra exec -- castra down";
    assert_eq!(calls(line), [vec!["up", "--json"], vec!["exec"], vec!["down"]]);
    assert!(calls("git clone https://example.org/castra && cd castra").is_empty());
}

/// Messages change: what the first column quotes is still said somewhere.
#[test]
fn troubleshooting_quotes_messages_there_are() {
    let mut sources = String::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut unread = ["src", "crates/castra-engine/src"].map(|path| root.join(path)).to_vec();
    while let Some(path) = unread.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a directory");
            unread.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push_str(&fs::read_to_string(&path).expect("a source"));
        }
    }
    let page = include_str!("../../docs/troubleshooting.md");
    let quotes = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let mut count = 0;
    for quote in quotes {
        // A part that a message fills in stands as `…`, or has digits in it.
        let parts = quote.split('…').map(str::trim).filter(|part| !part.contains(char::is_numeric));
        for part in parts.filter(|part| part.contains(' ')) {
            assert!(sources.contains(part), "no message says `{part}`");
            count += 1;
        }
    }
    assert!(count > 8, "the quotes are gone: {count}");
}

#[test]
fn the_reference_of_options_is_what_the_help_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
    let mut page =
        "# Command line options\n\nThis page is what `castra COMMAND --help` prints.\n".to_owned();
    describe(&[], &mut page);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &page).expect("written");
    }
    let published = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        published == page,
        "docs/cli.md is out of date: UPDATE_DOCS=1 cargo test --test it readme"
    );
}

/// Appends the help of a command and of those below it.
fn describe(command: &[&str], page: &mut String) {
    let help = Command::new(castra_program())
        .args(command)
        .arg("--help")
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .output()
        .expect("castra runs");
    let help = String::from_utf8(help.stdout).expect("text");
    // Global options stand with the first.
    let (begin, rest) = help.split_once("Global options:").unwrap_or((&help, ""));
    let end = rest.split_once("\n\n").map_or("", |(_, end)| end);
    let own =
        if command.is_empty() { help.clone() } else { format!("{}\n\n{end}", begin.trim_end()) };
    let name = [&["castra"], command].concat().join(" ");
    page.push_str(&format!("\n## `{name}`\n\n```text\n{}\n```\n", own.trim_end()));
    for below in subcommands(command) {
        describe(&[command, &[below.as_str()]].concat(), page);
    }
}
