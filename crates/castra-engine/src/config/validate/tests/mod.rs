//! Whole documents: valid ones, wrong ones, and noise. Each is also validated by the JSON Schema.

mod accepted;
mod hostile;
mod refused;

use std::path::Path;
use std::sync::LazyLock;

use super::*;

const FILE: &str = "/project/castra.toml";
const KNOWN: [(&str, &str); 3] =
    [("alpine-minimal", "v2"), ("alpine-minimal", "v1"), ("alpine-pypi", "v1")];
const SHA: &str = "8f58945cd972f31b8a7e3116d2b33cdb4298e6b3c0609c0bfd083964678afffb";

fn parsed(text: &str) -> Result<ProjectConfig, ConfigError> {
    let surroundings = Surroundings {
        home: Some(Path::new("/home/ada")),
        known_images: &KNOWN,
        allowed_outside: &[],
    };
    parse(text, Path::new(FILE), &surroundings)
}

fn project(text: &str) -> ProjectConfig {
    let project = parsed(text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        is_valid(text),
        project.warnings.is_empty(),
        "the schema disagrees: {text}\n{}",
        project.warnings
    );
    project
}

/// Returns `true` if the JSON Schema accepts a document. Text that is not TOML is not valid.
fn is_valid(text: &str) -> bool {
    static VALIDATOR: LazyLock<jsonschema::Validator> =
        LazyLock::new(|| jsonschema::draft7::new(&crate::config::json_schema()).expect("a schema"));
    let document = toml::from_str::<toml::Value>(text).ok();
    document
        .is_some_and(|document| VALIDATOR.is_valid(&serde_json::to_value(document).expect("JSON")))
}

/// Refusals that no schema can express, by name and number: they concern two places of the file at
/// once, the target of a path, numbers inside strings, or whole numbers written with a fraction.
const BEYOND_SCHEMA: &[(&str, &[usize])] = &[
    ("catalog_names_are_taken", &[0]),
    ("cpus", &[4]),
    ("data_disks", &[4, 5, 8, 9, 10, 11, 12, 13, 15]),
    ("disks", &[1]),
    ("disks_without_an_agent", &[0]),
    ("image_memory", &[0]),
    ("memory", &[3, 5, 11]),
    ("overlays", &[0, 1, 2, 3, 6, 7, 8, 9]),
    ("pipelines", &[7]),
    ("places", &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ("qemu_options", &[8, 14]),
    ("same_host_port", &[0]),
    ("same_name", &[0, 1]),
    ("state_directories", &[1, 2, 3]),
    ("steps", &[6]),
    ("steps_of_images", &[2, 3, 4]),
    ("steps_without_an_agent", &[0, 1]),
    ("unknown_images", &[0, 1, 2, 3]),
    ("versions", &[2]),
];

/// Returns the message that a user sees for a refused document.
fn refusal(text: &str) -> String {
    parsed(text).expect_err("it must be refused").to_string()
}

/// Compares the messages for these documents with `snapshots/refused_<what>.snap`.
fn assert_refusals(what: &str, documents: &[String]) {
    let valid: Vec<usize> =
        (0..documents.len()).filter(|number| is_valid(&documents[*number])).collect();
    let beyond = BEYOND_SCHEMA
        .iter()
        .find(|(name, _)| *name == what)
        .map_or(&[][..], |(_, numbers)| *numbers);
    assert_eq!(valid, beyond, "{what}: what the schema accepts and the parser refuses");
    let refusals: Vec<String> = documents.iter().map(|text| refusal(text)).collect();
    assert_shown(&format!("refused_{what}"), &refusals.join("\n\n=====\n\n"));
}

fn assert_shown(name: &str, shown: &str) {
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!(name, shown);
    });
}

/// Returns a document for each of these values, which replaces the `@` in the pattern.
fn each(pattern: &str, values: &[&str]) -> Vec<String> {
    values.iter().map(|value| pattern.replace('@', value)).collect()
}

/// Returns a document of one VM with these further lines.
fn vm(lines: &str) -> String {
    format!("[[vms]]\nname = \"dev\"\nmanaged_image = \"alpine-minimal\"\n{lines}\n")
}

/// Returns a document of one VM and the image `mine` with these lines.
fn image(lines: &str) -> String {
    format!("[[vms]]\nname = \"dev\"\nmanaged_image = \"mine\"\n\n[images.mine]\n{lines}\n")
        .replace("SHA", SHA)
}
