//! The README against the code: its configuration is valid, and its commands exist.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use castra::config::{Surroundings, parse};
use castra_test_support::castra_program;
use castra_test_support::help::subcommands;

const README: &str = include_str!("../../README.md");

/// Returns the blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    README.split(fence.as_str()).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn its_configuration_is_valid() {
    let blocks = blocks("toml");
    assert!(!blocks.is_empty(), "the example is gone");
    for block in blocks {
        let known_images = [("alpine-minimal", "v1"), ("alpine-pypi", "v1")];
        let surroundings = Surroundings { home: None, known_images: &known_images, allowed_outside: &[] };
        let project = parse(block, Path::new("/project/castra.toml"), &surroundings);
        let project = project.unwrap_or_else(|error| panic!("{error}"));
        assert!(project.warnings.is_empty(), "{}", project.warnings);
    }
}

#[test]
fn its_table_has_every_command_and_no_other() {
    let rows = README.lines().filter_map(|line| line.strip_prefix("| `castra "));
    let told: BTreeSet<String> =
        rows.filter_map(|row| row.split([' ', '`']).next().map(str::to_owned)).collect();
    assert_eq!(told, subcommands(&[]).into_iter().collect());
}

#[test]
fn what_it_types_is_understood() {
    let lines = blocks("console").into_iter().flat_map(str::lines);
    let typed: Vec<&str> =
        lines.filter_map(|line| line.strip_prefix("$ ")).filter(|line| line.starts_with("castra ")).collect();
    assert!(!typed.is_empty(), "the example is gone");
    for line in typed {
        let words = line.split(' ').skip(1).take_while(|word| *word != "--");
        let output = Command::new(castra_program()).args(words).arg("--help").output();
        assert!(output.expect("castra runs").status.success(), "{line}");
    }
}
