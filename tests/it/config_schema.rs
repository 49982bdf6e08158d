//! `docs/castra.schema.json` against the code: it is up to date, agrees with the parser, and
//! accepts every example.

use std::collections::BTreeSet;
use std::path::Path;

use castra_engine::config::{SCHEMA_URL, Surroundings, TemplateBase, json_schema, parse, template};
use jsonschema::Validator;
use serde_json::Value;

const PUBLISHED: &str = include_str!("../../docs/castra.schema.json");
const DIGEST: &str = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";

fn validator() -> Validator {
    jsonschema::draft7::new(&json_schema()).expect("a schema")
}

fn as_json(text: &str) -> Value {
    serde_json::to_value(toml::from_str::<toml::Value>(text).expect("TOML")).expect("JSON")
}

#[track_caller]
fn assert_valid(validator: &Validator, text: &str) {
    let document = as_json(text);
    let problems: Vec<String> = validator
        .iter_errors(&document)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(problems.is_empty(), "{}\n{text}", problems.join("\n"));
}

fn toml_blocks(text: &str) -> Vec<&str> {
    text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn what_is_published_is_what_the_code_says() {
    let current = format!("{:#}\n", json_schema());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/castra.schema.json");
        std::fs::write(path, &current).expect("written");
    }
    assert!(
        PUBLISHED == current,
        "docs/castra.schema.json is out of date: UPDATE_DOCS=1 cargo test --test it config_schema"
    );
    let published: Value = serde_json::from_str(PUBLISHED).expect("JSON");
    assert!(jsonschema::meta::is_valid(&published), "it is no JSON Schema");
    assert!(
        SCHEMA_URL.ends_with(&format!("/v{}/docs/castra.schema.json", env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn every_example_is_valid() {
    let validator = validator();
    let readme = toml_blocks(include_str!("../../README.md"));
    let reference = toml_blocks(include_str!("../../docs/config.md"));
    assert!(!readme.is_empty() && reference.len() >= 6, "the examples are gone");
    for example in readme.into_iter().chain(reference) {
        assert_valid(&validator, example);
    }
    let written = template("demo", "alpine-minimal", TemplateBase::Managed("alpine-minimal"));
    assert_valid(&validator, &written);
    assert!(
        include_str!("../../docs/config.md").contains(SCHEMA_URL),
        "docs/config.md names another version's schema"
    );
    assert_eq!(written.lines().next(), Some(format!("#:schema {SCHEMA_URL}").as_str()));
}

#[test]
fn hostile_documents_are_refused() {
    let validator = validator();
    for text in [
        "",
        "vms = []",
        "[vms]\nname = \"dev\"",
        "[[vms]]\nname = \"../up\"\nmanaged_image = \"a\"",
        "[[vms]]\nname = \"a/b\"\nmanaged_image = \"a\"",
        "[[vms]]\nname = \"-rf\"\nmanaged_image = \"a\"",
        "[[vms]]\nname = \"dev\"",
        "[[vms]]\nname = \"dev\"\nmanaged_image = \"a\"\nbase_image = \"b\"",
        "[[vms]]\nname = \"dev\"\nmanaged_image = \"a\"\ncpu = 4",
        "[[vms]]\nname = \"dev\"\nmanaged_image = \"a\"\nmemory = \"1.5 GiB\"",
        "[[vms]]\nname = \"dev\"\nmanaged_image = \"a\"\n\
        port_forwards = [{ host = 0, guest = 80 }]",
        "[[vms]]\nname = \"dev\"\nmanaged_image = \"a\"\n[images]\n\
        mirrors = [\"http://m.example\"]",
        "[[vms]]\nname = \"dev\"\nmanaged_image = \"a\"\n[images.keys]\n\
        debian = \"debian.asc\"",
        "[[vms]]\nname = \"dev\"\nmanaged_image = \"a\"\n[images.\"../evil\"]\n\
        rootfs = { path = \"d\", sha256 = \"00\" }",
        "[[vms]]\nname = \"dev\"\nmanaged_image = \"a\"\n[images.mine]\n\
        rootfs = { url = \"file:///etc/passwd\" }",
    ] {
        assert!(!validator.is_valid(&as_json(text)), "{text}");
    }
}

/// Returns the parser's message about a document.
fn message(text: &str) -> String {
    let surroundings = Surroundings {
        home: None,
        known_images: &[("alpine-minimal", "v1")],
        allowed_outside: &[],
    };
    match parse(text, Path::new("/project/castra.toml"), &surroundings) {
        Ok(project) => project.warnings.to_string(),
        Err(error) => error.to_string(),
    }
}

/// Returns the words in backquotes after this text.
fn words_behind<'t>(text: &'t str, begin: &str) -> BTreeSet<&'t str> {
    let list = text.split(begin).nth(1).unwrap_or_else(|| panic!("no {begin:?} in\n{text}"));
    let list = list.split(".\n").next().unwrap_or(list);
    list.split('`').skip(1).step_by(2).collect()
}

fn definition<'s>(schema: &'s Value, name: &str) -> &'s Value {
    if name == "castra.toml" { schema } else { &schema["definitions"][name] }
}

#[test]
fn the_schema_has_the_keys_of_the_parser_and_no_others() {
    let schema = json_schema();
    let vm = "[[vms]]\nname = \"dev\"\nmanaged_image = \"alpine-minimal\"\n";
    let image = |lines: &str| format!("{vm}[images.mine]\n{lines}\n");
    let rootfs = |lines: &str| {
        image(&format!("rootfs = {{ path = \"d\", sha256 = \"{DIGEST}\", {lines} }}"))
    };
    for (definition_name, begin, text) in [
        ("castra.toml", "The keys of castra.toml are", format!("zzzzzzzz = 1\n{vm}")),
        ("Project", "The keys of [project] are", format!("[project]\nzzzzzzzz = 1\n{vm}")),
        ("Vm", "The keys of VM `dev` are", format!("{vm}zzzzzzzz = 1\n")),
        (
            "ManagedImageTable",
            "The keys of `managed_image` of VM `dev` are",
            "[[vms]]\nname = \"dev\"\nmanaged_image = { name = \"alpine-minimal\", zzzzzzzz = 1 }\n"
                .to_owned(),
        ),
        (
            "PortForward",
            "The keys of a port forward of VM `dev` are",
            format!("{vm}port_forwards = [{{ host = 1, guest = 1, zzzzzzzz = 1 }}]\n"),
        ),
        (
            "Mount",
            "The keys of a mount of VM `dev` are",
            format!("{vm}mounts = [{{ host = \".\", guest = \"/src\", zzzzzzzz = 1 }}]\n"),
        ),
        (
            "Image",
            "The keys of the image `mine` are",
            image(&format!("zzzzzzzz = 1\nrootfs = {{ path = \"d\", sha256 = \"{DIGEST}\" }}")),
        ),
        ("Rootfs", "The keys of the rootfs of the image `mine` are", rootfs("zzzzzzzz = 1")),
        (
            "Convert",
            "The keys of `convert` are",
            rootfs("pipeline = [{ convert = { from = \"raw\", to = \"qcow2\", zzzzzzzz = 1 } }]"),
        ),
        (
            "Python",
            "The keys of `python` are",
            image(&format!(
                "rootfs = {{ python = {{ package = \"p\", version = \"1\", zzzzzzzz = 1 }}, sha256 \
                = \"{DIGEST}\" }}"
            )),
        ),
    ] {
        let problems = message(&text);
        let parsed = words_behind(&problems, begin);
        let properties = definition(&schema, definition_name)["properties"].as_object();
        let properties = properties.unwrap_or_else(|| panic!("no properties of {definition_name}: \
            {schema}"));
        let keys: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
        assert_eq!(keys, parsed, "{definition_name}");
        assert!(
            properties.values().all(|property| property.get("description").is_some()),
            "{definition_name}"
        );
    }
}

#[test]
fn the_schema_has_the_words_of_the_parser_and_no_others() {
    let schema = json_schema();
    let vm = "[[vms]]\nname = \"dev\"\nmanaged_image = \"alpine-minimal\"\n";
    let step = |step: &str| {
        format!(
            "{vm}[images.mine]\n\
            rootfs = {{ path = \"d\", sha256 = \"{DIGEST}\", pipeline = [{step}] }}\n"
        )
    };
    for (definition_name, text) in [
        ("BootProfile", format!("{vm}boot_profile = \"zzzzzzzz\"\n")),
        (
            "Protocol",
            format!("{vm}port_forwards = [{{ host = 1, guest = 1, protocol = \"zzzzzzzz\" }}]\n"),
        ),
        (
            "Disk",
            "[[vms]]\nname = \"dev\"\n\
            managed_image = { name = \"alpine-minimal\", disk = \"zzzzzzzz\" }\n"
                .to_owned(),
        ),
        ("Format", step("{ convert = { from = \"zzzzzzzz\", to = \"qcow2\" } }")),
        ("Compression", step("{ decompress = \"zzzzzzzz\" }")),
    ] {
        let problems = message(&text);
        let parsed = words_behind(&problems, "It can be");
        let words = words_of(definition(&schema, definition_name));
        assert_eq!(
            words.iter().map(String::as_str).collect::<BTreeSet<_>>(),
            parsed,
            "{definition_name}"
        );
    }
    let problems = message(&step("\"zzzzzzzz\""));
    let steps = definition(&schema, "Step")["oneOf"].as_array().expect("steps");
    let name = |step: &Value| match step["properties"].as_object() {
        Some(properties) => properties.keys().next().cloned(),
        None => words_of(step).into_iter().next(),
    };
    let names: BTreeSet<String> = steps.iter().filter_map(name).collect();
    assert_eq!(
        names.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        words_behind(&problems, "Steps are")
    );
}

/// Returns the words that a schema allows: of `enum`, `const`, or of a choice of those.
fn words_of(schema: &Value) -> BTreeSet<String> {
    let choices = schema["oneOf"].as_array().into_iter().flatten().flat_map(words_of);
    let words = schema["enum"].as_array().into_iter().flatten().chain(schema.get("const"));
    words.filter_map(|word| word.as_str().map(str::to_owned)).chain(choices).collect()
}
