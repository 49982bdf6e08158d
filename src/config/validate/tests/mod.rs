//! Whole documents: valid ones, wrong ones, and noise.

mod accepted;
mod hostile;
mod refused;

use std::path::Path;

use super::*;

const FILE: &str = "/project/castra.toml";
const KNOWN: [(&str, &str); 3] = [("alpine-minimal", "v2"), ("alpine-minimal", "v1"), ("alpine-pypi", "v1")];
const SHA: &str = "8f58945cd972f31b8a7e3116d2b33cdb4298e6b3c0609c0bfd083964678afffb";

fn parsed(text: &str) -> Result<ProjectConfig, ConfigError> {
    let surroundings = Surroundings { home: Some(Path::new("/home/ada")), known_images: &KNOWN };
    parse(text, Path::new(FILE), &surroundings)
}

fn project(text: &str) -> ProjectConfig {
    parsed(text).unwrap_or_else(|error| panic!("{error}"))
}

/// What a user sees of a document that is refused.
fn refusal(text: &str) -> String {
    parsed(text).expect_err("it must be refused").to_string()
}

/// Compares what a user sees of each of these documents with `snapshots/refused_<what>.snap`.
fn assert_refusals(what: &str, documents: &[String]) {
    let refusals: Vec<String> = documents.iter().map(|text| refusal(text)).collect();
    assert_shown(&format!("refused_{what}"), &refusals.join("\n\n=====\n\n"));
}

fn assert_shown(name: &str, shown: &str) {
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!(name, shown);
    });
}

/// A document for each of these values, put where the pattern has `@`.
fn each(pattern: &str, values: &[&str]) -> Vec<String> {
    values.iter().map(|value| pattern.replace('@', value)).collect()
}

/// A document of one VM with these further lines.
fn vm(lines: &str) -> String {
    format!("[[vms]]\nname = \"dev\"\nmanaged_image = \"alpine-minimal\"\n{lines}\n")
}

/// A document of one VM and the image `mine` with these lines.
fn image(lines: &str) -> String {
    format!("[[vms]]\nname = \"dev\"\nmanaged_image = \"mine\"\n\n[images.mine]\n{lines}\n")
        .replace("SHA", SHA)
}
