//! The schema of `--json` against the code, for every command.

use std::collections::BTreeSet;
use std::path::Path;

use castra_test_support::Project;
use castra_test_support::help::subcommands;
use castra_test_support::schema::SCHEMA;
use serde_json::Value;

/// Commands whose output is for people, for a shell or in a protocol of its own.
const WITHOUT: &[&str] = &["shell", "console", "mcp"];

#[test]
fn the_schema_is_that_of_the_code() {
    let current = serde_json::to_string_pretty(&castra::cli::json_schema()).expect("JSON") + "\n";
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/json.schema.json");
        std::fs::write(path, &current).expect("written");
    }
    assert!(
        SCHEMA == current,
        "docs/json.schema.json is out of date: UPDATE_DOCS=1 cargo test --test it json"
    );
}

#[test]
fn every_command_has_a_schema() {
    let schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
    let definitions: BTreeSet<&str> =
        schema["$defs"].as_object().expect("definitions").keys().map(String::as_str).collect();
    for command in subcommands(&[]) {
        let below = subcommands(&[&command]);
        let names = if below.is_empty() {
            vec![command.clone()]
        } else {
            below.iter().map(|sub| format!("{command} {sub}")).collect()
        };
        for name in names.iter().filter(|name| !WITHOUT.contains(&name.as_str())) {
            assert!(definitions.contains(name.as_str()), "`{name}` has no schema");
        }
    }
}

#[test]
fn an_error_is_a_line_that_fits_the_schema() {
    let project = Project::isolated();
    let ended = project.run(&["status", "nosuch", "--json"]).code(66);
    assert!(ended.stdout.is_empty());
    let [line] = <[Value; 1]>::try_from(ended.events()).expect("one line");
    assert_eq!(line["event"], "error");
    assert_eq!(line["error"]["kind"], "not-found");
    assert_eq!(line["error"]["exit_code"], 66);
    assert_eq!(line["error"]["hint"], "`castra status` lists the VMs of this project.");
    project.run(&["shell", "--json"]).code(64).says("has no JSON output");
    project.run(&["mcp", "--json"]).code(64).says("has no JSON output");
}

#[test]
fn what_is_declared_is_listed_before_it_is_there() {
    let project = Project::isolated();
    project.write("castra.toml", "[[vms]]\nname = \"web\"\nmanaged_image = \"alpine-minimal\"\n");
    let ended = project.run(&["status", "--json"]).ok();
    let status = ended.document("status");
    assert_eq!(
        (&status["vms"][0]["name"], &status["vms"][0]["state"]),
        (&"web".into(), &"not-created".into())
    );
    let path = project.path().join(".castra/vms/web");
    std::fs::create_dir_all(&path).expect("made");
    std::fs::write(path.join("vm.json"), "{").expect("written");
    project.adopt();
    let ended = project.run(&["status", "--json"]).code(65);
    let status = ended.document("status");
    assert_eq!(status["vms"][0]["state"], "unknown");
    assert_eq!(status["vms"][0]["error"]["kind"], "data");
    let started = project.run(&["init", "--json", "--config", "other.toml"]).ok().document("init");
    assert_eq!(started["path"], "other.toml");
}
